//! Who may come in: address, certificate, password, and what an authority says. nginx's access phase.

use std::sync::Arc;
use std::time::Duration;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Response, StatusCode};

use super::facts::Facts;
use super::page::{Stop, page, redirect, status};
use crate::annotations::auth::External;
use crate::annotations::client_tls::{ClientTls, Verify};
use crate::body::Body;
use crate::client_tls::{Authority, Owner};
use crate::configmap::{Global, Match};
use crate::variables::escape;

/// How long an authority may take to be reached, and to answer.
const REACHED: Duration = Duration::from_secs(5);
const ANSWERED: Duration = Duration::from_secs(60);
/// Statuses that an authority's cookies go with, unless `auth-always-set-cookie`.
const WITH_COOKIES: [u16; 10] = [200, 201, 204, 206, 301, 302, 303, 304, 307, 308];

/// What somebody who came in brings along.
#[derive(Debug, Default)]
pub(super) struct Admitted {
    /// For the backend.
    pub headers: HeaderMap,
    /// For the client.
    pub cookies: Vec<HeaderValue>,
    pub always_set_cookie: bool,
}

impl Admitted {
    /// The authority's cookies for an answer of this status.
    pub fn cookies(&self, status: StatusCode) -> &[HeaderValue] {
        let fits = self.always_set_cookie || WITH_COOKIES.contains(&status.as_u16());
        if fits { &self.cookies } else { &[] }
    }
}

/// The client of authorities: connections are kept, redirects are answers.
pub(super) fn asker() -> reqwest::Result<reqwest::Client> {
    // As ingress-nginx asks: encrypted, but whoever answers is believed.
    let tls = tls::unverified().map(|config| (*config).clone()).ok();
    let builder = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none());
    let builder = builder.connect_timeout(REACHED).read_timeout(ANSWERED).no_proxy();
    match tls {
        Some(config) => builder.tls_backend_preconfigured(config).build(),
        None => builder.build(),
    }
}

/// Clients that the ConfigMap shuts out.
pub(super) fn blocked(facts: &Facts<'_>, global: &Global) -> Result<(), Stop> {
    let matched = |list: &[Match], name: &HeaderName| {
        !list.is_empty() && facts.header(name).is_some_and(|text| list.iter().any(|m| m.is(text)))
    };
    let shut = crate::annotations::value::holds(&global.block, facts.client.address)
        || matched(&global.block_agents, &header::USER_AGENT)
        || matched(&global.block_referers, &header::REFERER);
    if shut { Err(StatusCode::FORBIDDEN.into()) } else { Ok(()) }
}

/// Lets a request in, or says why not.
pub(super) async fn admit(
    facts: &Facts<'_>,
    global: &Global,
    asker: &reqwest::Client,
) -> Result<Admitted, Stop> {
    let served = &facts.location.served;
    let policy = &served.policy;
    let mut admitted = Admitted::default();
    if let Some(authority) = &served.authority {
        certificate(facts, &policy.client_tls, authority, &mut admitted.headers)?;
    }
    let free = global.no_auth.iter().any(|path| facts.location.path.starts_with(path.as_str()));
    let external = policy.auth.external.as_ref().filter(|_| !free);
    let basic = policy.auth.basic.as_ref().filter(|_| !free);
    let allowed = policy.access.allows(facts.client.address);
    if policy.access.any && (external.is_some() || basic.is_some()) {
        let listed = !policy.access.allow.is_empty() || !policy.access.deny.is_empty();
        if listed && allowed {
            return Ok(admitted);
        }
    } else if !allowed {
        return Err(StatusCode::FORBIDDEN.into());
    }
    if let Some(basic) = basic {
        let header = facts.parts.headers.get(header::AUTHORIZATION);
        let user = match (&served.users, header) {
            // The Secret is missing or no good: nobody can be let in.
            (None, _) => return Err(StatusCode::SERVICE_UNAVAILABLE.into()),
            (Some(_), None) => None,
            (Some(users), Some(header)) => Box::pin(users.check(header)).await,
        };
        match user {
            Some(_) if policy.access.any => return Ok(admitted),
            Some(_) => {}
            None if policy.access.any && external.is_some() => {}
            None => return Err(challenge(&basic.realm)),
        }
    }
    if let Some(external) = external {
        // Boxed as all that few requests need: the future of every request would be as large as this.
        Box::pin(ask(facts, external, asker, &mut admitted)).await?;
    }
    Ok(admitted)
}

