//! An API server of lists and watches only, for components that follow objects. What is created is only remembered.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use http_body_util::{BodyExt, StreamBody, combinators::UnsyncBoxBody};
use kube::client::Body;
use serde_json::{Value, json};
use tokio::sync::{Mutex, broadcast, watch};
use tokio_stream::wrappers::BroadcastStream;

/// Objects by the path of their list, and a line to those that watch.
#[derive(Clone)]
pub struct FakeApi {
    lists: Arc<Mutex<HashMap<&'static str, Vec<Value>>>>,
    events: broadcast::Sender<(&'static str, Value)>,
    away: watch::Sender<bool>,
    posted: Arc<Mutex<Vec<Value>>>,
}

impl FakeApi {
    /// An API with these objects.
    pub fn new(lists: impl IntoIterator<Item = (&'static str, Vec<Value>)>) -> Self {
        let (events, _) = broadcast::channel(16_384);
        Self {
            lists: Arc::new(Mutex::new(lists.into_iter().collect())),
            events,
            away: watch::channel(false).0,
            posted: Arc::default(),
        }
    }

    /// Goes away, which ends all watches and refuses all requests, or comes back.
    pub fn set_away(&self, away: bool) {
        self.away.send_replace(away);
    }

    /// What is listed from now on, without a word to those that watch.
    pub async fn set_list(&self, path: &'static str, items: Vec<Value>) {
        self.lists.lock().await.insert(path, items);
    }

    /// A client of it.
    pub fn client(&self) -> kube::Client {
        let api = self.clone();
        let service = tower::service_fn(move |request: http::Request<Body>| {
            let api = api.clone();
            async move {
                let is_post = request.method() == http::Method::POST;
                let (parts, body) = request.into_parts();
                Ok::<_, Infallible>(if is_post {
                    api.create(body).await
                } else {
                    api.answer(&parts.uri).await
                })
            }
        });
        kube::Client::new(service, "default")
    }

    /// Tells a change, `ADDED`, `MODIFIED` or `DELETED`, once somebody watches that path.
    pub async fn tell(&self, path: &'static str, kind: &str, object: &Value) {
        while self.events.receiver_count() < self.lists.lock().await.len() {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        let mut object = object.clone();
        object["metadata"]["resourceVersion"] = json!(rand::random::<u32>().to_string());
        self.events.send((path, json!({"type": kind, "object": object}))).unwrap();
    }

    /// All that was created, oldest first.
    pub async fn posted(&self) -> Vec<Value> {
        self.posted.lock().await.clone()
    }

    async fn create(&self, body: Body) -> http::Response<UnsyncBoxBody<Bytes, Infallible>> {
        let bytes = body.collect().await.unwrap().to_bytes();
        let object: Value = serde_json::from_slice(&bytes).unwrap();
        self.posted.lock().await.push(object.clone());
        let frame = Ok(http_body::Frame::data(Bytes::from(object.to_string())));
        let body = StreamBody::new(futures::stream::iter([frame])).boxed_unsync();
        http::Response::builder().status(201).header("content-type", "application/json").body(body).unwrap()
    }

    async fn answer(&self, uri: &http::Uri) -> http::Response<UnsyncBoxBody<Bytes, Infallible>> {
        let path = uri.path().to_owned();
        if *self.away.borrow() {
            let nobody = StreamBody::new(futures::stream::empty()).boxed_unsync();
            return http::Response::builder().status(503).body(nobody).unwrap();
        }
        let frame = |value: Value| Ok(http_body::Frame::data(Bytes::from(format!("{value}\n"))));
        let body = if uri.query().unwrap_or_default().contains("watch=true") {
            let events = BroadcastStream::new(self.events.subscribe());
            let mine = events.filter_map(move |event| {
                let line = event.ok().filter(|(at, _)| *at == path).map(|(_, value)| frame(value));
                async move { line }
            });
            let mut away = self.away.subscribe();
            let gone = async move { while away.wait_for(|away| *away).await.is_err() {} };
            StreamBody::new(mine.take_until(Box::pin(gone))).boxed_unsync()
        } else {
            let items = self.lists.lock().await.get(path.as_str()).cloned().unwrap_or_default();
            let list = json!({"metadata": {"resourceVersion": "1"}, "items": items});
            StreamBody::new(futures::stream::iter([frame(list)])).boxed_unsync()
        };
        http::Response::builder().header("content-type", "application/json").body(body).unwrap()
    }
}
