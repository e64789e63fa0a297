//! List: pages at one revision, with selectors, in every shape.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use std::sync::Arc;
use storage::{KeyValue, ListOptions};

use super::answer::{self, Answer, Include, JSON};
use crate::core::{Call, split_key, store_error, too_large_version};
use crate::field::{FieldError, FieldErrors};
use crate::negotiate::{Encoding, Shape};
use crate::object;
use crate::selector::{FieldSelector, LabelSelector};
use crate::status::Status;
use crate::table;

/// Which objects of a collection a request is about.
pub struct Filter {
    labels: LabelSelector,
    fields: FieldSelector,
    prefix_len: usize,
}

impl Filter {
    /// From the query.
    ///
    /// # Errors
    /// 400 for selectors that do not parse.
    pub fn of(call: &Call) -> Result<Self, Status> {
        Ok(Filter {
            labels: LabelSelector::parse(call.query.get("labelSelector"))?,
            fields: FieldSelector::parse(call.query.get("fieldSelector"), &call.row)?,
            prefix_len: call.row.prefix().len(),
        })
    }

    /// Whether everything is wanted.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }

    /// Whether the key alone decides.
    pub fn needs_object(&self) -> bool {
        !self.labels.is_empty() || self.fields.needs_object()
    }

    /// Whether the key rules an object out.
    pub fn matches_key(&self, call: &Call, key: &str) -> bool {
        let (namespace, name) = split_key(&call.row, self.prefix_len, key);
        self.fields.matches_key(namespace, name)
    }

    /// Whether a stored object matches; the key has already been looked at.
    pub fn matches_object(&self, object: &Value) -> bool {
        self.labels.matches(&object["metadata"]["labels"]) && self.fields.matches(object)
    }

    fn matches_bytes(&self, value: &[u8]) -> bool {
        serde_json::from_slice::<Value>(value).is_ok_and(|object| self.matches_object(&object))
    }

    /// The one key that can match, if the selector names one object.
    pub fn single_key(&self, call: &Call) -> Option<String> {
        let name = self.fields.name.as_deref()?;
        if !call.row.namespaced {
            return Some(call.row.key("", name));
        }
        let namespace =
            if call.namespace().is_empty() { self.fields.namespace.as_deref()? } else { call.namespace() };
        Some(call.row.key(namespace, name))
    }
}

/// A page of objects.
pub struct Page {
    /// Matching objects, in key order.
    pub items: Vec<KeyValue>,
    /// Revision at which the page is true.
    pub revision: u64,
    next: String,
    remaining: Option<u64>,
}

/// Where a list goes on, as clients carry it: opaque to them.
fn encode_continue(revision: u64, key: &str) -> String {
    URL_SAFE_NO_PAD.encode(json!({"v": "meta.k8s.io/v1", "rv": revision, "start": key}).to_string())
}

fn decode_continue(token: &str) -> Result<(u64, String), Status> {
    let fail = || Status::bad_request("continue key is not valid: unable to decode the token");
    let bytes = URL_SAFE_NO_PAD.decode(token.trim_end_matches('=')).map_err(|_| fail())?;
    let value: Value = serde_json::from_slice(&bytes).map_err(|_| fail())?;
    match (value["rv"].as_u64(), value["start"].as_str()) {
        (Some(revision), Some(start)) => Ok((revision, start.to_owned())),
        _ => Err(fail()),
    }
}

/// The revision a list is asked for at: exact, or at least.
async fn wanted_revision(call: &Call) -> Result<Option<u64>, Status> {
    let (version, rule) = (call.query.get("resourceVersion"), call.query.get("resourceVersionMatch"));
    let invalid = |error| {
        let mut errors = FieldErrors::new();
        errors.push(error);
        Err(Status::invalid("meta.k8s.io", "ListOptions", "", &errors))
    };
    let path = "resourceVersionMatch";
    if !matches!(rule, "" | "Exact" | "NotOlderThan") {
        return invalid(FieldError::not_supported(path, rule, &["Exact", "NotOlderThan", ""]));
    }
    if !rule.is_empty() && version.is_empty() {
        let why = "resourceVersionMatch is forbidden unless resourceVersion is provided";
        return invalid(FieldError::forbidden(path, why));
    }
    if (rule, version) == ("Exact", "0") {
        let why = "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"";
        return invalid(FieldError::forbidden(path, why));
    }
    let Some(version) = parse_version(version)? else { return Ok(None) };
    let exact = rule == "Exact" || rule.is_empty() && call.query.number("limit")?.unwrap_or(0) > 0;
    if exact {
        return Ok(Some(version));
    }
    let newest = call.core.store.revision().await.map_err(store_error)?;
    if version > newest { Err(too_large_version(version, newest)) } else { Ok(None) }
}

