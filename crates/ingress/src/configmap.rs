//! What ConfigMap `ingress-nginx-controller` says for all Ingresses, by ingress-nginx's keys; followed live.
//!
//! As with annotations, each key has one row that controller and documentation read; one that is not honoured is told
//! in an Event of the ConfigMap. Keys that are named as an annotation set its default.

#![allow(clippy::unit_arg, reason = "a row of a table is one expression: what is set, or why it cannot be")]

use std::collections::BTreeMap;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use ipnet::IpNet;
use regex::Regex;

use crate::annotations::value::{
    boolean, expression, header, list, networks, number, redirect_code, seconds, size, timeout,
};
use crate::annotations::{Policy, Support};
use crate::variables::Template;

/// The format of access logs that ingress-nginx has.
const UPSTREAM_INFO: &str = "$remote_addr - $remote_user [$time_local] \"$request\" $status $body_bytes_sent \
     \"$http_referer\" \"$http_user_agent\" $request_length $request_time [$proxy_upstream_name] \
     [$proxy_alternative_upstream_name] $upstream_addr $upstream_response_length $upstream_response_time \
     $upstream_status $req_id";

/// What a client that matches is refused by.
#[derive(Debug, Clone)]
pub(crate) enum Match {
    Text(String),
    Pattern(Regex),
}

impl Match {
    fn list(value: &str) -> Result<Vec<Self>, String> {
        let one = |text: &str| match text.strip_prefix("~*") {
            Some(pattern) => expression(&format!("(?i){pattern}")).map(Self::Pattern),
            None => match text.strip_prefix('~') {
                Some(pattern) => expression(pattern).map(Self::Pattern),
                None => Ok(Self::Text(text.to_owned())),
            },
        };
        list(value).map(one).collect()
    }

    pub fn is(&self, text: &str) -> bool {
        match self {
            Self::Text(only) => only == text,
            Self::Pattern(pattern) => pattern.is_match(text),
        }
    }
}

/// Settings of the whole controller.
#[derive(Debug, Clone)]
pub(crate) struct Global {
    /// What Ingresses begin with.
    pub policy: Policy,
    pub proxy_protocol: bool,
    pub forwarded: bool,
    pub full_forwarded: bool,
    pub forwarded_header: HeaderName,
    pub trusted: Vec<IpNet>,
    pub hsts: Option<HeaderValue>,
    hsts_parts: Hsts,
    /// None logs nothing.
    pub log: Option<Template>,
    pub log_escape_json: bool,
    pub log_skip: Vec<String>,
    log_on: bool,
    log_format: Template,
    pub idle: Duration,
    pub header_timeout: Duration,
    pub body_timeout: Duration,
    pub header_bytes: usize,
    pub http2: bool,
    pub streams: u32,
    pub connections: usize,
    pub drain: Duration,
    pub server_tokens: bool,
    pub hide: Vec<HeaderName>,
    pub add_headers: HeaderMap,
    pub set_headers: Vec<(HeaderName, Template)>,
    pub add_headers_from: Option<String>,
    pub set_headers_from: Option<String>,
    pub redirect_code: u16,
    pub limit_req_status: u16,
    pub limit_conn_status: u16,
    pub block: Vec<IpNet>,
    pub block_agents: Vec<Match>,
    pub block_referers: Vec<Match>,
    pub no_tls_redirect: Vec<String>,
    pub no_auth: Vec<String>,
    pub tls12: bool,
    pub tls13: bool,
    /// Headers that `custom-headers` may set; none is all.
    pub allowed_headers: Vec<HeaderName>,
}

#[derive(Debug, Clone, Copy)]
struct Hsts {
    on: bool,
    age: u64,
    subdomains: bool,
    preload: bool,
}

impl Default for Global {
    fn default() -> Self {
        let mut global = Self {
            policy: Policy::default(),
            proxy_protocol: false,
            forwarded: false,
            full_forwarded: false,
            forwarded_header: HeaderName::from_static("x-forwarded-for"),
            trusted: Vec::new(),
            hsts: None,
            hsts_parts: Hsts { on: true, age: 31_536_000, subdomains: true, preload: false },
            log: None,
            log_escape_json: false,
            log_skip: Vec::new(),
            log_on: true,
            log_format: Template::parse(UPSTREAM_INFO).unwrap_or_default(),
            idle: Duration::from_secs(75),
            header_timeout: Duration::from_secs(60),
            body_timeout: Duration::from_secs(60),
            header_bytes: 32 << 10,
            http2: true,
            streams: 128,
            connections: 16_384,
            drain: Duration::from_secs(240),
            server_tokens: false,
            hide: Vec::new(),
            add_headers: HeaderMap::new(),
            set_headers: Vec::new(),
            add_headers_from: None,
            set_headers_from: None,
            redirect_code: 308,
            limit_req_status: 503,
            limit_conn_status: 503,
            block: Vec::new(),
            block_agents: Vec::new(),
            block_referers: Vec::new(),
            no_tls_redirect: vec!["/.well-known/acme-challenge".into()],
            no_auth: vec!["/.well-known/acme-challenge".into()],
            tls12: true,
            tls13: true,
            allowed_headers: Vec::new(),
        };
        global.settle();
        global
    }
}

