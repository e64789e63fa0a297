//! Paths that are no resource: discovery, version, health, OpenAPI, metrics, OpenID.

use http::Method;
use http::request::Parts;
use serde_json::{Value, json};

use crate::discovery;
use crate::openapi;
use crate::request::Query;
use crate::rest::answer::Answer;
use crate::server::ApiServer;
use crate::status::Status;

pub use crate::openapi::Documents;

/// The Kubernetes version whose API this is.
pub const MINOR: &str = "33";
/// The version as a client sees it.
pub const GIT_VERSION: &str = "v1.33.0+skiff";

/// Answers a path that is no resource.
///
/// # Errors
/// 404, 405.
pub async fn answer(api: &ApiServer, parts: &Parts, query: &Query) -> Result<Answer, Status> {
    let path = parts.uri.path().trim_end_matches('/');
    if !matches!(parts.method, Method::GET | Method::HEAD) {
        return Err(Status::method_not_allowed());
    }
    match path {
        "" => Ok(Answer::json(200, &index(api))),
        "/version" => Ok(Answer::json(200, &version())),
        "/healthz" | "/livez" | "/readyz" => health(api, path, query).await,
        "/metrics" => Ok(Answer::bytes(200, "text/plain; version=0.0.4; charset=utf-8", api.metrics())),
        "/api" | "/apis" => Ok(groups(api, parts, path == "/api")),
        "/.well-known/openid-configuration" => {
            let server = format!("https://{}", api.core.config.advertised());
            Ok(Answer::json(200, &api.auth.tokens.openid_configuration(&server)))
        }
        "/openid/v1/jwks" => Ok(Answer::json(200, &api.auth.tokens.jwks())),
        _ if path.starts_with("/openapi/") => openapi::answer(api, path, &parts.headers),
        _ => group_or_version(api, path),
    }
}

fn index(api: &ApiServer) -> Value {
    let mut paths: Vec<String> =
        ["/.well-known/openid-configuration", "/api", "/api/v1", "/apis"].map(String::from).into();
    for (group, versions) in api.core.registry.load().groups() {
        paths.push(format!("/apis/{group}"));
        paths.extend(versions.iter().map(|v| format!("/apis/{group}/{}", v.version)));
    }
    let rest = [
        "/healthz",
        "/livez",
        "/metrics",
        "/openapi/v2",
        "/openapi/v3",
        "/openid/v1/jwks",
        "/readyz",
        "/version",
    ];
    paths.extend(rest.map(String::from));
    json!({"paths": paths})
}

fn version() -> Value {
    json!({
        "major": "1", "minor": MINOR, "gitVersion": GIT_VERSION,
        "gitCommit": option_env!("SKIFF_COMMIT").unwrap_or("unknown"), "gitTreeState": "clean",
        "buildDate": option_env!("SKIFF_BUILD_DATE").unwrap_or("1970-01-01T00:00:00Z"),
        "goVersion": "none (rust)", "compiler": "rustc", "platform": "linux/amd64",
        "emulationMajor": "1", "emulationMinor": MINOR,
        "minCompatibilityMajor": "1", "minCompatibilityMinor": MINOR,
    })
}

/// Healthy as long as the store answers reads.
async fn health(api: &ApiServer, path: &str, query: &Query) -> Result<Answer, Status> {
    let store = api.core.store.revision().await;
    let text = |ok: bool| if ok { "[+]store ok\n" } else { "[-]store failed\n" };
    let name = path.trim_start_matches('/');
    if store.is_err() || api.core.stop.is_cancelled() && name == "readyz" {
        let body = format!("{}{name} check failed\n", text(store.is_ok()));
        return Ok(Answer::bytes(500, "text/plain; charset=utf-8", body));
    }
    let body = if query.has("verbose") {
        format!("[+]ping ok\n{}{name} check passed\n", text(true))
    } else {
        "ok".into()
    };
    Ok(Answer::bytes(200, "text/plain; charset=utf-8", body))
}

fn groups(api: &ApiServer, parts: &Parts, core: bool) -> Answer {
    let registry = api.core.registry.load();
    match discovery::aggregated_version(&parts.headers) {
        Some(version) => {
            let content_type = if version == "v2" {
                "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
            } else {
                "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList"
            };
            let document = discovery::aggregated(&registry, version, core);
            Answer::bytes(200, content_type, document.to_string())
        }
        None if core => {
            let config = &api.core.config;
            let address = config.advertised().to_string();
            Answer::json(200, &discovery::core_versions(&address))
        }
        None => Answer::json(200, &discovery::group_list(&registry)),
    }
}

fn group_or_version(api: &ApiServer, path: &str) -> Result<Answer, Status> {
    let registry = api.core.registry.load();
    let (group, version) = match path.strip_prefix("/api/") {
        Some(version) => ("", Some(version)),
        None => {
            let rest = path.strip_prefix("/apis/").ok_or_else(Status::path_not_found)?;
            rest.split_once('/').map_or((rest, None), |(group, version)| (group, Some(version)))
        }
    };
    let document = match version {
        Some(version) => registry.group_version(group, version).map(discovery::resource_list),
        None => discovery::group(&registry, group),
    };
    document.map(|d| Answer::json(200, &d)).ok_or_else(Status::path_not_found)
}
