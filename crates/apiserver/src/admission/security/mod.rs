//! PodSecurity: the labels of a namespace say which Pod Security Standard its Pods must meet (`enforce`), which one
//! warns (`warn`) and which one is noted in the audit log (`audit`)
//! (<https://kubernetes.io/docs/concepts/security/pod-security-admission/>).

mod checks;

use std::fmt;

use serde_json::Value;

use super::{Operation, Write};
use crate::core::Call;
use crate::field::{FieldError, FieldErrors};
use crate::kinds::value::{list, name, text};
use crate::resource::GroupResource;
use crate::status::Status;
use checks::{Offence, Subject};

const PREFIX: &str = "pod-security.kubernetes.io/";
const MODES: [&str; 3] = ["enforce", "audit", "warn"];
/// The minor version that `latest` means.
const LATEST: u32 = 33;
/// So many Pods of a namespace are looked at when its labels change.
const MOST_PODS: usize = 3000;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Level {
    Privileged,
    Baseline,
    Restricted,
}

/// A level at a version: `restricted:v1.30`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Standard {
    level: Level,
    /// `None`: the latest.
    minor: Option<u32>,
}

impl fmt::Display for Standard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let level = match self.level {
            Level::Privileged => "privileged",
            Level::Baseline => "baseline",
            Level::Restricted => "restricted",
        };
        match self.minor {
            None => write!(f, "{level}:latest"),
            Some(minor) => write!(f, "{level}:v1.{minor}"),
        }
    }
}

impl Standard {
    /// From the labels of a namespace. What cannot be read counts as the strictest.
    fn of(labels: &Value, mode: &str) -> Self {
        let read = |suffix: &str| text(labels, &format!("{PREFIX}{mode}{suffix}")).to_owned();
        let level = match read("").as_str() {
            "" => Level::Privileged,
            other => parse_level(other).unwrap_or(Level::Restricted),
        };
        Standard { level, minor: parse_version(&read("-version")).flatten() }
    }

    fn offences(self, pod: &Value) -> Vec<Offence> {
        let subject = Subject::new(pod, self.minor.unwrap_or(LATEST));
        match self.level {
            Level::Privileged => Vec::new(),
            Level::Baseline => subject.baseline(),
            Level::Restricted => subject.restricted(),
        }
    }
}

fn parse_level(text: &str) -> Option<Level> {
    Some(match text {
        "privileged" => Level::Privileged,
        "baseline" => Level::Baseline,
        "restricted" => Level::Restricted,
        _ => return None,
    })
}

/// `latest` or `v1.N`; the inner `None` is the latest.
fn parse_version(text: &str) -> Option<Option<u32>> {
    match text {
        "" | "latest" => Some(None),
        other => Some(Some(other.strip_prefix("v1.")?.parse().ok()?)),
    }
}

fn told(offences: &[Offence]) -> String {
    let each = |(reason, detail): &Offence| {
        if detail.is_empty() { reason.clone() } else { format!("{reason} ({detail})") }
    };
    offences.iter().map(each).collect::<Vec<_>>().join(", ")
}

/// Judges a write.
///
/// # Errors
/// 403 for a Pod that does not meet its namespace's standard, 422 for labels that mean nothing.
pub async fn check(call: &Call, write: Write<'_>) -> Result<(), Status> {
    let Some(new) = write.new else { return Ok(()) };
    if !matches!(write.operation, Operation::Create | Operation::Update) {
        return Ok(());
    }
    if call.row.is_namespaces() && call.cx.subresource.is_empty() {
        return namespace(call, new, write.old).await;
    }
    let (group, plural, sub) =
        (call.stored.group.as_str(), call.stored.plural.as_str(), call.cx.subresource.as_str());
    match (group, plural, sub) {
        ("", "pods", "" | "ephemeralcontainers" | "resize") => {
            if write.old.is_none_or(|old| is_significant(new, old)) {
                let labels = labels(call).await?;
                pod(call, &labels, new)?;
            }
            Ok(())
        }
        (_, _, "") => match template(group, plural, new) {
            Some(template) => {
                let labels = labels(call).await?;
                advise(call, &labels, template);
                Ok(())
            }
            None => Ok(()),
        },
        _ => Ok(()),
    }
}

async fn labels(call: &Call) -> Result<Value, Status> {
    let found = call.cx.objects.get(&GroupResource::new("", "namespaces"), "", call.namespace()).await?;
    Ok(found.map(|n| n["metadata"]["labels"].clone()).unwrap_or_default())
}

/// The Pods that a workload will make.
fn template<'a>(group: &str, plural: &str, object: &'a Value) -> Option<&'a Value> {
    match (group, plural) {
        ("", "podtemplates") => Some(&object["template"]),
        ("", "replicationcontrollers")
        | ("apps", "daemonsets" | "deployments" | "replicasets" | "statefulsets")
        | ("batch", "jobs") => Some(&object["spec"]["template"]),
        ("batch", "cronjobs") => Some(&object["spec"]["jobTemplate"]["spec"]["template"]),
        _ => None,
    }
}

