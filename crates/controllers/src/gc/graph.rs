//! Who owns whom: a graph of owner references over all objects, pure.
//!
//! Nodes are known by uid. The graph answers each change with the work that follows from it: objects to look at
//! because an owner is gone or going, owners whose last blocking dependent has gone, objects to be orphaned. It is a
//! cache and may be behind; the worker asks the server before it deletes anything.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

use crate::catalog::Kind;
use crate::meta;

/// The finalizer of a foreground deletion.
pub(super) const FOREGROUND: &str = "foregroundDeletion";
/// The finalizer of a deletion that spares the dependents.
pub(super) const ORPHAN: &str = "orphan";

/// One object.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub kind: Arc<Kind>,
    pub namespace: String,
    pub name: String,
    pub owners: Vec<OwnerReference>,
    pub deleting: bool,
    /// Deleting, and waiting for its dependents to go first.
    pub foreground: bool,
    /// Deleting, and waiting for its dependents to be let go.
    pub orphaning: bool,
}

impl Node {
    fn new(kind: Arc<Kind>, meta: &ObjectMeta) -> Self {
        let deleting = meta::deleting(meta);
        let has = |finalizer: &str| meta.finalizers.iter().flatten().any(|f| f == finalizer);
        Self {
            kind,
            namespace: meta::namespace(meta).to_owned(),
            name: meta::name(meta).to_owned(),
            owners: meta.owner_references.clone().unwrap_or_default(),
            deleting,
            foreground: deleting && has(FOREGROUND),
            orphaning: deleting && has(ORPHAN),
        }
    }

    /// Holds up a foreground deletion of that owner.
    fn blocks(&self, owner: &str) -> bool {
        self.owners.iter().any(|r| r.uid == owner && r.block_owner_deletion == Some(true))
    }
}

/// Something to do for the object of a uid.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Work {
    /// See whether it must go, or may finish going.
    Collect(String),
    /// Let its dependents go.
    Orphan(String),
}

/// The graph.
#[derive(Default)]
pub(super) struct Graph {
    nodes: HashMap<String, Node>,
    /// Owner uid -> dependents' uids; the owner need not be known.
    dependents: HashMap<String, HashSet<String>>,
}

impl Graph {
    /// An object was created or changed.
    pub fn apply(&mut self, kind: &Arc<Kind>, object: &ObjectMeta) -> Vec<Work> {
        let uid = meta::uid(object).to_owned();
        let new = Node::new(kind.clone(), object);
        let old = self.nodes.remove(&uid);
        let mut work = Vec::new();
        let before = old.as_ref().map_or(&[][..], |n| &n.owners);
        for gone in before.iter().filter(|b| !new.owners.iter().any(|n| n.uid == b.uid)) {
            self.unlink(&gone.uid, &uid);
        }
        for owner in &new.owners {
            self.dependents.entry(owner.uid.clone()).or_default().insert(uid.clone());
        }
        if new.owners.as_slice() != before {
            // New owners may be absent or going; old ones may have lost what blocked them.
            let suspect = |r: &OwnerReference| self.nodes.get(&r.uid).is_none_or(|owner| owner.foreground);
            if new.owners.iter().any(suspect) {
                work.push(Work::Collect(uid.clone()));
            }
            work.extend(
                before.iter().filter(|r| self.is_foreground(&r.uid)).map(|r| Work::Collect(r.uid.clone())),
            );
        }
        if new.foreground && !old.as_ref().is_some_and(|o| o.foreground) {
            work.extend(self.dependents_of(&uid).into_iter().map(Work::Collect));
            work.push(Work::Collect(uid.clone()));
        }
        if new.orphaning && !old.as_ref().is_some_and(|o| o.orphaning) {
            work.push(Work::Orphan(uid.clone()));
        }
        self.nodes.insert(uid, new);
        work
    }

    /// An object is gone: its dependents may have to follow, its owners may go on.
    pub fn delete(&mut self, uid: &str) -> Vec<Work> {
        let Some(node) = self.nodes.remove(uid) else { return Vec::new() };
        for owner in &node.owners {
            self.unlink(&owner.uid, uid);
        }
        let mut work: Vec<Work> = self.dependents_of(uid).into_iter().map(Work::Collect).collect();
        let owners = node.owners.iter().filter(|r| self.is_foreground(&r.uid));
        work.extend(owners.map(|r| Work::Collect(r.uid.clone())));
        work
    }

    fn unlink(&mut self, owner: &str, dependent: &str) {
        if let Some(set) = self.dependents.get_mut(owner) {
            set.remove(dependent);
            if set.is_empty() {
                self.dependents.remove(owner);
            }
        }
    }

    fn is_foreground(&self, uid: &str) -> bool {
        self.nodes.get(uid).is_some_and(|n| n.foreground)
    }

