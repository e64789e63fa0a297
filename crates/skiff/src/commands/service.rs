//! `skiff service` and `skiff tunnel`: the addresses of Services that this machine reaches, which need no tunnel: node
//! ports on the node's address and load balancers' own addresses answer at once.

use anyhow::bail;
use clap::{Args, Subcommand};
use k8s_openapi::api::core::v1::{Service, ServicePort};
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use serde::Serialize;

use super::api::{said, with_client};
use super::existing;
use crate::output::{Output, Print};
use crate::program::did_you_mean;
use crate::ui::table;

/// Arguments of `service`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, arg_required_else_help = true)]
pub struct Options {
    /// The Service.
    name: Option<String>,
    #[command(flatten)]
    place: Place,
    /// Print only the addresses, one a line.
    #[arg(long)]
    url: bool,
    /// Write https instead of http.
    #[arg(long)]
    https: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Args)]
struct Place {
    /// The Service's namespace [default: default; of `list`: all].
    #[arg(short, long)]
    namespace: Option<String>,
    #[command(flatten)]
    print: Print,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List all Services.
    #[command(visible_alias = "ls")]
    List(Place),
}

/// One port of a Service and how it is reached from here.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Line {
    namespace: String,
    name: String,
    /// `http/80`, or nothing for a headless Service without ports.
    target_port: String,
    /// Addresses that answer on this machine.
    urls: Vec<String>,
}

/// Prints one Service's addresses, or all Services.
pub fn run(profile: &str, options: Options) -> anyhow::Result<()> {
    if let Some(Command::List(place)) = options.command {
        let lines = lines(profile, place.namespace.as_deref(), "http")?;
        return place.print.print(&lines, |lines| listing(lines));
    }
    let Some(name) = options.name else { bail!("give a Service's name, or list them: service list") };
    let namespace = options.place.namespace.as_deref().unwrap_or("default");
    let scheme = if options.https { "https" } else { "http" };
    let mut lines = lines(profile, Some(namespace), scheme)?;
    let near = did_you_mean(&name, lines.iter().map(|line| line.name.as_str()));
    lines.retain(|line| line.name == name);
    if lines.is_empty() {
        bail!("there is no Service {name:?} in the namespace {namespace:?}{near}");
    }
    let urls: Vec<String> = lines.iter().flat_map(|line| line.urls.clone()).collect();
    if urls.is_empty() {
        bail!(
            "Service {namespace}/{name} has no address outside of the cluster; give it one: \
             kubectl patch service {name} -n {namespace} -p '{{\"spec\":{{\"type\":\"NodePort\"}}}}'"
        );
    }
    match (options.url, options.place.print.output) {
        (true, Output::Text) => print!("{}", one_a_line(&urls)),
        (_, output) => output.print(&lines, |lines| listing(lines))?,
    }
    Ok(())
}

/// Prints all addresses of a namespace's Services, one a line.
pub fn addresses(profile: &str, namespace: &str) -> anyhow::Result<()> {
    let lines = lines(profile, Some(namespace), "http")?;
    let urls: Vec<String> = lines.into_iter().flat_map(|line| line.urls).collect();
    if urls.is_empty() {
        bail!("no Service in the namespace {namespace:?} has an address outside of the cluster");
    }
    print!("{}", one_a_line(&urls));
    Ok(())
}

/// To be written at once: whoever reads the first line only has closed the pipe by the next.
fn one_a_line(urls: &[String]) -> String {
    urls.iter().map(|url| format!("{url}\n")).collect()
}

/// Says that no tunnel is needed, and lists what it would be for.
pub fn tunnel(profile: &str, print: Print) -> anyhow::Result<()> {
    let mut lines = lines(profile, None, "http")?;
    lines.retain(|line| !line.urls.is_empty());
    print.print(&lines, |lines| {
        let rest = match lines.as_slice() {
            [] => "No Service has an address outside of the cluster yet.\n".to_owned(),
            lines => listing(lines),
        };
        format!("No tunnel is needed: this machine reaches these addresses as they are.\n{rest}")
    })
}