/// Whether an update touches anything that a standard could be about.
fn is_significant(new: &Value, old: &Value) -> bool {
    let lists = ["initContainers", "containers", "ephemeralContainers"];
    let looks = |pod: &Value| -> Vec<(String, String, Value)> {
        lists
            .iter()
            .flat_map(|key| list(&pod["spec"], key).to_vec())
            .map(|c| {
                (text(&c, "name").to_owned(), text(&c, "image").to_owned(), c["securityContext"].clone())
            })
            .collect()
    };
    looks(new) != looks(old) || checks::relevant_annotations(new) != checks::relevant_annotations(old)
}

fn pod(call: &Call, labels: &Value, pod: &Value) -> Result<(), Status> {
    let standard = Standard::of(labels, MODES[0]);
    let offences = standard.offences(pod);
    if !offences.is_empty() {
        let why = format!("violates PodSecurity {:?}: {}", standard.to_string(), told(&offences));
        return Err(call.forbidden(name(pod), &why));
    }
    advise(call, labels, pod);
    Ok(())
}

/// Notes and warnings, which refuse nothing.
fn advise(call: &Call, labels: &Value, pod: &Value) {
    for mode in &MODES[1..] {
        let standard = Standard::of(labels, mode);
        let offences = standard.offences(pod);
        if offences.is_empty() {
            continue;
        }
        let text = format!("would violate PodSecurity {:?}: {}", standard.to_string(), told(&offences));
        if *mode == "warn" {
            call.cx.warn(text);
        } else {
            call.cx.note(format!("{PREFIX}audit-violations"), text);
        }
    }
}

/// The labels of a namespace must mean something; a stricter standard warns of the Pods that do not meet it.
async fn namespace(call: &Call, new: &Value, old: Option<&Value>) -> Result<(), Status> {
    let labels = |object: Option<&Value>| object.map(|o| o["metadata"]["labels"].clone()).unwrap_or_default();
    let (now, before) = (labels(Some(new)), labels(old));
    let mut errors = FieldErrors::new();
    for mode in MODES {
        let key = format!("{PREFIX}{mode}");
        let level = text(&now, &key);
        if level != text(&before, &key) && !level.is_empty() && parse_level(level).is_none() {
            let why = "must be one of privileged, baseline, restricted";
            errors.push(FieldError::invalid(format!("metadata.labels[{key}]"), level, why));
        }
        let key = format!("{key}-version");
        let version = text(&now, &key);
        if version != text(&before, &key) && parse_version(version).is_none() {
            let why = "must be \"latest\" or \"v1.x\"";
            errors.push(FieldError::invalid(format!("metadata.labels[{key}]"), version, why));
        }
    }
    if !errors.is_empty() {
        return Err(Status::invalid("", "Namespace", name(new), &errors));
    }
    let (standard, last) = (Standard::of(&now, MODES[0]), Standard::of(&before, MODES[0]));
    if old.is_some() && standard != last && standard.level > Level::Privileged && standard.level >= last.level
    {
        warn_of_pods(call, name(new), standard).await?;
    }
    Ok(())
}

async fn warn_of_pods(call: &Call, namespace: &str, standard: Standard) -> Result<(), Status> {
    let (pods, _) = call.cx.objects.list(&GroupResource::new("", "pods"), Some(namespace)).await?;
    let mut found: Vec<(String, Vec<&str>)> = Vec::new();
    for pod in pods.iter().take(MOST_PODS) {
        let offences = standard.offences(pod);
        if offences.is_empty() {
            continue;
        }
        let reasons = offences.iter().map(|(reason, _)| reason.as_str()).collect::<Vec<_>>().join(", ");
        match found.iter_mut().find(|(known, _)| *known == reasons) {
            Some((_, names)) => names.push(name(pod)),
            None => found.push((reasons, vec![name(pod)])),
        }
    }
    if found.is_empty() {
        return Ok(());
    }
    let standard = standard.to_string();
    call.cx.warn(format!(
        "existing pods in namespace {namespace:?} violate the new PodSecurity enforce level {standard:?}"
    ));
    for (reasons, names) in found {
        let others = match names.len() {
            1 => String::new(),
            2 => " (and 1 other pod)".to_owned(),
            n => format!(" (and {} other pods)", n - 1),
        };
        call.cx.warn(format!("{}{others}: {reasons}", names[0]));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn standards_from_labels() {
        let labels = json!({"pod-security.kubernetes.io/enforce": "baseline",
            "pod-security.kubernetes.io/enforce-version": "v1.30", "pod-security.kubernetes.io/warn": "odd"});
        assert_eq!(Standard::of(&labels, "enforce").to_string(), "baseline:v1.30");
        assert_eq!(Standard::of(&labels, "warn").to_string(), "restricted:latest");
        assert_eq!(Standard::of(&labels, "audit").to_string(), "privileged:latest");
    }

    #[test]
    fn updates_that_matter() {
        let pod = json!({"metadata": {}, "spec": {"containers": [{"name": "c", "image": "a"}]}});
        let mut labelled = pod.clone();
        labelled["metadata"]["labels"] = json!({"a": "b"});
        assert!(!is_significant(&labelled, &pod));
        let mut other = pod.clone();
        other["spec"]["containers"][0]["image"] = json!("b");
        assert!(is_significant(&other, &pod));
    }
}
