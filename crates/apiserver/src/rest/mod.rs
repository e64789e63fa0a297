//! The verbs, each written once for all kinds.

pub mod answer;
pub mod apply;
mod converted;
pub mod create;
pub mod delete;
pub mod list;
pub mod owners;
pub mod patch;
pub mod scale;
pub mod subresource;
pub mod update;
pub mod views;
pub mod watch;

use bytes::Bytes;
use http::Method;
use schema::json::Duplicate;
use schema::validate::{self, Mode};
use schema::{Table, Type};
use serde_json::Value;

use crate::body::{self, Format};
use crate::core::Call;
use crate::field::{FieldError, FieldErrors};
use crate::object::{self, meta};
use crate::resource::{Resource, Subresource};
use crate::status::Status;
use crate::usage;
use answer::Answer;

/// Runs a resource request with its whole body.
///
/// # Errors
/// Whatever the verb answers as a Status.
pub async fn dispatch(mut call: Call, method: &Method, body: Bytes) -> Result<Answer, Status> {
    call.cx.dry_run = call.query.dry_run()?;
    let row = call.row.clone();
    if !call.cx.subresource.is_empty() {
        let sub = row.subresources.iter().find(|s| s.name == call.cx.subresource);
        let sub = sub.ok_or_else(Status::path_not_found)?;
        require(&sub.verbs, verb(method, false)?)?;
        return subresource::dispatch(&call, sub, method, body).await;
    }
    let collection = call.name().is_empty();
    require(&row.verbs, verb(method, collection)?)?;
    match (method.as_str(), collection) {
        _ if usage::is_usage(&row) => usage::answer(&call).await,
        ("GET" | "HEAD", true) if call.query.flag("watch") => watch::watch(call).await,
        ("GET" | "HEAD", true) => list::list(&call).await,
        ("GET" | "HEAD", false) => answer::stored(&call, 200, &call.fetch(call.name()).await?),
        ("POST", true) => {
            let object = decode_object(&call, row.as_ref(), body)?;
            create::create(&call, object).await
        }
        ("PUT", false) => update::put(&call, update::Part::Main, body).await,
        ("PATCH", false) => patch::patch(&call, update::Part::Main, body).await,
        ("DELETE", false) => delete::delete(&call, body).await,
        ("DELETE", true) => delete::delete_collection(&call, body).await,
        _ => Err(Status::method_not_allowed()),
    }
}

fn verb(method: &Method, collection: bool) -> Result<&'static str, Status> {
    Ok(match (method.as_str(), collection) {
        ("GET" | "HEAD", true) => "list",
        ("GET" | "HEAD", false) => "get",
        ("POST", _) => "create",
        ("PUT", false) => "update",
        ("PATCH", false) => "patch",
        ("DELETE", true) => "deletecollection",
        ("DELETE", false) => "delete",
        _ => return Err(Status::method_not_allowed()),
    })
}

fn require(verbs: &[&str], verb: &str) -> Result<(), Status> {
    if verbs.contains(&verb) { Ok(()) } else { Err(Status::method_not_allowed()) }
}

/// The kind a body is expected to be of.
pub struct Expected<'a> {
    /// Group of the kind.
    pub group: &'a str,
    /// Its version.
    pub version: &'a str,
    /// The kind.
    pub kind: &'a str,
}

impl<'a> From<&'a Resource> for Expected<'a> {
    fn from(row: &'a Resource) -> Self {
        Expected { group: &row.group, version: &row.version, kind: &row.kind }
    }
}

impl<'a> From<&'a Subresource> for Expected<'a> {
    fn from(sub: &'a Subresource) -> Self {
        Expected { group: &sub.group, version: &sub.version, kind: &sub.kind }
    }
}

impl Expected<'_> {
    /// `apps/v1`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.into() } else { format!("{}/{}", self.group, self.version) }
    }
}

/// The fields of a kind: of the row's own for a custom one, else of the built-in table.
pub fn type_of<'a>(row: &'a Resource, expected: &Expected<'_>) -> Option<Type<'a>> {
    if row.custom && expected.kind == row.kind && expected.group == row.group {
        return row.types.as_ref().and_then(|types| types.root());
    }
    let own = expected.kind == row.kind && expected.group == row.group && expected.version == row.version;
    if own { row.builtin() } else { Table::builtin().kind(expected.group, expected.version, expected.kind) }
}