/// A key of the ConfigMap.
pub struct Key {
    /// Its name.
    pub name: &'static str,
    /// How far it is honoured.
    pub support: Support,
    read: fn(&mut Global, &str) -> Result<(), String>,
}

const fn key(name: &'static str, read: fn(&mut Global, &str) -> Result<(), String>) -> Key {
    Key { name, support: Support::Honoured, read }
}

const fn moot(name: &'static str, why: &'static str) -> Key {
    Key { name, support: Support::Moot(why), read: |_, _| Ok(()) }
}

const fn refused(name: &'static str, instead: &'static str) -> Key {
    Key { name, support: Support::Refused(instead), read: |_, _| Ok(()) }
}

/// Keys that are the default of the annotation of this name.
pub const DEFAULTS: [&str; 29] = [
    "ssl-redirect",
    "force-ssl-redirect",
    "preserve-trailing-slash",
    "relative-redirects",
    "proxy-connect-timeout",
    "proxy-send-timeout",
    "proxy-read-timeout",
    "proxy-body-size",
    "proxy-next-upstream",
    "proxy-next-upstream-tries",
    "proxy-next-upstream-timeout",
    "load-balance",
    "upstream-hash-by",
    "custom-http-errors",
    "disable-proxy-intercept-errors",
    "whitelist-source-range",
    "denylist-source-range",
    "limit-rate",
    "limit-rate-after",
    "service-upstream",
    "enable-access-log",
    "proxy-cookie-domain",
    "proxy-cookie-path",
    "proxy-redirect-from",
    "proxy-redirect-to",
    "proxy-ssl-verify",
    "proxy-http-version",
    "proxy-buffering",
    "proxy-request-buffering",
];

/// Keys of an authority for all Ingresses, and the annotation that says the same for one.
pub const GLOBAL_AUTH: [(&str, &str); 7] = [
    ("global-auth-url", "auth-url"),
    ("global-auth-method", "auth-method"),
    ("global-auth-signin", "auth-signin"),
    ("global-auth-signin-redirect-param", "auth-signin-redirect-param"),
    ("global-auth-response-headers", "auth-response-headers"),
    ("global-auth-request-redirect", "auth-request-redirect"),
    ("global-auth-always-set-cookie", "auth-always-set-cookie"),
];

const SNIPPET: &str = "snippets run as part of the proxy and are not supported; use add-headers, proxy-set-headers and the annotations";
const STREAMED: &str = "bodies are streamed in both directions and never written to a buffer or file";