/// A resourceVersion of a query: none, or a number above 0.
///
/// # Errors
/// 400 for what is no number.
pub fn parse_version(text: &str) -> Result<Option<u64>, Status> {
    match text {
        "" | "0" => Ok(None),
        number => number.parse().map(Some).map_err(|_| {
            Status::bad_request(format!(
                "Invalid value: {number:?}: strconv.ParseUint: parsing {number:?}: invalid syntax"
            ))
        }),
    }
}

/// Reads the page a request asks for.
///
/// # Errors
/// 400, 410, 504 as the options deserve.
pub async fn page(call: &Call, filter: &Filter) -> Result<Page, Status> {
    let limit = usize::try_from(call.query.number("limit")?.unwrap_or(0)).unwrap_or(0);
    let token = call.query.get("continue");
    let (mut revision, mut after) = match token {
        "" => (wanted_revision(call).await?, None),
        token => {
            if parse_version(call.query.get("resourceVersion"))?.is_some() {
                return Err(Status::bad_request(
                    "specifying resource version is not allowed when using continue",
                ));
            }
            let (revision, after) = decode_continue(token)?;
            (Some(revision), Some(after))
        }
    };
    let prefix = call.prefix();
    if let (Some(key), None, "") = (filter.single_key(call), revision, token) {
        return single(call, filter, &key).await;
    }
    let mut items = Vec::new();
    loop {
        let options = ListOptions { limit, after: after.take(), revision };
        let result = call.core.store.list(&prefix, options).await.map_err(|e| expired_token(e, token))?;
        revision = Some(result.revision);
        let last = result.items.last().map(|kv| kv.key.to_string());
        items.append(&mut chosen(call, filter, result.items).await?);
        let full = limit > 0 && items.len() >= limit;
        match last {
            Some(last) if result.remaining > 0 && !full => after = Some(last),
            last => return Ok(finish(items, limit, result.revision, result.remaining, last, filter)),
        }
    }
}

/// Those of the stored objects that are wanted, in the form that rules see: selectors do, too.
async fn chosen(call: &Call, filter: &Filter, mut items: Vec<KeyValue>) -> Result<Vec<KeyValue>, Status> {
    if !filter.is_empty() {
        items.retain(|kv| filter.matches_key(call, &kv.key));
    }
    let mut items = call.all_shown(items).await?;
    if filter.needs_object() {
        items.retain(|kv| filter.matches_bytes(&kv.value));
    }
    Ok(items)
}

async fn single(call: &Call, filter: &Filter, key: &str) -> Result<Page, Status> {
    let revision = call.core.store.revision().await.map_err(store_error)?;
    let found = call.core.store.get(key).await.map_err(store_error)?;
    let items = chosen(call, filter, found.into_iter().collect()).await?;
    let revision = items.iter().map(|kv| kv.mod_revision).fold(revision, u64::max);
    Ok(Page { items, revision, next: String::new(), remaining: None })
}

/// Cuts to the limit and says where to go on.
fn finish(
    mut items: Vec<KeyValue>,
    limit: usize,
    revision: u64,
    behind: u64,
    last: Option<String>,
    filter: &Filter,
) -> Page {
    let cut = limit > 0 && items.len() > limit;
    if cut {
        items.truncate(limit);
    }
    let last = if cut { items.last().map(|kv| kv.key.to_string()) } else { last };
    let more = behind > 0 || cut;
    let next = last.filter(|_| more).map(|key| encode_continue(revision, &key)).unwrap_or_default();
    let remaining = (more && filter.is_empty()).then_some(behind);
    Page { items, revision, next, remaining }
}

