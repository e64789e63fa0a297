//! `skiff ingress lint`: what becomes of Ingresses that were written for ingress-nginx.
//!
//! Read from the rows that the controller itself reads, so what it says is what happens. Besides annotations it names
//! the behaviours of ingress-nginx that people rely on without knowing ("Five surprising Ingress-NGINX behaviors",
//! Kubernetes' blog of February 2026). Pure.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::api::networking::v1::{HTTPIngressPath, Ingress};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Serialize;

use crate::annotations::{PREFIX, Policy, Support, find};
use crate::certificates;
use crate::table::pattern;

/// What is said of something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// It cannot be honoured, or not as it is written.
    Refused,
    /// Nobody knows it.
    Unknown,
    /// Honoured, with a difference.
    Differs,
    /// The Ingress relies on a behaviour that does not show.
    Leans,
    /// There is nothing to set.
    Moot,
    /// With ingress-nginx's meaning.
    Honoured,
}

impl Verdict {
    /// As it is printed.
    pub fn word(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Unknown => "unknown",
            Self::Differs => "differs",
            Self::Leans => "leans",
            Self::Moot => "moot",
            Self::Honoured => "honoured",
        }
    }
}

/// One thing said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What is said.
    pub verdict: Verdict,
    /// Of what: an annotation's name, or a host and path.
    pub subject: String,
    /// Why, and what to do; empty where there is nothing to add.
    pub why: String,
}

/// All that is said of one Ingress.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// `namespace/name`.
    pub ingress: String,
    /// In the order of [`Verdict`].
    pub findings: Vec<Finding>,
}

impl Report {
    /// Whether something of it does not work here.
    pub fn fails(&self) -> bool {
        self.findings.iter().any(|f| matches!(f.verdict, Verdict::Refused | Verdict::Unknown))
    }
}

/// Reads Ingresses together: some of what they do, they do to each other. Of Secrets, those that they name and that are
/// given are looked at.
pub fn lint(ingresses: &[Ingress], secrets: &[Secret]) -> Vec<Report> {
    let mut by_host: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for ingress in ingresses.iter().filter(|i| policy(i).routing.regex) {
        for host in hosts(ingress) {
            by_host.entry(host).or_default().insert(name(ingress));
        }
    }
    ingresses.iter().map(|ingress| report(ingress, &by_host, secrets)).collect()
}

fn policy(ingress: &Ingress) -> Policy {
    Policy::parse(&Policy::default(), ingress.metadata.annotations.as_ref(), |_| {})
}

fn name(ingress: &Ingress) -> String {
    let namespace = ingress.metadata.namespace.as_deref().unwrap_or("default");
    format!("{namespace}/{}", ingress.metadata.name.as_deref().unwrap_or_default())
}

fn hosts(ingress: &Ingress) -> Vec<String> {
    let rules = ingress.spec.iter().flat_map(|spec| spec.rules.iter().flatten());
    rules.map(|rule| rule.host.clone().unwrap_or_default().to_ascii_lowercase()).collect()
}

fn report(ingress: &Ingress, regex: &BTreeMap<String, BTreeSet<String>>, secrets: &[Secret]) -> Report {
    let mut findings = Vec::new();
    for (key, value) in ingress.metadata.annotations.iter().flatten() {
        if let Some(short) = key.strip_prefix(PREFIX) {
            findings.push(annotation(key, short, value));
        }
    }
    leans(ingress, regex, &mut findings);
    shown(ingress, secrets, &mut findings);
    findings.sort_by(|a, b| (a.verdict, &a.subject).cmp(&(b.verdict, &b.subject)));
    Report { ingress: name(ingress), findings }
}

fn annotation(key: &str, short: &str, value: &str) -> Finding {
    let one = BTreeMap::from([(key.to_owned(), value.to_owned())]);
    let mut wrong = None;
    Policy::parse(&Policy::default(), Some(&one), |problem| {
        // What is missed by this one alone may stand in another.
        if problem.annotation == key {
            wrong.get_or_insert(problem.why);
        }
    });
    let known = find(short).map(|annotation| annotation.support);
    let (verdict, why) = match (known, wrong) {
        (None, why) => (Verdict::Unknown, why.unwrap_or_default()),
        (Some(_), Some(why)) => (Verdict::Refused, why),
        (Some(Support::Honoured | Support::Refused(_)), None) => (Verdict::Honoured, String::new()),
        (Some(Support::Differs(how)), None) => (Verdict::Differs, how.to_owned()),
        (Some(Support::Moot(reason)), None) => (Verdict::Moot, reason.to_owned()),
    };
    Finding { verdict, subject: short.to_owned(), why }
}