/// All keys but [`DEFAULTS`] and [`GLOBAL_AUTH`].
pub const KEYS: &[Key] = &[
    key("use-proxy-protocol", |g, v| Ok(g.proxy_protocol = boolean(v)?)),
    key("use-forwarded-headers", |g, v| Ok(g.forwarded = boolean(v)?)),
    key("compute-full-forwarded-for", |g, v| Ok(g.full_forwarded = boolean(v)?)),
    key("forwarded-for-header", |g, v| Ok(g.forwarded_header = header(v)?)),
    key("proxy-real-ip-cidr", |g, v| Ok(g.trusted = networks(v)?)),
    key("hsts", |g, v| Ok(g.hsts_parts.on = boolean(v)?)),
    key("hsts-max-age", |g, v| Ok(g.hsts_parts.age = number(v)?)),
    key("hsts-include-subdomains", |g, v| Ok(g.hsts_parts.subdomains = boolean(v)?)),
    key("hsts-preload", |g, v| Ok(g.hsts_parts.preload = boolean(v)?)),
    key("disable-access-log", |g, v| Ok(g.log_on = !boolean(v)?)),
    key("disable-http-access-log", |g, v| Ok(g.log_on = !boolean(v)?)),
    key("log-format-upstream", |g, v| Ok(g.log_format = Template::parse(v)?)),
    key("log-format-escape-json", |g, v| Ok(g.log_escape_json = boolean(v)?)),
    key("skip-access-log-urls", |g, v| Ok(g.log_skip = list(v).map(str::to_owned).collect())),
    key("keep-alive", |g, v| Ok(g.idle = seconds(v)?)),
    key("client-header-timeout", |g, v| Ok(g.header_timeout = timeout(v)?)),
    key("client-body-timeout", |g, v| Ok(g.body_timeout = timeout(v)?)),
    key("large-client-header-buffers", |g, v| {
        let mut words = v.split_whitespace();
        let (count, each) =
            (number::<u64>(words.next().unwrap_or_default())?, size(words.next().unwrap_or_default())?);
        let bytes = count.saturating_mul(each).clamp(8 << 10, 1 << 20);
        Ok(g.header_bytes = usize::try_from(bytes).unwrap_or(1 << 20))
    }),
    key("use-http2", |g, v| Ok(g.http2 = boolean(v)?)),
    key("http2-max-concurrent-streams", |g, v| Ok(g.streams = number::<u32>(v)?.max(1))),
    key("max-worker-connections", |g, v| Ok(g.connections = number::<usize>(v)?.max(1))),
    key("worker-shutdown-timeout", |g, v| Ok(g.drain = seconds(v)?)),
    key("server-tokens", |g, v| Ok(g.server_tokens = boolean(v)?)),
    key("hide-headers", |g, v| Ok(g.hide = crate::annotations::auth::names(v)?)),
    key("add-headers", |g, v| Ok(g.add_headers_from = Some(v.to_owned()))),
    key("proxy-set-headers", |g, v| Ok(g.set_headers_from = Some(v.to_owned()))),
    key(
        "global-allowed-response-headers",
        |g, v| Ok(g.allowed_headers = crate::annotations::auth::names(v)?),
    ),
    key("http-redirect-code", |g, v| Ok(g.redirect_code = redirect_code(v)?)),
    key("limit-req-status-code", |g, v| Ok(g.limit_req_status = refusal(v)?)),
    key("limit-conn-status-code", |g, v| Ok(g.limit_conn_status = refusal(v)?)),
    key("block-cidrs", |g, v| Ok(g.block = networks(v)?)),
    key("block-user-agents", |g, v| Ok(g.block_agents = Match::list(v)?)),
    key("block-referers", |g, v| Ok(g.block_referers = Match::list(v)?)),
    key("no-tls-redirect-locations", |g, v| Ok(g.no_tls_redirect = list(v).map(str::to_owned).collect())),
    key("no-auth-locations", |g, v| Ok(g.no_auth = list(v).map(str::to_owned).collect())),
    key("ssl-protocols", |g, v| {
        let words: Vec<&str> = v.split_whitespace().collect();
        let found = (words.contains(&"TLSv1.2"), words.contains(&"TLSv1.3"));
        match found {
            (false, false) => {
                Err(format!("{v:?} names neither TLSv1.2 nor TLSv1.3, which are what there is"))
            }
            _ => Ok((g.tls12, g.tls13) = found),
        }
    }),
    key("retry-non-idempotent", |g, v| Ok(g.policy.upstream.next.non_idempotent = boolean(v)?)),
    key("allow-snippet-annotations", |_, v| match boolean(v)? {
        true => Err(SNIPPET.into()),
        false => Ok(()),
    }),
    key("annotations-risk-level", |_, _| Ok(())),
    key("strict-validate-path-type", |_, _| Ok(())),
    moot("worker-processes", "one thread for each processor; set the container's CPU limit"),
    moot("upstream-keepalive-connections", "2048 for each endpoint"),
    moot("upstream-keepalive-timeout", "60 seconds"),
    moot("upstream-keepalive-requests", "10000"),
    moot("keep-alive-requests", "a connection serves as many as its client asks"),
    moot("proxy-buffer-size", STREAMED),
    moot("proxy-buffers-number", STREAMED),
    moot("client-body-buffer-size", STREAMED),
    moot("client-header-buffer-size", "grows as needed, up to large-client-header-buffers"),
    moot("server-name-hash-bucket-size", "hosts are looked up in one step whatever their number"),
    moot("server-name-hash-max-size", "hosts are looked up in one step whatever their number"),
    moot("ssl-ciphers", "TLS 1.2 and 1.3 with their safe cipher suites"),
    moot("ssl-ecdh-curve", "X25519, P-256 and P-384"),
    moot("enable-real-ip", "the client's own address is always used"),
    moot("error-log-level", "set RUST_LOG of the container"),
    moot("reuse-port", "connections are shared by the threads of one process"),
    refused("http-snippet", SNIPPET),
    refused("main-snippet", SNIPPET),
    refused("server-snippet", SNIPPET),
    refused("location-snippet", SNIPPET),
    refused("use-gzip", "answers are passed on as they come; compress in the application"),
    refused("enable-brotli", "answers are passed on as they come; compress in the application"),
    refused(
        "enable-modsecurity",
        "put a firewall between controller and application as a Service of its own",
    ),
    refused("enable-opentelemetry", "trace in the application; x-request-id is passed on"),
];