fn lines(profile: &str, namespace: Option<&str>, scheme: &str) -> anyhow::Result<Vec<Line>> {
    let node = existing(profile)?.network()?.map(|network| bracketed(&network.main_node_ip().to_string()));
    let services = with_client(profile, async |client| {
        let api: Api<Service> = match namespace {
            Some(namespace) => Api::namespaced(client, namespace),
            None => Api::all(client),
        };
        api.list(&ListParams::default()).await.map_err(|error| said(profile, error))
    })?;
    Ok(services.iter().flat_map(|service| of_service(service, node.as_deref(), scheme)).collect())
}

fn of_service(service: &Service, node: Option<&str>, scheme: &str) -> Vec<Line> {
    let ports = service.spec.as_ref().and_then(|spec| spec.ports.clone()).unwrap_or_default();
    let line = |target_port: String, urls: Vec<String>| Line {
        namespace: service.namespace().unwrap_or_default(),
        name: service.name_any(),
        target_port,
        urls,
    };
    if ports.is_empty() {
        return vec![line(String::new(), Vec::new())];
    }
    let shown = |port: &ServicePort| match &port.name {
        Some(name) => format!("{name}/{}", port.port),
        None => port.port.to_string(),
    };
    ports.iter().map(|port| line(shown(port), urls(service, port, node, scheme))).collect()
}

fn urls(service: &Service, port: &ServicePort, node: Option<&str>, scheme: &str) -> Vec<String> {
    let scheme = match port.protocol.as_deref() {
        Some("UDP") => "udp",
        Some("SCTP") => "sctp",
        _ => scheme,
    };
    let balancer = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let addresses = balancer.and_then(|balancer| balancer.ingress.as_deref()).unwrap_or_default();
    let own = addresses.iter().filter_map(|ingress| ingress.ip.as_ref().or(ingress.hostname.as_ref()));
    let own = own.map(|address| format!("{scheme}://{}:{}", bracketed(address), port.port));
    let on_node = node.zip(port.node_port).map(|(node, number)| format!("{scheme}://{node}:{number}"));
    own.chain(on_node).collect()
}

fn bracketed(address: &str) -> String {
    if address.contains(':') { format!("[{address}]") } else { address.to_owned() }
}

fn listing(lines: &[Line]) -> String {
    let url = |line: &Line| if line.urls.is_empty() { "-".to_owned() } else { line.urls.join(" ") };
    let row =
        |line: &Line| vec![line.namespace.clone(), line.name.clone(), line.target_port.clone(), url(line)];
    table(&["NAMESPACE", "NAME", "TARGET PORT", "URL"], &lines.iter().map(row).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    fn urls_of(spec: serde_json::Value, status: serde_json::Value) -> Vec<String> {
        let object = serde_json::json!({"metadata": {"name": "web"}, "spec": spec, "status": status});
        let service: Service = serde_json::from_value(object).unwrap();
        let lines = of_service(&service, Some("192.168.49.2"), "http");
        lines.into_iter().flat_map(|line| line.urls).collect()
    }

    #[test]
    fn addresses_that_answer_here() {
        let nothing = serde_json::json!({});
        let inside = serde_json::json!({"ports": [{"port": 80}]});
        assert!(urls_of(inside, nothing.clone()).is_empty());
        let node_port = serde_json::json!({"ports": [
            {"name": "http", "port": 80, "nodePort": 32000},
            {"name": "dns", "port": 53, "nodePort": 32053, "protocol": "UDP"}]});
        let both = ["http://192.168.49.2:32000", "udp://192.168.49.2:32053"];
        assert_eq!(urls_of(node_port, nothing), both);
        let balanced = serde_json::json!({"ports": [{"port": 80}]});
        let status =
            serde_json::json!({"loadBalancer": {"ingress": [{"ip": "192.168.49.240"}, {"ip": "fd00::1"}]}});
        assert_eq!(urls_of(balanced, status), ["http://192.168.49.240:80", "http://[fd00::1]:80"]);
        assert_eq!(urls_of(serde_json::json!({"clusterIP": "None"}), serde_json::json!({})), [""; 0]);
    }
}
