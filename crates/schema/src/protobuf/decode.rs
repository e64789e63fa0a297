//! From bytes to JSON.

use super::wire::{Reader, Wire};
use super::{DecodeError, MAGIC};
use crate::canonical::double;
use crate::table::{Field, Kind, Table, Type};
use crate::time;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};

/// JSON schemas nest deepest of all; each of their levels is two messages.
const MAX_DEPTH: usize = 128;
/// An empty message takes two bytes on the wire and fifty times as much in memory.
const MAX_VALUES: usize = 400_000;

/// Decodes a body with its envelope. The result begins with `apiVersion` and `kind`.
pub fn decode(body: &[u8]) -> Result<Value, DecodeError> {
    Decoder { values: 0 }.envelope(body, 0)
}

/// Splits a body into apiVersion, kind, raw object and its content type.
fn open(body: &[u8]) -> Result<(String, String, &[u8], String), DecodeError> {
    let envelope = body.strip_prefix(MAGIC).ok_or(DecodeError::Magic)?;
    let mut reader = Reader::new(envelope);
    let (mut api_version, mut kind) = (String::new(), String::new());
    let (mut raw, mut encoding, mut content_type): (&[u8], _, _) = (&[], String::new(), String::new());
    while let Some((number, value)) = reader.field()? {
        match (number, value) {
            (1, Wire::Bytes(meta)) => (api_version, kind) = type_meta(meta)?,
            (2, Wire::Bytes(bytes)) => raw = bytes,
            (3, Wire::Bytes(bytes)) => encoding = text(bytes, "contentEncoding")?,
            (4, Wire::Bytes(bytes)) => content_type = text(bytes, "contentType")?,
            (1..=4, other) => return Err(wrong(number, other)),
            _ => {}
        }
    }
    if !encoding.is_empty() {
        return Err(DecodeError::ContentType(format!("{content_type} {encoding}")));
    }
    Ok((api_version, kind, raw, content_type))
}

fn type_meta(bytes: &[u8]) -> Result<(String, String), DecodeError> {
    let mut reader = Reader::new(bytes);
    let (mut api_version, mut kind) = (String::new(), String::new());
    while let Some((number, value)) = reader.field()? {
        match (number, value) {
            (1, Wire::Bytes(bytes)) => api_version = text(bytes, "apiVersion")?,
            (2, Wire::Bytes(bytes)) => kind = text(bytes, "kind")?,
            _ => {}
        }
    }
    Ok((api_version, kind))
}

/// Decodes a bare message of a type.
pub fn decode_message(ty: Type<'_>, bytes: &[u8]) -> Result<Map<String, Value>, DecodeError> {
    let mut object = Map::new();
    Decoder { values: 0 }.message(ty, bytes, &mut object, 0)?;
    Ok(object)
}

struct Decoder {
    values: usize,
}

impl Decoder {
    fn count(&mut self) -> Result<(), DecodeError> {
        self.values += 1;
        if self.values > MAX_VALUES { Err(DecodeError::Size(MAX_VALUES)) } else { Ok(()) }
    }

    fn envelope(&mut self, body: &[u8], depth: usize) -> Result<Value, DecodeError> {
        let (api_version, kind, raw, content_type) = open(body)?;
        let mut object = Map::new();
        match content_type.as_str() {
            "" | "application/vnd.kubernetes.protobuf" => {
                let (group, version) = api_version.split_once('/').unwrap_or(("", &api_version));
                let Some(ty) = Table::builtin().kind(group, version, &kind) else {
                    return Err(DecodeError::UnknownKind { api_version, kind });
                };
                self.message(ty, raw, &mut object, depth)?;
            }
            "application/json" => match crate::json::parse(raw).map(|parsed| parsed.value) {
                Ok(Value::Object(decoded)) => object = decoded,
                _ => return Err(DecodeError::Value("raw".to_owned())),
            },
            _ => return Err(DecodeError::ContentType(content_type)),
        }
        object.shift_insert(0, "apiVersion".to_owned(), Value::String(api_version));
        object.shift_insert(1, "kind".to_owned(), Value::String(kind));
        Ok(Value::Object(object))
    }

    fn message(
        &mut self,
        ty: Type<'_>,
        bytes: &[u8],
        into: &mut Map<String, Value>,
        depth: usize,
    ) -> Result<(), DecodeError> {
        if depth > MAX_DEPTH {
            return Err(DecodeError::Depth(MAX_DEPTH));
        }
        let mut reader = Reader::new(bytes);
        while let Some((number, wire)) = reader.field()? {
            if let Some((_, inner)) = ty.data().inline.iter().find(|(inline, _)| *inline == number) {
                let (Some(inner), Wire::Bytes(bytes)) = (ty.at(*inner), wire) else {
                    return Err(wrong(number, wire));
                };
                self.message(inner, bytes, into, depth + 1)?;
            } else if let Some(field) = ty.fields().iter().find(|field| field.number == number) {
                self.field(ty, field, wire, into, depth)?;
            }
        }
        Ok(())
    }

