//! From an HTTP request to streams: settles the transport and its protocol, answers 101, and does the work on the
//! connection that has switched.

use std::sync::Arc;

use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio_util::sync::CancellationToken;

use super::port_forward::{self, Owner};
use super::tunnel::Tunnel;
use super::{Target, Wanted, dial, port_channels, spdy, websocket};
use crate::edge::Containers;

/// A request that does not switch.
#[derive(Debug, PartialEq, Eq)]
pub struct Refused {
    /// 400 or 403.
    pub status: StatusCode,
    /// For the client.
    pub message: String,
    /// SPDY protocols that would have been accepted.
    pub accepted: &'static [&'static str],
}

impl Refused {
    fn bad(message: impl Into<String>) -> Self {
        Refused { status: StatusCode::BAD_REQUEST, message: message.into(), accepted: &[] }
    }

    /// The answer, around a body of the message.
    pub fn response<B>(&self, body: B) -> Response<B> {
        let mut response = Response::new(body);
        *response.status_mut() = self.status;
        for name in self.accepted {
            response.headers_mut().append(spdy::ACCEPTED_VERSIONS, HeaderValue::from_static(name));
        }
        response
    }
}

/// What connections that carry streams work with; they end with `stop`.
#[derive(Clone)]
pub struct Upgrades {
    /// Where processes run.
    pub containers: Arc<dyn Containers>,
    /// Ends them all.
    pub stop: CancellationToken,
}

/// What exec and attach run over, with the protocol agreed on.
enum Transport {
    WebSocket(websocket::Protocol),
    Spdy(&'static str),
}

/// What port-forward runs over.
enum Forward {
    Spdy,
    Tunnel,
    Channels(websocket::Protocol, Vec<u16>),
}

impl Upgrades {
    /// exec or attach in container `id`.
    ///
    /// # Errors
    /// When the request asks for no transport or protocol that is spoken here.
    pub fn run<R>(
        &self,
        request: Request<R>,
        id: String,
        target: Target,
        wanted: Wanted,
    ) -> Result<Response<()>, Refused> {
        let (transport, response) = agree(request.headers())?;
        let containers = self.containers.clone();
        self.carry(request, move |upgraded| async move {
            match transport {
                Transport::WebSocket(protocol) => {
                    let (session, carry) = websocket::session(upgraded, protocol);
                    // The transport ends last: it still has to send what the process said.
                    tokio::join!(super::run(containers, &id, target, wanted, session), carry);
                }
                Transport::Spdy(protocol) => {
                    let io = TokioIo::new(upgraded);
                    let Some((session, carry)) = spdy::session(io, protocol, wanted).await else { return };
                    tokio::join!(super::run(containers, &id, target, wanted, session), carry);
                }
            }
        });
        Ok(response)
    }

    /// Port-forward to the sandbox of a Pod: SPDY bare, SPDY tunnelled through WebSocket, or WebSocket channels.
    ///
    /// # Errors
    /// As [`Self::run`], and when channels are asked for without ports.
    pub fn forward<R>(&self, request: Request<R>, owner: Owner) -> Result<Response<()>, Refused> {
        let (transport, response) = agree_forward(&request)?;
        let dial = Arc::new(dial::Sandbox { containers: self.containers.clone(), id: owner.uid.clone() });
        self.carry(request, move |upgraded| async move {
            let io = TokioIo::new(upgraded);
            match transport {
                Forward::Spdy => port_forward::serve(io, dial, owner).await,
                Forward::Tunnel => port_forward::serve(Tunnel::new(io).await, dial, owner).await,
                Forward::Channels(protocol, ports) => {
                    port_channels::serve(io, protocol, ports, dial, owner).await;
                }
            }
        });
        Ok(response)
    }

