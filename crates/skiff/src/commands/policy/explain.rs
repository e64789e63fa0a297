//! `skiff policy explain`: name, Service, endpoints, policies of both sides; each step with the object that decides.

use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;

use anyhow::bail;
use clap::Args;
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::{Client, ResourceExt};
use netpol::explain::{Side, explain};
use netpol::matrix::{Asked, port_name};
use netpol::model::{World, addresses_of};
use netpol::verdict::End;
use proxy::model::{Action, Frontend, NodeView, Place};
use serde::Serialize;

use super::fetch::{self, Party};
use super::{BOLD, DIM, GREEN, RED, count, port};
use crate::commands::api::with_client;
use crate::output::Print;

/// Options of `policy explain`.
#[derive(Debug, Args)]
pub struct Options {
    /// Who connects: a Pod, as NAME or NAMESPACE/NAME.
    #[arg(long, value_name = "POD")]
    from: String,
    /// To whom: NAME, NAMESPACE/NAME, pod/NAME, svc/NAME, a name as the DNS has it, or an address. A Service comes
    /// before a Pod of the same name.
    #[arg(long, value_name = "POD|SERVICE|IP")]
    to: String,
    /// At which port: 80, 53/udp, 9/sctp.
    #[arg(long, value_name = "N[/PROTOCOL]")]
    port: String,
    /// The namespace of names without one.
    #[arg(short, long, default_value = "default")]
    namespace: String,
    #[command(flatten)]
    print: Print,
}

/// The whole answer.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    /// Whether every connection that may come of it passes.
    allowed: bool,
    from: String,
    to: String,
    port: String,
    /// What happens before policies are asked.
    steps: Vec<Step>,
    /// One for each endpoint.
    connections: Vec<Connection>,
}

