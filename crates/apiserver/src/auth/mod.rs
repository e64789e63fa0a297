//! Authentication and authorization.
//!
//! Who: client certificates of the cluster's CA, ServiceAccount tokens signed here, impersonation on top.
//! May they: RBAC over the stored roles and bindings, kept in an index that follows the store; members of
//! `system:masters` always may.

pub mod authenticator;
pub mod bootstrap;
pub mod impersonate;
pub mod jwt;
pub mod rbac;
pub mod reviews;
pub mod token;
pub mod x509;

use std::sync::Arc;

use crate::config::Config;
use crate::identity::{Attributes, Authenticator, Authorizer, UserInfo};
use crate::objects::Objects;
use crate::status::{Status, quote};

/// Both questions in front of every request.
pub struct Auth {
    /// Who is it.
    pub authenticator: Arc<dyn Authenticator>,
    /// May they.
    pub authorizer: Arc<dyn Authorizer>,
    /// Issuer of ServiceAccount tokens, for the OpenID documents.
    pub tokens: Arc<token::Tokens>,
}

/// The authenticators and the authorizer of a cluster cannot be made.
#[derive(Debug, thiserror::Error)]
#[error("setting up authentication: {0}")]
pub struct AuthError(String);

impl From<jwt::JwtError> for AuthError {
    fn from(error: jwt::JwtError) -> Self {
        AuthError(error.to_string())
    }
}

/// The authenticators and the authorizer of a cluster; called once at start, inside a tokio runtime, where it
/// starts the watches that keep the RBAC index in step with `objects`.
pub fn new(config: &Config, objects: Arc<dyn Objects>) -> Result<Auth, AuthError> {
    let tokens = Arc::new(token::Tokens::new(config)?);
    let authenticator = authenticator::Authn {
        certificates: x509::Certificates::new(&config.client_ca).map_err(AuthError)?,
        tokens: tokens.clone(),
        objects: objects.clone(),
    };
    let authorizer = rbac::authorizer::Rbac::start(objects);
    Ok(Auth { authenticator: Arc::new(authenticator), authorizer, tokens })
}

/// 403 as the API words it: who cannot do what where.
pub fn forbidden(user: &UserInfo, request: &Attributes, reason: &str) -> Status {
    let why = if request.is_resource {
        let resource = if request.subresource.is_empty() {
            request.resource.clone()
        } else {
            format!("{}/{}", request.resource, request.subresource)
        };
        let place = if request.namespace.is_empty() {
            "at the cluster scope".to_owned()
        } else {
            format!("in the namespace {}", quote(&request.namespace))
        };
        format!(
            "User {} cannot {} resource {} in API group {} {place}",
            quote(&user.name),
            request.verb,
            quote(&resource),
            quote(&request.group)
        )
    } else {
        format!("User {} cannot {} path {}", quote(&user.name), request.verb, quote(&request.path))
    };
    let why = if reason.is_empty() { why } else { format!("{why}: {reason}") };
    if request.is_resource {
        Status::forbidden(&request.group, &request.resource, &request.name, &why)
    } else {
        Status::new(403, "Forbidden", format!("forbidden: {why}"))
            .with_details(crate::status::Details::default())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn forbidden_texts() {
        let user = UserInfo::new("x", &[]);
        let list = Attributes {
            verb: "list".into(),
            is_resource: true,
            resource: "pods".into(),
            namespace: "default".into(),
            ..Default::default()
        };
        assert_eq!(
            forbidden(&user, &list, "").message(),
            r#"pods is forbidden: User "x" cannot list resource "pods" in API group "" in the namespace "default""#
        );
        let log = Attributes {
            verb: "get".into(),
            group: "apps".into(),
            resource: "deployments".into(),
            subresource: "scale".into(),
            name: "web".into(),
            namespace: String::new(),
            ..list
        };
        assert_eq!(
            forbidden(&user, &log, "").message(),
            r#"deployments.apps "web" is forbidden: User "x" cannot get resource "deployments/scale" in API group "apps" at the cluster scope"#
        );
        let path = Attributes { verb: "get".into(), path: "/metrics".into(), ..Default::default() };
        assert_eq!(
            forbidden(&user, &path, "").message(),
            r#"forbidden: User "x" cannot get path "/metrics""#
        );
    }
}
