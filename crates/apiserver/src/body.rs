//! Request bodies: bounded, and JSON, YAML or protobuf into one parsed form, with what a strict reading finds.

use bytes::Bytes;
use http::HeaderMap;
use http::header::CONTENT_TYPE;
use http_body_util::BodyExt as _;
use schema::json::Parsed;

use crate::server::Body;
use crate::status::Status;

/// What a body may hold at most.
pub const LIMIT: usize = 3 << 20;

/// Reads a body to its end.
///
/// # Errors
/// 413 when it is longer than [`LIMIT`], 400 when the connection breaks.
pub async fn read(mut body: Body) -> Result<Bytes, Status> {
    let mut first = Bytes::new();
    let mut all: Vec<u8> = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|e| Status::bad_request(format!("unable to read the body: {e}")))?;
        let Ok(data) = frame.into_data() else { continue };
        if first.len() + all.len() + data.len() > LIMIT {
            return Err(Status::too_large(LIMIT));
        }
        // Nearly every body is one frame: no copy then.
        if first.is_empty() && all.is_empty() {
            first = data;
        } else {
            if all.is_empty() {
                all.extend_from_slice(&std::mem::take(&mut first));
            }
            all.extend_from_slice(&data);
        }
    }
    Ok(if all.is_empty() { first } else { all.into() })
}

/// The formats an object may come in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// JSON.
    Json,
    /// YAML.
    Yaml,
    /// Kubernetes' protobuf envelope.
    Protobuf,
}

/// Media types of objects.
pub const OBJECT_TYPES: [&str; 3] =
    ["application/json", "application/yaml", "application/vnd.kubernetes.protobuf"];

/// Media type of a body, without parameters.
pub fn media_type(headers: &HeaderMap) -> &str {
    let text = headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    text.split(';').next().unwrap_or_default().trim()
}

/// Format of a body that holds an object.
///
/// # Errors
/// 415 for other media types.
pub fn format(headers: &HeaderMap) -> Result<Format, Status> {
    match media_type(headers) {
        "" | "application/json" | "text/json" => Ok(Format::Json),
        "application/yaml" | "text/yaml" | "application/x-yaml" => Ok(Format::Yaml),
        "application/vnd.kubernetes.protobuf" => Ok(Format::Protobuf),
        _ => Err(Status::unsupported_media_type(&OBJECT_TYPES)),
    }
}

/// Parses a body, noting fields that were given twice. `Err` is the reason in words.
pub fn parse(format: Format, bytes: &[u8]) -> Result<Parsed, String> {
    let value = match format {
        Format::Json => return schema::json::parse(bytes).map_err(|e| e.to_string()),
        Format::Yaml => {
            let text = std::str::from_utf8(bytes).map_err(|e| e.to_string())?;
            serde_saphyr::from_str(text).map_err(|e| format!("error converting YAML to JSON: {e}"))?
        }
        Format::Protobuf => schema::protobuf::decode(bytes).map_err(|e| e.to_string())?,
    };
    Ok(Parsed { value, duplicates: Vec::new() })
}
