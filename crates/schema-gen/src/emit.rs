//! Joins the sources and writes the table.
//!
//! ```text
//! T core/v1.Service K                      type; K: a kind of its group and version; A: written as a whole by apply
//! ^ 0 meta/v1.TypeMeta                     the fields of that type are fields of this one (0: not on the wire)
//! spec 2 core/v1.ServiceSpec               JSON name, protobuf number, kind, flags
//! ports 1 []core/v1.ServicePort L=map K=port,protocol M=port S=merge
//! ```
//!
//! Kinds are one letter (see `schema::Kind`), `[]kind`, `{}kind`, `<>kind` (a list that is a message on the wire) or a
//! type's name. Flags: `p` pointer in Go, `o` omitted when empty, `r` required, `A` atomic map or struct, `L=` list
//! type, `K=` list map keys, `M=` patch merge key, `S=` patch strategy, `G=` Go type where it is a named one, `D=`
//! default as JSON.

use crate::gotypes::{GoField, GoTypes};
use crate::openapi::Definition;
use crate::pb::{PbField, PbMessage, markers, prose};
use crate::{apiextensions, gotypes, openapi, pb, sources};
use anyhow::{Context, Result, bail, ensure};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::Write as _;

/// The two generated texts.
pub struct Output {
    /// The table.
    pub table: String,
    /// Descriptions of the types and fields, in the table's order, each ended by a NUL.
    pub descriptions: String,
}

/// Groups of the table: Go package below `k8s.io/` and nothing else; the group's name is the reader's business.
const PACKAGES: [&str; 19] = [
    "api/core/v1",
    "api/apps/v1",
    "api/batch/v1",
    "api/networking/v1",
    "api/discovery/v1",
    "api/coordination/v1",
    "api/events/v1",
    "api/rbac/v1",
    "api/authentication/v1",
    "api/authorization/v1",
    "api/policy/v1",
    "api/autoscaling/v1",
    "api/autoscaling/v2",
    "api/scheduling/v1",
    "api/node/v1",
    "api/storage/v1",
    "api/certificates/v1",
    "api/admissionregistration/v1",
    "apiextensions-apiserver/pkg/apis/apiextensions/v1",
];

const META: &str = "k8s.io/apimachinery/pkg/apis/meta/v1";

/// Named Go slices that are messages with one repeated field on the wire.
const WRAPPED: [&str; 2] = ["v1.ExtraValue", "v1.Verbs"];

struct Sources {
    go: GoTypes,
    pb: BTreeMap<String, PbMessage>,
    openapi: BTreeMap<String, Definition>,
}

/// Reads the sources and makes both texts.
pub fn generate() -> Result<Output> {
    let (pb_folder, openapi_folder) = sources::locate()?;
    let mut sources = Sources {
        go: gotypes::parse(include_str!("../data/go-types.txt"))?,
        pb: pb::read(&pb_folder)?,
        openapi: openapi::read(&openapi_folder)?,
    };
    apiextensions::add(&mut sources.go, &sources.pb, &sources.openapi)?;
    let mut output = Output { table: String::new(), descriptions: String::new() };
    for path in reachable(&sources)? {
        emit_type(&sources, &path, &mut output)?;
    }
    Ok(output)
}

/// zlib-compressed bytes.
pub fn deflate(text: &str) -> Result<Vec<u8>> {
    let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(text.as_bytes()).context("compress the descriptions")?;
    encoder.finish().context("compress the descriptions")
}

/// `k8s.io/api/core/v1.Pod` as the table names it: `core/v1.Pod`.
fn short(path: &str) -> String {
    let mut segments = path.rsplitn(3, '/');
    match (segments.next(), segments.next()) {
        (Some(name), Some(folder)) => format!("{folder}/{name}"),
        _ => path.to_owned(),
    }
}

/// `k8s.io/api/core/v1.Pod` as OpenAPI names it: `io.k8s.api.core.v1.Pod`.
fn definition_name(path: &str) -> String {
    path.replacen("k8s.io/", "io.k8s.", 1).replace('/', ".")
}

