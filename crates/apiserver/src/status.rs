//! Failures as the API reports them: `meta/v1.Status` with code, reason, details and causes.
//!
//! Texts and reasons are those clients match on; one constructor per way to fail, so that no handler
//! spells a message itself.

use std::borrow::Cow;
use std::fmt;

use serde_json::{Map, Value, json};

use crate::field::FieldErrors;

/// One entry of `details.causes`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cause {
    /// Machine-readable reason, such as `FieldValueInvalid`.
    pub reason: String,
    /// What is wrong with the field.
    pub message: String,
    /// Path of the field.
    pub field: String,
}

/// `details` of a Status.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Details {
    /// Name of the object.
    pub name: String,
    /// API group.
    pub group: String,
    /// Resource or kind, as upstream chooses per reason.
    pub kind: String,
    /// UID of the object.
    pub uid: String,
    /// One entry per offending field.
    pub causes: Vec<Cause>,
    /// Seconds after which a retry makes sense.
    pub retry_after_seconds: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Inner {
    code: u16,
    reason: Cow<'static, str>,
    message: String,
    details: Option<Details>,
}

/// A failed request, to be sent as a Status object. Boxed: it travels in every `Result`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status(Box<Inner>);

impl std::error::Error for Status {}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)
    }
}

impl Status {
    /// A failure with a code and a reason, without details.
    pub fn new(code: u16, reason: impl Into<Cow<'static, str>>, message: impl Into<String>) -> Self {
        Status(Box::new(Inner { code, reason: reason.into(), message: message.into(), details: None }))
    }

    /// Adds details.
    #[must_use]
    pub fn with_details(mut self, details: Details) -> Self {
        self.0.details = Some(details);
        self
    }

    /// HTTP status code.
    pub fn code(&self) -> u16 {
        self.0.code
    }

    /// Reason such as `NotFound`.
    pub fn reason(&self) -> &str {
        &self.0.reason
    }

    /// Human-readable message.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// Details, if any.
    pub fn details(&self) -> Option<&Details> {
        self.0.details.as_ref()
    }

    fn named(code: u16, reason: &'static str, message: String, group: &str, kind: &str, name: &str) -> Self {
        Status::new(code, reason, message).with_details(Details {
            name: name.into(),
            group: group.into(),
            kind: kind.into(),
            ..Details::default()
        })
    }

    /// 404: the object does not exist.
    pub fn not_found(group: &str, resource: &str, name: &str) -> Self {
        let message = format!("{} {} not found", qualified(group, resource), quote(name));
        Self::named(404, "NotFound", message, group, resource, name)
    }

    /// 404: no such path.
    pub fn path_not_found() -> Self {
        Status::new(404, "NotFound", "the server could not find the requested resource")
            .with_details(Details::default())
    }

    /// 409: the name is taken.
    pub fn already_exists(group: &str, resource: &str, name: &str) -> Self {
        let message = format!("{} {} already exists", qualified(group, resource), quote(name));
        Self::named(409, "AlreadyExists", message, group, resource, name)
    }

    /// 409: the operation lost against a concurrent one or against the state of the object.
    pub fn conflict(group: &str, resource: &str, name: &str, why: &str) -> Self {
        let message =
            format!("Operation cannot be fulfilled on {} {}: {why}", qualified(group, resource), quote(name));
        Self::named(409, "Conflict", message, group, resource, name)
    }

    /// 409 of a write whose resourceVersion is not the current one.
    pub fn modified(group: &str, resource: &str, name: &str) -> Self {
        let why =
            "the object has been modified; please apply your changes to the latest version and try again";
        Self::conflict(group, resource, name, why)
    }

    /// 403: known, but not allowed.
    pub fn forbidden(group: &str, resource: &str, name: &str, why: &str) -> Self {
        let message = if name.is_empty() {
            format!("{} is forbidden: {why}", qualified(group, resource))
        } else {
            format!("{} {} is forbidden: {why}", qualified(group, resource), quote(name))
        };
        Self::named(403, "Forbidden", message, group, resource, name)
    }

