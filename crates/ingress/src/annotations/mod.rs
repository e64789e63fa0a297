//! What an Ingress says in annotations, by ingress-nginx's names and meanings.
//!
//! Every annotation of ingress-nginx has one row in the table of its family, which says whether it is honoured, differs,
//! needs nothing here, or is refused and what to use instead. The controller, the check at admission, `skiff ingress
//! lint` and the documentation all read these rows. One that is not in the table is never ignored in silence: it is a
//! problem of the Ingress. One that keeps people out and cannot be honoured as it is written closes the Ingress: better
//! no answer than one that its owner believes to be guarded.

#![allow(clippy::unit_arg, reason = "a row of a table is one expression: what is set, or why it cannot be")]

pub(crate) mod access;
pub(crate) mod affinity;
pub(crate) mod auth;
pub(crate) mod balancing;
pub(crate) mod canary;
pub(crate) mod client_tls;
pub(crate) mod cors;
pub(crate) mod limits;
pub(crate) mod mirror;
mod refused;
pub(crate) mod response;
pub(crate) mod routing;
#[cfg(test)]
mod tests;
pub(crate) mod upstream;
pub(crate) mod value;

use std::collections::BTreeMap;

/// What all annotations of the controller begin with.
pub const PREFIX: &str = "nginx.ingress.kubernetes.io/";

/// Families of annotations that guard; an unknown one of these closes the Ingress as well.
const GUARDS: [&str; 9] = [
    "auth-",
    "whitelist-",
    "allowlist-",
    "denylist-",
    "limit-",
    "global-rate-limit",
    "satisfy",
    "enable-modsecurity",
    "modsecurity-",
];

/// How far an annotation is honoured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Support {
    /// With ingress-nginx's meaning.
    Honoured,
    /// Honoured, with this difference.
    Differs(&'static str),
    /// There is nothing to set, for this reason, whatever the value is.
    Moot(&'static str),
    /// Not honoured; what to use instead.
    Refused(&'static str),
}

/// An annotation: its name without the prefix, and what it does to a policy.
#[derive(Debug, Clone, Copy)]
pub struct Annotation {
    /// The name, without [`PREFIX`].
    pub name: &'static str,
    /// How far it is honoured.
    pub support: Support,
    /// It keeps people out: a value that cannot be read closes the Ingress.
    pub guard: bool,
    read: fn(&mut Policy, &str) -> Result<(), String>,
}

impl Annotation {
    const fn new(name: &'static str, read: fn(&mut Policy, &str) -> Result<(), String>) -> Self {
        Self { name, support: Support::Honoured, guard: false, read }
    }

    const fn guard(name: &'static str, read: fn(&mut Policy, &str) -> Result<(), String>) -> Self {
        Self { name, support: Support::Honoured, guard: true, read }
    }

    const fn differs(mut self, how: &'static str) -> Self {
        self.support = Support::Differs(how);
        self
    }

    const fn moot(name: &'static str, why: &'static str) -> Self {
        Self { name, support: Support::Moot(why), guard: false, read: |_, _| Ok(()) }
    }

    const fn refused(name: &'static str, instead: &'static str) -> Self {
        Self { name, support: Support::Refused(instead), guard: false, read: |_, _| Ok(()) }
    }

    /// One that is refused and was meant to keep people out.
    const fn refused_guard(name: &'static str, instead: &'static str) -> Self {
        Self { guard: true, ..Self::refused(name, instead) }
    }
}

/// The tables of all families.
const FAMILIES: [&[Annotation]; 13] = [
    routing::TABLE,
    upstream::TABLE,
    balancing::TABLE,
    cors::TABLE,
    auth::TABLE,
    access::TABLE,
    limits::TABLE,
    affinity::TABLE,
    canary::TABLE,
    response::TABLE,
    mirror::TABLE,
    client_tls::TABLE,
    refused::TABLE,
];

/// All annotations that are known.
pub fn known() -> impl Iterator<Item = &'static Annotation> {
    FAMILIES.iter().flat_map(|family| family.iter())
}

/// The annotation of a name without prefix.
pub fn find(name: &str) -> Option<&'static Annotation> {
    known().find(|annotation| annotation.name == name)
}

