//! The kinds served right now: the built-in rows and those of CustomResourceDefinitions.
//!
//! An immutable value, replaced as a whole when a definition changes; readers never wait.

use std::collections::HashMap;
use std::sync::Arc;

use crate::resource::{GroupResource, Resource};

/// One version of a group, in discovery order.
#[derive(Debug, Clone)]
pub struct GroupVersion {
    /// Group; empty is core.
    pub group: String,
    /// Version.
    pub version: String,
    /// Its resources.
    pub resources: Vec<Arc<Resource>>,
}

/// All served kinds.
#[derive(Debug)]
pub struct Registry {
    rows: HashMap<(String, String, String), Arc<Resource>>,
    /// In discovery order; the versions of one group stand together, preferred first.
    pub versions: Vec<GroupVersion>,
    stored: HashMap<GroupResource, Arc<Resource>>,
}

impl Registry {
    /// From rows in discovery order.
    pub fn new(resources: impl IntoIterator<Item = Resource>) -> Self {
        let mut out = Registry { rows: HashMap::new(), versions: Vec::new(), stored: HashMap::new() };
        for row in resources {
            out.add(Arc::new(row));
        }
        out
    }

    fn add(&mut self, row: Arc<Resource>) {
        let key = (row.group.clone(), row.version.clone(), row.plural.clone());
        if self.rows.insert(key, row.clone()).is_some() {
            return;
        }
        if row.stored_as.is_none() && row.stores {
            self.stored.entry(row.group_resource()).or_insert_with(|| row.clone());
        }
        if row.verbs.is_empty() {
            return;
        }
        let known = self.versions.iter_mut().find(|v| v.group == row.group && v.version == row.version);
        match known {
            Some(version) => version.resources.push(row),
            None => {
                // Behind the last version of the same group, so that groups stay together.
                let at = self
                    .versions
                    .iter()
                    .rposition(|v| v.group == row.group)
                    .map_or(self.versions.len(), |i| i + 1);
                let (group, version) = (row.group.clone(), row.version.clone());
                self.versions.insert(at, GroupVersion { group, version, resources: vec![row] });
            }
        }
    }

    /// The row of a resource in one version.
    pub fn get(&self, group: &str, version: &str, plural: &str) -> Option<Arc<Resource>> {
        let row = self.rows.get(&(group.to_owned(), version.to_owned(), plural.to_owned()))?;
        (!row.verbs.is_empty()).then(|| row.clone())
    }

    /// The row in whose form objects are stored.
    pub fn storage_row(&self, resource: &GroupResource) -> Option<Arc<Resource>> {
        self.stored.get(resource).cloned()
    }

    /// The row in whose form the objects of `row` are stored: itself, for most.
    pub fn storage_of(&self, row: &Arc<Resource>) -> Arc<Resource> {
        match row.stored_as {
            Some((group, version, plural)) => self.get(group, version, plural).unwrap_or_else(|| row.clone()),
            None => self.storage_row(&row.group_resource()).unwrap_or_else(|| row.clone()),
        }
    }

    /// All rows whose objects are those of `row`, in whatever form.
    pub fn stored_with(&self, row: &Resource) -> Vec<Arc<Resource>> {
        let prefix = row.prefix();
        self.rows.values().filter(|other| other.prefix() == prefix).cloned().collect()
    }

    /// Whether a group is served in a version.
    pub fn group_version(&self, group: &str, version: &str) -> Option<&GroupVersion> {
        self.versions.iter().find(|v| v.group == group && v.version == version)
    }

    /// Groups besides core with their versions, preferred version first.
    pub fn groups(&self) -> Vec<(&str, Vec<&GroupVersion>)> {
        let mut out: Vec<(&str, Vec<&GroupVersion>)> = Vec::new();
        for version in self.versions.iter().filter(|v| !v.group.is_empty()) {
            match out.iter_mut().find(|(group, _)| *group == version.group) {
                Some((_, versions)) => versions.push(version),
                None => out.push((&version.group, vec![version])),
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn versions_of_a_group_stand_together_and_share_their_storage() {
        let registry = Registry::new(crate::builtin::resources());
        let autoscaling: Vec<&str> = registry
            .groups()
            .into_iter()
            .find(|(g, _)| *g == "autoscaling")
            .map(|(_, v)| v.iter().map(|v| v.version.as_str()).collect())
            .unwrap();
        assert_eq!(autoscaling, ["v2", "v1"]);
        let v1 = registry.get("autoscaling", "v1", "horizontalpodautoscalers").unwrap();
        assert_eq!(registry.storage_of(&v1).version, "v2");
        let events = registry.get("events.k8s.io", "v1", "events").unwrap();
        assert_eq!(events.key("a", "b"), "/registry/core/events/a/b");
    }
}
