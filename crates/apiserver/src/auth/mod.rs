//! Authentication and authorization.

use std::sync::Arc;

use crate::config::Config;
use crate::identity::{Authenticator, Authorizer};
use crate::objects::Objects;

/// Both questions in front of every request.
pub struct Auth {
    /// Who is it.
    pub authenticator: Arc<dyn Authenticator>,
    /// May they.
    pub authorizer: Arc<dyn Authorizer>,
}

/// The authenticators and the authorizer of a cluster; called once at start, after which caches over `objects`
/// may start their watches.
pub type NewAuth = fn(&Config, Arc<dyn Objects>) -> Auth;