    /// The object of that uid.
    pub fn get(&self, uid: &str) -> Option<&Node> {
        self.nodes.get(uid)
    }

    /// The uids of a watch's objects that are not among these.
    pub fn others(&self, kind: &Arc<Kind>, than: &HashSet<String>) -> Vec<String> {
        let of_kind = self.nodes.iter().filter(|(_, node)| Arc::ptr_eq(&node.kind, kind));
        of_kind.map(|(uid, _)| uid).filter(|uid| !than.contains(*uid)).cloned().collect()
    }

    /// All that name it as an owner, sorted.
    pub fn dependents_of(&self, uid: &str) -> Vec<String> {
        let mut all: Vec<String> = self.dependents.get(uid).into_iter().flatten().cloned().collect();
        all.sort();
        all
    }

    /// The dependents that a foreground deletion waits for.
    pub fn blocking(&self, uid: &str) -> Vec<String> {
        let all = self.dependents_of(uid).into_iter();
        all.filter(|d| self.nodes.get(d).is_some_and(|n| n.blocks(uid))).collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use kube::core::{ApiResource, GroupVersionKind};

    fn kind() -> Arc<Kind> {
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("", "v1", "Thing"));
        Arc::new(Kind { resource, namespaced: true, verbs: vec![] })
    }

    fn object(uid: &str, owners: &[&str]) -> ObjectMeta {
        let owner = |uid: &&str| OwnerReference {
            uid: (*uid).into(),
            block_owner_deletion: Some(true),
            ..OwnerReference::default()
        };
        ObjectMeta {
            uid: Some(uid.into()),
            name: Some(uid.into()),
            owner_references: Some(owners.iter().map(owner).collect()),
            ..ObjectMeta::default()
        }
    }

    fn going(mut meta: ObjectMeta, finalizer: &str) -> ObjectMeta {
        meta.deletion_timestamp = Some(Time(jiff::Timestamp::UNIX_EPOCH));
        meta.finalizers = Some(vec![finalizer.into()]);
        meta
    }

    fn show(work: Vec<Work>) -> Vec<String> {
        let line = |w: Work| match w {
            Work::Collect(uid) => format!("collect {uid}"),
            Work::Orphan(uid) => format!("orphan {uid}"),
        };
        work.into_iter().map(line).collect()
    }

    #[test]
    fn a_deleted_owner_calls_its_dependents() {
        let (mut graph, kind) = (Graph::default(), kind());
        assert!(graph.apply(&kind, &object("deploy", &[])).is_empty());
        assert!(graph.apply(&kind, &object("rs", &["deploy"])).is_empty());
        assert!(graph.apply(&kind, &object("pod", &["rs"])).is_empty());
        // An owner that nobody knows is looked at once.
        assert_eq!(show(graph.apply(&kind, &object("lost", &["nobody"]))), ["collect lost"]);
        assert!(graph.apply(&kind, &object("lost", &["nobody"])).is_empty());
        assert_eq!(show(graph.delete("deploy")), ["collect rs"]);
        assert_eq!(show(graph.delete("rs")), ["collect pod"]);
        assert!(graph.delete("pod").is_empty() && graph.delete("pod").is_empty());
    }

    #[test]
    fn a_new_list_of_one_watch_takes_nothing_of_another() {
        let (mut graph, things, others) = (Graph::default(), kind(), kind());
        for uid in ["a", "b", "c"] {
            graph.apply(&things, &object(uid, &[]));
        }
        graph.apply(&others, &object("x", &[]));
        let mut gone = graph.others(&things, &HashSet::from(["b".to_owned()]));
        gone.sort();
        assert_eq!(gone, ["a", "c"]);
        assert_eq!(graph.others(&others, &HashSet::new()), ["x"]);
    }

    #[test]
    fn foreground_and_orphan_deletions_call_once() {
        let (mut graph, kind) = (Graph::default(), kind());
        graph.apply(&kind, &object("owner", &[]));
        graph.apply(&kind, &object("a", &["owner"]));
        graph.apply(&kind, &object("b", &["owner"]));
        let deleted = going(object("owner", &[]), FOREGROUND);
        assert_eq!(show(graph.apply(&kind, &deleted)), ["collect a", "collect b", "collect owner"]);
        assert!(graph.apply(&kind, &deleted).is_empty());
        assert_eq!(graph.blocking("owner"), ["a", "b"]);
        assert_eq!(show(graph.delete("a")), ["collect owner"]);
        // Released instead of deleted frees the owner as well.
        assert_eq!(show(graph.apply(&kind, &object("b", &[]))), ["collect owner"]);
        assert!(graph.blocking("owner").is_empty());
        graph.apply(&kind, &object("x", &[]));
        assert_eq!(show(graph.apply(&kind, &going(object("x", &[]), ORPHAN))), ["orphan x"]);
    }
}
