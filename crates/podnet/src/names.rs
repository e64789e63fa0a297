//! Names and hardware addresses, all derived: whoever comes back after a restart finds what it made before.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// What the host ends of Pods' links start with.
pub(crate) const VETH_PREFIX: &str = "veth";
/// What every bridge of ours starts with.
pub(crate) const BRIDGE_PREFIX: &str = "skiff-";
/// The interface of a Pod, and of a node.
pub(crate) const INSIDE: &str = "eth0";
/// Every Pod's gateway; the same everywhere, since each Pod's link is its own world.
pub const GATEWAY4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
/// Likewise for IPv6.
pub const GATEWAY6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
/// The node's end of every Pod's link. Known beforehand, so that a Pod never has to ask who its gateway is.
pub(crate) const NODE_MAC: [u8; 6] = [0x0a, 0x58, 0xa9, 0xfe, 0x01, 0x01];

/// FNV-1a: spreads, is stable, needs no secret.
fn hash(text: &str) -> u64 {
    text.bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// The node's end of a Pod's link: 15 characters, all that the kernel allows.
pub(crate) fn veth(pod_uid: &str) -> String {
    format!("{VETH_PREFIX}{:011x}", hash(pod_uid) & 0xfff_ffff_ffff)
}

/// The link's alias: tells a later life whose it is.
pub(crate) fn alias(pod_uid: &str) -> String {
    format!("skiff-pod:{pod_uid}")
}

/// The Pod's uid from an alias of ours.
pub(crate) fn pod_of(alias: &str) -> Option<&str> {
    alias.strip_prefix("skiff-pod:")
}

/// The bridge of a profile: its name if that fits, else the start of it and a hash.
pub fn bridge(profile: &str) -> String {
    let whole = format!("{BRIDGE_PREFIX}{profile}");
    let fits = whole.len() <= 15 && profile.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
    if fits { whole } else { format!("{BRIDGE_PREFIX}{:09x}", hash(profile) & 0xf_ffff_ffff) }
}

/// The host's end of a node's link.
pub(crate) fn node_link(profile: &str, node: &str) -> String {
    format!("skiff{:010x}", hash(&format!("{profile}/{node}")) & 0xff_ffff_ffff)
}

/// A locally administered hardware address made from an IPv4 address (or the end of an IPv6 one).
pub(crate) fn mac(address: IpAddr) -> [u8; 6] {
    let [a, b, c, d] = match address {
        IpAddr::V4(v4) => v4.octets(),
        IpAddr::V6(v6) => (u128::from(v6) as u32).to_be_bytes(),
    };
    [0x0a, 0x58, a, b, c, d]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_the_kernel_and_differ() {
        let uids = ["8e0d6c2e-6f5a-4c65-8d4a-0d8f6f3d8b11", "8e0d6c2e-6f5a-4c65-8d4a-0d8f6f3d8b12", ""];
        let mut names: Vec<_> = uids.iter().map(|uid| veth(uid)).collect();
        names.extend(
            ["minikube", "a", "a-very-long-profile-name", "a-very-long-profile-nama", "ä/b"].map(bridge),
        );
        names.push(node_link("minikube", "minikube"));
        for name in &names {
            assert!(name.len() <= 15 && !name.contains('/') && name.is_ascii(), "{name}");
        }
        let count = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), count);
        assert_eq!(bridge("minikube"), "skiff-minikube");
        assert_eq!(pod_of(&alias("x")), Some("x"));
    }
}
