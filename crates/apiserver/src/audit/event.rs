//! `audit.k8s.io/v1.Event`: one line of the log, made of what a request left.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::policy::{Level, Stage};
use super::record::Head;
use crate::admission::user;
use crate::body::{self, Format};
use crate::identity::UserInfo;
use crate::object::{self, meta};

/// A longer `User-Agent` is cut.
const AGENT: usize = 1024;

/// A body as it was sent.
#[derive(Debug, Clone)]
pub struct Body {
    /// Media type.
    pub kind: String,
    /// Its bytes, shared with whoever sends or reads them.
    pub bytes: Bytes,
}

impl Body {
    fn parse(&self) -> Option<Value> {
        let format = match self.kind.as_str() {
            "application/vnd.kubernetes.protobuf" => Format::Protobuf,
            kind if kind.ends_with("yaml") => Format::Yaml,
            _ => Format::Json,
        };
        body::parse(format, &self.bytes).ok().map(|parsed| parsed.value)
    }
}

/// What an event is made from.
pub struct Source {
    /// When in the life of the request.
    pub stage: Stage,
    /// How much.
    pub level: Level,
    /// Objects without `metadata.managedFields`.
    pub omit_managed_fields: bool,
    /// The request.
    pub head: Arc<Head>,
    /// When this event happened.
    pub at: Timestamp,
    /// Whose place the user took.
    pub impersonated: Option<UserInfo>,
    /// Annotations.
    pub notes: BTreeMap<String, String>,
    /// The request's body.
    pub request: Option<Body>,
    /// The answer's body.
    pub response: Option<Body>,
    /// The answer's code; 0 when there was no answer.
    pub code: u16,
}

fn time(moment: Timestamp) -> Value {
    moment.strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string().into()
}

/// Sets a text that is not empty.
fn set(out: &mut Map<String, Value>, key: &str, text: &str) {
    if !text.is_empty() {
        out.insert(key.into(), text.into());
    }
}

impl Source {
    /// The bytes that wait with it.
    pub fn held(&self) -> usize {
        let of = |body: &Option<Body>| body.as_ref().map_or(0, |body| body.bytes.len());
        512 + self.head.uri.len() + of(&self.request) + of(&self.response)
    }

    /// The event.
    pub fn event(&self) -> Value {
        let head = &self.head;
        let request = self.request.as_ref().and_then(Body::parse);
        let mut out = json!({
            "kind": "Event", "apiVersion": "audit.k8s.io/v1", "level": self.level.name(),
            "auditID": head.id, "stage": self.stage.name(),
            "requestURI": head.uri, "verb": head.attributes.verb, "user": user(&head.user),
        });
        let Some(map) = out.as_object_mut() else { return out };
        if let Some(other) = &self.impersonated {
            map.insert("impersonatedUser".into(), user(other));
        }
        if !head.sources.is_empty() {
            map.insert("sourceIPs".into(), json!(head.sources));
        }
        set(map, "userAgent", &agent(&head.agent));
        if head.attributes.is_resource {
            map.insert("objectRef".into(), self.object_ref(request.as_ref()));
        }
        let response = self.response.as_ref().and_then(Body::parse);
        if self.stage != Stage::RequestReceived {
            map.insert("responseStatus".into(), self.status(response.as_ref()));
        }
        if self.level >= Level::Request
            && let Some(object) = request
        {
            map.insert("requestObject".into(), self.shown(object));
        }
        if self.level == Level::RequestResponse
            && self.stage == Stage::ResponseComplete
            && let Some(object) = response
        {
            map.insert("responseObject".into(), self.shown(object));
        }
        map.insert("requestReceivedTimestamp".into(), time(head.received));
        map.insert("stageTimestamp".into(), time(self.at));
        if !self.notes.is_empty() {
            map.insert("annotations".into(), json!(self.notes));
        }
        out
    }

    /// What the URL says of the object, and where it does not, what the body says.
    fn object_ref(&self, request: Option<&Value>) -> Value {
        let about = &self.head.attributes;
        // Options and patches say nothing of the object's identity.
        let sent = request.filter(|_| matches!(about.verb.as_str(), "create" | "update"));
        let sent = sent.unwrap_or(&Value::Null);
        let or =
            |own: &str, key: &str| if own.is_empty() { meta(sent, key).to_owned() } else { own.to_owned() };
        let mut out = Map::new();
        set(&mut out, "resource", &about.resource);
        set(&mut out, "namespace", &or(&about.namespace, "namespace"));
        set(&mut out, "name", &or(&about.name, "name"));
        set(&mut out, "uid", meta(sent, "uid"));
        set(&mut out, "apiGroup", &about.group);
        set(&mut out, "apiVersion", &about.version);
        set(&mut out, "resourceVersion", meta(sent, "resourceVersion"));
        set(&mut out, "subresource", &about.subresource);
        out.into()
    }