/// What the annotations of one Ingress come to; one part for each family.
#[derive(Debug, Clone, Default)]
pub struct Policy {
    pub(crate) routing: routing::Routing,
    pub(crate) upstream: upstream::Upstream,
    pub(crate) balancing: balancing::Balancing,
    pub(crate) cors: cors::Cors,
    pub(crate) auth: auth::Auth,
    pub(crate) access: access::Access,
    pub(crate) limits: limits::Limits,
    pub(crate) affinity: affinity::Affinity,
    pub(crate) canary: canary::Canary,
    pub(crate) response: response::Edits,
    pub(crate) mirror: mirror::Mirror,
    pub(crate) client_tls: client_tls::ClientTls,
    /// A guard was asked for that cannot be had: nobody comes in.
    pub(crate) closed: bool,
}

/// Something wrong with an annotation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Its whole name.
    pub annotation: String,
    /// What is wrong, and what to do.
    pub why: String,
    /// A check at admission refuses the Ingress for it.
    pub refused: bool,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "annotation {}: {}", self.annotation, self.why)
    }
}

impl Policy {
    /// `base` with an Ingress's annotations; `problem` hears of each that is not honoured.
    pub fn parse(
        base: &Self,
        annotations: Option<&BTreeMap<String, String>>,
        mut problem: impl FnMut(Problem),
    ) -> Self {
        let mut policy = base.clone();
        if annotations.is_some_and(|all| all.contains_key(&format!("{PREFIX}auth-url"))) {
            policy.auth = auth::Auth::default();
        }
        for (key, value) in annotations.into_iter().flatten() {
            let Some(name) = key.strip_prefix(PREFIX) else { continue };
            if let Err((why, refused)) = policy.set(name, value.trim()) {
                problem(Problem { annotation: key.clone(), why, refused });
            }
        }
        if let Err((name, why)) = policy.complete() {
            policy.closed = true;
            let why = format!("{why}; the Ingress is closed: answered with 503");
            problem(Problem { annotation: format!("{PREFIX}{name}"), why, refused: true });
        }
        policy
    }

    /// Sets one annotation; else why not, and whether admission refuses it.
    fn set(&mut self, name: &str, value: &str) -> Result<(), (String, bool)> {
        const CLOSED: &str = "the Ingress is closed: answered with 503";
        let Some(annotation) = find(name) else {
            if GUARDS.iter().any(|family| name.starts_with(family)) {
                self.closed = true;
                return Err((format!("is not known; {CLOSED}"), false));
            }
            return Err(("is not known and has no effect".into(), false));
        };
        if let Support::Refused(instead) = annotation.support {
            // A feature that is switched off is not missed.
            if matches!(value, "false" | "") {
                return Ok(());
            }
            self.closed |= annotation.guard;
            let end = if annotation.guard { format!("; {CLOSED}") } else { String::new() };
            return Err((format!("is not supported: {instead}{end}"), true));
        }
        (annotation.read)(self, value).map_err(|why| {
            self.closed |= annotation.guard;
            (if annotation.guard { format!("{why}; {CLOSED}") } else { why }, true)
        })
    }

    /// Sets what the ConfigMap says for all Ingresses, by the annotation's name.
    ///
    /// # Errors
    /// A value that cannot be.
    pub(crate) fn set_default(&mut self, name: &str, value: &str) -> Result<(), String> {
        self.set(name, value).map_err(|(why, _)| why)
    }

    /// What must stand together; else the annotation that is missed and why.
    fn complete(&mut self) -> Result<(), (&'static str, &'static str)> {
        self.auth.complete()?;
        self.client_tls.complete()?;
        self.routing.regex |= self.routing.rewrite.is_some();
        Ok(())
    }
}