#[derive(Debug, Serialize)]
struct Step {
    /// `name`, `service`.
    step: &'static str,
    text: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Connection {
    /// The Pod at the other end, or nobody known.
    to: String,
    address: String,
    allowed: bool,
    sides: [Side; 2],
}

/// Explains; the exit status says whether the connection is allowed.
pub fn run(profile: &str, options: &Options) -> anyhow::Result<ExitCode> {
    let asked = port(&options.port)?;
    let answer = with_client(profile, async |client| answer(&client, options, asked).await)?;
    options.print.print(&answer, text)?;
    Ok(if answer.allowed { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

/// The source, with what of it matters.
struct Source {
    pod: Pod,
    addresses: Vec<IpAddr>,
}

impl Source {
    fn node(&self) -> Option<&str> {
        self.pod.spec.as_ref()?.node_name.as_deref()
    }

    fn namespace(&self) -> &str {
        self.pod.metadata.namespace.as_deref().unwrap_or_default()
    }

    fn has_family_of(&self, address: IpAddr) -> bool {
        self.addresses.iter().any(|own| own.is_ipv4() == address.is_ipv4())
    }
}

async fn answer(client: &Client, options: &Options, asked: Asked) -> anyhow::Result<Answer> {
    let (pod, target) = tokio::try_join!(
        fetch::pod(client, &options.from, &options.namespace),
        fetch::party(client, &options.to, &options.namespace)
    )?;
    let source = Source { addresses: addresses_of(&pod), pod };
    if source.addresses.is_empty() {
        bail!("Pod {} has no address yet; see: kubectl describe pod", name(&source.pod));
    }
    let mut steps = Vec::new();
    let (namespace, ends) = match &target {
        Party::Address(address) => (None, vec![SocketAddr::new(*address, asked.1)]),
        Party::Pod(pod) => {
            let own = addresses_of(pod).into_iter().find(|address| source.has_family_of(*address));
            let Some(own) = own else {
                bail!("Pod {} has no address that {} could reach", name(&**pod), name(&source.pod))
            };
            (pod.namespace(), vec![SocketAddr::new(own, asked.1)])
        }
        Party::Service(service) => {
            let endpoints = endpoints(client, service, &source, asked, &options.to, &mut steps).await?;
            (service.namespace(), endpoints)
        }
    };
    let mut namespaces = vec![source.namespace()];
    namespaces.extend(namespace.as_deref().filter(|other| *other != source.namespace()));
    let (world, pods) = fetch::part(client, &namespaces).await?;
    let to = |end: &SocketAddr| connection(&world, &pods, &source, *end, asked);
    let connections: Vec<Connection> = ends.iter().filter_map(to).collect();
    Ok(Answer {
        allowed: !connections.is_empty() && connections.iter().all(|connection| connection.allowed),
        from: format!("{} ({})", name(&source.pod), source.addresses[0]),
        to: options.to.clone(),
        port: port_name(asked),
        steps,
        connections,
    })
}

fn name<K: kube::Resource>(object: &K) -> String {
    client::ObjectKey::of(object).to_string()
}

/// Where a Service sends the source's connection, by the function that makes the proxy's rules.
async fn endpoints(
    client: &Client,
    service: &Service,
    source: &Source,
    asked: Asked,
    word: &str,
    steps: &mut Vec<Step>,
) -> anyhow::Result<Vec<SocketAddr>> {
    let own = name(service);
    let spec = service.spec.clone().unwrap_or_default();
    if let Some(other) = spec.external_name.filter(|_| spec.type_.as_deref() == Some("ExternalName")) {
        bail!("Service {own} is only another name for {other}; ask about the address of that");
    }
    let slices = fetch::slices(client, service).await?;
    let mut step = |step, text| steps.push(Step { step, text });
    let Some(address) = service_address(service, source, word) else {
        step("name", format!("{word} is the headless Service {own}: the DNS gives its Pods' own addresses"));
        let ready = slices.iter().flat_map(|slice| &slice.endpoints).filter(|endpoint| {
            endpoint.conditions.as_ref().and_then(|conditions| conditions.ready) != Some(false)
        });
        let addresses = ready.filter_map(|endpoint| endpoint.addresses.first()?.parse::<IpAddr>().ok());
        let reachable = addresses.filter(|address| source.has_family_of(*address));
        let all: Vec<SocketAddr> = reachable.map(|address| SocketAddr::new(address, asked.1)).collect();
        step("service", format!("it has {}", count(all.len(), "ready Pod")));
        return Ok(all);
    };
    step("name", format!("{word} is Service {own} at {address}"));
    let node = NodeView { name: source.node().unwrap_or_default().to_owned(), ..NodeView::default() };
    let targets = proxy::desired::targets(service, &slices, &node);
    let wanted = Frontend { place: Place::Address(address), protocol: asked.0, port: asked.1 };
    let action =
        targets.into_iter().find(|(frontend, _)| *frontend == wanted).map(|(_, target)| target.action);
    let shown = port_name(asked);
    Ok(match action {
        None => {
            let ports = spec.ports.iter().flatten().filter_map(|port| {
                let protocol = nft::Protocol::parse(port.protocol.as_deref())?;
                Some(port_name((protocol, u16::try_from(port.port).ok()?)))
            });
            let ports = ports.collect::<Vec<_>>().join(", ");
            step("service", format!("it has no port {shown}, so nobody answers; its ports: {ports}"));
            Vec::new()
        }
        Some(Action::Refuse) => {
            let selector = spec.selector.iter().flatten().map(|(key, value)| format!("{key}={value}"));
            let selector = selector.collect::<Vec<_>>().join(",");
            step(
                "service",
                format!("port {shown} has no ready endpoint, so it is refused; its selector: {selector}"),
            );
            Vec::new()
        }
        Some(Action::Drop) => {
            step(
                "service",
                format!("port {shown} has no endpoint on this node, and its traffic policy is Local"),
            );
            Vec::new()
        }
        Some(Action::Forward(forward)) => {
            let endpoints = forward.insiders.unwrap_or(forward.endpoints);
            let text = format!("port {shown} leads to {}", count(endpoints.len(), "endpoint"));
            step("service", text);
            endpoints
        }
    })
}

/// The address at which the source meets a Service: the one that was asked for, or one of a family that it has.
fn service_address(service: &Service, source: &Source, word: &str) -> Option<IpAddr> {
    let addresses = fetch::addresses_of(service);
    let asked = word.parse().ok().filter(|asked| addresses.contains(asked));
    asked.or_else(|| addresses.into_iter().find(|address| source.has_family_of(*address)))
}

/// What policies say of a connection; none when the two ends share no family.
fn connection(
    world: &World,
    pods: &[Pod],
    source: &Source,
    to: SocketAddr,
    (protocol, _): Asked,
) -> Option<Connection> {
    let mut to_end = End::at(world, to.ip());
    let address = *source.addresses.iter().find(|own| own.is_ipv4() == to.is_ipv4())?;
    let key = client::ObjectKey::of(&source.pod);
    // A Pod on its node's network, or one that has ended, is no Pod of the world.
    let pod = world.pods.get(&key);
    let other = to_end.pod.and_then(|own| pods.iter().find(|pod| client::ObjectKey::of(*pod) == own.key));
    let other_node = other.and_then(|pod| pod.spec.as_ref()?.node_name.as_deref());
    let from =
        End { address, pod, is_node: pod.is_none() && other_node.is_some() && other_node == source.node() };
    to_end.is_node = false;
    let sides = explain(world, from, to_end, protocol, to.port());
    Some(Connection {
        to: to_end.pod.map_or_else(|| "outside of the Pod network".to_owned(), |pod| pod.key.to_string()),
        address: to.to_string(),
        allowed: sides.iter().all(|side| side.allowed),
        sides,
    })
}

fn text(answer: &Answer) -> String {
    let mut out =
        format!("{BOLD}{}{BOLD:#} to {BOLD}{}{BOLD:#}, port {}\n\n", answer.from, answer.to, answer.port);
    for step in &answer.steps {
        out += &format!("  {:10} {}\n", step.step, step.text);
    }
    for connection in &answer.connections {
        out += &format!("  {:10} {} at {}\n", "to", connection.to, connection.address);
        for side in &connection.sides {
            let (style, mark) = if side.allowed { (GREEN, "✔") } else { (RED, "✘") };
            out += &format!("  {style}{mark}{style:#} {:8} {}\n", side.direction, side.text);
            for lack in &side.lacking {
                out += &format!("             {DIM}{} {}: {}{DIM:#}\n", lack.policy, lack.rule, lack.text);
            }
        }
    }
    let passing = answer.connections.iter().filter(|connection| connection.allowed).count();
    out += &match (answer.allowed, answer.connections.len()) {
        (true, _) => format!("\n{GREEN}allowed{GREEN:#}\n"),
        (false, 0) => format!("\n{RED}denied{RED:#}: no policy is asked, there is nobody to connect to\n"),
        (false, all) if passing > 0 => {
            format!("\n{RED}denied{RED:#} at some: {passing} of {all} endpoints can be reached\n")
        }
        (false, _) => format!("\n{RED}denied{RED:#}\n"),
    };
    out
}