fn challenge(realm: &str) -> Stop {
    let mut response = page(StatusCode::UNAUTHORIZED);
    if let Ok(value) = HeaderValue::from_str(&format!("Basic realm=\"{realm}\"")) {
        response.headers_mut().insert(header::WWW_AUTHENTICATE, value);
    }
    response.into()
}

/// Asks the authority: 2xx lets in, 401 and 403 are the answer, all else is a failure of ours.
async fn ask(
    facts: &Facts<'_>,
    external: &External,
    asker: &reqwest::Client,
    admitted: &mut Admitted,
) -> Result<(), Stop> {
    let url = facts.fill(&external.url);
    let method = external.method.clone().unwrap_or(http::Method::GET);
    let headers = question(facts, external);
    let asked = asker.request(method, &url).headers(headers).send().await;
    let answer = match asked {
        Ok(answer) => answer,
        Err(error) => {
            tracing::warn!(ingress = %facts.location.ingress, url, %error, "the authority did not answer");
            return Err(StatusCode::INTERNAL_SERVER_ERROR.into());
        }
    };
    admitted.always_set_cookie = external.always_set_cookie;
    admitted.cookies = answer.headers().get_all(header::SET_COOKIE).iter().cloned().collect();
    if answer.status().is_success() {
        for name in &external.response_headers {
            for value in answer.headers().get_all(name) {
                admitted.headers.append(name.clone(), value.clone());
            }
        }
        return Ok(());
    }
    let code = answer.status();
    if code == StatusCode::UNAUTHORIZED
        && let Some(signin) = &external.signin
    {
        return Err(sign_in(facts, &facts.fill(signin), &external.signin_parameter, admitted));
    }
    if !matches!(code.as_u16(), 401 | 403) {
        tracing::warn!(ingress = %facts.location.ingress, url, status = code.as_u16(), "the authority answered neither yes nor no");
        return Err(StatusCode::INTERNAL_SERVER_ERROR.into());
    }
    let mut response = page(code);
    for value in answer.headers().get_all(header::WWW_AUTHENTICATE) {
        response.headers_mut().append(header::WWW_AUTHENTICATE, value.clone());
    }
    if external.always_set_cookie {
        with_cookies(&mut response, &admitted.cookies);
    }
    Err(response.into())
}

fn with_cookies(response: &mut Response<Body>, cookies: &[HeaderValue]) {
    for cookie in cookies {
        response.headers_mut().append(header::SET_COOKIE, cookie.clone());
    }
}

/// Sends the user to sign in, and back here afterwards.
fn sign_in(facts: &Facts<'_>, to: &str, parameter: &str, admitted: &Admitted) -> Stop {
    let mut to = to.to_owned();
    let query = to.split_once('?').map(|(_, query)| query);
    if !query.is_some_and(|query| query.split('&').any(|pair| pair.split('=').next() == Some(parameter))) {
        to.push(if query.is_some() { '&' } else { '?' });
        to.push_str(parameter);
        to.push('=');
        let host = facts.asked.raw.to_str().unwrap_or_default();
        to.push_str(&format!("{}://{host}", facts.client.scheme()));
        escape(facts.uri(), &mut to);
    }
    let Stop(mut response) = redirect(302, &to);
    with_cookies(&mut response, &admitted.cookies);
    Stop(response)
}