fn is_kind(fields: &[GoField]) -> bool {
    fields.iter().any(|field| field.inline && field.ty.ends_with("meta/v1.TypeMeta"))
}

/// All kinds of the table's groups and whatever they use, sorted.
fn reachable(sources: &Sources) -> Result<BTreeSet<String>> {
    let mut open: Vec<String> = Vec::new();
    for (path, fields) in &sources.go {
        let package = path.rsplit_once('.').map_or("", |(package, _)| package);
        let wanted = PACKAGES.iter().any(|wanted| package.strip_prefix("k8s.io/") == Some(wanted));
        if (wanted || package == META) && is_kind(fields) {
            open.push(path.clone());
        }
    }
    ensure!(open.len() > 130, "only {} kinds", open.len());
    let mut seen = BTreeSet::new();
    while let Some(path) = open.pop() {
        if !seen.insert(path.clone()) {
            continue;
        }
        let fields = sources.go.get(&path).with_context(|| format!("{path} is used but not known"))?;
        for field in fields {
            open.extend(kind(&field.ty)?.1);
        }
    }
    Ok(seen)
}

/// The kind column for a Go type expression, and the struct it leads to.
fn kind(ty: &str) -> Result<(String, Option<String>)> {
    if let Some(inner) = ty.strip_prefix('*') {
        return kind(inner);
    }
    if ty == "[]uint8" {
        return Ok(("y".to_owned(), None));
    }
    for (prefix, mark) in [("[]", "[]"), ("map[string]", "{}")] {
        if let Some(inner) = ty.strip_prefix(prefix) {
            let (inner, used) = kind(inner)?;
            return Ok((format!("{mark}{inner}"), used));
        }
    }
    if let Some((name, underlying)) = ty.split_once('=') {
        let (inner, used) = kind(underlying)?;
        let inner = if WRAPPED.contains(&name) { inner.replacen("[]", "<>", 1) } else { inner };
        return Ok((inner, used));
    }
    let letter = match ty {
        "string" => "s",
        "bool" => "b",
        "int32" => "i",
        "int64" => "l",
        "float64" => "d",
        "interface" => "j",
        "k8s.io/apimachinery/pkg/api/resource.Quantity" => "q",
        "k8s.io/apimachinery/pkg/util/intstr.IntOrString" => "n",
        "k8s.io/apimachinery/pkg/apis/meta/v1.Time" => "t",
        "k8s.io/apimachinery/pkg/apis/meta/v1.MicroTime" => "u",
        "k8s.io/apimachinery/pkg/apis/meta/v1.FieldsV1" => "f",
        "k8s.io/apimachinery/pkg/runtime.RawExtension" => "r",
        _ => match ty.rsplit_once("apiextensions/v1.") {
            Some((_, "JSON")) => "j",
            Some((_, "JSONSchemaPropsOrBool")) => "x",
            Some((_, "JSONSchemaPropsOrArray")) => "X",
            Some((_, "JSONSchemaPropsOrStringArray")) => "Y",
            _ => "",
        },
    };
    if !letter.is_empty() {
        // The unions hold schemas, so the schema type is in use.
        let used =
            "xXY".contains(letter).then(|| ty.split("JSONSchemaPropsOr").next().unwrap_or("").to_owned());
        return Ok((letter.to_owned(), used.map(|package| format!("{package}JSONSchemaProps"))));
    }
    ensure!(ty.contains('/'), "no kind for the Go type {ty}");
    Ok((short(ty), Some(ty.to_owned())))
}

fn emit_type(sources: &Sources, path: &str, output: &mut Output) -> Result<()> {
    let fields = sources.go.get(path).context("type vanished")?;
    let message = sources.pb.get(&path.to_lowercase());
    let definition = sources.openapi.get(&definition_name(path));
    let no_doc = Vec::new();
    let doc = message.map_or(&no_doc, |message| &message.doc);
    let mut line = format!("T {}", short(path));
    if is_kind(fields) {
        line.push_str(" K");
    }
    if markers(doc, "structType").contains(&"atomic") {
        line.push_str(" A");
    }
    let _ = writeln!(output.table, "{line}");
    let described =
        definition.map(|definition| definition.description.clone()).filter(|text| !text.is_empty());
    describe(output, &described.unwrap_or_else(|| prose(doc)));
    for field in fields {
        let wire = message.and_then(|message| message.fields.iter().find(|wire| wire.number == field.number));
        check_wire(path, field, message, wire)?;
        if field.inline {
            let (inner, _) = kind(&field.ty)?;
            let _ = writeln!(output.table, "^ {} {inner}", field.number);
            continue;
        }
        emit_field(field, wire, definition, is_kind(fields), output)
            .with_context(|| format!("field {path}.{}", field.json))?;
    }
    Ok(())
}