/// Parses a body that must be an object of the expected kind: format, kind, types, unknown fields. Warnings go to
/// the call.
///
/// # Errors
/// 400, 415.
pub fn decode_object<'a>(
    call: &Call,
    expected: impl Into<Expected<'a>>,
    body: Bytes,
) -> Result<Value, Status> {
    let expected = expected.into();
    let format = body::format(&call.headers)?;
    let parsed = body::parse(format, &body).map_err(|why| unrecognized(&expected, format, &why, &body))?;
    let mut object = parsed.value;
    check_kind(&expected, &mut object, &body)?;
    check_fields(call, &expected, &mut object, &parsed.duplicates)?;
    Ok(object)
}

fn unrecognized(expected: &Expected<'_>, format: Format, why: &str, body: &[u8]) -> Status {
    let shown = String::from_utf8_lossy(&body[..body.len().min(30)]).into_owned();
    let what = match format {
        Format::Json => "couldn't get version/kind; json parse error: ",
        Format::Yaml | Format::Protobuf => "",
    };
    Status::bad_request(format!(
        "the object provided is unrecognized (must be of type {}): {what}{why} ({shown})",
        expected.kind
    ))
}

/// Kind and version of a body must be the expected ones; absent ones are filled in.
///
/// # Errors
/// 400.
pub fn check_kind(expected: &Expected<'_>, object: &mut Value, body: &[u8]) -> Result<(), Status> {
    if !object.is_object() {
        return Err(unrecognized(expected, Format::Json, "the body is no object", body));
    }
    let (kind, version) =
        (object["kind"].as_str().unwrap_or(""), object["apiVersion"].as_str().unwrap_or(""));
    let wanted = expected.api_version();
    if !kind.is_empty() && kind != expected.kind {
        let short = version.rsplit('/').next().unwrap_or_default();
        return Err(Status::bad_request(format!(
            "{kind} in version {short:?} cannot be handled as a {}: the kind in the data ({kind}) does not match the expected kind ({})",
            expected.kind, expected.kind
        )));
    }
    if !version.is_empty() && version != wanted {
        return Err(Status::bad_request(format!(
            "the API version in the data ({version}) does not match the expected API version ({wanted})"
        )));
    }
    object::set_top(object, "kind", expected.kind.into());
    object::set_top(object, "apiVersion", wanted.into());
    Ok(())
}

/// Types, unknown and duplicate fields of a parsed object, as `fieldValidation` asks; brings the object to its
/// canonical form. Kinds without a schema are left as they are.
pub fn check_fields(
    call: &Call,
    expected: &Expected<'_>,
    object: &mut Value,
    duplicates: &[Duplicate],
) -> Result<(), Status> {
    let mode = field_validation(call.query.get("fieldValidation"))?;
    let Some(ty) = type_of(&call.row, expected) else { return Ok(()) };
    let mut found = validate::fields(ty, object, duplicates, mode);
    if call.row.custom {
        // Wrong types are offences against the schema there: 422 with all others, from the rules of the kind.
        found.retain(|error| !error.is_fatal());
    }
    if let Some(why) = validate::refusal(&found, mode) {
        return Err(Status::bad_request(format!(
            "{} in version {:?} cannot be handled as a {}: {why}",
            expected.kind, expected.version, expected.kind
        )));
    }
    if mode == Mode::Warn {
        found.iter().for_each(|text| call.cx.warn(text.to_string()));
    }
    Ok(())
}

fn field_validation(text: &str) -> Result<Mode, Status> {
    Mode::parse(text).ok_or_else(|| {
        let mut errors = FieldErrors::new();
        errors.push(FieldError::not_supported("fieldValidation", text, &["", "Ignore", "Strict", "Warn"]));
        Status::invalid("meta.k8s.io", "CreateOptions", "", &errors)
    })
}

/// The namespace of a body must be the one in the URL; an empty one takes it.
///
/// # Errors
/// 400 when they differ.
pub fn check_namespace(call: &Call, object: &mut Value) -> Result<(), Status> {
    if !call.row.namespaced {
        // Upstream clears it rather than complains.
        object::set_meta(object, "namespace", Value::Null);
        return Ok(());
    }
    match meta(object, "namespace") {
        "" => {
            object::set_meta(object, "namespace", call.namespace().into());
            Ok(())
        }
        same if same == call.namespace() => Ok(()),
        _ => Err(Status::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        )),
    }
}