    fn field(
        &mut self,
        ty: Type<'_>,
        field: &Field,
        wire: Wire<'_>,
        into: &mut Map<String, Value>,
        depth: usize,
    ) -> Result<(), DecodeError> {
        let name = field.name.as_ref();
        match &field.kind {
            Kind::List(element) => {
                let list = into.entry(name).or_insert_with(|| Value::Array(Vec::new()));
                let Value::Array(list) = list else { return Ok(()) };
                if let (Wire::Bytes(bytes), Kind::Int32 | Kind::Int64) = (wire, &**element) {
                    let mut packed = Reader::new(bytes);
                    while !packed.is_empty() {
                        let value = Wire::Varint(packed.varint()?);
                        list.push(self.value(ty, field, element, value, None, depth)?);
                    }
                } else {
                    list.push(self.value(ty, field, element, wire, None, depth)?);
                }
            }
            Kind::Map(element) => {
                let map = into.entry(name).or_insert_with(|| Value::Object(Map::new()));
                let Value::Object(map) = map else { return Ok(()) };
                let (key, value) = self.entry(ty, field, element, wire, depth)?;
                map.insert(key, value);
            }
            kind => {
                let before = into.get_mut(name).map(Value::take);
                let value = self.value(ty, field, kind, wire, before, depth)?;
                // Go's encoder writes unset non-pointer scalars as zeros; its JSON encoder leaves them out.
                if field.omitempty && !field.pointer && is_zero(&value) {
                    into.shift_remove(name);
                } else {
                    into.insert(name.to_owned(), value);
                }
            }
        }
        Ok(())
    }

    /// One map entry: a message of key (1) and value (2).
    fn entry(
        &mut self,
        ty: Type<'_>,
        field: &Field,
        element: &Kind,
        wire: Wire<'_>,
        depth: usize,
    ) -> Result<(String, Value), DecodeError> {
        let Wire::Bytes(bytes) = wire else { return Err(wrong(field.number, wire)) };
        let mut reader = Reader::new(bytes);
        let (mut key, mut found) = (String::new(), None);
        while let Some((number, value)) = reader.field()? {
            match (number, value) {
                (1, Wire::Bytes(bytes)) => key = text(bytes, &field.name)?,
                (2, value) => found = Some(value),
                _ => {}
            }
        }
        let empty = Wire::Bytes(&[]);
        let value = self.value(ty, field, element, found.unwrap_or(empty), None, depth)?;
        Ok((key, value))
    }

    fn value(
        &mut self,
        ty: Type<'_>,
        field: &Field,
        kind: &Kind,
        wire: Wire<'_>,
        before: Option<Value>,
        depth: usize,
    ) -> Result<Value, DecodeError> {
        self.count()?;
        let invalid = || DecodeError::Value(field.name.to_string());
        match (kind, wire) {
            (Kind::Bool, Wire::Varint(value)) => Ok(Value::Bool(value != 0)),
            // Negative numbers come as ten bytes, so the low half is the value.
            (Kind::Int32, Wire::Varint(value)) => Ok(Value::from(value as u32 as i32)),
            (Kind::Int64, Wire::Varint(value)) => Ok(Value::from(value as i64)),
            (Kind::Double, Wire::Fixed64(bits)) => double(f64::from_bits(bits)).ok_or_else(invalid),
            (Kind::String, Wire::Bytes(bytes)) => Ok(Value::String(text(bytes, &field.name)?)),
            (Kind::Bytes, Wire::Bytes(bytes)) => Ok(Value::String(STANDARD.encode(bytes))),
            (Kind::Quantity, Wire::Bytes(bytes)) => quantity(bytes, &field.name),
            (Kind::IntOrString, Wire::Bytes(bytes)) => int_or_string(bytes, &field.name),
            (Kind::Time, Wire::Bytes(bytes)) => timestamp(bytes, false).ok_or_else(invalid),
            (Kind::MicroTime, Wire::Bytes(bytes)) => timestamp(bytes, true).ok_or_else(invalid),
            (Kind::RawExtension | Kind::Json | Kind::FieldsV1, Wire::Bytes(bytes)) => {
                self.raw(field, bytes, depth)
            }
            (Kind::Message(id), Wire::Bytes(bytes)) => {
                let mut object = match before {
                    Some(Value::Object(object)) => object,
                    _ => Map::new(),
                };
                let inner = ty.at(*id).ok_or_else(invalid)?;
                self.message(inner, bytes, &mut object, depth + 1)?;
                Ok(Value::Object(object))
            }
            (Kind::Wrapped(element), Wire::Bytes(bytes)) => {
                let mut items = Vec::new();
                let mut reader = Reader::new(bytes);
                while let Some((1, item)) = reader.field()? {
                    items.push(self.value(ty, field, element, item, None, depth)?);
                }
                Ok(Value::Array(items))
            }
            (
                Kind::SchemaOrBool(id) | Kind::SchemaOrArray(id) | Kind::SchemaOrStrings(id),
                Wire::Bytes(bytes),
            ) => self.schema_union(kind, ty.at(*id).ok_or_else(invalid)?, field, bytes, depth),
            (_, other) => Err(wrong(field.number, other)),
        }
    }

