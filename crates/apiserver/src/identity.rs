//! Who asks and what for: the two questions in front of every request, as traits.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use http::request::Parts;
use rustls::pki_types::CertificateDer;

use crate::status::Status;

/// An authenticated user.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UserInfo {
    /// Name, such as `system:node:skiff`.
    pub name: String,
    /// Stable id; empty for certificates.
    pub uid: String,
    /// Groups, `system:authenticated` included.
    pub groups: Vec<String>,
    /// Further facts of the authenticator.
    pub extra: BTreeMap<String, Vec<String>>,
}

impl UserInfo {
    /// A user by name and groups.
    pub fn new(name: &str, groups: &[&str]) -> Self {
        UserInfo {
            name: name.into(),
            groups: groups.iter().map(|g| (*g).into()).collect(),
            ..Self::default()
        }
    }

    /// Nobody in particular.
    pub fn anonymous() -> Self {
        Self::new("system:anonymous", &["system:unauthenticated"])
    }
}

/// Certificate chain of the TLS peer, leaf first; a request extension set by the listener.
#[derive(Debug, Clone)]
pub struct PeerCertificates(pub Arc<[CertificateDer<'static>]>);

/// Address of the TCP peer; a request extension set by the listener.
#[derive(Debug, Clone, Copy)]
pub struct PeerAddress(pub std::net::IpAddr);

/// What a request wants to do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Attributes {
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`, or another verb asked
    /// about; for paths that are no resource the lower-case HTTP method.
    pub verb: String,
    /// Whether the request is about a resource (else `path` counts).
    pub is_resource: bool,
    /// API group; empty is core.
    pub group: String,
    /// API version.
    pub version: String,
    /// Plural name.
    pub resource: String,
    /// Subresource, or empty.
    pub subresource: String,
    /// Namespace, or empty.
    pub namespace: String,
    /// Object name, or empty.
    pub name: String,
    /// Path of the URL.
    pub path: String,
}

/// The answer of an authorizer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// Whether the request may go on.
    pub allowed: bool,
    /// Why, for humans; may be empty.
    pub reason: String,
}

/// Finds out who sends a request.
#[async_trait]
pub trait Authenticator: Send + Sync + 'static {
    /// The user; `None` without credentials; an error for credentials that do not hold.
    async fn authenticate(&self, request: &Parts) -> Result<Option<UserInfo>, Status>;
}

/// Decides whether a user may do something.
#[async_trait]
pub trait Authorizer: Send + Sync + 'static {
    /// The decision on one request.
    async fn authorize(&self, user: &UserInfo, attributes: &Attributes) -> Decision;
}
