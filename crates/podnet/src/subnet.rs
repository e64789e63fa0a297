//! Which subnet a cluster's nodes get: the first of a list that nothing on this machine is using.

use std::net::Ipv6Addr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// The candidates in order: minikube's own (192.168.49.0/24 and on in steps of nine), then rarer corners of the private
/// ranges.
pub fn candidates() -> impl Iterator<Item = Ipv4Net> {
    let minikube = (49..=247).step_by(9).map(|third| [192, 168, third, 0]);
    let others =
        (1..=31).map(|third| [172, 31, 8 * third, 0]).chain((64..=127).map(|third| [10, 213, third, 0]));
    minikube.chain(others).filter_map(|octets| Ipv4Net::new(octets.into(), 24).ok())
}

/// The first candidate that overlaps none of `used`; a default route is no use of everything.
pub fn choose(used: &[Ipv4Net]) -> Option<Ipv4Net> {
    candidates().find(|candidate| collision(*candidate, used).is_none())
}

/// The first of `used` that overlaps `subnet`; a default route is no use of everything.
pub fn collision<N: Copy + Into<IpNet>>(subnet: N, used: &[N]) -> Option<N> {
    let subnet: IpNet = subnet.into();
    let overlaps = |net: &IpNet| net.prefix_len() > 0 && (net.contains(&subnet) || subnet.contains(net));
    used.iter().copied().find(|net| overlaps(&(*net).into()))
}

/// The IPv6 network beside an IPv4 one: its digits in a unique local /64 (RFC 4193), so that both are known by one look;
/// in the first of fd00::/16 to fdff::/16 where that overlaps none of `used`. It never leaves this machine, so it need not
/// be random.
pub fn beside(subnet: Ipv4Net, used: &[Ipv6Net]) -> Option<Ipv6Net> {
    let digits =
        |octet: u8| u16::from(octet / 100) << 8 | u16::from(octet / 10 % 10) << 4 | u16::from(octet % 10);
    let [a, b, c, _] = subnet.network().octets().map(digits);
    let at = |first| Ipv6Net::new(Ipv6Addr::new(first, a, b, c, 0, 0, 0, 0), 64).ok();
    (0xfd00..=0xfdff).filter_map(at).find(|net| collision(*net, used).is_none())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn nets(list: &[&str]) -> Vec<Ipv4Net> {
        list.iter().map(|net| net.parse().unwrap()).collect()
    }

    #[test]
    fn the_first_free_one_is_chosen() {
        for (used, expected) in [
            (&[][..], "192.168.49.0/24"),
            (&["0.0.0.0/0", "192.168.1.0/24"], "192.168.49.0/24"),
            (&["192.168.49.0/24"], "192.168.58.0/24"),
            (&["192.168.49.7/32", "192.168.58.0/23"], "192.168.67.0/24"),
            (&["192.168.0.0/16"], "172.31.8.0/24"),
            (&["192.168.0.0/16", "172.16.0.0/12"], "10.213.64.0/24"),
        ] {
            assert_eq!(choose(&nets(used)).unwrap().to_string(), expected, "{used:?}");
        }
        assert_eq!(choose(&nets(&["192.168.0.0/16", "172.16.0.0/12", "10.0.0.0/8"])), None);
    }

    #[test]
    fn the_network_beside_has_the_same_digits() {
        let beside = |used: &[&str]| {
            let used: Vec<Ipv6Net> = used.iter().map(|net| net.parse().unwrap()).collect();
            super::beside("192.168.49.0/24".parse().unwrap(), &used).map(|net| net.to_string())
        };
        assert_eq!(beside(&["::/0", "fe80::/64"]).as_deref(), Some("fd00:192:168:49::/64"));
        assert_eq!(beside(&["fd00::/16", "fd01:192:168:49::1/128"]).as_deref(), Some("fd02:192:168:49::/64"));
        assert_eq!(beside(&["fc00::/7"]), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn the_choice_never_collides(used in prop::collection::vec((any::<[u8; 4]>(), 8u8..=32), 0..40)) {
            let used: Vec<_> = used.into_iter().map(|(a, bits)| Ipv4Net::new(a.into(), bits).unwrap().trunc()).collect();
            if let Some(chosen) = choose(&used) {
                prop_assert_eq!(collision(chosen, &used), None);
            }
        }
    }
}
