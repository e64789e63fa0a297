//! The object of a request in the other versions of its kind, for the owners of fields that wrote in those.
//!
//! Server-side apply is a pure function that asks for conversions. Where a webhook makes them, what is missing is noted,
//! fetched, and the function runs once more.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use schema::apply::{Pending, Versions, View};
use serde_json::Value;

use super::Expected;
use crate::convert;
use crate::core::Call;
use crate::crd;
use crate::object;
use crate::resource::Resource;
use crate::status::Status;

/// What a webhook was asked for a request.
#[derive(Default)]
pub struct Views {
    /// By version and object, as text.
    known: Mutex<HashMap<(String, String), Value>>,
    wanted: Mutex<Vec<(String, Value)>>,
    /// All rows of the kind.
    rows: OnceLock<Vec<Arc<Resource>>>,
}

/// How a request sees the versions of its kind.
pub struct Seen<'a>(pub &'a Call);

impl Seen<'_> {
    fn row(&self, api_version: &str) -> Option<&Arc<Resource>> {
        let call = self.0;
        let rows = call.views.rows.get_or_init(|| call.core.registry.load().stored_with(&call.row));
        rows.iter().find(|row| row.api_version() == api_version)
    }

    /// An object of a built-in kind in another of its forms.
    fn built_in(&self, row: &Arc<Resource>, mut object: Value) -> Option<Value> {
        let from = self.row(object["apiVersion"].as_str()?)?;
        let stored = &self.0.written;
        if !Arc::ptr_eq(from, stored) {
            convert::to_stored(from, stored, &mut object);
        }
        if !Arc::ptr_eq(row, stored) {
            convert::from_stored(row, &mut object);
        }
        Some(object)
    }
}

impl Versions for Seen<'_> {
    fn view(&self, api_version: &str, object: &Value) -> Result<View<'_>, Pending> {
        let Some(row) = self.row(api_version) else { return Ok(None) };
        let Some(ty) = super::type_of(row, &Expected::from(row.as_ref())) else { return Ok(None) };
        if object["apiVersion"] == api_version {
            return Ok(Some((ty, object.clone())));
        }
        if !row.custom {
            return Ok(self.built_in(row, object.clone()).map(|object| (ty, object)));
        }
        if row.conversion.is_none() {
            // Nothing is lost on the way there and back.
            let mut object = object.clone();
            object::set_top(&mut object, "apiVersion", api_version.into());
            return Ok(Some((ty, object)));
        }
        let views = &self.0.views;
        if let Some(known) = views.known.lock().get(&(api_version.to_owned(), object.to_string())) {
            return Ok(Some((ty, known.clone())));
        }
        views.wanted.lock().push((api_version.to_owned(), object.clone()));
        Err(Pending)
    }
}

/// Has the webhook convert what is missing; whether anything was.
///
/// # Errors
/// 500 when it fails.
pub async fn fetch(call: &Call) -> Result<bool, Status> {
    let wanted = std::mem::take(&mut *call.views.wanted.lock());
    let any = !wanted.is_empty();
    for (api_version, object) in wanted {
        let Some(row) = Seen(call).row(&api_version).cloned() else { continue };
        let text = object.to_string();
        let converted = crd::convert::convert(call.cx.objects.as_ref(), &row, vec![object]).await?.pop();
        let converted = converted.ok_or_else(|| Status::internal("a conversion lost an object"))?;
        call.views.known.lock().insert((api_version, text), converted);
    }
    Ok(any)
}
