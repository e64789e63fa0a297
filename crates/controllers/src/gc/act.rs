//! What the garbage collector does to one object, after asking the server.

use std::collections::HashSet;

use client::Outcome;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::Api;
use kube::api::{DeleteParams, Patch, PropagationPolicy};
use kube::core::DynamicObject;
use serde_json::json;

use super::Collector;
use super::graph::{FOREGROUND, Node, ORPHAN, Work};
use crate::catalog::Kind;
use crate::kit::{Doing, Error, delete_uid, is_conflict, is_not_found, patch, unless_gone};
use crate::meta;

/// What became of an owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owner {
    /// There, and staying.
    Solid,
    /// Not there, or another object of that name.
    Absent,
    /// Going as soon as its dependents are gone.
    Waiting,
    /// Of a kind that the server does not serve (now).
    Unknown,
}

/// What follows for an object from its owners.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Keep,
    /// It has another owner: forget those of these uids.
    Unlink(HashSet<String>),
    Delete(Propagation),
    /// Nothing can be said before an unknown kind is served again.
    Later,
}

/// How the deletion treats dependents (`PropagationPolicy`, comparable).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Propagation {
    Orphan,
    Background,
    Foreground,
}

impl From<Propagation> for PropagationPolicy {
    fn from(policy: Propagation) -> Self {
        match policy {
            Propagation::Orphan => Self::Orphan,
            Propagation::Background => Self::Background,
            Propagation::Foreground => Self::Foreground,
        }
    }
}

/// Decides over an object with these owners; `dependents`: it owns something itself.
fn judge(owners: &[(String, Owner)], finalizers: &[String], dependents: bool) -> Verdict {
    let of = |state: Owner| owners.iter().filter(move |(_, s)| *s == state).map(|(uid, _)| uid.clone());
    if owners.is_empty() {
        return Verdict::Keep;
    }
    if of(Owner::Solid).next().is_some() {
        let gone: HashSet<String> = of(Owner::Absent).chain(of(Owner::Waiting)).collect();
        return if gone.is_empty() { Verdict::Keep } else { Verdict::Unlink(gone) };
    }
    if of(Owner::Unknown).next().is_some() {
        return Verdict::Later;
    }
    let has = |finalizer: &str| finalizers.iter().any(|f| f == finalizer);
    if of(Owner::Waiting).next().is_some() && dependents {
        return Verdict::Delete(Propagation::Foreground);
    }
    Verdict::Delete(if has(ORPHAN) {
        Propagation::Orphan
    } else if has(FOREGROUND) {
        Propagation::Foreground
    } else {
        Propagation::Background
    })
}

impl Collector {
    fn api(&self, kind: &Kind, namespace: &str) -> Api<DynamicObject> {
        let client = self.ctx.client.clone();
        if kind.namespaced {
            Api::namespaced_with(client, namespace, &kind.resource)
        } else {
            Api::all_with(client, &kind.resource)
        }
    }

    /// The object as the server has it; `None` if it is gone or another one has its name.
    async fn live(&self, node: &Node, uid: &str) -> Result<Option<ObjectMeta>, Error> {
        let api = self.api(&node.kind, &node.namespace);
        let found = api.get_metadata_opt(&node.name).await.doing("read", &node.name)?;
        Ok(found.map(|o| o.metadata).filter(|m| meta::uid(m) == uid))
    }