    /// A message whose first field holds JSON, or for embedded objects a protobuf body.
    fn raw(&mut self, field: &Field, bytes: &[u8], depth: usize) -> Result<Value, DecodeError> {
        let mut reader = Reader::new(bytes);
        let mut found: &[u8] = b"";
        while let Some((number, wire)) = reader.field()? {
            if let (1, Wire::Bytes(bytes)) = (number, wire) {
                found = bytes;
            }
        }
        if found.is_empty() {
            return Ok(Value::Null);
        }
        if found.starts_with(MAGIC) {
            if depth >= MAX_DEPTH {
                return Err(DecodeError::Depth(MAX_DEPTH));
            }
            return self.envelope(found, depth + 1);
        }
        let parsed = crate::json::parse(found).map_err(|_| DecodeError::Value(field.name.to_string()))?;
        Ok(parsed.value)
    }

    /// `JSONSchemaPropsOrBool { 1: allows, 2: schema }`, `...OrArray { 1: schema, 2: schemas }`,
    /// `...OrStringArray { 1: schema, 2: strings }`.
    fn schema_union(
        &mut self,
        kind: &Kind,
        schema: Type<'_>,
        field: &Field,
        bytes: &[u8],
        depth: usize,
    ) -> Result<Value, DecodeError> {
        let (mut allows, mut one, mut many) = (false, None, Vec::new());
        let mut reader = Reader::new(bytes);
        while let Some((number, wire)) = reader.field()? {
            self.count()?;
            match (kind, number, wire) {
                (Kind::SchemaOrBool(_), 1, Wire::Varint(value)) => allows = value != 0,
                (Kind::SchemaOrStrings(_), 2, Wire::Bytes(bytes)) => {
                    many.push(Value::String(text(bytes, &field.name)?));
                }
                (_, 1 | 2, Wire::Bytes(bytes)) => {
                    let mut object = Map::new();
                    self.message(schema, bytes, &mut object, depth + 1)?;
                    match (kind, number) {
                        (Kind::SchemaOrArray(_), 2) => many.push(Value::Object(object)),
                        _ => one = Some(Value::Object(object)),
                    }
                }
                (_, 1 | 2, other) => return Err(wrong(number, other)),
                _ => {}
            }
        }
        Ok(match (kind, one) {
            (_, Some(schema)) => schema,
            (Kind::SchemaOrBool(_), None) => Value::Bool(allows),
            _ => Value::Array(many),
        })
    }
}

fn is_zero(value: &Value) -> bool {
    match value {
        Value::String(text) => text.is_empty(),
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::Bool(value) => !value,
        _ => false,
    }
}

fn wrong(number: u32, wire: Wire<'_>) -> DecodeError {
    let wire = match wire {
        Wire::Varint(_) => 0,
        Wire::Fixed64(_) => 1,
        Wire::Bytes(_) => 2,
        Wire::Fixed32 => 5,
    };
    DecodeError::WireType { number, wire }
}

fn text(bytes: &[u8], field: &str) -> Result<String, DecodeError> {
    std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| DecodeError::Utf8(field.to_owned()))
}

fn quantity(bytes: &[u8], field: &str) -> Result<Value, DecodeError> {
    let mut reader = Reader::new(bytes);
    let mut found = String::new();
    while let Some((number, wire)) = reader.field()? {
        if let (1, Wire::Bytes(bytes)) = (number, wire) {
            found = text(bytes, field)?;
        }
    }
    Ok(Value::String(if found.is_empty() { "0".to_owned() } else { found }))
}

fn int_or_string(bytes: &[u8], field: &str) -> Result<Value, DecodeError> {
    let mut reader = Reader::new(bytes);
    let (mut kind, mut int, mut string) = (0, 0, String::new());
    while let Some((number, wire)) = reader.field()? {
        match (number, wire) {
            (1, Wire::Varint(value)) => kind = value,
            (2, Wire::Varint(value)) => int = value as u32 as i32,
            (3, Wire::Bytes(bytes)) => string = text(bytes, field)?,
            _ => {}
        }
    }
    Ok(if kind == 0 { Value::from(int) } else { Value::String(string) })
}

/// Seconds and nanoseconds; the empty message is Go's zero time, `null` in JSON.
fn timestamp(bytes: &[u8], micro: bool) -> Option<Value> {
    if bytes.is_empty() {
        return Some(Value::Null);
    }
    let mut reader = Reader::new(bytes);
    let (mut seconds, mut nanos) = (0, 0);
    while let Some((number, wire)) = reader.field().ok()? {
        match (number, wire) {
            (1, Wire::Varint(value)) => seconds = value as i64,
            (2, Wire::Varint(value)) => nanos = value as u32 as i32,
            _ => {}
        }
    }
    let text = if micro { time::micros(seconds, nanos)? } else { time::seconds(seconds)? };
    Some(Value::String(text))
}
