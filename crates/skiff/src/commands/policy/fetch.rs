//! What is asked about, read from the API: Pods, Services and the objects that verdicts depend on.

use std::net::IpAddr;

use anyhow::{Context, bail};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::api::ListParams;
use kube::{Api, Client, Resource};
use netpol::cluster::ClusterNetworkPolicy;
use netpol::model::World;
use serde::de::DeserializeOwned;

use crate::program::did_you_mean;

/// All objects of a kind.
pub async fn all<K>(client: &Client) -> kube::Result<Vec<K>>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug,
{
    Ok(Api::<K>::all(client.clone()).list(&ListParams::default()).await?.items)
}

async fn within<K>(client: &Client, namespace: &str) -> kube::Result<Vec<K>>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + DeserializeOwned
        + std::fmt::Debug,
{
    Ok(Api::<K>::namespaced(client.clone(), namespace).list(&ListParams::default()).await?.items)
}

/// All that verdicts depend on.
pub async fn world(client: &Client) -> kube::Result<World> {
    let (policies, namespaces, pods, (cluster_policies, nodes)) = tokio::try_join!(
        all::<NetworkPolicy>(client),
        all::<Namespace>(client),
        all::<Pod>(client),
        of_cluster(client)
    )?;
    Ok(World::of(&policies, &namespaces, &pods, "").with_cluster(&cluster_policies, &nodes))
}

/// The cluster's policies and the nodes that they may mean.
async fn of_cluster(client: &Client) -> kube::Result<(Vec<ClusterNetworkPolicy>, Vec<Node>)> {
    tokio::try_join!(all::<ClusterNetworkPolicy>(client), all::<Node>(client))
}

/// All that verdicts between Pods of these namespaces depend on, and these Pods.
pub async fn part(client: &Client, namespaces: &[&str]) -> kube::Result<(World, Vec<Pod>)> {
    let (mut policies, mut pods) = (Vec::new(), Vec::new());
    let labels = async { all::<Namespace>(client).await };
    let rest = async {
        for namespace in namespaces {
            let (own_policies, own_pods) = tokio::try_join!(
                within::<NetworkPolicy>(client, namespace),
                within::<Pod>(client, namespace)
            )?;
            policies.extend(own_policies);
            pods.extend(own_pods);
        }
        kube::Result::Ok(())
    };
    let (labels, (), (cluster_policies, nodes)) = tokio::try_join!(labels, rest, of_cluster(client))?;
    Ok((World::of(&policies, &labels, &pods, "").with_cluster(&cluster_policies, &nodes), pods))
}

/// The EndpointSlices of a Service.
pub async fn slices(client: &Client, service: &Service) -> kube::Result<Vec<EndpointSlice>> {
    let namespace = service.metadata.namespace.as_deref().unwrap_or_default();
    let name = service.metadata.name.as_deref().unwrap_or_default();
    let list = ListParams::default().labels(&format!("{}={name}", client::endpoints::SERVICE_NAME));
    Ok(Api::<EndpointSlice>::namespaced(client.clone(), namespace).list(&list).await?.items)
}

/// Who is meant by a word.
#[derive(Debug)]
pub enum Party {
    Pod(Box<Pod>),
    Service(Box<Service>),
    Address(IpAddr),
}

/// A word of the command line: `NAME`, `NAMESPACE/NAME`, `pod/NAME`, `svc/NAME`, a name as the DNS has it, an address.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Word<'a> {
    kind: Option<Kind>,
    namespace: &'a str,
    name: &'a str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Pod,
    Service,
}

impl<'a> Word<'a> {
    fn of(text: &'a str, namespace: &'a str) -> Self {
        let (kind, rest) = match text.split_once('/') {
            Some(("pod" | "pods" | "po", rest)) => (Some(Kind::Pod), rest),
            Some(("service" | "services" | "svc", rest)) => (Some(Kind::Service), rest),
            _ => (None, text),
        };
        if let Some((namespace, name)) = rest.split_once('/') {
            return Self { kind, namespace, name };
        }
        // As the DNS has it: name.namespace[.svc[.cluster.local]].
        match rest.split_once('.') {
            Some((name, rest)) if kind != Some(Kind::Pod) => {
                let namespace = rest.split('.').next().unwrap_or(namespace);
                Self { kind: Some(Kind::Service), namespace, name }
            }
            _ => Self { kind, namespace, name: rest },
        }
    }
}