    /// Looks at an object whose owners may be gone, or which waits for its dependents.
    pub async fn collect(&self, uid: &str) -> Result<Outcome, Error> {
        let Some(node) = self.graph.lock().get(uid).cloned() else { return Ok(Outcome::Done) };
        if node.deleting && !node.foreground {
            return Ok(Outcome::Done);
        }
        let Some(live) = self.live(&node, uid).await? else {
            let work = self.graph.lock().delete(uid);
            self.enqueue(work);
            return Ok(Outcome::Done);
        };
        if node.foreground && meta::deleting(&live) {
            return self.finish_foreground(&node, uid, &live).await;
        }
        let references = live.owner_references.clone().unwrap_or_default();
        let mut owners = Vec::new();
        for reference in &references {
            owners.push((reference.uid.clone(), self.owner(&node, reference).await?));
        }
        let dependents = self.graph.lock().dependents_of(uid);
        let finalizers = live.finalizers.clone().unwrap_or_default();
        match judge(&owners, &finalizers, !dependents.is_empty()) {
            Verdict::Keep => Ok(Outcome::Done),
            Verdict::Later => Ok(Outcome::Retry),
            Verdict::Unlink(gone) => {
                let rest: Vec<&OwnerReference> =
                    references.iter().filter(|r| !gone.contains(&r.uid)).collect();
                self.patch(&node, &live, json!({"ownerReferences": rest})).await?;
                Ok(Outcome::Done)
            }
            Verdict::Delete(policy) => {
                if policy == Propagation::Foreground {
                    self.break_circle(&node, &live, &dependents).await?;
                }
                self.delete(&node, uid, policy).await?;
                Ok(Outcome::Done)
            }
        }
    }

    /// Owners that wait for each other would wait for ever: this object stops blocking its own.
    async fn break_circle(&self, node: &Node, live: &ObjectMeta, dependents: &[String]) -> Result<(), Error> {
        let circular = {
            let graph = self.graph.lock();
            dependents.iter().any(|d| graph.get(d).is_some_and(|n| n.foreground))
        };
        if !circular {
            return Ok(());
        }
        let mut owners = live.owner_references.clone().unwrap_or_default();
        owners.iter_mut().for_each(|r| r.block_owner_deletion = Some(false));
        self.patch(node, live, json!({"ownerReferences": owners})).await
    }

    /// What became of an owner: from the graph if it is known there, else from the server.
    async fn owner(&self, dependent: &Node, reference: &OwnerReference) -> Result<Owner, Error> {
        let known = self.graph.lock().get(&reference.uid).cloned();
        if let Some(known) = known {
            let reachable = !known.kind.namespaced || known.namespace == dependent.namespace;
            if reachable && known.name == reference.name {
                return Ok(if known.foreground { Owner::Waiting } else { Owner::Solid });
            }
        }
        let Some(kind) = self.kind(&reference.api_version, &reference.kind) else {
            return Ok(Owner::Unknown);
        };
        if kind.namespaced && dependent.namespace.is_empty() {
            // A cluster-scoped object cannot say in which namespace its owner is: upstream leaves it alone.
            return Ok(Owner::Solid);
        }
        let api = self.api(&kind, &dependent.namespace);
        let found = api.get_metadata_opt(&reference.name).await.doing("read owner", &reference.name)?;
        let Some(found) = found.map(|o| o.metadata).filter(|m| meta::uid(m) == reference.uid) else {
            return Ok(Owner::Absent);
        };
        let waits = found.finalizers.iter().flatten().any(|f| f == FOREGROUND);
        Ok(if meta::deleting(&found) && waits { Owner::Waiting } else { Owner::Solid })
    }

    /// Removes the finalizer once no dependent blocks any more.
    async fn finish_foreground(&self, node: &Node, uid: &str, live: &ObjectMeta) -> Result<Outcome, Error> {
        let (blocking, idle): (Vec<String>, Vec<String>) = {
            let graph = self.graph.lock();
            let blocking = graph.blocking(uid);
            let idle = blocking.iter().filter(|d| graph.get(d).is_some_and(|n| !n.deleting));
            let idle = idle.cloned().collect();
            (blocking, idle)
        };
        if blocking.is_empty() {
            self.remove_finalizer(node, live, FOREGROUND).await?;
        } else {
            self.enqueue(idle.into_iter().map(Work::Collect).collect());
        }
        Ok(Outcome::Done)
    }