    /// 422: the object breaks rules of its kind.
    pub fn invalid(group: &str, kind: &str, name: &str, errors: &FieldErrors) -> Self {
        let causes = errors
            .iter()
            .map(|e| Cause { reason: e.kind.reason().into(), message: e.body(), field: e.path.clone() })
            .collect();
        let message = format!("{} {} is invalid: {errors}", qualified(group, kind), quote(name));
        let mut status = Self::named(422, "Invalid", message, group, kind, name);
        if let Some(details) = &mut status.0.details {
            details.causes = causes;
        }
        status
    }

    /// 400: the request cannot be understood.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Status::new(400, "BadRequest", message)
    }

    /// 401: no valid credentials.
    pub fn unauthorized() -> Self {
        Status::new(401, "Unauthorized", "Unauthorized")
    }

    /// 405: the resource does not support the verb.
    pub fn method_not_allowed() -> Self {
        let message = "the server does not allow this method on the requested resource";
        Status::new(405, "MethodNotAllowed", message).with_details(Details::default())
    }

    /// 406: none of the accepted media types can be produced.
    pub fn not_acceptable(offers: &[&str]) -> Self {
        let message = format!("only the following media types are accepted: {}", offers.join(", "));
        Status::new(406, "NotAcceptable", message)
    }

    /// 415: the media type of the body is unknown here.
    pub fn unsupported_media_type(accepted: &[&str]) -> Self {
        let message = format!(
            "the body of the request was in an unknown format - accepted media types include: {}",
            accepted.join(", ")
        );
        Status::new(415, "UnsupportedMediaType", message)
    }

    /// 413: the body is larger than the server takes.
    pub fn too_large(limit: usize) -> Self {
        let message = format!("Request entity is too large: limit is {limit}");
        Status::new(413, "RequestEntityTooLarge", message)
    }

    /// 410: the revision is no longer in the history.
    pub fn expired(message: impl Into<String>) -> Self {
        Status::new(410, "Expired", message)
    }

    /// 500: our fault.
    pub fn internal(why: impl fmt::Display) -> Self {
        let message = format!("Internal error occurred: {why}");
        let cause = Cause { reason: String::new(), message: why.to_string(), field: String::new() };
        Status::new(500, "InternalError", message)
            .with_details(Details { causes: vec![cause], ..Details::default() })
    }

    /// 503: cannot serve now.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Status::new(503, "ServiceUnavailable", message)
    }

    /// 429: try again after some seconds.
    pub fn too_many_requests(message: impl Into<String>, retry_after_seconds: u32) -> Self {
        Status::new(429, "TooManyRequests", message)
            .with_details(Details { retry_after_seconds, ..Details::default() })
    }

    /// The `meta/v1.Status` object.
    pub fn to_value(&self) -> Value {
        let mut out = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.0.message,
        });
        if !self.0.reason.is_empty() {
            out["reason"] = self.0.reason.as_ref().into();
        }
        if let Some(details) = &self.0.details {
            out["details"] = details.to_value();
        }
        out["code"] = self.0.code.into();
        out
    }
}

impl Details {
    /// The `details` object; empty fields are left out.
    pub fn to_value(&self) -> Value {
        let mut out = Map::new();
        for (key, text) in
            [("name", &self.name), ("group", &self.group), ("kind", &self.kind), ("uid", &self.uid)]
        {
            if !text.is_empty() {
                out.insert(key.into(), text.as_str().into());
            }
        }
        if !self.causes.is_empty() {
            out.insert("causes".into(), self.causes.iter().map(Cause::to_value).collect());
        }
        if self.retry_after_seconds > 0 {
            out.insert("retryAfterSeconds".into(), self.retry_after_seconds.into());
        }
        out.into()
    }
}

impl Cause {
    fn to_value(&self) -> Value {
        let mut out = Map::new();
        for (key, text) in [("reason", &self.reason), ("message", &self.message), ("field", &self.field)] {
            if !text.is_empty() {
                out.insert(key.into(), text.as_str().into());
            }
        }
        out.into()
    }
}

/// `deployments.apps`, or `pods` in the core group.
pub fn qualified(group: &str, resource: &str) -> String {
    if group.is_empty() { resource.into() } else { format!("{resource}.{group}") }
}

/// Quotes as Go's `%q` does for ordinary text.
pub fn quote(text: &str) -> String {
    Value::from(text).to_string()
}
