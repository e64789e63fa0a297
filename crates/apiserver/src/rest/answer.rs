//! Answers: from stored bytes or parsed objects to what the client asked to see.

use bytes::Bytes;
use futures::stream::BoxStream;
use serde_json::{Value, json};
use storage::KeyValue;

use crate::core::Call;
use crate::negotiate::{self, Accept, Encoding, Shape};
use crate::object;
use crate::status::Status;
use crate::table;

/// The body of an answer.
pub enum Payload {
    /// All of it.
    Whole(Bytes),
    /// A stream of chunks (watch).
    Stream(BoxStream<'static, Bytes>),
    /// A ready HTTP answer (proxied).
    Raw(Box<http::Response<crate::server::Body>>),
}

/// An answer before it becomes HTTP.
pub struct Answer {
    /// Status code.
    pub code: u16,
    /// Content type.
    pub content_type: &'static str,
    /// Body.
    pub payload: Payload,
}

/// JSON.
pub const JSON: &str = "application/json";

impl Answer {
    /// A JSON document.
    pub fn json(code: u16, value: &Value) -> Self {
        Answer::bytes(code, JSON, value.to_string().into_bytes())
    }

    /// Any document.
    pub fn bytes(code: u16, content_type: &'static str, bytes: impl Into<Bytes>) -> Self {
        Answer { code, content_type, payload: Payload::Whole(bytes.into()) }
    }

    /// In the encoding that was negotiated.
    pub fn encoded(code: u16, encoding: Encoding, value: &Value) -> Result<Self, Status> {
        match encoding {
            Encoding::Json => Ok(Answer::json(code, value)),
            Encoding::Yaml => {
                let text = serde_saphyr::to_string(value)
                    .map_err(|e| Status::internal(format!("write YAML: {e}")))?;
                Ok(Answer::bytes(code, "application/yaml", text.into_bytes()))
            }
        }
    }
}

/// What this call's client accepts for objects of its kind.
pub fn negotiate(call: &Call) -> Result<Accept, Status> {
    negotiate::accept(&call.headers, !call.row.is_virtual())
}

/// Answers with a stored object.
pub fn stored(call: &Call, code: u16, kv: &KeyValue) -> Result<Answer, Status> {
    let accept = negotiate(call)?;
    if accept == negotiate::PLAIN && std::sync::Arc::ptr_eq(&call.row, &call.stored) {
        let mut out = Vec::with_capacity(kv.value.len() + 40);
        object::splice(&object::head(&call.row), &kv.value, kv.mod_revision, &mut out);
        return Ok(Answer::bytes(code, JSON, out));
    }
    object_as(call, accept, code, call.outward(call.parse(kv)?))
}

/// Answers with an object in the form of the request's version.
pub fn object(call: &Call, code: u16, mut value: Value) -> Result<Answer, Status> {
    complete(&mut value);
    object_as(call, negotiate(call)?, code, value)
}

/// What was computed, as upstream's types would be written. Custom kinds are not among them.
fn complete(value: &mut Value) {
    let text = |key: &str| value[key].as_str().unwrap_or_default();
    let (group, version) = text("apiVersion").split_once('/').unwrap_or(("", text("apiVersion")));
    if let Some(ty) = schema::Table::builtin().kind(group, version, text("kind")) {
        schema::canonical::complete(ty, value);
    }
}

fn object_as(call: &Call, accept: Accept, code: u16, value: Value) -> Result<Answer, Status> {
    let shown = shape_object(call, accept.shape, value);
    Answer::encoded(code, accept.encoding, &shown)
}

/// An object as Table, metadata or itself.
pub fn shape_object(call: &Call, shape: Shape, value: Value) -> Value {
    match shape {
        Shape::Object => value,
        Shape::Partial(version) => partial(&value, version),
        Shape::Table(version) => {
            let revision = value["metadata"]["resourceVersion"].clone();
            let include = Include::of(call);
            let rows = vec![table_row(call, version, include, call.inward(value))];
            table::document(&call.row, version, json!({"resourceVersion": revision}), rows, true)
        }
    }
}

/// What a table row carries of its object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Include {
    /// Nothing.
    None,
    /// Its metadata.
    Metadata,
    /// All of it.
    Object,
}

impl Include {
    /// From the query parameter `includeObject`.
    pub fn of(call: &Call) -> Self {
        match call.query.get("includeObject") {
            "None" => Include::None,
            "Object" => Include::Object,
            _ => Include::Metadata,
        }
    }
}

/// A row of a table: cells and what the client asked for of the object, given in its stored form.
pub fn table_row(call: &Call, version: &str, include: Include, stored: Value) -> Value {
    let cells = table::cells(&call.row, &stored);
    let value = call.outward(stored);
    match include {
        Include::None => json!({"cells": cells, "object": null}),
        Include::Metadata => json!({"cells": cells, "object": partial(&value, version)}),
        Include::Object => json!({"cells": cells, "object": value}),
    }
}

/// Metadata only.
pub fn partial(value: &Value, version: &str) -> Value {
    json!({
        "kind": "PartialObjectMetadata", "apiVersion": format!("meta.k8s.io/{version}"),
        "metadata": value["metadata"],
    })
}