/// Finds who is meant; a Service comes before a Pod of the same name, as in the DNS.
///
/// # Errors
/// When there is nobody of that name.
pub async fn party(client: &Client, text: &str, namespace: &str) -> anyhow::Result<Party> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return at(client, address).await;
    }
    let word = Word::of(text, namespace);
    if word.kind != Some(Kind::Pod) {
        let api: Api<Service> = Api::namespaced(client.clone(), word.namespace);
        if let Some(service) = api.get_opt(word.name).await? {
            return Ok(Party::Service(Box::new(service)));
        }
    }
    if word.kind != Some(Kind::Service) {
        return Ok(Party::Pod(Box::new(pod(client, text, namespace).await?)));
    }
    let known = within::<Service>(client, word.namespace).await?;
    let near = did_you_mean(word.name, known.iter().filter_map(|own| own.metadata.name.as_deref()));
    bail!("there is no Service {:?} in the namespace {:?}{near}", word.name, word.namespace)
}

/// Finds a Pod.
///
/// # Errors
/// When there is none of that name.
pub async fn pod(client: &Client, text: &str, namespace: &str) -> anyhow::Result<Pod> {
    let word = Word::of(text, namespace);
    let api: Api<Pod> = Api::namespaced(client.clone(), word.namespace);
    if let Some(pod) = api.get_opt(word.name).await? {
        return Ok(pod);
    }
    let known = within::<Pod>(client, word.namespace).await?;
    let near = did_you_mean(word.name, known.iter().filter_map(|own| own.metadata.name.as_deref()));
    bail!("there is no Pod {:?} in the namespace {:?}{near}", word.name, word.namespace)
}

async fn at(client: &Client, address: IpAddr) -> anyhow::Result<Party> {
    let (services, pods) = tokio::try_join!(all::<Service>(client), all::<Pod>(client))
        .context("look for who has the address")?;
    if let Some(service) = services.into_iter().find(|service| addresses_of(service).contains(&address)) {
        return Ok(Party::Service(Box::new(service)));
    }
    // A Pod on its node's network has no address of its own; one that has ended has none any more.
    let is_own = |pod: &Pod| netpol::model::PodView::of(pod, netpol::model::addresses_of(pod), "").is_some();
    let mut owners = pods.into_iter().filter(|pod| netpol::model::addresses_of(pod).contains(&address));
    Ok(owners.find(is_own).map_or(Party::Address(address), |pod| Party::Pod(Box::new(pod))))
}

/// The addresses at which a Service answers, beside its nodes'.
pub fn addresses_of(service: &Service) -> Vec<IpAddr> {
    let Some(spec) = &service.spec else { return Vec::new() };
    let cluster = spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip);
    let own = cluster.chain(spec.external_ips.iter().flatten()).filter_map(|text| text.parse().ok());
    let mut all: Vec<IpAddr> = own.chain(proxy::desired::balanced_addresses(service)).collect();
    let mut seen = std::collections::HashSet::new();
    all.retain(|address| seen.insert(*address));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_mean_pods_services_and_names_of_the_dns() {
        let word = |text| {
            let word = Word::of(text, "here");
            (word.kind, word.namespace, word.name)
        };
        assert_eq!(word("web"), (None, "here", "web"));
        assert_eq!(word("shop/web"), (None, "shop", "web"));
        assert_eq!(word("pod/web"), (Some(Kind::Pod), "here", "web"));
        assert_eq!(word("pod/web.1"), (Some(Kind::Pod), "here", "web.1"));
        assert_eq!(word("svc/shop/web"), (Some(Kind::Service), "shop", "web"));
        assert_eq!(word("web.shop"), (Some(Kind::Service), "shop", "web"));
        assert_eq!(word("web.shop.svc.cluster.local"), (Some(Kind::Service), "shop", "web"));
    }
}