/// What an authority is told: the request's headers without its body, and what it is about.
fn question(facts: &Facts<'_>, external: &External) -> HeaderMap {
    let mut headers = facts.parts.headers.clone();
    for name in [
        header::HOST,
        header::CONTENT_LENGTH,
        header::TRANSFER_ENCODING,
        header::CONNECTION,
        header::UPGRADE,
        header::TE,
        header::EXPECT,
        HeaderName::from_static("x-forwarded-proto"),
    ] {
        headers.remove(name);
    }
    let redirect = external.request_redirect.as_ref().map(|template| facts.fill(template));
    let texts = [
        ("x-original-url", facts.url()),
        ("x-original-method", facts.parts.method.to_string()),
        ("x-original-uri", facts.uri().to_owned()),
        ("x-sent-from", "nginx-ingress-controller".to_owned()),
        ("x-real-ip", facts.client.address.to_string()),
        ("x-forwarded-for", facts.client.address.to_string()),
        ("x-scheme", facts.client.scheme().to_owned()),
        ("x-request-id", facts.id.to_str().unwrap_or_default().to_owned()),
        ("x-auth-request-redirect", redirect.unwrap_or_else(|| facts.uri().to_owned())),
    ];
    for (name, text) in texts {
        if let Ok(value) = HeaderValue::from_str(&text) {
            headers.insert(HeaderName::from_static(name), value);
        }
    }
    for (name, value) in &facts.location.served.auth_headers {
        headers.insert(name.clone(), value.clone());
    }
    headers
}

/// Judges the client's certificate, and writes what the backend is told of it.
fn certificate(
    facts: &Facts<'_>,
    settings: &ClientTls,
    authority: &Arc<Authority>,
    out: &mut HeaderMap,
) -> Result<(), Stop> {
    let Some(verify) = settings.verify else { return Ok(()) };
    let Some(tls) = &facts.peer.tls else {
        // In the clear nobody can show one.
        let strict = verify == Verify::On;
        return if strict {
            Err(refused(settings, "400 No required SSL certificate was sent"))
        } else {
            Ok(())
        };
    };
    if !tls.asked {
        return Err(status(421).into());
    }
    let own = tls.chain.first();
    let verdict = own.map(|_| authority.judge(&tls.chain, settings.depth));
    let said = match &verdict {
        None => "NONE".to_owned(),
        Some(Ok(())) => "SUCCESS".to_owned(),
        Some(Err(why)) => format!("FAILED:{why}"),
    };
    match (verify, &verdict) {
        (Verify::On, None) => return Err(refused(settings, "400 No required SSL certificate was sent")),
        (Verify::On | Verify::Optional, Some(Err(_))) => {
            return Err(refused(settings, "400 The SSL certificate error"));
        }
        _ => {}
    }
    let owner = own.and_then(Owner::of);
    if let Some(pattern) = &settings.common_name
        && !owner.as_ref().is_some_and(|owner| pattern.is_match(&owner.common_name))
    {
        return Err(StatusCode::FORBIDDEN.into());
    }
    let mut set = |name: &'static str, text: &str| {
        let name = HeaderName::from_static(name);
        drop(HeaderValue::from_str(text).map(|value| out.insert(name, value)));
    };
    set("ssl-client-verify", &said);
    if let Some(owner) = owner {
        set("ssl-client-subject-dn", &owner.subject);
        set("ssl-client-issuer-dn", &owner.issuer);
    }
    if let Some(own) = own.filter(|_| settings.pass) {
        let mut text = String::new();
        escape(&pem(own), &mut text);
        set("ssl-client-cert", &text);
    }
    Ok(())
}

fn refused(settings: &ClientTls, title: &str) -> Stop {
    if let Some(page) = &settings.error_page {
        return redirect(302, page);
    }
    let text = format!(
        "<html>\n<head><title>{title}</title></head>\n<body>\n<center><h1>{title}</h1></center>\n</body>\n</html>\n"
    );
    let mut response = Box::new(Response::new(Body::full(text)));
    *response.status_mut() = StatusCode::BAD_REQUEST;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/html"));
    response.into()
}

fn pem(certificate: &[u8]) -> String {
    use base64::Engine;
    let coded = base64::engine::general_purpose::STANDARD.encode(certificate);
    let mut out = "-----BEGIN CERTIFICATE-----\n".to_owned();
    for line in coded.as_bytes().chunks(64) {
        out.push_str(&String::from_utf8_lossy(line));
        out.push('\n');
    }
    out + "-----END CERTIFICATE-----\n"
}
