//! The API for components of the same process: the tower service beneath `kube::Client`, without TCP and TLS.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::BodyExt as _;

use crate::identity::UserInfo;
use crate::server::{ApiServer, Body, BoxError, Trusted};

/// A client's transport that is the API server itself, as one fixed user.
#[derive(Clone)]
pub struct InProcess {
    api: Arc<ApiServer>,
    user: Arc<UserInfo>,
}

impl ApiServer {
    /// The API as `user` sees it; `kube::Client::new(api.in_process(..), "default")` makes a client of it.
    pub fn in_process(self: &Arc<Self>, user: &str, groups: &[&str]) -> InProcess {
        let mut user = UserInfo::new(user, groups);
        user.groups.push("system:authenticated".into());
        InProcess { api: self.clone(), user: Arc::new(user) }
    }
}

impl<B> tower::Service<Request<B>> for InProcess
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let mut request = request.map(|body| body.map_err(Into::into).boxed_unsync());
        request.extensions_mut().insert(Trusted(self.user.clone()));
        let api = self.api.clone();
        Box::pin(async move { Ok(api.handle(request).await) })
    }
}
