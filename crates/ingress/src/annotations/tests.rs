//! The table of annotations as a whole.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::{BTreeMap, HashSet};

use proptest::prelude::*;

use super::{PREFIX, Policy, Support, find, known};
use crate::configmap::{DEFAULTS, GLOBAL_AUTH, KEYS};

fn parse(pairs: &[(&str, &str)]) -> (Policy, Vec<super::Problem>) {
    let map: BTreeMap<String, String> =
        pairs.iter().map(|(k, v)| (format!("{PREFIX}{k}"), (*v).to_owned())).collect();
    let mut problems = Vec::new();
    let policy = Policy::parse(&Policy::default(), Some(&map), |problem| problems.push(problem));
    (policy, problems)
}

#[test]
fn every_annotation_has_one_row() {
    let names: Vec<&str> = known().map(|annotation| annotation.name).collect();
    assert_eq!(names.iter().collect::<HashSet<_>>().len(), names.len(), "{names:?}");
    for annotation in known() {
        if let Support::Refused(instead) | Support::Differs(instead) | Support::Moot(instead) =
            annotation.support
        {
            assert!(instead.len() > 5, "{}", annotation.name);
        }
    }
}

#[test]
fn a_value_that_cannot_be_is_said_with_its_name_and_changes_nothing_but_that_a_guard_closes() {
    for (name, value) in [
        ("ssl-redirect", "maybe"),
        ("proxy-body-size", "8x"),
        ("proxy-read-timeout", "0"),
        ("rewrite-target", "no-slash"),
        ("permanent-redirect", "javascript:alert(1)"),
        ("temporal-redirect", "https://x/$nothing"),
        ("permanent-redirect-code", "200"),
        ("server-alias", "~^www"),
        ("affinity", "ip"),
        ("session-cookie-name", "a b"),
        ("session-cookie-samesite", "maybe"),
        ("canary-weight", "-1"),
        ("canary-by-header-pattern", "("),
        ("cors-allow-origin", "one.example"),
        ("cors-max-age", "long"),
        ("custom-http-errors", "teapot"),
        ("default-backend", "other/name"),
        ("load-balance", "random"),
        ("upstream-hash-by", "$nothing"),
        ("mirror-target", "nowhere"),
        ("x-forwarded-prefix", "a\nb"),
        ("upstream-vhost", "a b"),
        ("auth-realm", "a\"b"),
        ("auth-signin", "nowhere"),
    ] {
        let (policy, problems) = parse(&[(name, value)]);
        assert!(
            matches!(&problems[..], [p] if p.annotation.ends_with(name) && p.refused),
            "{name}: {problems:?}"
        );
        assert!(!policy.closed, "{name}");
        assert_eq!(format!("{policy:?}"), format!("{:?}", Policy::default()), "{name}");
    }
}

#[test]
fn guards_close() {
    for annotation in known().filter(|a| a.guard && a.name != "auth-tls-match-cn") {
        let (policy, problems) = parse(&[(annotation.name, "\u{0}nonsense")]);
        assert!(policy.closed && !problems.is_empty(), "{}: {problems:?}", annotation.name);
    }
}

#[test]
fn what_is_switched_off_is_not_missed() {
    let off = [("enable-modsecurity", "false"), ("enable-opentelemetry", "false")];
    let (policy, problems) = parse(&off);
    assert!(!policy.closed && problems.is_empty(), "{problems:?}");
}

/// The rows as `docs/ingress.md` shows them.
fn documented() -> String {
    let row = |name: &str, support: Support| {
        let (word, why) = match support {
            Support::Honoured => ("honoured", ""),
            Support::Differs(how) => ("differs", how),
            Support::Moot(why) => ("moot", why),
            Support::Refused(instead) => ("refused", instead),
        };
        format!("| `{name}` | {word} | {why} |\n")
    };
    let mut annotations: Vec<String> = known().map(|a| row(a.name, a.support)).collect();
    annotations.sort();
    let mut keys: Vec<String> = KEYS.iter().map(|key| row(key.name, key.support)).collect();
    keys.extend(DEFAULTS.iter().map(|name| {
        let support = find(name).map_or(Support::Honoured, |annotation| annotation.support);
        row(name, support)
    }));
    keys.extend(GLOBAL_AUTH.iter().map(|(name, _)| row(name, Support::Honoured)));
    keys.sort();
    format!("{HEAD}{ROWS}{}\n{KEYS_HEAD}{ROWS}{}", annotations.concat(), keys.concat())
}

const ROWS: &str = "| name | here | difference, reason, or what to use instead |\n|---|---|---|\n";

const HEAD: &str = "\
# Ingress: ingress-nginx's annotations and settings, one by one

`skiff addons enable ingress` serves Ingresses of class `nginx`, and those without a class. This page is made of the rows
that the controller, the check at admission and `skiff ingress lint` read; a test holds it to them.

*honoured*: with ingress-nginx's meaning. *differs*: honoured, but for what is said. *moot*: there is nothing to set, and
what the value is does not matter. *refused*:
told when the Ingress is written, with what to use instead. A name that is not here is taken, has no effect and is told in
an Event; one that looks like a guard (`auth-*`, `limit-*`, ...) and is not known, or that guards and has a value that
cannot be, closes the Ingress: 503.

## Annotations, all with `nginx.ingress.kubernetes.io/` before them

";

const KEYS_HEAD: &str = "\
## Keys of ConfigMap `ingress-nginx-controller` in namespace `ingress-nginx`

Followed live, without a reload.

";

#[test]
fn the_documentation_shows_these_rows() {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/ingress.md");
    let expected = documented();
    if std::fs::read_to_string(page).unwrap_or_default() != expected {
        let new = std::env::temp_dir().join("skiff-ingress.md");
        std::fs::write(&new, expected).unwrap();
        panic!("docs/ingress.md is not what the rows say; take {}", new.display());
    }
}

proptest! {
    #[test]
    fn no_value_makes_it_panic(picks: Vec<(u16, String)>) {
        let names: Vec<&str> = known().map(|annotation| annotation.name).collect();
        let pairs: Vec<(&str, &str)> =
            picks.iter().map(|(n, value)| (names[usize::from(*n) % names.len()], value.as_str())).collect();
        parse(&pairs);
    }
}
