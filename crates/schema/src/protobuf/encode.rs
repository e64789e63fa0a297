//! From JSON to bytes, the inverse of decoding.

use super::MAGIC;
use super::wire::{put_bytes, put_number, put_varint};
use crate::table::{Field, Kind, Table, Type};
use crate::time;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};

/// Why an object cannot be written as protobuf.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum EncodeError {
    /// Not an object with `apiVersion` and `kind`.
    #[error("cannot encode an object without apiVersion and kind")]
    TypeMeta,
    /// No such built-in kind.
    #[error("no kind {kind:?} is registered for version {api_version:?}")]
    UnknownKind {
        /// As given.
        api_version: String,
        /// As given.
        kind: String,
    },
    /// A value that its field cannot hold.
    #[error("cannot encode field {0}: the value does not fit its type")]
    Value(String),
}

/// Encodes an object with its envelope. Fields the type does not know are left out.
pub fn encode(object: &Value) -> Result<Vec<u8>, EncodeError> {
    let text = |name: &str| object.get(name).and_then(Value::as_str);
    let (Value::Object(fields), Some(api_version), Some(kind)) = (object, text("apiVersion"), text("kind"))
    else {
        return Err(EncodeError::TypeMeta);
    };
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    let ty = Table::builtin().kind(group, version, kind).ok_or_else(|| EncodeError::UnknownKind {
        api_version: api_version.to_owned(),
        kind: kind.to_owned(),
    })?;
    let mut meta = Vec::new();
    put_bytes(&mut meta, 1, api_version.as_bytes());
    put_bytes(&mut meta, 2, kind.as_bytes());
    let mut body = MAGIC.to_vec();
    put_bytes(&mut body, 1, &meta);
    put_bytes(&mut body, 2, &encode_message(ty, fields)?);
    put_bytes(&mut body, 3, b"");
    put_bytes(&mut body, 4, b"");
    Ok(body)
}

/// Encodes a bare message.
pub fn encode_message(ty: Type<'_>, object: &Map<String, Value>) -> Result<Vec<u8>, EncodeError> {
    let mut out = Vec::new();
    for field in ty.fields().iter().filter(|field| field.number != 0) {
        if let Some(value) = object.get(field.name.as_ref()).filter(|value| !value.is_null()) {
            put_field(&mut out, ty, field, value)?;
        }
    }
    for (number, inner) in &ty.data().inline {
        let Some(inner) = ty.at(*inner) else { continue };
        let bytes = encode_message(inner, object)?;
        if !bytes.is_empty() {
            put_bytes(&mut out, *number, &bytes);
        }
    }
    Ok(out)
}

fn put_field(out: &mut Vec<u8>, ty: Type<'_>, field: &Field, value: &Value) -> Result<(), EncodeError> {
    let invalid = || EncodeError::Value(field.name.to_string());
    match &field.kind {
        Kind::List(element) => {
            for item in value.as_array().ok_or_else(invalid)? {
                put_value(out, field.number, ty, element, item).ok_or_else(invalid)??;
            }
        }
        Kind::Map(element) => {
            for (key, item) in value.as_object().ok_or_else(invalid)? {
                let mut entry = Vec::new();
                put_bytes(&mut entry, 1, key.as_bytes());
                put_value(&mut entry, 2, ty, element, item).ok_or_else(invalid)??;
                put_bytes(out, field.number, &entry);
            }
        }
        kind => put_value(out, field.number, ty, kind, value).ok_or_else(invalid)??,
    }
    Ok(())
}

