//! Where a request leads: from the stored Pod, Service or Node to an address and a path.

use std::sync::Arc;

use form_urlencoded::Serializer;
use serde_json::{Value, json};

use crate::core::Call;
use crate::objects::Objects;
use crate::resource::GroupResource;
use crate::status::Status;

/// Kubelets listen here unless their Node says otherwise.
const KUBELET_PORT: i64 = 10250;

/// How far the peer's certificate is trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Security {
    /// No TLS.
    Plain,
    /// A kubelet: verified as configured, with our client certificate.
    Kubelet,
    /// A Pod or Service by https: whatever certificate it has.
    Unverified,
}

/// One place to pass a request on to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Address or name.
    pub host: String,
    /// Port.
    pub port: u16,
    /// TLS or not.
    pub security: Security,
    /// Path and query.
    pub path: String,
}

/// The target of a call; `None` for the log of a Pod that no node has yet.
///
/// # Errors
/// 400, 404, 503.
pub async fn find(call: &Call) -> Result<Option<Target>, Status> {
    match (call.row.plural.as_str(), call.cx.subresource.as_str()) {
        ("nodes", _) => node_proxy(call).await.map(Some),
        ("pods", "proxy") => pod_proxy(call).await.map(Some),
        ("services", _) => service_proxy(call).await.map(Some),
        (_, sub) => stream(call, sub).await,
    }
}

async fn get(call: &Call, plural: &str, name: &str) -> Result<Arc<Value>, Status> {
    let namespace = if plural == "nodes" { "" } else { call.namespace() };
    let found = call.cx.objects.get(&GroupResource::new("", plural), namespace, name).await?;
    found.ok_or_else(|| Status::not_found("", plural, name))
}

/// A path of a node's kubelet.
///
/// # Errors
/// 404 for no such node, 500 for one without an address.
pub async fn kubelet(call: &Call, node: &str, path: String) -> Result<Target, Status> {
    let node_object = get(call, "nodes", node).await?;
    let addresses = node_object["status"]["addresses"].as_array().map_or(&[][..], Vec::as_slice);
    let host = ["InternalIP", "ExternalIP", "Hostname"]
        .iter()
        .find_map(|kind| addresses.iter().find(|a| a["type"] == *kind)?["address"].as_str())
        .ok_or_else(|| Status::internal(format!("no preferred addresses found for node {node:?}")))?;
    let port = node_object["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"].as_i64();
    let port = u16::try_from(port.filter(|p| *p > 0).unwrap_or(KUBELET_PORT)).unwrap_or(0);
    Ok(Target { host: host.to_owned(), port, security: Security::Kubelet, path })
}

/// Log, exec, attach and port-forward: all answered by the kubelet of the Pod's node.
async fn stream(call: &Call, sub: &str) -> Result<Option<Target>, Status> {
    let pod = get(call, "pods", call.name()).await?;
    let node = pod["spec"]["nodeName"].as_str().unwrap_or_default();
    let container = if sub == "portforward" { String::new() } else { container(call, &pod)? };
    if node.is_empty() {
        if sub == "log" {
            return Ok(None);
        }
        return Err(Status::bad_request(format!("pod {} does not have a host assigned", call.name())));
    }
    let place = format!("{}/{}", call.namespace(), call.name());
    let (path, query) = match sub {
        "log" => (format!("/containerLogs/{place}/{container}"), log_query(call)),
        "portforward" => {
            (format!("/portForward/{place}"), repeated(call, &[("ports", "port"), ("port", "port")]))
        }
        _ => (format!("/{sub}/{place}/{container}"), stream_query(call)),
    };
    let path = if query.is_empty() { path } else { format!("{path}?{query}") };
    kubelet(call, node, path).await.map(Some)
}

