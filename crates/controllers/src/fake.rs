//! An API server in a hundred lines for tests of the loops: it stores objects, numbers versions, watches, and knows
//! finalizers, preconditions and the status subresource. It validates nothing.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::BodyExt;
use http_body_util::combinators::BoxBody;
use kube::Client;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::broadcast;

/// (group version, resource, kind, namespaced) of what discovery tells.
const KINDS: &[(&str, &str, &str, bool)] = &[
    ("v1", "pods", "Pod", true),
    ("v1", "services", "Service", true),
    ("v1", "endpoints", "Endpoints", true),
    ("v1", "nodes", "Node", false),
    ("v1", "namespaces", "Namespace", false),
    ("v1", "configmaps", "ConfigMap", true),
    ("v1", "serviceaccounts", "ServiceAccount", true),
    ("v1", "events", "Event", true),
    ("v1", "replicationcontrollers", "ReplicationController", true),
    ("v1", "persistentvolumeclaims", "PersistentVolumeClaim", true),
    ("apps/v1", "deployments", "Deployment", true),
    ("apps/v1", "replicasets", "ReplicaSet", true),
    ("apps/v1", "daemonsets", "DaemonSet", true),
    ("apps/v1", "statefulsets", "StatefulSet", true),
    ("apps/v1", "controllerrevisions", "ControllerRevision", true),
    ("batch/v1", "jobs", "Job", true),
    ("batch/v1", "cronjobs", "CronJob", true),
    ("coordination.k8s.io/v1", "leases", "Lease", true),
    ("discovery.k8s.io/v1", "endpointslices", "EndpointSlice", true),
    ("policy/v1", "poddisruptionbudgets", "PodDisruptionBudget", true),
];

/// group version / resource / namespace / name
type Key = (String, String, String, String);

struct State {
    objects: BTreeMap<Key, Value>,
    revision: u64,
    /// Each change ever made: revision, type, key, object.
    log: Vec<(u64, &'static str, Key, Value)>,
}

/// The server; cloning shares it.
#[derive(Clone)]
pub(crate) struct Fake {
    state: Arc<Mutex<State>>,
    changed: broadcast::Sender<()>,
}

type Answer = Response<BoxBody<Bytes, Infallible>>;

fn answer(code: u16, body: &Value) -> Answer {
    let body = http_body_util::Full::new(Bytes::from(body.to_string())).boxed();
    Response::builder().status(code).header("content-type", "application/json").body(body).unwrap()
}

fn failure(code: u16, reason: &str, message: &str) -> Answer {
    answer(
        code,
        &json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code,
                "reason": reason, "message": message}),
    )
}

fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    for (key, value) in patch {
        if value.is_null() {
            target.as_object_mut().unwrap().remove(key);
        } else {
            merge(&mut target[key], value);
        }
    }
}

struct Path {
    key: Key,
    sub: Option<String>,
}

fn parse(path: &str) -> Option<Path> {
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let (gv, rest) = match parts.as_slice() {
        ["api", version, rest @ ..] => ((*version).to_owned(), rest),
        ["apis", group, version, rest @ ..] => (format!("{group}/{version}"), rest),
        _ => return None,
    };
    let (namespace, rest) = match rest {
        ["namespaces", ns, rest @ ..] if !rest.is_empty() && !["status", "finalize"].contains(&rest[0]) => {
            (*ns, rest)
        }
        rest => ("", rest),
    };
    let part = |i: usize| rest.get(i).map(|s| (*s).to_owned());
    let key = (gv, part(0)?, namespace.to_owned(), part(1).unwrap_or_default());
    Some(Path { key, sub: part(2) })
}

impl Fake {
    /// An empty server.
    pub fn new() -> Self {
        let state = State { objects: BTreeMap::new(), revision: 1, log: Vec::new() };
        Self { state: Arc::new(Mutex::new(state)), changed: broadcast::channel(16).0 }
    }

