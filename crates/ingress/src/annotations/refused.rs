//! What is not honoured, and what to use instead.
//!
//! Snippets are nginx's own language in the hands of whoever may write an Ingress; five of ingress-nginx's own grades of
//! risk "critical" are theirs. What people used them for mostly has a name of its own.

use super::Annotation;

const SNIPPET: &str = "snippets run as part of the proxy; use custom-headers, rewrite-target, permanent-redirect, \
     the auth-*, limit-* and proxy-* annotations, or a sidecar";
const FIREWALL: &str =
    "put a firewall (Coraza, ModSecurity) between controller and application as a Service of its own";
const TRACING: &str = "trace in the application; x-request-id is passed on and stands in the access log";
const COUNTED: &str = "use limit-rps or limit-rpm, which count for each controller";
const PASSED: &str = "give the application a Service of type LoadBalancer, or let TLS end here with auth-tls-* for its clients";

pub(super) const TABLE: &[Annotation] = &[
    Annotation::refused("configuration-snippet", SNIPPET),
    Annotation::refused("server-snippet", SNIPPET),
    Annotation::refused(
        "stream-snippet",
        "use a Service of type LoadBalancer or NodePort for other protocols than HTTP",
    ),
    Annotation::refused_guard("enable-modsecurity", FIREWALL),
    Annotation::refused_guard("enable-owasp-core-rules", FIREWALL),
    Annotation::refused_guard("enable-owasp-modsecurity-crs", FIREWALL),
    Annotation::refused_guard("modsecurity-snippet", FIREWALL),
    Annotation::refused_guard("modsecurity-transaction-id", FIREWALL),
    Annotation::refused("enable-opentelemetry", TRACING),
    Annotation::refused("opentelemetry-trust-incoming-span", TRACING),
    Annotation::refused("opentelemetry-operation-name", TRACING),
    Annotation::refused("enable-opentracing", TRACING),
    Annotation::refused("opentracing-trust-incoming-span", TRACING),
    Annotation::refused_guard("global-rate-limit", COUNTED),
    Annotation::refused_guard("global-rate-limit-window", COUNTED),
    Annotation::refused_guard("global-rate-limit-key", COUNTED),
    Annotation::refused_guard("global-rate-limit-ignored-cidrs", COUNTED),
    Annotation::refused("ssl-passthrough", PASSED),
    Annotation::refused("fastcgi-index", "put a server that speaks HTTP before the application"),
    Annotation::refused("fastcgi-params-configmap", "put a server that speaks HTTP before the application"),
    Annotation::refused("secure-verify-ca-secret", "use proxy-ssl-secret with proxy-ssl-verify"),
    Annotation::moot("ssl-ciphers", "TLS 1.2 and 1.3 with their safe cipher suites"),
    Annotation::moot("ssl-prefer-server-ciphers", "TLS 1.2 and 1.3 with their safe cipher suites"),
];