/// The container that is asked for, or the one that must be meant.
fn container(call: &Call, pod: &Value) -> Result<String, Status> {
    let names = |key: &str| -> Vec<String> {
        let list = pod["spec"][key].as_array().into_iter().flatten();
        list.filter_map(|c| c["name"].as_str()).map(str::to_owned).collect()
    };
    let main = names("containers");
    let wanted = call.query.get("container");
    if !wanted.is_empty() {
        let known = ["containers", "initContainers", "ephemeralContainers"]
            .iter()
            .any(|k| names(k).iter().any(|n| n == wanted));
        return known.then(|| wanted.to_owned()).ok_or_else(|| {
            Status::bad_request(format!("container {wanted} is not valid for pod {}", call.name()))
        });
    }
    let default = pod["metadata"]["annotations"]["kubectl.kubernetes.io/default-container"].as_str();
    if let Some(default) = default.filter(|d| main.iter().any(|n| n == d)) {
        return Ok(default.to_owned());
    }
    match main.as_slice() {
        [only] => Ok(only.clone()),
        [] => Err(Status::bad_request(format!("a container name must be specified for pod {}", call.name()))),
        many => {
            let init = names("initContainers");
            let init = if init.is_empty() {
                String::new()
            } else {
                format!(" or one of the init containers: [{}]", init.join(" "))
            };
            Err(Status::bad_request(format!(
                "a container name must be specified for pod {}, choose one of: [{}]{init}",
                call.name(),
                many.join(" ")
            )))
        }
    }
}

/// Options that are handed on under another (or the same) name, every value of them.
fn repeated(call: &Call, names: &[(&str, &str)]) -> String {
    let mut out = Serializer::new(String::new());
    for (from, to) in names {
        for value in call.query.all(from) {
            out.append_pair(to, value);
        }
    }
    out.finish()
}

fn log_query(call: &Call) -> String {
    const OPTIONS: [&str; 8] = [
        "follow",
        "limitBytes",
        "previous",
        "sinceSeconds",
        "sinceTime",
        "stream",
        "tailLines",
        "timestamps",
    ];
    repeated(call, &OPTIONS.map(|o| (o, o)))
}

/// Upstream's kubelet reads `input`, `output`, `error`; the API's own names go along.
fn stream_query(call: &Call) -> String {
    let mut out = Serializer::new(String::new());
    for command in call.query.all("command") {
        out.append_pair("command", command);
    }
    // Output is on unless it is switched off, input and a terminal are off unless switched on.
    for (name, kubelet, default) in [
        ("stdin", "input", false),
        ("stdout", "output", true),
        ("stderr", "error", true),
        ("tty", "tty", false),
    ] {
        let on = if call.query.has(name) { call.query.flag(name) } else { default };
        if !on {
            continue;
        }
        out.append_pair(kubelet, "1");
        if name != kubelet {
            out.append_pair(name, "true");
        }
    }
    out.finish()
}

/// `[scheme:]name[:port]`.
fn split_name(text: &str) -> (&str, &str, &str) {
    let parts: Vec<&str> = text.split(':').collect();
    match parts.as_slice() {
        [name] => ("http", name, ""),
        [name, port] => ("http", name, port),
        [scheme, name, port] => (if *scheme == "https" { "https" } else { "http" }, name, port),
        _ => ("http", text, ""),
    }
}

fn security(scheme: &str) -> Security {
    if scheme == "https" { Security::Unverified } else { Security::Plain }
}

/// What follows `proxy`, with the query.
fn rest(call: &Call) -> String {
    let query = call.query.to_text();
    if query.is_empty() { format!("/{}", call.rest) } else { format!("/{}?{query}", call.rest) }
}

async fn node_proxy(call: &Call) -> Result<Target, Status> {
    let (_, name, _) = split_name(call.name());
    kubelet(call, name, rest(call)).await
}

async fn pod_proxy(call: &Call) -> Result<Target, Status> {
    let (scheme, name, port) = split_name(call.name());
    let pod = get(call, "pods", name).await?;
    let ports = pod["spec"]["containers"].as_array().into_iter().flatten();
    let ports: Vec<&Value> = ports.filter_map(|c| c["ports"].as_array()).flatten().collect();
    let named = ports.iter().find(|p| p["name"] == port).and_then(|p| p["containerPort"].as_u64());
    let port = match port {
        "" => ports.first().and_then(|p| p["containerPort"].as_u64()).or(Some(if scheme == "https" {
            443
        } else {
            80
        })),
        number => named.or_else(|| number.parse().ok()),
    };
    let port = port.and_then(|p| u16::try_from(p).ok());
    let port = port.ok_or_else(|| Status::bad_request(format!("invalid pod request {:?}", call.name())))?;
    let host = pod["status"]["podIP"].as_str().filter(|ip| !ip.is_empty());
    let host = host.ok_or_else(|| Status::bad_request("address not allowed: the pod has no address yet"))?;
    Ok(Target { host: host.to_owned(), port, security: security(scheme), path: rest(call) })
}