    /// A client of it.
    pub fn client(&self) -> Client {
        let fake = self.clone();
        let service = tower::service_fn(move |request| {
            let fake = fake.clone();
            async move { Ok::<_, Infallible>(fake.serve(request).await) }
        });
        Client::new(service, "default")
    }

    async fn serve(&self, request: Request<kube::client::Body>) -> Answer {
        let (head, body) = request.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let body: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
        let query: BTreeMap<String, String> =
            form_urlencoded::parse(head.uri.query().unwrap_or("").as_bytes()).into_owned().collect();
        if let Some(found) = discovery(head.uri.path()) {
            return answer(200, &found);
        }
        let Some(Path { key, sub }) = parse(head.uri.path()) else {
            return failure(404, "NotFound", "no such path");
        };
        match (head.method, key.3.is_empty()) {
            (Method::GET, true) if query.contains_key("watch") => self.watch(key, &query),
            (Method::GET, true) => self.list(&key, &query),
            (Method::GET, false) => match self.get(&key) {
                Some(object) => answer(200, &object),
                None => failure(404, "NotFound", &format!("{} \"{}\" not found", key.1, key.3)),
            },
            (Method::POST, true) => self.create(key, body),
            (Method::DELETE, true) => {
                let keys: Vec<Key> =
                    self.state.lock().objects.keys().filter(|k| inside(k, &key)).cloned().collect();
                keys.into_iter().for_each(|k| drop(self.delete(&k, &body)));
                answer(200, &json!({"kind": "Status", "apiVersion": "v1", "status": "Success"}))
            }
            (Method::DELETE, false) => self.delete(&key, &body),
            (Method::PUT, false) => self.update(&key, sub.as_deref(), |_| body.clone(), &body),
            (Method::PATCH, false) => {
                let patched = |old: &Value| {
                    let mut new = old.clone();
                    merge(&mut new, &body);
                    new
                };
                self.update(&key, sub.as_deref(), patched, &body)
            }
            _ => failure(405, "MethodNotAllowed", "not allowed"),
        }
    }

    fn get(&self, key: &Key) -> Option<Value> {
        self.state.lock().objects.get(key).cloned()
    }

    fn create(&self, mut key: Key, mut object: Value) -> Answer {
        let mut state = self.state.lock();
        let meta = &mut object["metadata"];
        if meta["name"].as_str().is_none_or(str::is_empty) {
            let prefix = meta["generateName"].as_str().unwrap_or_default().to_owned();
            meta["name"] = format!("{prefix}{:05}", state.revision).into();
        }
        key.3 = meta["name"].as_str().unwrap().to_owned();
        if state.objects.contains_key(&key) {
            return failure(409, "AlreadyExists", &format!("{} \"{}\" already exists", key.1, key.3));
        }
        if !key.2.is_empty() {
            meta["namespace"] = key.2.clone().into();
        }
        meta["uid"] = format!("uid-{}", state.revision + 1).into();
        meta["generation"] = 1.into();
        meta["creationTimestamp"] = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string().into();
        if key.1 == "namespaces" {
            object["spec"] = json!({"finalizers": ["kubernetes"]});
        }
        let object = self.store(&mut state, "ADDED", &key, object);
        answer(201, &object)
    }

    fn store(&self, state: &mut State, type_: &'static str, key: &Key, mut object: Value) -> Value {
        state.revision += 1;
        let revision = state.revision;
        object["metadata"]["resourceVersion"] = revision.to_string().into();
        let (_, _, kind, _) = KINDS.iter().find(|k| k.0 == key.0 && k.1 == key.1).expect("a known kind");
        object["kind"] = (*kind).into();
        object["apiVersion"] = key.0.clone().into();
        if type_ == "DELETED" {
            state.objects.remove(key);
        } else {
            state.objects.insert(key.clone(), object.clone());
        }
        state.log.push((revision, type_, key.clone(), object.clone()));
        let _ = self.changed.send(());
        object
    }

