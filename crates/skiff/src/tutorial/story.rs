//! What happened between two looks at a cluster, in two lines: one about its objects and names, one about the kernel of
//! its node. Pure: the looks themselves are [`super::witness`]'s.

use std::collections::{BTreeMap, BTreeSet};

/// A cluster at one moment. Everything is text that compares.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Look {
    /// By kind and name: what a person would say of the object.
    pub objects: BTreeMap<(String, String), String>,
    /// Names that the cluster's DNS answers, with the address.
    pub names: BTreeMap<String, String>,
    /// Routes of the node.
    pub routes: BTreeSet<String>,
    /// Chains of nftables.
    pub chains: BTreeSet<String>,
    /// By set or map: the elements.
    pub elements: BTreeMap<String, BTreeSet<String>>,
}

/// Most things of one sort that are named.
const NAMED: usize = 3;

/// The lines; none when nothing changed. A cluster that came or went as a whole is counted.
pub fn story(before: &Look, after: &Look) -> Vec<String> {
    let nothing = Look::default();
    if (before == &nothing) != (after == &nothing) {
        let (sign, look) = if after == &nothing { ("-", before) } else { ("+", after) };
        let elements: usize = look.elements.values().map(BTreeSet::len).sum();
        return vec![
            format!("cluster: {sign} {} objects, {} names in its DNS", look.objects.len(), look.names.len()),
            format!(
                "node: {sign} its namespaces with {} routes, {} chains and {elements} elements of nftables",
                look.routes.len(),
                look.chains.len()
            ),
        ];
    }
    let lines = [("cluster", objects(before, after)), ("node", kernel(before, after))];
    lines
        .into_iter()
        .filter(|(_, parts)| !parts.is_empty())
        .map(|(where_, parts)| format!("{where_}: {}", parts.join("; ")))
        .collect()
}

fn objects(before: &Look, after: &Look) -> Vec<String> {
    let kinds: BTreeSet<&String> =
        before.objects.keys().chain(after.objects.keys()).map(|(kind, _)| kind).collect();
    let mut parts = Vec::new();
    for kind in kinds {
        let of = |look: &Look| -> BTreeMap<String, String> {
            let own = look.objects.iter().filter(|((k, _), _)| k == kind);
            own.map(|((_, name), text)| (name.clone(), text.clone())).collect()
        };
        parts.extend(change(kind, &of(before), &of(after)));
    }
    parts.extend(change("DNS", &before.names, &after.names));
    parts
}

/// `+ Pod a (10.244.0.5), b and 3 more`, `- ...`, `~ Service a (NodePort 80:32000)`.
fn change(sort: &str, before: &BTreeMap<String, String>, after: &BTreeMap<String, String>) -> Vec<String> {
    let show = |(name, text): (&String, &String)| match text.is_empty() {
        true => name.clone(),
        false => format!("{name} ({text})"),
    };
    let came: Vec<String> = after.iter().filter(|(name, _)| !before.contains_key(*name)).map(show).collect();
    let went: Vec<String> = before.keys().filter(|name| !after.contains_key(*name)).cloned().collect();
    let other = |(name, text): &(&String, &String)| before.get(*name).is_some_and(|old| old != *text);
    let changed: Vec<String> = after.iter().filter(other).map(show).collect();
    [("+", came), ("-", went), ("~", changed)]
        .into_iter()
        .filter(|(_, names)| !names.is_empty())
        .map(|(sign, names)| format!("{sign} {sort} {}", some(&names)))
        .collect()
}

fn kernel(before: &Look, after: &Look) -> Vec<String> {
    let mut parts = sets("route", &before.routes, &after.routes);
    parts.extend(sets("chain", &before.chains, &after.chains));
    let none = BTreeSet::new();
    let maps: BTreeSet<&String> = before.elements.keys().chain(after.elements.keys()).collect();
    for map in maps {
        let of = |look: &'_ Look| look.elements.get(map).cloned().unwrap_or_else(|| none.clone());
        parts.extend(sets(map, &of(before), &of(after)));
    }
    parts
}

fn sets(sort: &str, before: &BTreeSet<String>, after: &BTreeSet<String>) -> Vec<String> {
    let came: Vec<String> = after.difference(before).cloned().collect();
    let went: Vec<String> = before.difference(after).cloned().collect();
    let parts = [("+", came), ("-", went)].into_iter().filter(|(_, names)| !names.is_empty());
    parts.map(|(sign, names)| format!("{sign} {sort} {}", some(&names))).collect()
}

fn some(names: &[String]) -> String {
    let named = names.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(NAMED) {
        0 => named,
        more => format!("{named} and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_lines_say_what_came_changed_and_went() {
        let before = Look {
            objects: [(("Service".into(), "web".into()), "ClusterIP 80/TCP".into())].into(),
            routes: ["10.244.0.9 dev veth9".to_owned()].into(),
            ..Look::default()
        };
        let pods = ["a", "b", "c", "d"].map(|name| (("Pod".to_owned(), name.to_owned()), String::new()));
        let service = (("Service".into(), "web".into()), "NodePort 80:32000/TCP".into());
        let after = Look {
            objects: pods.into_iter().chain([service]).collect(),
            names: [("web.default.svc.cluster.local".into(), "10.96.7.7".into())].into(),
            chains: ["n4".to_owned()].into(),
            elements: [("svc4".to_owned(), ["10.96.7.7 . tcp . 80 : goto n4".to_owned()].into())].into(),
            ..Look::default()
        };
        assert_eq!(
            story(&before, &after),
            [
                "cluster: + Pod a, b, c and 1 more; ~ Service web (NodePort 80:32000/TCP); + DNS \
                 web.default.svc.cluster.local (10.96.7.7)",
                "node: - route 10.244.0.9 dev veth9; + chain n4; + svc4 10.96.7.7 . tcp . 80 : goto n4",
            ]
        );
        assert_eq!(story(&after, &after), [""; 0]);
        assert_eq!(
            story(&after, &Look::default()),
            [
                "cluster: - 5 objects, 1 names in its DNS",
                "node: - its namespaces with 0 routes, 1 chains and 1 elements of nftables",
            ]
        );
    }
}