fn expired_token(error: storage::Error, token: &str) -> Status {
    match error {
        storage::Error::Compacted { .. } if !token.is_empty() => Status::expired(
            "The provided continue parameter is too old to display a consistent list result. You can start a new list without the continue parameter.",
        ),
        other => store_error(other),
    }
}

/// `metadata` of the list.
fn list_meta(page: &Page) -> Value {
    let mut meta = json!({"resourceVersion": page.revision.to_string()});
    if !page.next.is_empty() {
        meta["continue"] = page.next.as_str().into();
    }
    if let Some(remaining) = page.remaining {
        meta["remainingItemCount"] = remaining.into();
    }
    meta
}

/// The verb.
///
/// # Errors
/// As [`page`], and 406.
pub async fn list(call: &Call) -> Result<Answer, Status> {
    let accept = answer::negotiate(call)?;
    if call.query.flag("sendInitialEvents") {
        let mut errors = FieldErrors::new();
        let why = "sendInitialEvents is forbidden for list";
        errors.push(FieldError::forbidden("sendInitialEvents", why));
        return Err(Status::invalid("meta.k8s.io", "ListOptions", "", &errors));
    }
    let page = page(call, &Filter::of(call)?).await?;
    render(call, accept.shape, accept.encoding, &page)
}

fn render(call: &Call, shape: Shape, encoding: Encoding, page: &Page) -> Result<Answer, Status> {
    if (shape, encoding) == (Shape::Object, Encoding::Json) {
        return Ok(Answer::bytes(200, JSON, render_json(call, page)?));
    }
    let mut values = Vec::with_capacity(page.items.len());
    for kv in &page.items {
        values.push(call.parse(kv)?);
    }
    if !matches!(shape, Shape::Table(_)) {
        values = values.into_iter().map(|v| call.outward(v)).collect();
    }
    let document = match shape {
        Shape::Object => json!({
            "kind": call.row.list_kind(), "apiVersion": call.row.api_version(),
            "metadata": list_meta(page), "items": values,
        }),
        Shape::Partial(version) => json!({
            "kind": "PartialObjectMetadataList", "apiVersion": format!("meta.k8s.io/{version}"),
            "metadata": list_meta(page),
            "items": values.iter().map(|v| answer::partial(v, version)).collect::<Vec<_>>(),
        }),
        Shape::Table(version) => {
            let include = Include::of(call);
            let rows = values.into_iter().map(|v| answer::table_row(call, version, include, v)).collect();
            table::document(&call.row, version, list_meta(page), rows, true)
        }
    };
    Answer::encoded(200, encoding, &document)
}

/// Copies stored bytes; parses only what is served in another version than stored.
fn render_json(call: &Call, page: &Page) -> Result<Vec<u8>, Status> {
    let size: usize = page.items.iter().map(|kv| kv.value.len()).sum();
    let mut out = Vec::with_capacity(size + 256);
    let (kind, version) = (Value::from(call.row.list_kind()), Value::from(call.row.api_version()));
    let head =
        format!("{{\"kind\":{kind},\"apiVersion\":{version},\"metadata\":{},\"items\":[", list_meta(page));
    out.extend_from_slice(head.as_bytes());
    let head = object::head(&call.row);
    let same = Arc::ptr_eq(&call.row, &call.stored);
    for (i, kv) in page.items.iter().enumerate() {
        if i > 0 {
            out.push(b',');
        }
        if same {
            object::splice_item(&head, &kv.value, kv.mod_revision, &mut out);
        } else {
            let value = call.outward(call.parse(kv)?);
            let _ = serde_json::to_writer(&mut out, &value);
        }
    }
    out.extend_from_slice(b"]}");
    Ok(out)
}

/// A list of objects that are no longer stored (deletecollection).
pub fn render_items(call: &Call, items: Vec<Value>, revision: u64) -> Value {
    json!({
        "kind": call.row.list_kind(), "apiVersion": call.row.api_version(),
        "metadata": {"resourceVersion": revision.to_string()}, "items": items,
    })
}
