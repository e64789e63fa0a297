//! A client over one HTTP/2 connection, as kubectl and every client in Go has it. The client of the `kube` crate speaks
//! HTTP/1.1, where each watch is a connection of its own.

use std::sync::Arc;

use anyhow::Context;
use http::Request;
use hyper_util::rt::{TokioExecutor, TokioIo};
use kube::client::{Body, ConfigExt};
use kube::{Client, Config};
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tower::{ServiceBuilder, service_fn};

/// A client of the cluster of the current context.
pub async fn client() -> anyhow::Result<Client> {
    let config = Config::infer().await.context("find the cluster of the current context")?;
    let host = config.cluster_url.host().context("a cluster without a host")?.to_owned();
    let port = config.cluster_url.port_u16().unwrap_or(443);
    let mut tls = config.rustls_client_config()?;
    tls.alpn_protocols = vec![b"h2".to_vec()];
    let stream = TcpStream::connect((host.as_str(), port)).await.with_context(|| format!("reach {host}"))?;
    stream.set_nodelay(true)?;
    let name = ServerName::try_from(host.clone())?;
    let stream = tokio_rustls::TlsConnector::from(Arc::new(tls)).connect(name, stream).await?;
    let io = TokioIo::new(stream);
    let (sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await?;
    // Ends with the last sender.
    tokio::spawn(connection);
    let send = service_fn(move |request: Request<Body>| {
        let mut sender = sender.clone();
        async move {
            sender.ready().await?;
            sender.send_request(request).await
        }
    });
    let service = ServiceBuilder::new().layer(config.base_uri_layer()).service(send);
    Ok(Client::new(service, config.default_namespace))
}