    fn carry<R, F>(&self, request: Request<R>, work: impl FnOnce(Upgraded) -> F + Send + 'static)
    where
        F: Future<Output = ()> + Send,
    {
        let upgrade = hyper::upgrade::on(request);
        let stop = self.stop.clone();
        tokio::spawn(async move {
            let upgraded = match upgrade.await {
                Ok(upgraded) => upgraded,
                Err(error) => return tracing::debug!(%error, "upgrading a connection"),
            };
            tokio::select! {
                () = work(upgraded) => {}
                () = stop.cancelled() => {}
            }
        });
    }
}

fn agree(headers: &HeaderMap) -> Result<(Transport, Response<()>), Refused> {
    if websocket::is_upgrade(headers) {
        let protocol = websocket::choose(headers)
            .ok_or_else(|| Refused::bad("unable to upgrade: no supported subprotocol in request"))?;
        let response = websocket::accept(headers, protocol.name).map_err(Refused::bad)?;
        return Ok((Transport::WebSocket(protocol), response));
    }
    let (protocol, response) = agree_spdy(headers, &spdy::PROTOCOLS)?;
    Ok((Transport::Spdy(protocol), response))
}

fn agree_forward<R>(request: &Request<R>) -> Result<(Forward, Response<()>), Refused> {
    let headers = request.headers();
    if !websocket::is_upgrade(headers) {
        return Ok((Forward::Spdy, agree_spdy(headers, &[port_forward::PROTOCOL])?.1));
    }
    if websocket::offers(headers, port_forward::TUNNELED) {
        let response = websocket::accept(headers, port_forward::TUNNELED).map_err(Refused::bad)?;
        return Ok((Forward::Tunnel, response));
    }
    let protocol = websocket::choose_of(&websocket::PORT_FORWARD, headers)
        .ok_or_else(|| Refused::bad("unable to upgrade: no supported subprotocol in request"))?;
    let ports = port_channels::ports(request.uri().query().unwrap_or_default()).map_err(Refused::bad)?;
    let response = websocket::accept(headers, protocol.name).map_err(Refused::bad)?;
    Ok((Forward::Channels(protocol, ports), response))
}

fn agree_spdy(
    headers: &HeaderMap,
    accepted: &'static [&'static str],
) -> Result<(&'static str, Response<()>), Refused> {
    if !spdy::is_upgrade(headers) {
        return Err(Refused::bad("unable to upgrade: missing upgrade headers in request"));
    }
    match spdy::negotiate(headers, accepted) {
        Ok(protocol) => Ok((protocol, spdy::accept(protocol))),
        Err(refusal @ spdy::Refusal::Missing) => Err(Refused::bad(refusal.to_string())),
        Err(refusal) => {
            Err(Refused { status: StatusCode::FORBIDDEN, message: refusal.to_string(), accepted })
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    fn headers(list: &[(&'static str, &'static str)]) -> HeaderMap {
        list.iter().map(|(k, v)| (k.parse().unwrap(), HeaderValue::from_static(v))).collect()
    }

    #[test]
    fn the_first_of_the_clients_protocols_that_is_spoken() {
        // As kubectl 1.29 sends them.
        let mut request = headers(&[("connection", "Upgrade"), ("upgrade", "SPDY/3.1")]);
        for name in ["v5.channel.k8s.io", "v4.channel.k8s.io", "v3.channel.k8s.io"] {
            request.append(spdy::PROTOCOL_VERSION, HeaderValue::from_static(name));
        }
        let Ok((Transport::Spdy(protocol), response)) = agree(&request) else { panic!("no agreement") };
        assert_eq!(protocol, "v4.channel.k8s.io");
        assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
        assert_eq!(response.headers()["upgrade"], "SPDY/3.1");
        assert_eq!(response.headers()["x-stream-protocol-version"], "v4.channel.k8s.io");
    }

    #[test]
    fn refusals() {
        let spdy = [("connection", "Upgrade"), ("upgrade", "SPDY/3.1")];
        let refused = |list: &[_]| agree(&headers(list)).map(|_| ()).unwrap_err();
        assert_eq!(refused(&[]).message, "unable to upgrade: missing upgrade headers in request");
        assert_eq!(refused(&spdy).message, "unable to upgrade: X-Stream-Protocol-Version is required");
        let chat = refused(&[spdy[0], spdy[1], ("x-stream-protocol-version", "v9, chat")]);
        assert_eq!(
            chat.message,
            "unable to upgrade: unable to negotiate protocol: client supports [v9 chat], server accepts \
             [v4.channel.k8s.io v3.channel.k8s.io v2.channel.k8s.io channel.k8s.io]"
        );
        let response = chat.response(());
        assert_eq!(response.status(), StatusCode::FORBIDDEN);
        assert_eq!(response.headers().get_all(spdy::ACCEPTED_VERSIONS).iter().count(), 4);
    }
}
