//! What policies choose, and which are refused.
#![allow(clippy::unwrap_used)]

use super::*;

fn policy(rules: &str) -> Result<Policy, String> {
    Policy::parse(&format!("apiVersion: audit.k8s.io/v1\nkind: Policy\nrules:\n{rules}"))
}

/// `VERB GROUP/RESOURCE[/SUB] NAMESPACE NAME`, or `VERB /path`.
fn request(text: &str) -> Attributes {
    let mut words = text.split(' ').map(str::to_owned);
    let mut next = || words.next().unwrap_or_default();
    let (verb, what) = (next(), next());
    if what.starts_with('/') {
        return Attributes { verb, path: what, ..Attributes::default() };
    }
    let mut parts = what.split('/').map(str::to_owned);
    let (group, resource) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let subresource = parts.next().unwrap_or_default();
    let group = if group == "core" { String::new() } else { group };
    Attributes {
        verb,
        is_resource: true,
        group,
        resource,
        subresource,
        namespace: next(),
        name: next(),
        ..Attributes::default()
    }
}

#[test]
fn rules_choose_by_every_field() {
    let user = UserInfo::new("jane", &["dev", "system:authenticated"]);
    let table = [
        ("- {level: Request}", "get core/pods ns p", "Request"),
        ("- {level: Request}", "get /metrics", "Request"),
        ("- {level: Request, users: [joe]}", "get core/pods ns p", "None"),
        ("- {level: Request, users: [joe, jane]}", "get core/pods ns p", "Request"),
        ("- {level: Request, userGroups: [ops]}", "get core/pods ns p", "None"),
        ("- {level: Request, userGroups: [ops, dev]}", "get core/pods ns p", "Request"),
        ("- {level: Request, verbs: [list]}", "get core/pods ns p", "None"),
        ("- {level: Request, verbs: [list, get]}", "get core/pods ns p", "Request"),
        ("- {level: Request, namespaces: [a]}", "get core/pods ns p", "None"),
        ("- {level: Request, namespaces: [ns]}", "get core/pods ns p", "Request"),
        ("- {level: Request, namespaces: [\"\"]}", "get core/nodes  n", "Request"),
        ("- {level: Request, namespaces: [ns]}", "get /metrics", "None"),
        ("- {level: Request, resources: [{group: \"\"}]}", "get core/pods ns p", "Request"),
        ("- {level: Request, resources: [{group: apps}]}", "get core/pods ns p", "None"),
        ("- {level: Request, resources: [{resources: [pods]}]}", "get core/pods ns p", "Request"),
        ("- {level: Request, resources: [{resources: [pods]}]}", "get core/pods/log ns p", "None"),
        ("- {level: Request, resources: [{resources: [pods/log]}]}", "get core/pods/log ns p", "Request"),
        ("- {level: Request, resources: [{resources: [pods/log]}]}", "get core/pods ns p", "None"),
        ("- {level: Request, resources: [{resources: [pods/*]}]}", "get core/pods/log ns p", "Request"),
        ("- {level: Request, resources: [{resources: [pods/*]}]}", "get core/pods ns p", "Request"),
        ("- {level: Request, resources: [{resources: [\"*/log\"]}]}", "get core/pods/log ns p", "Request"),
        ("- {level: Request, resources: [{resources: [\"*/log\"]}]}", "get core/pods ns p", "None"),
        ("- {level: Request, resources: [{resources: [\"*\"]}]}", "get core/pods/log ns p", "Request"),
        (
            "- {level: Request, resources: [{resources: [pods], resourceNames: [q]}]}",
            "get core/pods ns p",
            "None",
        ),
        (
            "- {level: Request, resources: [{resources: [pods], resourceNames: [p]}]}",
            "get core/pods ns p",
            "Request",
        ),
        ("- {level: Request, resources: [{resources: [pods]}]}", "get /metrics", "None"),
        ("- {level: Request, nonResourceURLs: [/metrics]}", "get /metrics", "Request"),
        ("- {level: Request, nonResourceURLs: [/healthz*]}", "get /healthz/ping", "Request"),
        ("- {level: Request, nonResourceURLs: [\"*\"]}", "get /version", "Request"),
        ("- {level: Request, nonResourceURLs: [\"*\"]}", "get core/pods ns p", "None"),
        ("- {level: None, users: [jane]}\n- {level: Request}", "get core/pods ns p", "None"),
        (
            "- {level: RequestResponse, verbs: [create]}\n- {level: Metadata}",
            "get core/pods ns p",
            "Metadata",
        ),
    ];
    for (rules, asked, level) in table {
        assert_eq!(
            policy(rules).unwrap().choose(&user, &request(asked)).level.name(),
            level,
            "{rules}: {asked}"
        );
    }
}