fn leans(ingress: &Ingress, regex: &BTreeMap<String, BTreeSet<String>>, out: &mut Vec<Finding>) {
    let own = policy(ingress);
    let asked = |short: &str| {
        let all = ingress.metadata.annotations.as_ref();
        all.is_some_and(|all| all.contains_key(&format!("{PREFIX}{short}")))
    };
    let mut say = |verdict, subject: &str, why: String| {
        out.push(Finding { verdict, subject: subject.to_owned(), why });
    };
    if own.routing.rewrite.is_some() && !asked("use-regex") {
        say(
            Verdict::Leans,
            "rewrite-target",
            "switches expressions on for every path of its hosts, as use-regex does".into(),
        );
    }
    for rule in ingress.spec.iter().flat_map(|spec| spec.rules.iter().flatten()) {
        let host = rule.host.clone().unwrap_or_default().to_ascii_lowercase();
        let shown = if host.is_empty() { "*" } else { &host };
        let users = regex.get(&host);
        for path in rule.http.iter().flat_map(|http| &http.paths) {
            let text = path.path.as_deref().unwrap_or("/");
            let subject = format!("{shown}{text}");
            if let Some(users) = users {
                if let Err(why) = pattern(text) {
                    say(Verdict::Refused, &subject, why);
                    continue;
                }
                let mut others = users.iter().filter(|user| **user != name(ingress));
                if let Some(other) = others.next().filter(|_| !own.routing.regex) {
                    say(
                        Verdict::Leans,
                        &subject,
                        format!(
                            "Ingress {other} switches expressions on for this host, so this path is one as well"
                        ),
                    );
                }
                if let Some(why) = loose(path, text) {
                    say(Verdict::Leans, &subject, why);
                }
            } else if let Some(why) = slash(path, text) {
                say(Verdict::Leans, &subject, why);
            }
            if let Some(why) = never(text, users.is_some()) {
                say(Verdict::Leans, &subject, why);
            }
        }
    }
}

/// Certificates that cannot be shown to whom they are meant for.
fn shown(ingress: &Ingress, secrets: &[Secret], out: &mut Vec<Finding>) {
    const INSTEAD: &str = "the default certificate is shown instead";
    let namespace = |meta: &ObjectMeta| meta.namespace.clone().unwrap_or_else(|| "default".into());
    for tls in ingress.spec.iter().flat_map(|spec| spec.tls.iter().flatten()) {
        let is_it = |secret: &&Secret| {
            let same = namespace(&secret.metadata) == namespace(&ingress.metadata);
            same && tls.secret_name.is_some() && secret.metadata.name == tls.secret_name
        };
        let Some(secret) = secrets.iter().find(is_it) else { continue };
        let name = secret.metadata.name.as_deref().unwrap_or_default();
        let mut say = |subject: &str, why: String| {
            let why = format!("Secret {name:?}: {why}; {INSTEAD}");
            out.push(Finding { verdict: Verdict::Refused, subject: subject.to_owned(), why });
        };
        let own = tls.hosts.clone().filter(|named| !named.is_empty()).unwrap_or_else(|| hosts(ingress));
        match certificates::read(secret) {
            Err(why) => say("tls", why),
            Ok(certificate) => {
                for host in own.iter().filter(|host| !certificates::names(&certificate, host)) {
                    say(host, format!("its certificate does not name {host:?}"));
                }
            }
        }
    }
}

/// An expression is a beginning, and has no case.
fn loose(path: &HTTPIngressPath, text: &str) -> Option<String> {
    if text.ends_with('$') || text == "/" || text.ends_with("(.*)") && path.path_type != "Exact" {
        return None;
    }
    let upper = text.to_ascii_uppercase();
    Some(format!(
        "is compared without case and as a beginning, whatever its pathType is: {upper}x matches as well; end it with $ to match nothing more"
    ))
}

/// nginx redirects to a location that ends with a slash.
fn slash(path: &HTTPIngressPath, text: &str) -> Option<String> {
    let short = text.strip_suffix('/').filter(|short| !short.is_empty())?;
    Some(match path.path_type.as_str() {
        "Prefix" => format!("{short} is served as well, where ingress-nginx redirects it here"),
        _ => {
            format!("{short} is answered with 404, where ingress-nginx redirects it here; add a path for it")
        }
    })
}