    fn update(&self, key: &Key, sub: Option<&str>, change: impl Fn(&Value) -> Value, sent: &Value) -> Answer {
        let mut state = self.state.lock();
        let Some(old) = state.objects.get(key).cloned() else {
            return failure(404, "NotFound", &format!("{} \"{}\" not found", key.1, key.3));
        };
        for field in ["resourceVersion", "uid"] {
            let asked = &sent["metadata"][field];
            if asked.is_string() && *asked != old["metadata"][field] {
                return failure(409, "Conflict", "the object has been modified");
            }
        }
        let changed = change(&old);
        let mut new = old.clone();
        match sub {
            Some("finalize") => new["spec"]["finalizers"] = changed["spec"]["finalizers"].clone(),
            Some(field) => new[field] = changed[field].clone(),
            None => {
                new = changed;
                new["status"] = old["status"].clone();
                for field in ["uid", "creationTimestamp", "deletionTimestamp", "generation"] {
                    new["metadata"][field] = old["metadata"][field].clone();
                }
            }
        }
        if new["spec"] != old["spec"] {
            new["metadata"]["generation"] = (old["metadata"]["generation"].as_i64().unwrap_or(1) + 1).into();
        }
        strip_nulls(&mut new);
        if new == old {
            return answer(200, &old);
        }
        let type_ = if gone(&new) { "DELETED" } else { "MODIFIED" };
        answer(200, &self.store(&mut state, type_, key, new))
    }

    fn delete(&self, key: &Key, options: &Value) -> Answer {
        let mut state = self.state.lock();
        let Some(mut object) = state.objects.get(key).cloned() else {
            return failure(404, "NotFound", &format!("{} \"{}\" not found", key.1, key.3));
        };
        let asked = &options["preconditions"]["uid"];
        if asked.is_string() && *asked != object["metadata"]["uid"] {
            return failure(409, "Conflict", "uid differs");
        }
        let finalizer = match options["propagationPolicy"].as_str() {
            Some("Foreground") => Some("foregroundDeletion"),
            Some("Orphan") => Some("orphan"),
            _ => None,
        };
        if let Some(finalizer) = finalizer {
            let list = &mut object["metadata"]["finalizers"];
            if !list.is_array() {
                *list = json!([]);
            }
            if !list.as_array().unwrap().contains(&finalizer.into()) {
                list.as_array_mut().unwrap().push(finalizer.into());
            }
        }
        object["metadata"]["deletionTimestamp"] =
            jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string().into();
        let type_ = if gone(&object) { "DELETED" } else { "MODIFIED" };
        answer(200, &self.store(&mut state, type_, key, object))
    }

    fn list(&self, place: &Key, query: &BTreeMap<String, String>) -> Answer {
        let state = self.state.lock();
        let items: Vec<&Value> = state
            .objects
            .iter()
            .filter(|(key, _)| inside(key, place) && named(key, query))
            .map(|(_, object)| object)
            .collect();
        let body = json!({"kind": "List", "apiVersion": "v1", "items": items,
                          "metadata": {"resourceVersion": state.revision.to_string()}});
        answer(200, &body)
    }

    fn watch(&self, place: Key, query: &BTreeMap<String, String>) -> Answer {
        let from: u64 = query.get("resourceVersion").and_then(|v| v.parse().ok()).unwrap_or(0);
        let (fake, query, changes) = (self.clone(), query.clone(), self.changed.subscribe());
        let frames = futures::stream::unfold((from, changes), move |(seen, mut changes)| {
            let (fake, place, query) = (fake.clone(), place.clone(), query.clone());
            async move {
                loop {
                    let (lines, newest) = fake.since(seen, &place, &query);
                    if !lines.is_empty() {
                        let frame = http_body::Frame::data(Bytes::from(lines));
                        return Some((Ok::<_, Infallible>(frame), (newest, changes)));
                    }
                    if matches!(changes.recv().await, Err(broadcast::error::RecvError::Closed)) {
                        return None;
                    }
                }
            }
        });
        Response::builder().status(200).body(BodyExt::boxed(SyncBody(Box::pin(frames)))).unwrap()
    }