    /// Lets all dependents go, then the object.
    pub async fn orphan(&self, uid: &str) -> Result<Outcome, Error> {
        let Some(node) = self.graph.lock().get(uid).cloned() else { return Ok(Outcome::Done) };
        let dependents = self.graph.lock().dependents_of(uid);
        for dependent in dependents {
            let Some(child) = self.graph.lock().get(&dependent).cloned() else { continue };
            let Some(live) = self.live(&child, &dependent).await? else { continue };
            let owners = live.owner_references.clone().unwrap_or_default();
            let rest: Vec<&OwnerReference> = owners.iter().filter(|r| r.uid != uid).collect();
            if rest.len() < owners.len() {
                self.patch(&child, &live, json!({"ownerReferences": rest})).await?;
            }
        }
        if let Some(live) = self.live(&node, uid).await? {
            self.remove_finalizer(&node, &live, ORPHAN).await?;
        }
        Ok(Outcome::Done)
    }

    async fn remove_finalizer(&self, node: &Node, live: &ObjectMeta, finalizer: &str) -> Result<(), Error> {
        let finalizers = live.finalizers.clone().unwrap_or_default();
        let rest: Vec<&String> = finalizers.iter().filter(|f| *f != finalizer).collect();
        if rest.len() == finalizers.len() {
            return Ok(());
        }
        self.patch(node, live, json!({"finalizers": rest})).await
    }

    /// Changes metadata of exactly the version that was read.
    async fn patch(
        &self,
        node: &Node,
        live: &ObjectMeta,
        mut change: serde_json::Value,
    ) -> Result<(), Error> {
        change["uid"] = json!(live.uid);
        change["resourceVersion"] = json!(live.resource_version);
        let api = self.api(&node.kind, &node.namespace);
        let change = Patch::Merge(json!({"metadata": change}));
        unless_gone(api.patch_metadata(&node.name, &patch(), &change).await).doing("patch", &node.name)?;
        Ok(())
    }

    async fn delete(&self, node: &Node, uid: &str, policy: Propagation) -> Result<(), Error> {
        tracing::debug!(
            kind = node.kind.resource.kind,
            namespace = node.namespace,
            name = node.name,
            ?policy,
            "deleting an object whose owners are gone"
        );
        let options = DeleteParams { propagation_policy: Some(policy.into()), ..delete_uid(uid) };
        match self.api(&node.kind, &node.namespace).delete(&node.name, &options).await {
            Err(error) if !is_not_found(&error) && !is_conflict(&error) => {
                Err(error).doing("delete", &node.name)
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts() {
        let owners = |list: &[Owner]| -> Vec<(String, Owner)> {
            list.iter().enumerate().map(|(i, o)| (i.to_string(), *o)).collect()
        };
        let judge = |list: &[Owner], finalizers: &[&str], dependents| {
            let finalizers: Vec<String> = finalizers.iter().map(|f| (*f).to_owned()).collect();
            super::judge(&owners(list), &finalizers, dependents)
        };
        use Owner::{Absent, Solid, Unknown, Waiting};
        assert_eq!(judge(&[], &[], false), Verdict::Keep);
        assert_eq!(judge(&[Solid], &[], true), Verdict::Keep);
        assert_eq!(judge(&[Solid, Absent], &[], true), Verdict::Unlink(["1".to_owned()].into()));
        assert_eq!(judge(&[Absent, Unknown], &[], true), Verdict::Later);
        assert_eq!(judge(&[Absent], &[], true), Verdict::Delete(Propagation::Background));
        assert_eq!(judge(&[Absent], &[ORPHAN], true), Verdict::Delete(Propagation::Orphan));
        assert_eq!(judge(&[Waiting], &[], false), Verdict::Delete(Propagation::Background));
        assert_eq!(judge(&[Waiting, Absent], &[], true), Verdict::Delete(Propagation::Foreground));
    }
}