async fn service_proxy(call: &Call) -> Result<Target, Status> {
    let (scheme, name, port) = split_name(call.name());
    let (host, port) = endpoint(call.cx.objects.as_ref(), call.namespace(), name, port).await?;
    Ok(Target { host, port, security: security(scheme), path: rest(call) })
}

/// One of the ready endpoints of a Service's port, given by number or name (or, if it has only one, not at all).
///
/// # Errors
/// 404, 503 without an endpoint.
pub async fn endpoint(
    objects: &dyn Objects,
    namespace: &str,
    name: &str,
    port: &str,
) -> Result<(String, u16), Status> {
    let find = async |plural: &str| objects.get(&GroupResource::new("", plural), namespace, name).await;
    let service = find("services").await?.ok_or_else(|| Status::not_found("", "services", name))?;
    let none = || Status::unavailable(format!("no endpoints available for service {name:?}"));
    let mut port_name = port.to_owned();
    let service_ports = service["spec"]["ports"].as_array().map_or(&[][..], Vec::as_slice);
    if let Ok(number) = port.parse::<u64>() {
        let found = service_ports.iter().find(|p| p["port"] == number);
        let found = found.ok_or_else(|| {
            Status::unavailable(format!("no service port {number} found for service {name:?}"))
        })?;
        port_name = found["name"].as_str().unwrap_or_default().to_owned();
    } else if port.is_empty() && service_ports.len() == 1 {
        port_name = service_ports[0]["name"].as_str().unwrap_or_default().to_owned();
    }
    let endpoints = find("endpoints").await?.ok_or_else(none)?;
    let mut choices = Vec::new();
    for subset in endpoints["subsets"].as_array().into_iter().flatten() {
        let ports = subset["ports"].as_array().into_iter().flatten();
        let port = ports
            .filter(|p| p["name"].as_str().unwrap_or_default() == port_name)
            .find_map(|p| p["port"].as_u64());
        let addresses = subset["addresses"].as_array().into_iter().flatten().filter_map(|a| a["ip"].as_str());
        if let Some(port) = port.and_then(|p| u16::try_from(p).ok()) {
            choices.extend(addresses.map(|address| (address.to_owned(), port)));
        }
    }
    if choices.is_empty() {
        return Err(none());
    }
    Ok(choices.swap_remove(rand::random_range(0..choices.len())))
}

/// The options of a connection as the object that admission sees (`PodExecOptions` and its like).
pub fn options(call: &Call) -> Value {
    let sub = call.row.subresources.iter().find(|s| s.name == call.cx.subresource);
    let kind = sub.map_or("", |s| s.kind.as_str());
    let mut out = json!({"kind": kind, "apiVersion": "v1"});
    let query = &call.query;
    match call.cx.subresource.as_str() {
        "proxy" => out["path"] = format!("/{}", call.rest).into(),
        "portforward" => {
            let ports: Vec<u64> = query.all("ports").filter_map(|p| p.parse().ok()).collect();
            out["ports"] = json!(ports);
        }
        "exec" | "attach" => {
            for key in ["stdin", "stdout", "stderr", "tty"].into_iter().filter(|key| query.flag(key)) {
                out[key] = true.into();
            }
            if query.has("container") {
                out["container"] = query.get("container").into();
            }
            if query.has("command") {
                out["command"] = query.all("command").map(Value::from).collect();
            }
        }
        _ => {}
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_scheme_and_port() {
        assert_eq!(split_name("web"), ("http", "web", ""));
        assert_eq!(split_name("web:metrics"), ("http", "web", "metrics"));
        assert_eq!(split_name("https:web:443"), ("https", "web", "443"));
        assert_eq!(split_name("https:web:"), ("https", "web", ""));
    }
}