#[test]
fn stages_add_up_and_managed_fields_are_the_rules_own() {
    let text = "apiVersion: audit.k8s.io/v1\nkind: Policy\nomitStages: [RequestReceived]\nomitManagedFields: true\nrules:\n\
                - {level: Metadata, verbs: [get], omitStages: [ResponseStarted], omitManagedFields: false}\n- {level: Metadata}\n";
    let policy = Policy::parse(text).unwrap();
    let choose = |text| policy.choose(&UserInfo::anonymous(), &request(text));
    let (first, second) = (choose("get core/pods ns p"), choose("list core/pods ns"));
    assert_eq!(first.omit_stages, [Stage::RequestReceived, Stage::ResponseStarted]);
    assert!(!first.omit_managed_fields);
    assert_eq!((second.omit_stages, second.omit_managed_fields), (vec![Stage::RequestReceived], true));
}

#[test]
fn refusals_name_rule_and_field() {
    for (rules, why) in [
        ("- {level: Metadata}\n- {verbs: [get]}", "rules[1].level: Required value"),
        ("- {level: All}", "rules[0].level: Unsupported value: \"All\": supported values: \"None\""),
        ("- {level: None, verb: [get]}", "rules[0]: unknown field `verb`"),
        ("- {level: None, verbs: get}", "rules[0]: invalid type: string \"get\""),
        (
            "- {level: None, nonResourceURLs: [metrics]}",
            "rules[0].nonResourceURLs[0]: Invalid value: \"metrics\": non-resource URL rules must begin",
        ),
        (
            "- {level: None, nonResourceURLs: [/a*b]}",
            "rules[0].nonResourceURLs[0]: Invalid value: \"/a*b\": non-resource URL wildcards",
        ),
        (
            "- {level: None, nonResourceURLs: [/a], namespaces: [b]}",
            "rules[0].nonResourceURLs: Invalid value: [\"/a\"]: rules cannot apply to both",
        ),
        (
            "- {level: None, resources: [{group: Apps}]}",
            "rules[0].resources[0].group: Invalid value: \"Apps\"",
        ),
        (
            "- {level: None, resources: [{group: a}, {resourceNames: [x]}]}",
            "rules[0].resources[1].resourceNames: Invalid value: [\"x\"]: using resourceNames",
        ),
        ("- {level: None, omitStages: [Later]}", "rules[0].omitStages[0]: Unsupported value: \"Later\""),
        ("  []", "rules: Required value"),
    ] {
        let got = policy(rules).unwrap_err();
        assert!(got.starts_with(why), "{rules}: {got}");
    }
    for (text, why) in [
        (
            "kind: Policy\napiVersion: audit.k8s.io/v1beta1\nrules: [{level: None}]",
            "it must be of audit.k8s.io/v1, Kind=Policy",
        ),
        ("kind: Policy\napiVersion: audit.k8s.io/v1\nrule: []", "unknown field `rule`"),
        ("a: [", "it is no YAML"),
        ("", "invalid type"),
    ] {
        let got = Policy::parse(text).unwrap_err();
        assert!(got.contains(why), "{got}");
    }
}
