//! A node's place in the networks around it: the host's bridge, its own address, its way to the Pods of other nodes.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, bail};
use client::Informer;
use cluster::{IpFamily, Member, NODE_PREFIX6, Network, Profile};
use k8s_openapi::api::core::v1::Node;
use kube::{Api, Client, ResourceExt};
use podnet::{PeerRoutes, Peers};
use tokio::sync::watch;

/// All clusters' volatile directory.
fn run_root(profile: &Profile) -> &Path {
    profile.run_dir.parent().unwrap_or(&profile.run_dir)
}

/// The node's address, once the cluster has a network.
///
/// # Errors
/// When the profile's record of it cannot be read.
pub fn address(member: &Member) -> anyhow::Result<Option<Ipv4Addr>> {
    let Some(network) = member.profile.network()? else { return Ok(None) };
    let subnet = ipnet::Ipv4Net::new(network.gateway, network.prefix)?.trunc();
    Ok(host_network(&member.profile, subnet, None).node_address(member.number).map(|net| net.addr()))
}

fn host_network(
    profile: &Profile,
    subnet: ipnet::Ipv4Net,
    subnet6: Option<ipnet::Ipv6Net>,
) -> podnet::HostNetwork {
    let run_dir = run_root(profile).to_owned();
    podnet::HostNetwork { profile: profile.name.clone(), subnet, subnet6, run_dir }
}

/// The IP families of a cluster and its nodes' IPv6 network: those that it has, else those that are wanted, else all that
/// this kernel has.
fn families(
    profile: &Profile,
    known: Option<&Network>,
    subnet: ipnet::Ipv4Net,
) -> anyhow::Result<(IpFamily, Option<ipnet::Ipv6Net>)> {
    let there = podnet::has_ipv6();
    let chosen = match known {
        Some(network) => Some(network.ip_family),
        None => profile.wanted_ip_family()?,
    };
    let family = chosen.unwrap_or(if there { IpFamily::Dual } else { IpFamily::Ipv4 });
    if !family.has_ipv6() {
        return Ok((family, None));
    }
    if !there {
        bail!(
            "the cluster's IP families are {family}, and this kernel has no IPv6; start it with IPv6 \
             (without ipv6.disable=1), or make the cluster anew with --ip-family=ipv4"
        );
    }
    let beside = match known.and_then(|network| network.gateway6) {
        Some(gateway) => ipnet::Ipv6Net::new(gateway, NODE_PREFIX6)?.trunc(),
        None => podnet::subnet::beside(subnet, &podnet::used_networks6(&profile.name)?)
            .context("every IPv6 network of ours is in use by this host; start with --ip-family=ipv4")?,
    };
    Ok((family, Some(beside)))
}

/// Takes the cluster's part of the host's network away.
///
/// # Errors
/// All that could not be removed.
pub async fn remove_from_host(profile: &Profile) -> anyhow::Result<()> {
    let (name, dir) = (profile.name.clone(), run_root(profile).to_owned());
    let removed = tokio::task::spawn_blocking(move || podnet::HostNetwork::remove(&name, &dir)).await;
    removed.context("remove the host's links and rules")?.context("remove the host's links and rules")
}

/// Bridge, link and addresses; gives the cluster's network and this node's address. The subnet is chosen once, by the
/// first node, and kept.
///
/// # Errors
/// What could not be set up.
pub async fn prepare(member: &Member, netns: Arc<OwnedFd>) -> anyhow::Result<(Network, Ipv4Addr)> {
    let member = member.clone();
    let work = move || {
        let profile = &member.profile;
        let known = profile.network()?;
        let subnet = match &known {
            Some(network) => ipnet::Ipv4Net::new(network.gateway, network.prefix)?.trunc(),
            None => podnet::subnet::choose(&podnet::used_networks(&profile.name)?).context(
                "every private network of ours is in use by this host; free one of 192.168.0.0/16",
            )?,
        };
        let (ip_family, subnet6) = families(profile, known.as_ref(), subnet)?;
        let host = host_network(profile, subnet, subnet6);
        host.ensure().context("make the host's bridge")?;
        let no_room = || format!("the node network {subnet} has no room for node {}", member.number);
        let address = host.node_address(member.number).with_context(no_room)?;
        let first = host.node_address(1).with_context(no_room)?;
        host.attach_node(&member.name(), netns.as_fd(), address).context("connect the node to the bridge")?;
        let node = podnet::NodeNetwork {
            address,
            gateway: host.gateway(),
            address6: host.node_address6(member.number),
            gateway6: host.way_out6().context("read whether the host forwards IPv6")?,
            services6: match ip_family.has_ipv6() {
                true => Some(cluster::SERVICE_CIDR6.parse().context("the IPv6 network of Services")?),
                false => None,
            },
            pod_networks: networks(ip_family, cluster::POD_CIDR, cluster::POD_CIDR6)?,
        };
        node.setup(netns.as_fd()).context("set up the node's network")?;
        let network = Network {
            gateway: host.gateway(),
            node: first.addr(),
            prefix: first.prefix_len(),
            ip_family,
            gateway6: host.gateway6(),
        };
        if known.as_ref() != Some(&network) {
            profile.set_network(&network)?;
        }
        anyhow::Ok((network, address.addr()))
    };
    tokio::task::spawn_blocking(work).await.context("set up the network")?
}

/// A network of each of the cluster's families.
///
/// # Errors
/// When one is none.
pub fn networks(family: IpFamily, four: &str, six: &str) -> anyhow::Result<Vec<ipnet::IpNet>> {
    let parse = |text: &str| text.parse().with_context(|| format!("the network {text}"));
    family.each(four, six).into_iter().map(parse).collect()
}

