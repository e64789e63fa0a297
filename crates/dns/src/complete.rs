//! Search lists walked by the server (directive `autopath`): a Pod asks for `example.org.NS.svc.ZONE` first, and that one
//! question is answered with what the end of its search list would have given, which saves all the others.

use std::net::IpAddr;

use crate::config::Autopath;
use crate::name::Qname;
use crate::zone::Zone;

/// The further names of the client's search list, in order; none when the name is not the first of the list.
///
/// Two kinds of names are left alone, unlike in CoreDNS, since this is on by default: those of a Service that exists, so
/// that a resolver that lies about names that do not exist (many providers' do) cannot invent its endpoints, and bare
/// labels, which are nobody's outside.
pub(crate) fn candidates(path: &Autopath, zone: &Zone, name: &Qname, client: IpAddr) -> Vec<Qname> {
    if !path.zones.iter().any(|zone| zone.holds(name)) {
        return Vec::new();
    }
    let (base, own) = if path.of_pods {
        let Some(inner) = zone.origin().above(name).filter(|inner| *inner >= 3) else { return Vec::new() };
        let (namespace, service) = (name.text(inner - 2), name.text(inner - 3));
        let first =
            name.text(inner - 1) == "svc" && zone.namespace_of(&client.to_canonical()) == Some(namespace);
        if !first || zone.service(namespace, service).is_some() {
            return Vec::new();
        }
        let parents = [name.tail(inner - 1), name.tail(inner)];
        (inner - 2, parents.into_iter().map(<[u8]>::to_vec).collect::<Vec<_>>())
    } else {
        let Some(base) = path.searches.first().and_then(|first| first.above(name)) else { return Vec::new() };
        (base, Vec::new())
    };
    let skipped = usize::from(!path.of_pods);
    let leave = name.labels() - base;
    let others = path.searches.iter().skip(skipped).map(|domain| domain.wire().to_vec());
    let bare = (base > 1).then(|| vec![0]);
    own.into_iter().chain(others).chain(bare).filter_map(|domain| name.moved(leave, &domain)).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use crate::name::Domain;

    const POD: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 244, 0, 9));

    fn got(path: &Autopath, name: &str, client: IpAddr) -> Vec<String> {
        let mut zone = Zone::new(Domain::parse("cluster.local").unwrap(), 30);
        zone.set_pod("default", "p", &[POD]);
        let service = serde_json::from_value(serde_json::json!({"spec": {"clusterIP": "None"}})).unwrap();
        zone.set_service("default", "db", Some(&service));
        candidates(path, &zone, &Qname::parse(name).unwrap(), client).iter().map(Qname::to_string).collect()
    }

    #[test]
    fn the_list_of_a_pod_is_walked_from_its_second_name_on() {
        let domain = |text| Domain::parse(text).unwrap();
        let path =
            Autopath { zones: vec![domain(".")], of_pods: true, searches: vec![domain("corp.example")] };
        let all = ["a.b.svc.cluster.local.", "a.b.cluster.local.", "a.b.corp.example.", "a.b."];
        assert_eq!(got(&path, "a.b.default.svc.cluster.local", POD), all);
        assert_eq!(got(&path, "a.default.svc.cluster.local", POD).last().unwrap(), "a.corp.example.");
        let none: [&str; 0] = [];
        assert_eq!(got(&path, "a.b.other.svc.cluster.local", POD), none, "not this Pod's first");
        assert_eq!(got(&path, "a.b.default.svc.cluster.local", [1, 2, 3, 4].into()), none, "no Pod's");
        assert_eq!(got(&path, "h.db.default.svc.cluster.local", POD), none, "a host of a Service");
        assert_eq!(got(&path, "default.svc.cluster.local", POD), none);
        let path =
            Autopath { zones: vec![domain("x")], of_pods: false, searches: vec![domain("x"), domain("y")] };
        assert_eq!(got(&path, "a.b.x", POD), ["a.b.y.", "a.b."]);
        assert_eq!(got(&path, "a.b.y", POD), none);
    }
}