    fn status(&self, response: Option<&Value>) -> Value {
        if self.stage == Stage::Panic {
            return json!({"metadata": {}, "status": "Failure", "message": "APIServer panic'd",
                "reason": "InternalError", "code": 500});
        }
        if self.code == 0 {
            return json!({"metadata": {}, "status": "Success", "message": "Connection closed early", "code": 200});
        }
        let mut out = json!({"metadata": {}});
        if let Some(status) = response.filter(|object| object["kind"] == "Status") {
            for key in ["status", "message", "reason", "details"] {
                object::set_top(&mut out, key, status[key].clone());
            }
        }
        out["code"] = self.code.into();
        out
    }

    fn shown(&self, mut object: Value) -> Value {
        if self.omit_managed_fields {
            let items = object.get_mut("items").and_then(Value::as_array_mut);
            items.into_iter().flatten().for_each(without_managed_fields);
            without_managed_fields(&mut object);
        }
        object
    }
}

fn without_managed_fields(object: &mut Value) {
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.shift_remove("managedFields");
    }
}

fn agent(text: &str) -> String {
    if text.len() <= AGENT {
        return text.to_owned();
    }
    let cut: String = text.chars().take(AGENT).collect();
    format!("{cut}...TRUNCATED")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Attributes;

    impl Source {
        /// An event of no importance.
        pub fn sample() -> Self {
            source(Level::Metadata)
        }
    }

    fn source(level: Level) -> Source {
        let attributes = Attributes {
            verb: "create".into(),
            is_resource: true,
            version: "v1".into(),
            resource: "configmaps".into(),
            namespace: "ns".into(),
            ..Attributes::default()
        };
        let user = UserInfo::new("jane", &["dev"]);
        let head = Head { id: "7".into(), uri: "/a?b=c".into(), attributes, user, ..Head::default() };
        let object = r#"{"kind":"ConfigMap","metadata":{"name":"m","managedFields":[{}]},"data":{"a":"b"}}"#;
        let body = Body { kind: "application/json".into(), bytes: Bytes::from(object) };
        Source {
            stage: Stage::ResponseComplete,
            level,
            omit_managed_fields: true,
            head: Arc::new(head),
            at: Timestamp::UNIX_EPOCH,
            impersonated: None,
            notes: BTreeMap::from([("a/b".into(), "c".into())]),
            request: Some(body.clone()),
            response: Some(body),
            code: 201,
        }
    }

    #[test]
    fn a_level_says_how_much() {
        let object = json!({"kind": "ConfigMap", "metadata": {"name": "m"}, "data": {"a": "b"}});
        for (level, request, response) in [
            (Level::Metadata, Value::Null, Value::Null),
            (Level::Request, object.clone(), Value::Null),
            (Level::RequestResponse, object.clone(), object),
        ] {
            let event = source(level).event();
            assert_eq!(
                (&event["requestObject"], &event["responseObject"]),
                (&request, &response),
                "{level:?}"
            );
            assert_eq!(
                event["objectRef"],
                json!({"resource": "configmaps", "namespace": "ns", "name": "m", "apiVersion": "v1"})
            );
            assert_eq!(event["responseStatus"], json!({"metadata": {}, "code": 201}));
            assert_eq!(event["stageTimestamp"], "1970-01-01T00:00:00.000000Z");
            assert_eq!(
                (&event["annotations"]["a/b"], &event["user"]["username"]),
                (&json!("c"), &json!("jane"))
            );
        }
    }

    #[test]
    fn failures_and_ends() {
        let mut failed = source(Level::Metadata);
        let status = r#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"m","reason":"Forbidden","code":403}"#;
        failed.response = Some(Body { kind: "application/json".into(), bytes: Bytes::from(status) });
        failed.code = 403;
        let expected =
            json!({"metadata": {}, "status": "Failure", "message": "m", "reason": "Forbidden", "code": 403});
        assert_eq!(failed.event()["responseStatus"], expected);
        failed.stage = Stage::RequestReceived;
        assert_eq!(failed.event()["responseStatus"], Value::Null);
        failed.stage = Stage::Panic;
        assert_eq!(failed.event()["responseStatus"]["code"], 500);
        let gone = Source { code: 0, response: None, ..source(Level::Metadata) };
        assert_eq!(gone.event()["responseStatus"]["message"], "Connection closed early");
        assert_eq!(agent(&"x".repeat(2000)).len(), AGENT + "...TRUNCATED".len());
    }
}
