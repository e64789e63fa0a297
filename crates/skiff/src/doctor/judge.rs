//! What facts about a machine mean.

use cluster::Network;
use ipnet::Ipv4Net;
use nix::errno::Errno;

use super::{Access, Finding, Verdict};
use crate::ui::size;

fn good(check: &'static str, found: impl Into<String>) -> Finding {
    Finding { check, verdict: Verdict::Good, found: found.into(), remedy: None }
}

fn warning(check: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Finding {
    Finding { check, verdict: Verdict::Warning, found: found.into(), remedy: Some(remedy.into()) }
}

fn failure(check: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Finding {
    Finding { verdict: Verdict::Failure, ..warning(check, found, remedy) }
}

/// The kinds of namespaces that the kernel has.
pub fn namespaces(there: &[String]) -> Finding {
    let check = "namespaces";
    let wanted = ["cgroup", "ipc", "mnt", "net", "pid", "uts"];
    let lacking: Vec<&str> =
        wanted.into_iter().filter(|kind| there.iter().all(|name| name != kind)).collect();
    match lacking.as_slice() {
        [] => good(check, wanted.join(", ")),
        lacking => failure(
            check,
            format!("this kernel lacks {}", lacking.join(", ")),
            "boot a kernel with CONFIG_NAMESPACES and all that is below it",
        ),
    }
}

/// Whether images' layers can be stacked.
pub fn overlay(filesystems: &str, modules: &str) -> Finding {
    let check = "overlayfs";
    let loaded = filesystems.split_whitespace().any(|word| word == "overlay");
    match (loaded, modules.contains("/overlay.ko")) {
        (true, _) => good(check, "loaded"),
        (false, true) => good(check, "loads when it is needed"),
        (false, false) => failure(
            check,
            "this kernel has none",
            "run: modprobe overlay, or boot a kernel with CONFIG_OVERLAY_FS",
        ),
    }
}

/// Whether Pods' cgroups can be made, and their limits kept.
pub fn cgroups(mounts: &[(String, Access)], controllers: &[String]) -> Finding {
    let check = "cgroups";
    if mounts.is_empty() {
        return failure(check, "none are mounted", "run: mount -t cgroup2 none /sys/fs/cgroup");
    }
    if let Some((mount, Err(error))) = mounts.iter().find(|(_, access)| access.is_err()) {
        let remedy = match error {
            Errno::EROFS => format!("run: mount -o remount,rw {mount} (in a container: run it privileged)"),
            _ => "run as root; in a container, with cgroups delegated to it".to_owned(),
        };
        return failure(check, format!("{mount} cannot be written to: {}", error.desc()), remedy);
    }
    let wanted = ["cpu", "memory", "pids"];
    let lacking: Vec<&str> =
        wanted.into_iter().filter(|name| controllers.iter().all(|there| there != name)).collect();
    match lacking.as_slice() {
        [] => good(check, format!("{} can be limited", wanted.join(", "))),
        lacking => warning(
            check,
            format!("no controller for {}: such limits of Pods are not kept", lacking.join(", ")),
            "boot with cgroup_enable=memory, or have the controllers delegated",
        ),
    }
}

/// Whether packets may be let through this machine.
pub fn forwarding(access: Access) -> Finding {
    let check = "forwarding";
    match access {
        Ok(()) => good(check, "net.ipv4.ip_forward can be set"),
        Err(error) => failure(
            check,
            format!("net.ipv4.ip_forward cannot be set: {}", error.desc()),
            "mount /proc/sys writable (in a container: run it privileged)",
        ),
    }
}

/// Whether the cluster's node network is free on this machine.
pub fn subnet(network: Result<Option<Network>, String>, used: Result<Vec<Ipv4Net>, String>) -> Finding {
    let check = "node network";
    let (network, used) = match (network, used) {
        (Ok(network), Ok(used)) => (network, used),
        (Err(reason), _) | (_, Err(reason)) => {
            return failure(check, reason, "mend what is said, or delete the cluster");
        }
    };
    let own = network.and_then(|network| Ipv4Net::new(network.gateway, network.prefix).ok());
    let Some(own) = own.map(|net| net.trunc()) else {
        return match podnet::subnet::choose(&used) {
            Some(free) => good(check, format!("{free} is free")),
            None => failure(
                check,
                "every private network that a cluster takes is in use on this machine",
                "free one of 192.168.0.0/16; see: ip route",
            ),
        };
    };
    match podnet::subnet::collision(own, &used) {
        None => good(check, format!("{own} is the cluster's alone")),
        Some(by) => failure(
            check,
            format!("{own} was given to the cluster, and now {by} is on this machine too"),
            "take that route away (see: ip route), or delete the cluster and start it again",
        ),
    }
}

/// Whether there is room for images and the store.
pub fn disk(free: Option<u64>, dir: &str) -> Finding {
    const LEAST: u64 = 100_000_000;
    const ENOUGH: u64 = 2_000_000_000;
    let check = "disk";
    let remedy = || format!("free some; see: df -h {dir}");
    match free {
        None => warning(check, format!("the free room of {dir} is not known"), remedy()),
        Some(free) if free < LEAST => failure(check, format!("{dir} has {} left", size(free)), remedy()),
        Some(free) if free < ENOUGH => warning(check, format!("{dir} has {} left", size(free)), remedy()),
        Some(free) => good(check, format!("{dir} has {} left", size(free))),
    }
}

/// Whether the kernel took the service proxy's table.
pub fn nf_tables(loaded: Result<(), String>) -> Finding {
    let check = "nf_tables";
    match loaded {
        Ok(()) => good(check, "takes the rules of Services"),
        Err(error) => failure(
            check,
            format!("refuses the rules of Services: {error}"),
            "run: modprobe -a nf_tables nft_chain_nat nft_fib_inet nft_masq nft_numgen nft_reject_inet, or boot a kernel \
             that has them",
        ),
    }
}

/// Whether connections can still be tracked.
pub fn conntrack(count: Option<u64>, max: Option<u64>) -> Finding {
    let check = "conntrack";
    match (count, max) {
        (Some(count), Some(max)) if count.saturating_mul(5) > max.saturating_mul(4) => warning(
            check,
            format!("{count} of {max} connections are in use; new ones will be dropped when it is full"),
            format!("run: sysctl -w net.netfilter.nf_conntrack_max={}", max.saturating_mul(4)),
        ),
        (Some(count), Some(max)) => good(check, format!("{count} of {max} connections are in use")),
        _ => good(check, "loads with the first rule"),
    }
}

/// Whether programs in Pods can watch files.
pub fn inotify(instances: Option<u64>, watches: Option<u64>) -> Finding {
    const INSTANCES: u64 = 128;
    const WATCHES: u64 = 8192;
    let check = "inotify";
    let (Some(instances), Some(watches)) = (instances, watches) else {
        return warning(
            check,
            "this kernel has none",
            "programs that watch files will fail; boot another kernel",
        );
    };
    let found = format!("{instances} instances and {watches} watches a user");
    if instances < INSTANCES || watches < WATCHES {
        let remedy = "run: sysctl -w fs.inotify.max_user_instances=512 fs.inotify.max_user_watches=524288";
        return warning(check, format!("{found}: programs in Pods share these"), remedy);
    }
    good(check, found)
}

/// Whether this machine's own networks hide behind the cluster's.
pub fn host_routes(used: &[Ipv4Net]) -> Finding {
    let check = "routes";
    let own = [("Pods", cluster::POD_CIDR), ("Services", cluster::SERVICE_CIDR)];
    let hidden = own.iter().find_map(|(whose, text)| {
        let by = podnet::subnet::collision(text.parse().ok()?, used)?;
        Some((by, format!("{by} of this machine lies in {text}, the addresses of {whose}")))
    });
    match hidden {
        None => good(check, format!("none in {} and {}", cluster::POD_CIDR, cluster::SERVICE_CIDR)),
        Some((by, found)) => warning(
            check,
            found,
            format!("Pods will not reach {by}; this machine's own traffic is not changed"),
        ),
    }
}

/// Whether Pods will resolve names outside of the cluster.
pub fn resolvers(resolv_conf: &str) -> Finding {
    let check = "resolvers";
    let lines = resolv_conf.lines().filter_map(|line| line.trim().strip_prefix("nameserver"));
    let servers: Vec<&str> = lines.map(str::trim).filter(|server| !server.is_empty()).collect();
    match servers.as_slice() {
        [] => warning(
            check,
            "/etc/resolv.conf names no server",
            "names outside of the cluster will not resolve in Pods; add a line: nameserver ADDRESS",
        ),
        servers => good(check, servers.join(", ")),
    }
}

/// Whether there is a kubectl.
pub fn kubectl(there: bool) -> Finding {
    match there {
        true => good("kubectl", "is on the PATH"),
        false => warning("kubectl", "is not on the PATH", crate::commands::kubectl::INSTALL),
    }
}

/// Whether the kubeconfig can be changed.
pub fn kubeconfig(checked: Result<(), String>) -> Finding {
    match checked {
        Ok(()) => good("kubeconfig", "can be read"),
        Err(reason) => failure("kubeconfig", reason, "it is never overwritten as it is"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    fn verdict(finding: &Finding) -> Verdict {
        assert_eq!(finding.remedy.is_some(), finding.verdict != Verdict::Good, "{finding:?}");
        finding.verdict
    }

    fn words(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn kernels() {
        let all = words("cgroup ipc mnt net pid pid_for_children time user uts");
        assert_eq!(verdict(&namespaces(&all)), Verdict::Good);
        let found = namespaces(&words("mnt pid"));
        assert!(verdict(&found) == Verdict::Failure && found.found.contains("net"), "{found:?}");

        assert_eq!(verdict(&overlay("nodev\toverlay\n\text4\n", "")), Verdict::Good);
        assert_eq!(verdict(&overlay("\text4\n", "kernel/fs/overlayfs/overlay.ko.xz:\n")), Verdict::Good);
        assert_eq!(verdict(&overlay("\text4\n", "")), Verdict::Failure);
        assert_eq!(verdict(&nf_tables(Err("no such file".into()))), Verdict::Failure);
    }

    #[test]
    fn cgroups_of_containers_and_small_machines() {
        let all = words("cpu memory pids");
        let mount = |access| [("/sys/fs/cgroup".to_owned(), access)];
        assert_eq!(verdict(&cgroups(&mount(Ok(())), &all)), Verdict::Good);
        let read_only = cgroups(&mount(Err(Errno::EROFS)), &all);
        assert_eq!(verdict(&read_only), Verdict::Failure);
        assert!(read_only.remedy.unwrap().contains("remount,rw /sys/fs/cgroup"));
        assert_eq!(verdict(&cgroups(&[], &all)), Verdict::Failure);
        let found = cgroups(&mount(Ok(())), &words("cpu pids"));
        assert!(verdict(&found) == Verdict::Warning && found.found.contains("memory"), "{found:?}");
        assert_eq!(verdict(&forwarding(Err(Errno::EROFS))), Verdict::Failure);
    }

    #[test]
    fn networks_that_collide() {
        let nets = |text: &str| -> Vec<Ipv4Net> { text.split(' ').map(|net| net.parse().unwrap()).collect() };
        let network = Network {
            gateway: [192, 168, 49, 1].into(),
            node: [192, 168, 49, 2].into(),
            prefix: 24,
            ip_family: cluster::IpFamily::Ipv4,
            gateway6: None,
        };
        assert_eq!(verdict(&subnet(Ok(None), Ok(nets("10.0.0.0/8")))), Verdict::Good);
        let everything = nets("192.168.0.0/16 172.16.0.0/12 10.0.0.0/8");
        assert_eq!(verdict(&subnet(Ok(None), Ok(everything))), Verdict::Failure);
        assert_eq!(verdict(&subnet(Ok(Some(network.clone())), Ok(nets("10.1.0.0/16")))), Verdict::Good);
        let found = subnet(Ok(Some(network)), Ok(nets("192.168.48.0/20")));
        assert!(verdict(&found) == Verdict::Failure && found.found.contains("192.168.48.0/20"), "{found:?}");
        assert_eq!(verdict(&subnet(Err("malformed".into()), Ok(Vec::new()))), Verdict::Failure);

        assert_eq!(verdict(&host_routes(&nets("0.0.0.0/0 192.168.1.0/24"))), Verdict::Good);
        let found = host_routes(&nets("10.100.0.0/16"));
        assert!(verdict(&found) == Verdict::Warning && found.found.contains("Services"), "{found:?}");
    }

    #[test]
    fn limits() {
        assert_eq!(verdict(&conntrack(Some(10), Some(100))), Verdict::Good);
        assert_eq!(verdict(&conntrack(Some(81), Some(100))), Verdict::Warning);
        assert_eq!(verdict(&conntrack(None, None)), Verdict::Good);
        assert_eq!(verdict(&inotify(Some(128), Some(65536))), Verdict::Good);
        assert_eq!(verdict(&inotify(Some(64), Some(65536))), Verdict::Warning);
        assert_eq!(verdict(&disk(Some(5), "/")), Verdict::Failure);
        assert_eq!(verdict(&disk(Some(1_000_000_000), "/")), Verdict::Warning);
        assert_eq!(verdict(&disk(Some(9_000_000_000), "/")), Verdict::Good);
        assert_eq!(verdict(&resolvers("search x\nnameserver 1.1.1.1\n")), Verdict::Good);
        assert_eq!(verdict(&resolvers("# nameserver 1.1.1.1\n")), Verdict::Warning);
        assert_eq!(verdict(&kubectl(false)), Verdict::Warning);
        assert_eq!(verdict(&kubeconfig(Err("malformed".into()))), Verdict::Failure);
    }
}
