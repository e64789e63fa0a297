//! IP families of a Service: `clusterIPs`, `ipFamilies` and `ipFamilyPolicy`, which must fit each other and the
//! cluster. Rules and texts are upstream's (`pkg/registry/core/service/storage/alloc.go`).

use std::net::IpAddr;

use serde_json::{Value, json};

use super::super::checks;
use super::super::value::{list, remove, same, set, text, unset};
use super::defaults::{headless, needs_cluster_ip, selectorless};
use crate::alloc::addresses::family;
use crate::field::{FieldError, FieldErrors};

const SINGLE: &str = "SingleStack";
const PREFER: &str = "PreferDualStack";
const REQUIRE: &str = "RequireDualStack";

/// Whether the three fields fit each other, whatever the cluster has.
pub fn related(spec: &Value, errors: &mut FieldErrors) {
    let ips = list(spec, "clusterIPs");
    match (text(spec, "clusterIP"), ips.first()) {
        ("", None) => {}
        ("", Some(_)) => {
            let why = "must be empty when `clusterIP` is not specified";
            errors.push(FieldError::invalid("spec.clusterIPs", json!(ips), why));
        }
        (_, None) => errors.push(FieldError::required("spec.clusterIPs", "")),
        (ip, Some(first)) if first != ip => {
            let why = "first value must match `clusterIP`";
            errors.push(FieldError::invalid("spec.clusterIPs", json!(ips), why));
        }
        _ => {}
    }
    let named = list(spec, "ipFamilies");
    for (i, name) in named.iter().enumerate() {
        let path = format!("spec.ipFamilies[{i}]");
        if name != "IPv4" && name != "IPv6" {
            errors.push(FieldError::not_supported(path, name.clone(), &["IPv4", "IPv6"]));
        } else if named.iter().take(i).any(|before| before == name) {
            errors.push(FieldError::duplicate(path, name.clone()));
        }
    }
    errors.optional_one_of(spec, "spec", "ipFamilyPolicy", &[PREFER, REQUIRE, SINGLE]);
    addresses(spec, ips, named, errors);
}

fn addresses(spec: &Value, ips: &[Value], named: &[Value], errors: &mut FieldErrors) {
    if ips.first().is_some_and(|first| first == "None") {
        if ips.len() > 1 {
            let why = "'None' must be the first and only value";
            errors.push(FieldError::invalid("spec.clusterIPs", json!(ips), why));
        }
        return;
    }
    if ips.len() > 2 {
        errors.push(FieldError::invalid("spec.clusterIPs", json!(ips), "may only hold up to 2 values"));
    }
    let mut parsed: Vec<IpAddr> = Vec::new();
    for (i, ip) in ips.iter().enumerate() {
        let ip = ip.as_str().unwrap_or_default();
        errors.messages(&format!("spec.clusterIPs[{i}]"), ip, checks::ip(ip));
        parsed.extend(ip.parse::<IpAddr>());
    }
    // An address that is none would skew what is said of the others.
    if parsed.len() != ips.len() {
        return;
    }
    let one_each = |address: &IpAddr| parsed.iter().any(|other| other.is_ipv4() != address.is_ipv4());
    if parsed.len() > 1 && !parsed.iter().all(one_each) {
        let why = "may specify no more than one IP for each IP family";
        errors.push(FieldError::invalid("spec.clusterIPs", json!(ips), why));
    }
    for (i, (address, name)) in parsed.iter().zip(named).enumerate() {
        let name = name.as_str().unwrap_or_default();
        if ["IPv4", "IPv6"].contains(&name) && family(*address) != name && !headless(spec) {
            let why = format!("expected an {name} value as indicated by `ipFamilies[{i}]`");
            errors.push(FieldError::invalid(format!("spec.clusterIPs[{i}]"), text_of(ips, i), why));
        }
    }
}

fn text_of(list: &[Value], at: usize) -> Value {
    list.get(at).cloned().unwrap_or_default()
}

