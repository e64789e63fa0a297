//! Stored custom objects as their definition of today sees them.
//!
//! A definition changes while objects of it are stored. Whoever reads one finds it pruned and with the defaults of the
//! version that it is stored in, although nobody wrote it anew; the next write does.
//! <https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions/#defaulting>

use std::sync::Arc;

use schema::Table;
use schema::validate::{self, Mode};
use serde_json::Value;

use super::schema as rules;
use crate::object;
use crate::resource::Resource;

/// All versions of a definition, those that are neither served nor stored any more, too.
#[derive(Debug)]
pub struct Versions(Vec<Version>);

#[derive(Debug)]
struct Version {
    api_version: String,
    schema: Arc<Value>,
    types: Arc<Table>,
}

impl Versions {
    /// Of the rows of a definition.
    pub fn of(rows: &[Resource]) -> Self {
        let version = |row: &Resource| {
            let (schema, types) = (row.schema.clone()?, row.types.clone()?);
            Some(Version { api_version: row.api_version(), schema, types })
        };
        Versions(rows.iter().filter_map(version).collect())
    }

    /// A stored object, and whether it is read otherwise than it was written.
    ///
    /// # Errors
    /// The bytes are no JSON.
    pub fn read(&self, stored: &[u8]) -> Result<(Value, bool), serde_json::Error> {
        let written: Value = serde_json::from_slice(stored)?;
        let mut value = written.clone();
        if let Some(version) = self.0.iter().find(|v| written["apiVersion"] == v.api_version.as_str()) {
            prune(&version.types, &mut value);
            rules::default(&version.schema, &mut value);
        }
        let changed = value != written;
        Ok((value, changed))
    }
}

/// Takes away what a version's schema does not know.
pub fn prune(types: &Table, object: &mut Value) {
    if let Some(ty) = types.root() {
        validate::fields(ty, object, &[], Mode::Ignore);
    }
}

/// Whether bytes are an object in the form of a row.
pub fn is_of(row: &Resource, stored: &[u8]) -> bool {
    stored.starts_with(object::head(row).as_bytes())
}