fn describe(output: &mut Output, text: &str) {
    output.descriptions.push_str(text);
    output.descriptions.push('\0');
}

/// The Go tags and the protobuf definition must tell the same story.
fn check_wire(
    path: &str,
    field: &GoField,
    message: Option<&PbMessage>,
    wire: Option<&PbField>,
) -> Result<()> {
    let plain = |text: &str| text.replace(['_', '$', '-'], "").to_lowercase();
    match (message, wire) {
        (None, _) => Ok(()),
        (Some(_), None) if field.number == 0 => Ok(()),
        (Some(_), None) => bail!("{path}.{} has number {}, unknown to k8s-pb", field.go_name, field.number),
        (Some(_), Some(wire)) => {
            let name = plain(&wire.name);
            let same = field.inline || name == plain(&field.json) || name == plain(&field.go_name);
            ensure!(same, "{path}: number {} is {} in Go, {} in k8s-pb", field.number, field.json, wire.name);
            Ok(())
        }
    }
}

fn emit_field(
    field: &GoField,
    wire: Option<&PbField>,
    definition: Option<&Definition>,
    of_kind: bool,
    output: &mut Output,
) -> Result<()> {
    let no_doc = Vec::new();
    let doc = wire.map_or(&no_doc, |wire| &wire.doc);
    let (kind, _) = kind(&field.ty)?;
    let mut line = format!("{} {} {kind}", field.json, field.number);
    if field.ty.starts_with('*') {
        line.push_str(" p");
    }
    if field.omitempty {
        line.push_str(" o");
    }
    // k8s-openapi declares the metadata of every kind required; upstream does not.
    let required = match definition {
        Some(definition) => {
            definition.required.contains(&field.json) && !(of_kind && field.json == "metadata")
        }
        None => !field.omitempty && markers(doc, "optional").is_empty(),
    };
    if required {
        line.push_str(" r");
    }
    let whole = ["structType", "mapType"].iter().any(|marker| markers(doc, marker).contains(&"atomic"));
    if whole {
        line.push_str(" A");
    }
    let mut flag = |letter: char, value: String| {
        if !value.is_empty() {
            let _ = write!(line, " {letter}={value}");
        }
    };
    flag('L', markers(doc, "listType").join(","));
    flag('K', markers(doc, "listMapKey").join(","));
    flag('M', field.merge_key.clone());
    flag('S', field.patch_strategy.clone());
    flag('G', go_type(&field.ty));
    flag('D', default(doc)?);
    let _ = writeln!(output.table, "{line}");
    let described = definition.and_then(|definition| definition.properties.get(&field.json)).cloned();
    describe(output, &described.unwrap_or_else(|| prose(doc)));
    Ok(())
}

/// The type as Go's decoder would name it in an error, when the kind column does not tell.
fn go_type(ty: &str) -> String {
    let ty = ty.trim_start_matches('*');
    match ty.split_once('=') {
        None => String::new(),
        Some((named, _)) => named.to_owned(),
    }
}

fn default(doc: &[String]) -> Result<String> {
    let Some(value) = markers(doc, "default").into_iter().next() else { return Ok(String::new()) };
    let value = match value {
        "ref(AzureDataDiskCachingReadWrite)" => "\"ReadWrite\"",
        "ref(AzureSharedBlobDisk)" => "\"Shared\"",
        plain => plain,
    };
    let parsed: serde_json::Value =
        serde_json::from_str(value).with_context(|| format!("default {value}"))?;
    Ok(if value.contains(' ') { String::new() } else { parsed.to_string() })
}