/// What may not change, but for the second family, which comes and goes with the policy.
pub fn unchanged(spec: &Value, before: &Value, errors: &mut FieldErrors) {
    let mut misfits = FieldErrors::new();
    related(spec, &mut misfits);
    if !needs_cluster_ip(spec) || !needs_cluster_ip(before) || !misfits.is_empty() {
        return;
    }
    let unset_or_changed = |key: &str, unset: &str, errors: &mut FieldErrors| {
        let (now, olds) = (list(spec, key), list(before, key));
        let Some(first) = olds.first() else { return };
        let refuse = |i: usize, why: &str| FieldError::invalid(format!("spec.{key}[{i}]"), json!(now), why);
        if now.is_empty() {
            errors.push(refuse(0, unset));
        } else if now.len() == olds.len() {
            let moved = now.iter().zip(olds).position(|(new, old)| new != old);
            moved.into_iter().for_each(|i| errors.push(refuse(i, "may not change once set")));
        } else if now.first() != Some(first) {
            errors.push(refuse(0, "may not change once set"));
        }
    };
    if !(headless(spec) && headless(before)) {
        unset_or_changed("clusterIPs", "primary clusterIP can not be unset", errors);
    }
    let anywhere = |spec: &Value| headless(spec) && selectorless(spec);
    if !anywhere(spec) && !anywhere(before) && !list(spec, "ipFamilies").is_empty() {
        unset_or_changed("ipFamilies", "primary ipFamily can not be unset", errors);
    }
}

/// Fills `ipFamilies` and `ipFamilyPolicy` in, from the families of the cluster (the main one first), the author's wish and
/// what the Service was before.
///
/// # Errors
/// When the wish does not fit the cluster, or a second address would go without a word.
pub fn settle(configured: &[&str], spec: &mut Value, old: Option<&Value>) -> Result<(), FieldErrors> {
    let old = old.filter(|old| needs_cluster_ip(old));
    // A cluster that became dual-stack does not change a Service whose author changes something else.
    if old.is_some_and(|old| prefers_as_before(spec, old)) {
        return Ok(());
    }
    if unset(&spec["ipFamilyPolicy"]) {
        let before = old.map(|old| text(old, "ipFamilyPolicy")).filter(|policy| !policy.is_empty());
        let anywhere = headless(spec) && selectorless(spec);
        let policy = before.unwrap_or(if anywhere { REQUIRE } else { SINGLE }).to_owned();
        set(spec, "ipFamilyPolicy", policy);
    }
    let mut errors = FieldErrors::new();
    if let Some(old) = old {
        second_family(spec, old, &mut errors);
    }
    let policy = text(spec, "ipFamilyPolicy").to_owned();
    let refuse = |why: &str| FieldError::invalid("spec.ipFamilyPolicy", policy.clone(), why);
    if policy == SINGLE {
        for (key, what) in [("clusterIPs", "cluster IPs"), ("ipFamilies", "IP families")] {
            if list(spec, key).len() == 2 {
                let dual = "must be 'RequireDualStack' or 'PreferDualStack' when multiple";
                errors.push(refuse(&format!("{dual} {what} are specified")));
            }
        }
    }
    let mut families = inferred(configured, spec, &mut errors);
    if !errors.is_empty() {
        return Err(errors);
    }
    let anywhere = headless(spec) && selectorless(spec);
    if !anywhere {
        if policy == REQUIRE && configured.len() < 2 {
            errors.push(refuse("this cluster is not configured for dual-stack services"));
        }
        for (i, name) in families.iter().enumerate().filter(|(_, name)| !configured.contains(&name.as_str()))
        {
            let path = format!("spec.ipFamilies[{i}]");
            errors.push(FieldError::invalid(path, name.clone(), "not configured on this cluster"));
        }
        if !errors.is_empty() {
            return Err(errors);
        }
    }
    if families.is_empty() {
        families.push(configured.first().copied().unwrap_or("IPv4").to_owned());
    }
    if policy != SINGLE && (anywhere || configured.len() == 2) {
        let other = if families.first().is_some_and(|first| first == "IPv4") { "IPv6" } else { "IPv4" };
        if families.len() == 1 {
            families.push(other.to_owned());
        }
    }
    set(spec, "ipFamilies", json!(families));
    Ok(())
}