/// Keeps the routes to the other nodes' Pods as the Node objects say; ends only when it cannot go on.
///
/// # Errors
/// When the routes cannot be read or the Nodes not be followed.
pub async fn follow_peers(client: Client, own: String, netns: Arc<OwnedFd>) -> anyhow::Result<()> {
    let nodes = Informer::<Node>::start(Api::all(client), kube::runtime::watcher::Config::default());
    let mut changes = nodes.subscribe();
    nodes.synced().await?;
    let open = move || PeerRoutes::open(netns.as_fd());
    let mut routes = tokio::task::spawn_blocking(open).await?.context("read the node's routes")?;
    loop {
        let wanted = peers(nodes.list().iter().map(AsRef::as_ref), &own);
        let outcome;
        (routes, outcome) = aside(routes, move |routes| routes.sync(&wanted)).await?;
        if let Err(error) = outcome {
            tracing::warn!("routes to the other nodes' Pods: {error}");
        }
        if changes.recv().await.is_none() {
            anyhow::bail!("the nodes are no longer followed");
        }
        while changes.try_recv().is_ok() {}
    }
}

/// When neighbours are told once more of a new address: Linux ignores news for a second after the last.
const ONCE_MORE: std::time::Duration = std::time::Duration::from_millis(1500);

/// Keeps the node answering for the addresses of load balancers that the proxy names, from when its rules are `synced`;
/// ends with the proxy.
///
/// # Errors
/// When the node's routes cannot be read.
pub async fn answer_for(
    node: Vec<IpAddr>,
    mut wanted: watch::Receiver<BTreeSet<IpAddr>>,
    mut synced: watch::Receiver<bool>,
    netns: Arc<OwnedFd>,
) -> anyhow::Result<()> {
    synced.wait_for(|synced| *synced).await.context("the service proxy ended")?;
    let open = move || podnet::AnsweredAddresses::open(netns.as_fd(), &node);
    let mut answered = tokio::task::spawn_blocking(open).await?.context("read the node's routes")?;
    loop {
        let now = wanted.borrow_and_update().clone();
        let outcome;
        (answered, outcome) = aside(answered, move |answered| answered.sync(&now)).await?;
        if let Err(error) = outcome {
            tracing::warn!("addresses of load balancers: {error}");
        }
        if answered.has_fresh() {
            match tokio::time::timeout(ONCE_MORE, wanted.changed()).await {
                Ok(changed) => {
                    changed.context("the service proxy ended")?;
                    continue;
                }
                Err(_) => {
                    let outcome;
                    (answered, outcome) = aside(answered, podnet::AnsweredAddresses::repeat).await?;
                    if let Err(error) = outcome {
                        tracing::warn!("telling of addresses of load balancers: {error}");
                    }
                }
            }
        }
        wanted.changed().await.context("the service proxy ended")?;
    }
}

/// Does blocking work with something on a thread of its own, and gives it back.
async fn aside<S: Send + 'static, T: Send + 'static>(
    mut state: S,
    work: impl FnOnce(&mut S) -> T + Send + 'static,
) -> anyhow::Result<(S, T)> {
    let worked = tokio::task::spawn_blocking(move || {
        let outcome = work(&mut state);
        (state, outcome)
    });
    Ok(worked.await?)
}

/// The ranges of all nodes but `own`, each by way of its node's internal address of the same family.
fn peers<'a>(nodes: impl Iterator<Item = &'a Node>, own: &str) -> Peers {
    let mut peers = Peers::new();
    for node in nodes.filter(|node| node.name_any() != own) {
        let ranges = node.spec.iter().flat_map(|spec| spec.pod_cidrs.iter().flatten());
        let rows = node.status.iter().flat_map(|status| status.addresses.iter().flatten());
        let addresses: Vec<IpAddr> =
            rows.filter(|row| row.type_ == "InternalIP").filter_map(|row| row.address.parse().ok()).collect();
        for range in ranges.filter_map(|range| range.parse::<ipnet::IpNet>().ok()) {
            let via = addresses.iter().find(|address| address.is_ipv4() == range.addr().is_ipv4());
            peers.extend(via.map(|via| (range, *via)));
        }
    }
    peers
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    fn node(name: &str, range: Option<&str>, address: &str) -> Node {
        serde_json::from_value(serde_json::json!({
            "metadata": {"name": name},
            "spec": {"podCIDRs": range.into_iter().collect::<Vec<_>>()},
            "status": {"addresses": [
                {"type": "Hostname", "address": name}, {"type": "InternalIP", "address": address}]},
        }))
        .unwrap()
    }

    #[test]
    fn every_other_nodes_range_goes_by_its_address() {
        let nodes = [
            node("demo", Some("10.244.0.0/24"), "192.168.49.2"),
            node("demo-m02", Some("10.244.1.0/24"), "192.168.49.3"),
            node("young", None, "192.168.49.4"),
            node("odd", Some("10.244.9.0/24"), "not an address"),
            node("odd-family", Some("10.244.8.0/24"), "fd00::5"),
            node("six", Some("fd00:10:244:8::/64"), "fd00::6"),
        ];
        let wanted = Peers::from([
            ("10.244.1.0/24".parse().unwrap(), "192.168.49.3".parse().unwrap()),
            ("fd00:10:244:8::/64".parse().unwrap(), "fd00::6".parse().unwrap()),
        ]);
        assert_eq!(peers(nodes.iter(), "demo"), wanted);
    }
}
