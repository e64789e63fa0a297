//! The text of a Pod's `/etc/hosts` and `/etc/resolv.conf`: pure functions.
//!
//! resolv.conf follows the `dnsPolicy` and `dnsConfig` of the API, with upstream's limits of 3 name servers, 32 search
//! domains and 2048 characters of search list.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::{HostAlias, Pod, PodDNSConfigOption};

use crate::pod;

const MANAGED: &str = "# Kubernetes-managed hosts file.\n";
const MANAGED_HOST: &str = "# Kubernetes-managed hosts file (host network).\n";

/// `/etc/hosts` of a Pod with its own network.
pub fn hosts(pod: &Pod, ips: &[IpAddr], cluster_domain: &str) -> String {
    let mut text = String::from(MANAGED);
    text.push_str("127.0.0.1\tlocalhost\n");
    text.push_str("::1\tlocalhost ip6-localhost ip6-loopback\n");
    text.push_str(
        "fe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n",
    );
    let hostname = pod::hostname(pod);
    let names = match pod::fqdn(pod, cluster_domain) {
        Some(fqdn) => format!("{fqdn}\t{hostname}"),
        None => hostname,
    };
    for ip in ips {
        text.push_str(&format!("{ip}\t{names}\n"));
    }
    text + &aliases(pod::spec(pod).host_aliases.as_deref().unwrap_or_default())
}

/// `/etc/hosts` of a Pod on the node's network: the node's own, and the Pod's aliases.
pub fn hosts_of_node(pod: &Pod, node_hosts: &str) -> String {
    let aliases = aliases(pod::spec(pod).host_aliases.as_deref().unwrap_or_default());
    format!("{MANAGED_HOST}{node_hosts}{aliases}")
}

fn aliases(aliases: &[HostAlias]) -> String {
    let mut text = String::new();
    if !aliases.is_empty() {
        text.push_str("\n# Entries added by HostAliases.\n");
    }
    for alias in aliases {
        text.push_str(&format!("{}\t{}\n", alias.ip, alias.hostnames.clone().unwrap_or_default().join("\t")));
    }
    text
}

/// The lines of a resolv.conf.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ResolvConf {
    /// `nameserver` lines.
    pub nameservers: Vec<String>,
    /// The `search` list.
    pub searches: Vec<String>,
    /// `options`, each `name` or `name:value`.
    pub options: Vec<String>,
}

impl ResolvConf {
    /// Reads a resolv.conf; the last `search` or `domain` line counts, unknown lines are skipped.
    pub fn parse(text: &str) -> Self {
        let mut conf = Self::default();
        for line in text.lines() {
            let line = line.split(['#', ';']).next().unwrap_or_default();
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => conf.nameservers.extend(words.next().map(String::from)),
                Some("search" | "domain") => conf.searches = words.map(|w| trim_dot(w).to_string()).collect(),
                Some("options") => conf.options.extend(words.map(String::from)),
                _ => {}
            }
        }
        conf
    }

    /// The file's text, in the order in which upstream's runtimes write it.
    pub fn render(&self) -> String {
        let mut text = String::new();
        if !self.searches.is_empty() {
            text.push_str(&format!("search {}\n", self.searches.join(" ")));
        }
        for server in &self.nameservers {
            text.push_str(&format!("nameserver {server}\n"));
        }
        if !self.options.is_empty() {
            text.push_str(&format!("options {}\n", self.options.join(" ")));
        }
        text
    }
}

/// A lone `.` (the root as search domain) stays.
fn trim_dot(domain: &str) -> &str {
    if domain == "." { domain } else { domain.trim_end_matches('.') }
}

/// What resolv.conf is made from besides the Pod.
#[derive(Debug, Clone, Copy)]
pub struct DnsFacts<'a> {
    /// Addresses of the cluster's DNS Service.
    pub cluster_dns: &'a [IpAddr],
    /// For example `cluster.local`.
    pub cluster_domain: &'a str,
    /// The node's own resolver configuration, for `Default` and for the tail of the search list.
    pub node: &'a ResolvConf,
}

/// The Pod's resolv.conf, and a warning when limits cut something off.
pub fn resolv_conf(pod: &Pod, facts: &DnsFacts<'_>) -> (ResolvConf, Option<String>) {
    let spec = pod::spec(pod);
    let policy = spec.dns_policy.as_deref().unwrap_or("ClusterFirst");
    let cluster_first = match policy {
        "None" | "Default" => false,
        "ClusterFirstWithHostNet" => true,
        _ => !pod::host_network(pod),
    };
    let mut conf = match (policy, cluster_first && !facts.cluster_dns.is_empty()) {
        ("None", _) => ResolvConf::default(),
        (_, true) => cluster_conf(pod, facts),
        (_, false) => facts.node.clone(),
    };
    if let Some(config) = &spec.dns_config {
        append_new(&mut conf.nameservers, config.nameservers.iter().flatten().cloned());
        append_new(&mut conf.searches, config.searches.iter().flatten().map(|s| trim_dot(s).to_string()));
        merge_options(&mut conf.options, config.options.as_deref().unwrap_or_default());
    }
    let warning = limit(&mut conf);
    (conf, warning)
}

fn cluster_conf(pod: &Pod, facts: &DnsFacts<'_>) -> ResolvConf {
    let domain = facts.cluster_domain;
    let mut searches =
        vec![format!("{}.svc.{domain}", pod::namespace(pod)), format!("svc.{domain}"), domain.to_string()];
    append_new(&mut searches, facts.node.searches.iter().cloned());
    ResolvConf {
        nameservers: facts.cluster_dns.iter().map(IpAddr::to_string).collect(),
        searches,
        options: vec!["ndots:5".into()],
    }
}

