//! Who sends a request: client certificate or bearer token.

use std::sync::Arc;

use async_trait::async_trait;
use http::header::AUTHORIZATION;
use http::request::Parts;

use super::token::Tokens;
use super::x509::Certificates;
use crate::identity::{Authenticator, PeerCertificates, UserInfo};
use crate::objects::Objects;
use crate::status::Status;

/// The authenticators of a cluster.
pub struct Authn {
    /// Client certificates.
    pub certificates: Certificates,
    /// ServiceAccount tokens.
    pub tokens: Arc<Tokens>,
    /// Where bound objects are looked up.
    pub objects: Arc<dyn Objects>,
}

fn bearer(request: &Parts) -> Option<&str> {
    let value = request.headers.get(AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.trim().split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

#[async_trait]
impl Authenticator for Authn {
    async fn authenticate(&self, request: &Parts) -> Result<Option<UserInfo>, Status> {
        let chain = request.extensions.get::<PeerCertificates>();
        let by_certificate = chain.and_then(|chain| self.certificates.user(&chain.0));
        if by_certificate.is_some() {
            return Ok(by_certificate);
        }
        let Some(token) = bearer(request) else {
            // A certificate that does not hold is no credential: upstream goes on as anonymous, too.
            return Ok(None);
        };
        let now = jiff::Timestamp::now().as_second();
        match self.tokens.verify(token, &[], self.objects.as_ref(), now).await {
            Ok(verified) => Ok(Some(verified.user)),
            Err(error) => {
                tracing::debug!(%error, "bearer token refused");
                Err(Status::unauthorized())
            }
        }
    }
}