fn refusal(value: &str) -> Result<u16, String> {
    match value.parse() {
        Ok(code @ 400..=599) => Ok(code),
        _ => Err(format!("{value:?} is no status from 400 to 599")),
    }
}

impl Global {
    /// Reads a ConfigMap; `problem` hears of each key that is not honoured.
    pub fn parse(data: &BTreeMap<String, String>, mut problem: impl FnMut(String)) -> Self {
        let mut global = Self::default();
        for (name, value) in data {
            if let Err(why) = global.set(name, value.trim()) {
                problem(format!("key {name}: {why}"));
            }
        }
        global.policy.auth.shared();
        global.settle();
        global
    }

    fn set(&mut self, name: &str, value: &str) -> Result<(), String> {
        if DEFAULTS.contains(&name) {
            return self.policy.set_default(name, value);
        }
        if let Some((_, annotation)) = GLOBAL_AUTH.iter().find(|(key, _)| *key == name) {
            return self.policy.set_default(annotation, value);
        }
        let Some(key) = KEYS.iter().find(|key| key.name == name) else {
            return Err("is not known and has no effect".into());
        };
        match key.support {
            Support::Refused(_) if matches!(value, "false" | "") => Ok(()),
            Support::Refused(instead) => Err(format!("is not supported: {instead}")),
            _ => (key.read)(self, value),
        }
    }

    fn settle(&mut self) {
        self.log = self.log_on.then(|| self.log_format.clone());
        let Hsts { on, age, subdomains, preload } = self.hsts_parts;
        let subdomains = if subdomains { "; includeSubDomains" } else { "" };
        let preload = if preload { "; preload" } else { "" };
        let text = format!("max-age={age}{subdomains}{preload}");
        self.hsts = HeaderValue::from_str(&text).ok().filter(|_| on);
    }

    /// Takes the headers in that other ConfigMaps hold.
    pub fn headers(
        &mut self,
        add: Option<&BTreeMap<String, String>>,
        set: Option<&BTreeMap<String, String>>,
    ) {
        self.add_headers = add.map(fields).unwrap_or_default();
        let template =
            |(name, value): (&String, &String)| Some((name.parse().ok()?, Template::early(value).ok()?));
        self.set_headers = set.into_iter().flatten().filter_map(template).collect();
    }
}

/// The headers that a ConfigMap's data hold; what cannot be one is left out.
pub(crate) fn fields(data: &BTreeMap<String, String>) -> HeaderMap {
    let one =
        |(name, value): (&String, &String)| Some((name.parse::<HeaderName>().ok()?, value.parse().ok()?));
    data.iter().filter_map(one).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    fn parse(pairs: &[(&str, &str)]) -> (Global, Vec<String>) {
        let data = pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let mut problems = Vec::new();
        let global = Global::parse(&data, |why| problems.push(why));
        (global, problems)
    }

    #[test]
    fn keys_are_taken() {
        let (global, problems) = parse(&[
            ("proxy-body-size", "8m"),
            ("use-proxy-protocol", "true"),
            ("hsts-max-age", "5"),
            ("hsts-include-subdomains", "false"),
            ("disable-access-log", "true"),
            ("global-auth-url", "http://auth/"),
            ("large-client-header-buffers", "4 16k"),
            ("worker-processes", "4"),
        ]);
        assert_eq!(problems, Vec::<String>::new());
        assert_eq!(global.policy.upstream.body_size, Some(8 << 20));
        let own = Policy::parse(&global.policy, None, |_| {});
        assert!(global.proxy_protocol && global.log.is_none() && own.auth.external.is_some());
        assert_eq!(global.hsts.unwrap(), "max-age=5");
        assert_eq!(global.header_bytes, 64 << 10);
        assert!(Global::default().log.is_some());
    }

    #[test]
    fn what_is_wrong_is_said_and_changes_nothing() {
        for (key, value) in [
            ("no-such-key", "x"),
            ("proxy-body-size", "big"),
            ("http-snippet", "x"),
            ("allow-snippet-annotations", "true"),
            ("log-format-upstream", "$nothing"),
            ("ssl-protocols", "SSLv3"),
        ] {
            let (global, problems) = parse(&[(key, value)]);
            assert!(matches!(&problems[..], [one] if one.contains(key)), "{key}: {problems:?}");
            assert_eq!(format!("{global:?}"), format!("{:?}", Global::default()), "{key}");
        }
        assert!(parse(&[("allow-snippet-annotations", "false"), ("use-gzip", "false")]).1.is_empty());
    }
}