fn prefers_as_before(spec: &Value, old: &Value) -> bool {
    let prefers = |spec: &Value| text(spec, "ipFamilyPolicy") == PREFER;
    let unchanged = |key: &str| !unset(&spec[key]) && same(&spec[key], &old[key]);
    prefers(spec) && prefers(old) && ["type", "clusterIPs", "ipFamilies"].into_iter().all(unchanged)
}

/// `SingleStack` gives the second family up; no other policy loses it in passing.
fn second_family(spec: &mut Value, old: &Value, errors: &mut FieldErrors) {
    for (key, what) in [("clusterIPs", "cluster IP"), ("ipFamilies", "IP family")] {
        let (now, before) = (list(spec, key), list(old, key));
        if text(spec, "ipFamilyPolicy") == SINGLE {
            let first = now.first().filter(|_| now.len() > 1 && now == before).cloned();
            if let Some(first) = first {
                set(spec, key, json!([first]));
            }
        } else if !now.is_empty() && now.len() < before.len() {
            let policy = text(spec, "ipFamilyPolicy");
            let why = format!("must be 'SingleStack' to release the secondary {what}");
            errors.push(FieldError::invalid("spec.ipFamilyPolicy", policy, why));
        }
    }
}

/// The families that the author named, or whose addresses he named.
fn inferred(configured: &[&str], spec: &Value, errors: &mut FieldErrors) -> Vec<String> {
    let named = list(spec, "ipFamilies").iter();
    let mut families: Vec<String> = named.filter_map(|name| name.as_str().map(str::to_owned)).collect();
    let ips = list(spec, "clusterIPs");
    for (i, ip) in ips.iter().enumerate().skip(families.len()) {
        let Some(address) = ip.as_str().and_then(|ip| ip.parse::<IpAddr>().ok()) else { break };
        let name = family(address);
        if configured.contains(&name) {
            families.push(name.to_owned());
        } else {
            let why = format!("{name} is not configured on this cluster");
            errors.push(FieldError::invalid(format!("spec.clusterIPs[{i}]"), json!(ips), why));
        }
    }
    families
}

/// Keeps `clusterIP` and `clusterIPs` in step where an author knows only one of them; gives back what he left out.
pub fn carry_over(spec: &mut Value, old: &Value) {
    let both = needs_cluster_ip(old) && needs_cluster_ip(spec);
    if both && unset(&spec["clusterIP"]) && !unset(&old["clusterIP"]) {
        set(spec, "clusterIP", old["clusterIP"].clone());
    }
    let moved = text(spec, "clusterIP") != text(old, "clusterIP");
    if !moved && list(spec, "clusterIPs").is_empty() {
        if !unset(&old["clusterIPs"]) {
            set(spec, "clusterIPs", old["clusterIPs"].clone());
        }
    } else if moved && same(&spec["clusterIPs"], &old["clusterIPs"]) {
        match text(spec, "clusterIP") {
            "" => drop(remove(spec, "clusterIPs")),
            ip => {
                let others = list(spec, "clusterIPs").iter().skip(1).cloned();
                let all: Vec<Value> = std::iter::once(json!(ip)).chain(others).collect();
                set(spec, "clusterIPs", all);
            }
        }
    } else if moved && list(spec, "clusterIPs").is_empty() {
        let ip = text(spec, "clusterIP").to_owned();
        set(spec, "clusterIPs", json!([ip]));
    }
    for key in ["ipFamilies", "ipFamilyPolicy"] {
        if both && unset(&spec[key]) && !unset(&old[key]) {
            set(spec, key, old[key].clone());
        }
    }
}