fn append_new(list: &mut Vec<String>, more: impl Iterator<Item = String>) {
    for item in more {
        if !list.contains(&item) {
            list.push(item);
        }
    }
}

fn merge_options(options: &mut Vec<String>, wanted: &[PodDNSConfigOption]) {
    for option in wanted {
        let Some(name) = &option.name else { continue };
        let text = match option.value.as_deref().filter(|v| !v.is_empty()) {
            Some(value) => format!("{name}:{value}"),
            None => name.clone(),
        };
        match options.iter_mut().find(|o| o.split(':').next() == Some(name)) {
            Some(known) => *known = text,
            None => options.push(text),
        }
    }
}

fn limit(conf: &mut ResolvConf) -> Option<String> {
    let mut warnings = Vec::new();
    if conf.nameservers.len() > 3 {
        conf.nameservers.truncate(3);
        warnings.push(format!(
            "Nameserver limits were exceeded, some nameservers have been omitted, the applied nameserver line is: {}",
            conf.nameservers.join(" ")
        ));
    }
    let before = conf.searches.len();
    conf.searches.truncate(32);
    while conf.searches.iter().map(|s| s.len() + 1).sum::<usize>() > 2049 {
        conf.searches.pop();
    }
    if conf.searches.len() < before {
        warnings.push(format!(
            "Search Line limits were exceeded, some search paths have been omitted, the applied search line is: {}",
            conf.searches.join(" ")
        ));
    }
    (!warnings.is_empty()).then(|| warnings.join("; "))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use crate::pod::tests::pod;
    use serde_json::{Value, json};

    fn conf(spec: Value) -> (ResolvConf, Option<String>) {
        let mut spec = spec;
        spec["containers"] = json!([]);
        let pod = pod(json!({"metadata": {"name": "p", "namespace": "default"}, "spec": spec}));
        let node = ResolvConf::parse("nameserver 9.9.9.9\nsearch corp.example. lan\noptions timeout:1 # x\n");
        let dns = ["10.96.0.10".parse().unwrap()];
        resolv_conf(&pod, &DnsFacts { cluster_dns: &dns, cluster_domain: "cluster.local", node: &node })
    }

    #[test]
    fn every_policy() {
        let cluster = "search default.svc.cluster.local svc.cluster.local cluster.local corp.example lan\n\
            nameserver 10.96.0.10\noptions ndots:5\n";
        let node = "search corp.example lan\nnameserver 9.9.9.9\noptions timeout:1\n";
        for (spec, text) in [
            (json!({}), cluster),
            (json!({"dnsPolicy": "ClusterFirst"}), cluster),
            (json!({"dnsPolicy": "ClusterFirst", "hostNetwork": true}), node),
            (json!({"dnsPolicy": "ClusterFirstWithHostNet", "hostNetwork": true}), cluster),
            (json!({"dnsPolicy": "Default"}), node),
            (
                json!({"dnsPolicy": "None", "dnsConfig": {"nameservers": ["1.1.1.1"], "searches": ["a.b.", "."]}}),
                "search a.b .\nnameserver 1.1.1.1\n",
            ),
            (
                json!({"dnsConfig": {"nameservers": ["10.96.0.10", "1.1.1.1"], "searches": ["lan", "x_y"],
                    "options": [{"name": "ndots", "value": "2"}, {"name": "edns0"}]}}),
                "search default.svc.cluster.local svc.cluster.local cluster.local corp.example lan x_y\n\
                 nameserver 10.96.0.10\nnameserver 1.1.1.1\noptions ndots:2 edns0\n",
            ),
        ] {
            let (conf, warning) = conf(spec);
            assert_eq!((conf.render().as_str(), warning), (text, None));
        }
    }

    #[test]
    fn limits_cut_and_warn() {
        let servers: Vec<String> = (1..=4).map(|n| format!("1.1.1.{n}")).collect();
        let searches: Vec<String> = (0..40).map(|n| format!("{n}.{}", "x".repeat(80))).collect();
        let (conf, warning) =
            conf(json!({"dnsPolicy": "None", "dnsConfig": {"nameservers": servers, "searches": searches}}));
        assert_eq!(conf.nameservers.len(), 3);
        assert!(conf.searches.len() <= 32 && conf.searches.join(" ").len() <= 2048);
        assert!(warning.unwrap().starts_with("Nameserver limits were exceeded"));
    }

    #[test]
    fn hosts_files() {
        let p = pod(
            json!({"metadata": {"name": "p", "namespace": "n"}, "spec": {"subdomain": "sub", "containers": [],
            "hostAliases": [{"ip": "1.2.3.4", "hostnames": ["a", "b.example"]}]}}),
        );
        let text = hosts(&p, &["10.244.0.7".parse().unwrap()], "cluster.local");
        assert!(text.starts_with("# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n"));
        assert!(text.contains("\n10.244.0.7\tp.sub.n.svc.cluster.local\tp\n"));
        assert!(text.ends_with("\n# Entries added by HostAliases.\n1.2.3.4\ta\tb.example\n"));
        assert!(
            hosts_of_node(&p, "127.0.0.1 localhost\n")
                .starts_with("# Kubernetes-managed hosts file (host network).\n127")
        );
    }
}
