//! One request that is logged: what its events are made from. The last who holds it ends it: the answer, a watch's stream,
//! or the task that carries a connection.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use http::HeaderMap;
use jiff::Timestamp;
use parking_lot::Mutex;

use super::Audit;
use super::event::{Body, Source};
use super::policy::{Choice, Level, Stage};
use crate::body;
use crate::identity::{Attributes, UserInfo};
use crate::rest::answer::JSON;
use crate::status::Status;

/// What is known of a request from its head.
#[derive(Debug, Clone, Default)]
pub struct Head {
    /// Names its events.
    pub id: String,
    /// Path and query.
    pub uri: String,
    /// Where it comes from, first the client.
    pub sources: Vec<String>,
    /// `User-Agent`.
    pub agent: String,
    /// When it came.
    pub received: Timestamp,
    /// Verb and object.
    pub attributes: Attributes,
    /// Who sent it.
    pub user: UserInfo,
}

/// What becomes known.
#[derive(Default)]
struct State {
    impersonated: Option<UserInfo>,
    request: Option<Body>,
    response: Option<Body>,
    code: u16,
    /// Its last event is made.
    ended: bool,
}

/// A request that the policy wants logged.
pub struct Record {
    audit: Arc<Audit>,
    head: Arc<Head>,
    choice: Choice,
    /// Annotations of its events.
    pub notes: Arc<Mutex<BTreeMap<String, String>>>,
    state: Mutex<State>,
}

impl Record {
    /// Begins it; `None` when the policy wants nothing.
    pub fn begin(audit: &Arc<Audit>, head: Head) -> Option<Arc<Self>> {
        let choice = audit.policy.choose(&head.user, &head.attributes);
        audit.counters.levels[choice.level as usize].fetch_add(1, Ordering::Relaxed);
        if choice.level == Level::None {
            return None;
        }
        let (notes, state) = (Arc::default(), Mutex::default());
        Some(Arc::new(Record { audit: audit.clone(), head: Arc::new(head), choice, notes, state }))
    }

    /// Nothing has been done yet.
    pub fn received(&self) {
        self.emit(Stage::RequestReceived);
    }

    /// Whose place the user takes.
    pub fn impersonates(&self, user: &UserInfo) {
        self.state.lock().impersonated = Some(user.clone());
    }

    /// Adds an annotation.
    pub fn note(&self, key: &str, text: &str) {
        self.notes.lock().insert(key.to_owned(), text.to_owned());
    }

    /// The request's body. Its name completes what the URL says of the object, so that it is looked at at every level.
    pub fn request(&self, headers: &HeaderMap, bytes: &Bytes) {
        if bytes.is_empty() {
            return;
        }
        let kind = body::media_type(headers).to_owned();
        self.state.lock().request = Some(Body { kind, bytes: bytes.clone() });
    }

    /// The answer: its code, and its body if it is whole.
    pub fn response(&self, code: u16, kind: &str, bytes: Option<&Bytes>) {
        let mut state = self.state.lock();
        state.code = code;
        let wanted = |bytes: &&Bytes| {
            self.choice.level == Level::RequestResponse || bytes.starts_with(b"{\"kind\":\"Status\"")
        };
        state.response =
            bytes.filter(wanted).map(|bytes| Body { kind: kind.to_owned(), bytes: bytes.clone() });
    }

    /// The head of an answer is sent that lasts as long as its client wishes.
    pub fn started(&self) {
        self.emit(Stage::ResponseStarted);
    }

    /// The request came with credentials that do not hold: it has one event, when the answer begins.
    pub fn refused(&self, status: &Status) {
        self.response(status.code(), JSON, Some(&Bytes::from(status.to_value().to_string())));
        self.emit(Stage::ResponseStarted);
        self.state.lock().ended = true;
    }

    fn emit(&self, stage: Stage) {
        if self.choice.omit_stages.contains(&stage) {
            return;
        }
        let state = self.state.lock();
        let early = stage == Stage::RequestReceived;
        self.audit.log.send(Source {
            stage,
            level: self.choice.level,
            omit_managed_fields: self.choice.omit_managed_fields,
            head: self.head.clone(),
            at: if early { self.head.received } else { Timestamp::now() },
            impersonated: state.impersonated.clone(),
            notes: if early { BTreeMap::new() } else { self.notes.lock().clone() },
            request: state.request.clone(),
            response: state.response.clone(),
            code: state.code,
        });
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        if self.state.get_mut().ended {
            return;
        }
        self.emit(if std::thread::panicking() { Stage::Panic } else { Stage::ResponseComplete });
    }
}
