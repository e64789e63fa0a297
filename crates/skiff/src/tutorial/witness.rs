//! Looks at a cluster and at the kernel of its node: objects by the API, names by asking the cluster's DNS, routes and
//! rules by the node's own network namespace. Nothing is taken from what a command said.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;

use anyhow::{Context, anyhow};
use cluster::{CLUSTER_DOMAIN, DNS_SERVICE, Profile};
use hickory_proto::rr::{RData, RecordType};
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::{Namespace, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::{Ingress, IngressClass, NetworkPolicy};
use kube::api::ListParams;
use kube::{Api, Client, Resource, ResourceExt};
use nix::sched::{CloneFlags, setns};
use serde::de::DeserializeOwned;

use super::story::Look;
use crate::commands::api::client_of;

/// A look, and whether all Pods have come to what they are meant to be.
#[derive(Debug, Default)]
pub struct Seen {
    /// What is there.
    pub look: Look,
    /// No Pod is on its way up or down.
    pub settled: bool,
}

/// Looks once; a cluster that does not run has nothing to see.
///
/// # Errors
/// When a part of it does not answer.
pub fn look(profile: &Profile, kubeconfig: &Path) -> anyhow::Result<Seen> {
    let Some(shim) = runtime::shim::holder(&profile.control_plane().run_dir()) else {
        return Ok(Seen { settled: true, ..Seen::default() });
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut seen = runtime.block_on(async {
        let client = client_of(kubeconfig, &profile.name).await?;
        objects(&client).await
    })?;
    let services: Vec<String> = seen
        .look
        .objects
        .keys()
        .filter(|(kind, _)| kind == "Service")
        .map(|(_, name)| match name.split_once('/') {
            Some((namespace, name)) => format!("{name}.{namespace}.svc.{CLUSTER_DOMAIN}"),
            None => format!("{name}.default.svc.{CLUSTER_DOMAIN}"),
        })
        .collect();
    let pid = shim.to_string();
    let inside = std::thread::scope(|scope| {
        let there = scope.spawn(|| in_node(&pid, &services));
        there.join().map_err(|_| anyhow!("the look into the node broke off"))?
    })?;
    (seen.look.names, seen.look.routes) = (inside.names, inside.routes);
    (seen.look.chains, seen.look.elements) = (inside.chains, inside.elements);
    Ok(seen)
}

async fn all<T>(client: &Client) -> anyhow::Result<Vec<T>>
where
    T: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug,
{
    let api: Api<T> = Api::all(client.clone());
    let listed = api.list(&ListParams::default()).await;
    Ok(listed.with_context(|| format!("list {}", T::plural(&())))?.items)
}

async fn objects(client: &Client) -> anyhow::Result<Seen> {
    let mut seen = Seen { settled: true, ..Seen::default() };
    let objects = &mut seen.look.objects;
    add(objects, all::<Namespace>(client).await?, |_| String::new());
    add(objects, all::<Deployment>(client).await?, |_| String::new());
    add(objects, all::<ReplicaSet>(client).await?, |_| String::new());
    add(objects, all::<IngressClass>(client).await?, |_| String::new());
    add(objects, all::<NetworkPolicy>(client).await?, |_| String::new());
    add(objects, all::<Service>(client).await?, service);
    add(objects, all::<EndpointSlice>(client).await?, endpoints);
    add(objects, all::<Ingress>(client).await?, ingress);
    let pods = all::<Pod>(client).await?;
    seen.settled = pods.iter().all(has_settled);
    add(objects, pods, |pod| pod.status.as_ref().and_then(|s| s.pod_ip.clone()).unwrap_or_default());
    Ok(seen)
}

/// The objects of a kind under `namespace/name`, those of the default namespace by their name.
fn add<T: Resource<DynamicType = ()>>(
    objects: &mut BTreeMap<(String, String), String>,
    items: Vec<T>,
    said: impl Fn(&T) -> String,
) {
    for item in items {
        let name = match item.namespace().as_deref() {
            None | Some("default") => item.name_any(),
            Some(namespace) => format!("{namespace}/{}", item.name_any()),
        };
        let text = said(&item);
        objects.insert((T::kind(&()).into_owned(), name), text);
    }
}

fn service(service: &Service) -> String {
    let spec = service.spec.clone().unwrap_or_default();
    let ports = spec.ports.unwrap_or_default().into_iter().map(|port| match port.node_port {
        Some(node) => format!("{}:{node}", port.port),
        None => port.port.to_string(),
    });
    let ports = ports.collect::<Vec<_>>().join(",");
    format!("{} {} {ports}", spec.type_.unwrap_or_default(), spec.cluster_ip.unwrap_or_default())
}

fn endpoints(slice: &EndpointSlice) -> String {
    let ready =
        slice.endpoints.iter().filter(|e| e.conditions.as_ref().is_some_and(|c| c.ready != Some(false)));
    format!("{} ready", ready.count())
}

fn ingress(ingress: &Ingress) -> String {
    let rules = ingress.spec.as_ref().and_then(|spec| spec.rules.clone()).unwrap_or_default();
    let hosts: Vec<String> =
        rules.into_iter().map(|rule| rule.host.unwrap_or_else(|| "any host".to_owned())).collect();
    hosts.join(",")
}

fn has_settled(pod: &Pod) -> bool {
    let status = pod.status.clone().unwrap_or_default();
    let ready = |c: &k8s_openapi::api::core::v1::PodCondition| c.type_ == "Ready" && c.status == "True";
    pod.metadata.deletion_timestamp.is_none()
        && (status.phase.as_deref() == Some("Succeeded")
            || status.conditions.unwrap_or_default().iter().any(ready))
}

/// What is seen from within the node's network namespace; for a thread of its own, which stays there.
fn in_node(pid: &str, services: &[String]) -> anyhow::Result<Look> {
    let path = format!("/proc/{pid}/ns/net");
    let namespace = File::open(&path).with_context(|| format!("open {path}"))?;
    setns(namespace, CloneFlags::CLONE_NEWNET).with_context(|| format!("enter {path}"))?;
    let mut look = Look { routes: routes(&read("/proc/thread-self/net/route")), ..Look::default() };
    let census = nft::census::take(&mut nft::Socket::open()?).context("list the rules of the node")?;
    look.chains = census.chains.into_keys().map(|(table, chain)| format!("{} {chain}", table.name)).collect();
    for ((table, set), elements) in census.sets {
        look.elements.entry(format!("{} {set}", table.name)).or_default().extend(elements);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    look.names = runtime.block_on(names(services));
    Ok(look)
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

/// What the cluster's DNS says of names; one that it does not know is left out.
async fn names(services: &[String]) -> BTreeMap<String, String> {
    let resolver = toolbox::resolve::Resolver {
        servers: vec![SocketAddr::new(IpAddr::V4(DNS_SERVICE), 53)],
        search: Vec::new(),
        ndots: 0,
    };
    let mut known = BTreeMap::new();
    for name in services {
        let Ok((_, answer)) = resolver.query(name, RecordType::A).await else { continue };
        let address = answer.answers.iter().find_map(|record| match &record.data {
            RData::A(address) => Some(address.to_string()),
            _ => None,
        });
        known.extend(address.map(|address| (name.clone(), address)));
    }
    known
}

/// The kernel's table of IPv4 routes (proc(5), /proc/net/route), as `ip route` would begin its lines.
fn routes(table: &str) -> BTreeSet<String> {
    let address = |hex: &str| Some(Ipv4Addr::from(u32::from_str_radix(hex, 16).ok()?.to_ne_bytes()));
    let line = |line: &str| -> Option<String> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (link, to, via) = (words.first()?, address(words.get(1)?)?, address(words.get(2)?)?);
        let bits = address(words.get(7)?)?.to_bits().count_ones();
        let to = match bits {
            0 => "default".to_owned(),
            32 => to.to_string(),
            bits => format!("{to}/{bits}"),
        };
        Some(if via.is_unspecified() {
            format!("{to} dev {link}")
        } else {
            format!("{to} via {via} dev {link}")
        })
    };
    table.lines().skip(1).filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_read_as_ip_shows_them() {
        let table = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
            eth0\t00000000\t0131A8C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
            veth1\t0500F40A\t00000000\t0005\t0\t0\t0\tFFFFFFFF\t0\t0\t0\n\
            eth0\t0031A8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n";
        let wanted =
            ["10.244.0.5 dev veth1", "192.168.49.0/24 dev eth0", "default via 192.168.49.1 dev eth0"];
        assert_eq!(routes(table).into_iter().collect::<Vec<_>>(), wanted);
        assert!(routes("Iface\nnonsense\n").is_empty());
    }
}