/// Requests are matched by their normalised path.
fn never(text: &str, expression: bool) -> Option<String> {
    let odd = if expression {
        text.contains("//") || text.contains("/../")
    } else {
        crate::path::normal(text).is_none_or(|normal| *normal != *text.as_bytes())
    };
    odd.then(|| {
        "matches nothing: requests are matched by their path with %-codes decoded, slashes merged and .. resolved (the backend is sent what the client wrote)".into()
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use serde_json::json;

    fn ingress(name: &str, annotations: serde_json::Value, paths: &[(&str, &str)]) -> Ingress {
        let paths: Vec<_> = paths
            .iter()
            .map(|(path, kind)| json!({"path": path, "pathType": kind, "backend": {"service": {"name": "a", "port": {"number": 80}}}}))
            .collect();
        serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": "ns", "annotations": annotations},
            "spec": {"rules": [{"host": "h", "http": {"paths": paths}}]},
        }))
        .unwrap()
    }

    fn said(report: &Report) -> Vec<String> {
        report.findings.iter().map(|f| format!("{} {}: {}", f.verdict.word(), f.subject, f.why)).collect()
    }

    #[test]
    fn annotations_have_their_verdict() {
        let of = |short: &str, value: &str| {
            let annotations = json!({ format!("{PREFIX}{short}"): value });
            let reports = lint(&[ingress("x", annotations, &[("/", "Prefix")])], &[]);
            (reports[0].findings[0].verdict, reports[0].findings[0].why.clone(), reports[0].fails())
        };
        assert_eq!(of("enable-cors", "true"), (Verdict::Honoured, String::new(), false));
        assert_eq!(of("proxy-buffering", "on").0, Verdict::Moot);
        assert_eq!(of("server-alias", "x").0, Verdict::Differs);
        let (verdict, why, fails) = of("configuration-snippet", "x");
        assert!(verdict == Verdict::Refused && why.contains("custom-headers") && fails, "{why}");
        assert_eq!(of("proxy-body-size", "big").0, Verdict::Refused);
        assert_eq!(of("no-such-thing", "x").0, Verdict::Unknown);
    }

    #[test]
    fn hidden_behaviours_are_named() {
        let rewriting =
            ingress("x", json!({format!("{PREFIX}rewrite-target"): "/$1"}), &[("/api", "Prefix")]);
        let plain = ingress("y", json!({}), &[("/plain", "Exact"), ("/a/", "Exact"), ("/b//c", "Prefix")]);
        let reports = lint(&[rewriting, plain.clone()], &[]);
        let first = said(&reports[0]).join("\n");
        assert!(
            first.contains("switches expressions on for every path") && first.contains("/APIx matches"),
            "{first}"
        );
        let second = said(&reports[1]).join("\n");
        assert!(second.contains("Ingress ns/x switches expressions on for this host"), "{second}");
        let alone = said(&lint(&[plain], &[])[0]).join("\n");
        assert!(alone.contains("/a is answered with 404, where ingress-nginx redirects"), "{alone}");
        assert!(alone.contains("h/b//c: matches nothing"), "{alone}");
    }

    #[test]
    fn certificates_that_are_given_are_looked_at() {
        let made = rcgen::generate_simple_self_signed(["a.example".to_owned()]).unwrap();
        let data = [("tls.crt", made.cert.pem()), ("tls.key", made.signing_key.serialize_pem())];
        let secret = |name: &str, data: &[(&str, String)]| {
            let data =
                data.iter().map(|(k, v)| ((*k).to_owned(), k8s_openapi::ByteString(v.clone().into_bytes())));
            let mut secret = Secret { data: Some(data.collect()), ..Secret::default() };
            (secret.metadata.namespace, secret.metadata.name) = (Some("ns".into()), Some(name.into()));
            secret
        };
        let mut secured = ingress("x", json!({}), &[("/", "Prefix")]);
        secured.spec.as_mut().unwrap().tls = serde_json::from_value(json!([
            {"hosts": ["a.example", "b.example"], "secretName": "good"},
            {"hosts": ["c.example"], "secretName": "empty"},
            {"hosts": ["d.example"], "secretName": "elsewhere"},
        ]))
        .unwrap();
        let reports = lint(&[secured], &[secret("good", &data), secret("empty", &[])]);
        assert_eq!(
            said(&reports[0]),
            [
                "refused b.example: Secret \"good\": its certificate does not name \"b.example\"; the default certificate is shown instead",
                "refused tls: Secret \"empty\": has no tls.crt; the default certificate is shown instead",
            ]
        );
    }
}