/// `None` when the value is not of the kind; errors of fields further in keep their own name.
fn put_value(
    out: &mut Vec<u8>,
    number: u32,
    ty: Type<'_>,
    kind: &Kind,
    value: &Value,
) -> Option<Result<(), EncodeError>> {
    match kind {
        Kind::Bool => put_number(out, number, u64::from(value.as_bool()?)),
        Kind::Int32 => put_number(out, number, i64::from(i32::try_from(value.as_i64()?).ok()?) as u64),
        Kind::Int64 => put_number(out, number, value.as_i64()? as u64),
        Kind::Double => {
            put_varint(out, u64::from(number) << 3 | 1);
            out.extend_from_slice(&value.as_f64()?.to_bits().to_le_bytes());
        }
        Kind::String => put_bytes(out, number, value.as_str()?.as_bytes()),
        Kind::Bytes => put_bytes(out, number, &STANDARD.decode(value.as_str()?).ok()?),
        Kind::Quantity => {
            let mut inner = Vec::new();
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            put_bytes(&mut inner, 1, text.as_bytes());
            put_bytes(out, number, &inner);
        }
        Kind::IntOrString => {
            let mut inner = Vec::new();
            match value {
                Value::String(text) => {
                    put_number(&mut inner, 1, 1);
                    put_bytes(&mut inner, 3, text.as_bytes());
                }
                _ => {
                    put_number(&mut inner, 1, 0);
                    put_number(&mut inner, 2, i64::from(i32::try_from(value.as_i64()?).ok()?) as u64);
                }
            }
            put_bytes(out, number, &inner);
        }
        Kind::Time | Kind::MicroTime => {
            let (seconds, nanos) = time::parse(value.as_str()?)?;
            let mut inner = Vec::new();
            put_number(&mut inner, 1, seconds as u64);
            put_number(&mut inner, 2, if *kind == Kind::Time { 0 } else { nanos as u64 });
            put_bytes(out, number, &inner);
        }
        Kind::RawExtension | Kind::Json | Kind::FieldsV1 => {
            let mut inner = Vec::new();
            put_bytes(&mut inner, 1, value.to_string().as_bytes());
            put_bytes(out, number, &inner);
        }
        Kind::Message(id) => match encode_message(ty.at(*id)?, value.as_object()?) {
            Ok(inner) => put_bytes(out, number, &inner),
            Err(error) => return Some(Err(error)),
        },
        Kind::Wrapped(element) => {
            let mut inner = Vec::new();
            for item in value.as_array()? {
                if let Err(error) = put_value(&mut inner, 1, ty, element, item)? {
                    return Some(Err(error));
                }
            }
            put_bytes(out, number, &inner);
        }
        Kind::SchemaOrBool(id) | Kind::SchemaOrArray(id) | Kind::SchemaOrStrings(id) => {
            return put_schema_union(out, number, ty.at(*id)?, kind, value);
        }
        Kind::List(_) | Kind::Map(_) => return None,
    }
    Some(Ok(()))
}

fn put_schema_union(
    out: &mut Vec<u8>,
    number: u32,
    schema: Type<'_>,
    kind: &Kind,
    value: &Value,
) -> Option<Result<(), EncodeError>> {
    let mut inner = Vec::new();
    let or_bool = matches!(kind, Kind::SchemaOrBool(_));
    let put = |inner: &mut Vec<u8>, number: u32, object: &Map<String, Value>| {
        encode_message(schema, object).map(|bytes| put_bytes(inner, number, &bytes))
    };
    let done = match value {
        Value::Object(object) if or_bool => {
            put_number(&mut inner, 1, 1);
            put(&mut inner, 2, object)
        }
        Value::Object(object) => put(&mut inner, 1, object),
        Value::Bool(allows) if or_bool => {
            put_number(&mut inner, 1, u64::from(*allows));
            Ok(())
        }
        Value::Array(items) if !or_bool => items.iter().try_for_each(|item| match item {
            Value::Object(object) => put(&mut inner, 2, object),
            Value::String(text) => {
                put_bytes(&mut inner, 2, text.as_bytes());
                Ok(())
            }
            _ => Err(EncodeError::Value("items".to_owned())),
        }),
        _ => return None,
    };
    put_bytes(out, number, &inner);
    Some(done)
}