    fn since(&self, seen: u64, place: &Key, query: &BTreeMap<String, String>) -> (String, u64) {
        let state = self.state.lock();
        let at = state.log.partition_point(|(revision, ..)| *revision <= seen);
        let lines = state.log[at..].iter().filter(|(_, _, key, _)| inside(key, place) && named(key, query));
        let lines =
            lines.map(|(_, type_, _, object)| format!("{}\n", json!({"type": type_, "object": object})));
        (lines.collect(), state.revision)
    }

    /// All messages of Events about the object of that name, as `reason: message xCOUNT`.
    pub fn events_of(&self, name: &str) -> Vec<String> {
        let state = self.state.lock();
        let events = state.objects.iter().filter(|(key, _)| key.1 == "events").map(|(_, event)| event);
        let about = events.filter(|e| e["involvedObject"]["name"] == name);
        let mut said: Vec<String> = about
            .map(|e| {
                format!("{}: {}", e["reason"].as_str().unwrap_or(""), e["message"].as_str().unwrap_or(""))
            })
            .collect();
        said.sort();
        said
    }
}

/// A body that is `Sync` because only one task ever polls it, behind a lock.
struct SyncBody<S>(std::pin::Pin<Box<S>>);

impl<S> http_body::Body for SyncBody<S>
where
    S: futures::Stream<Item = Result<http_body::Frame<Bytes>, Infallible>>,
{
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<Bytes>, Infallible>>> {
        futures::Stream::poll_next(self.0.as_mut(), cx)
    }
}

/// Deleted, with nothing that holds it back: no finalizer, or for a Namespace none in its spec either.
fn gone(object: &Value) -> bool {
    let none = |list: &Value| list.as_array().is_none_or(Vec::is_empty);
    object["metadata"]["deletionTimestamp"].is_string()
        && none(&object["metadata"]["finalizers"])
        && (object["kind"] != "Namespace" || none(&object["spec"]["finalizers"]))
}

fn strip_nulls(value: &mut Value) {
    if let Value::Object(map) = value {
        map.retain(|_, v| !v.is_null());
        map.values_mut().for_each(strip_nulls);
    }
}

fn inside(key: &Key, place: &Key) -> bool {
    key.0 == place.0 && key.1 == place.1 && (place.2.is_empty() || key.2 == place.2)
}

fn named(key: &Key, query: &BTreeMap<String, String>) -> bool {
    let name = query.get("fieldSelector").and_then(|s| s.strip_prefix("metadata.name="));
    name.is_none_or(|n| key.3 == n)
}

fn discovery(path: &str) -> Option<Value> {
    let groups = || {
        let mut groups: Vec<&str> = KINDS.iter().map(|k| k.0).filter(|g| g.contains('/')).collect();
        groups.dedup();
        groups
    };
    match path {
        "/api" => Some(json!({"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []})),
        "/apis" => {
            let rows = groups().into_iter().map(|gv| {
                let (group, version) = gv.split_once('/').unwrap();
                let version = json!({"groupVersion": gv, "version": version});
                json!({"name": group, "versions": [version], "preferredVersion": version})
            });
            let rows: Vec<Value> = rows.collect();
            Some(json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": rows}))
        }
        _ => {
            let gv = path.strip_prefix("/apis/").or_else(|| path.strip_prefix("/api/"))?;
            let kinds: Vec<_> = KINDS.iter().filter(|k| k.0 == gv).collect();
            let rows = kinds.iter().map(|(_, resource, kind, namespaced)| {
                json!({"name": resource, "singularName": "", "namespaced": namespaced, "kind": kind,
                       "verbs": ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"]})
            });
            let rows: Vec<Value> = rows.collect();
            (!rows.is_empty())
                .then(|| json!({"kind": "APIResourceList", "groupVersion": gv, "resources": rows}))
        }
    }
}
