//! ResourceQuota: what a namespace may hold, taken from its quotas before a write and counted anew after others.
//!
//! A write that needs something adds it to `status.used` of each quota concerned and is refused when that would pass
//! `spec.hard`; one after the other, so that together they never pass it. Counting anew ([`follow`]) waits for the writes
//! under way, and new ones wait for it: between a quota's status and the objects there is never an unseen difference.
//! <https://kubernetes.io/docs/concepts/policy/resource-quotas/>

pub mod follow;
mod usage;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use parking_lot::Mutex;
use serde_json::{Map, Value, json};
use tokio::sync::{Notify, OwnedRwLockReadGuard, RwLock};

use crate::admission::{Operation, Write};
use crate::backend::Backend;
use crate::core::{Call, Core};
use crate::kinds::quantity::Quantity;
use crate::kinds::value::{entries, list, name, set, text};
use crate::object::make_child;
use crate::resource::GroupResource;
use crate::status::Status;
use usage::Usage;

fn resource_quotas() -> GroupResource {
    GroupResource::new("", "resourcequotas")
}

/// What the writes of one namespace wait for.
#[derive(Default)]
struct Gate {
    /// Held by each write from its entry in the quotas until it is done, and by the count against them all.
    counting: Arc<RwLock<()>>,
    /// Whose turn it is to take from the quotas.
    turn: tokio::sync::Mutex<()>,
}

/// The gates of all namespaces, and which are to be counted anew.
#[derive(Default)]
pub struct Quotas {
    gates: Mutex<HashMap<String, Arc<Gate>>>,
    stale: Mutex<BTreeSet<String>>,
    /// Something became stale.
    changed: Notify,
}

impl Quotas {
    fn gate(&self, namespace: &str) -> Arc<Gate> {
        self.gates.lock().entry(namespace.to_owned()).or_default().clone()
    }

    /// The namespaces to count, which are no longer marked.
    fn take_stale(&self) -> BTreeSet<String> {
        std::mem::take(&mut *self.stale.lock())
    }

    fn mark(&self, namespace: &str) {
        self.stale.lock().insert(namespace.to_owned());
        self.changed.notify_one();
    }
}

/// What a write has taken from the quotas. Dropped without [`keep`], they are counted anew.
pub struct Hold {
    core: Arc<Core>,
    namespace: String,
    kept: bool,
    _counting: OwnedRwLockReadGuard<()>,
}

/// The write is durable: what it took stays taken.
pub fn keep(hold: Option<Hold>) {
    if let Some(mut hold) = hold {
        hold.kept = true;
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if !self.kept {
            self.core.quotas.mark(&self.namespace);
        }
    }
}

/// Takes what a write needs from the quotas of its namespace.
///
/// # Errors
/// 403 when a quota does not have it.
pub async fn reserve(call: &Call, write: Write<'_>) -> Result<Option<Hold>, Status> {
    let resource = call.stored.group_resource();
    let concerned = match write.operation {
        Operation::Create => call.cx.subresource.is_empty(),
        Operation::Update => usage::may_grow(&resource, &call.cx.subresource),
        Operation::Delete | Operation::Connect => false,
    };
    let Some(new) = write.new.filter(|_| concerned && call.row.namespaced && !call.internal) else {
        return Ok(None);
    };
    if quotas(call).await?.is_empty() {
        return Ok(None);
    }
    let mut counted = false;
    loop {
        let gate = call.core.quotas.gate(call.namespace());
        let counting = gate.counting.clone().read_owned().await;
        let turn = gate.turn.lock().await;
        let all = quotas(call).await?;
        let concerned: Vec<&Arc<Value>> = all.iter().filter(|q| selects(q, &resource, new)).collect();
        let needs: Vec<(&Arc<Value>, Usage)> =
            concerned.into_iter().map(|q| (q, needed(q, &resource, new, write.old))).collect();
        if !counted
            && needs.iter().any(|(quota, need)| need.keys().any(|k| quota["status"]["used"].get(k).is_none()))
        {
            // Just made: nobody has counted yet.
            drop((turn, counting));
            follow::count(&call.core, call.namespace()).await?;
            counted = true;
            continue;
        }
        for (quota, need) in &needs {
            demand(call, quota, &resource, new)?;
            fits(quota, need).map_err(|why| call.forbidden(name(new), &why))?;
        }
        if call.cx.dry_run || needs.iter().all(|(_, need)| need.is_empty()) {
            return Ok(None);
        }
        let hold = Hold {
            core: call.core.clone(),
            namespace: call.namespace().to_owned(),
            kept: false,
            _counting: counting,
        };
        for (quota, need) in needs.iter().filter(|(_, need)| !need.is_empty()) {
            take(call, name(quota), need, name(new)).await?;
        }
        return Ok(Some(hold));
    }
}

async fn quotas(call: &Call) -> Result<Vec<Arc<Value>>, Status> {
    Ok(call.cx.objects.list(&resource_quotas(), Some(call.namespace())).await?.0)
}

/// Whether a quota is about an object: with scopes it is about Pods alone, those in all of them.
fn selects(quota: &Value, resource: &GroupResource, object: &Value) -> bool {
    let spec = &quota["spec"];
    let (scopes, expressions) = (list(spec, "scopes"), list(&spec["scopeSelector"], "matchExpressions"));
    if scopes.is_empty() && expressions.is_empty() {
        return true;
    }
    let is_pod = resource.group.is_empty() && resource.resource == "pods";
    let plain = scopes.iter().filter_map(Value::as_str).all(|s| usage::in_scope(object, s, "Exists", &[]));
    is_pod
        && plain
        && expressions
            .iter()
            .all(|e| usage::in_scope(object, text(e, "scopeName"), text(e, "operator"), list(e, "values")))
}

/// What an object needs more than before, of what the quota is about.
fn needed(quota: &Value, resource: &GroupResource, new: &Value, old: Option<&Value>) -> Usage {
    let hard = &quota["spec"]["hard"];
    let before = old.filter(|old| selects(quota, resource, old)).map(|old| usage::of(resource, old));
    let mut need = usage::of(resource, new);
    need.retain(|name, amount| {
        if let Some(had) = before.as_ref().and_then(|b| b.get(name)) {
            *amount = amount.minus(*had);
        }
        hard.get(name).is_some() && !amount.is_zero()
    });
    need
}

/// Containers must say what they need of what a quota is about.
fn demand(call: &Call, quota: &Value, resource: &GroupResource, object: &Value) -> Result<(), Status> {
    if !resource.group.is_empty() || resource.resource != "pods" {
        return Ok(());
    }
    let hard: BTreeSet<&str> = entries(&quota["spec"], "hard").map(|(k, _)| k.as_str()).collect();
    match usage::missing(&hard, object) {
        None => Ok(()),
        Some(what) => {
            let why = format!("failed quota: {}: must specify {what}", name(quota));
            Err(call.forbidden(name(object), &why))
        }
    }
}

/// Amounts are shown as the quota's author writes them: in powers of two or of ten.
fn shown(quota: &Value, resource: &str, amount: Quantity) -> String {
    amount.text(text(&quota["spec"]["hard"], resource).ends_with('i'))
}

/// Whether there is enough left; else what upstream says.
fn fits(quota: &Value, need: &Usage) -> Result<(), String> {
    let amount = |map: &Value, key: &str| Quantity::of(&map[key]).unwrap_or(Quantity::ZERO);
    let (hard, used) = (&quota["spec"]["hard"], &quota["status"]["used"]);
    let over: Vec<&String> =
        need.iter().filter(|(k, n)| amount(used, k).plus(**n) > amount(hard, k)).map(|(k, _)| k).collect();
    if over.is_empty() {
        return Ok(());
    }
    let line = |of: &dyn Fn(&str) -> Quantity| {
        over.iter().map(|k| format!("{k}={}", shown(quota, k, of(k)))).collect::<Vec<_>>().join(",")
    };
    Err(format!(
        "exceeded quota: {}, requested: {}, used: {}, limited: {}",
        name(quota),
        line(&|k| need.get(k).copied().unwrap_or(Quantity::ZERO)),
        line(&|k| amount(used, k)),
        line(&|k| amount(hard, k)),
    ))
}

/// Adds a need to what the quota has given out.
async fn take(call: &Call, quota: &str, need: &Usage, object: &str) -> Result<(), Status> {
    let change = |current: &Value| {
        fits(current, need).map_err(|why| call.forbidden(object, &why))?;
        let mut used = Usage::new();
        for (key, amount) in need {
            let before = Quantity::of(&current["status"]["used"][key.as_str()]).unwrap_or(Quantity::ZERO);
            used.insert(key.clone(), before.plus(*amount));
        }
        let mut new = current.clone();
        write_used(&mut new, &used);
        Ok(new)
    };
    let backend = Backend::new(call.core.clone());
    match backend.change(&resource_quotas(), call.namespace(), quota, &change).await {
        Err(gone) if gone.code() == 404 => Ok(()),
        other => other,
    }
}

/// Sets entries of `status.used`, and `status.hard` as the spec says it.
fn write_used(quota: &mut Value, used: &BTreeMap<String, Quantity>) {
    let texts: Vec<(String, String)> = used.iter().map(|(k, v)| (k.clone(), shown(quota, k, *v))).collect();
    let hard = quota["spec"]["hard"].clone();
    let status = make_child(quota, "status");
    status.insert("hard".into(), if hard.is_null() { json!({}) } else { hard });
    let slot = status.entry("used").or_insert_with(|| Map::new().into());
    texts.into_iter().for_each(|(key, text)| set(slot, &key, text));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_say_what_was_asked_used_and_allowed() {
        let quota = json!({"metadata": {"name": "q"}, "spec": {"hard": {"pods": "2", "requests.memory": "1Gi"}},
            "status": {"used": {"pods": "2", "requests.memory": "512Mi"}}});
        let need = Usage::from([("pods".to_owned(), Quantity::ONE)]);
        assert_eq!(
            fits(&quota, &need).unwrap_err(),
            "exceeded quota: q, requested: pods=1, used: pods=2, limited: pods=2"
        );
        let memory = Usage::from([("requests.memory".to_owned(), Quantity::ONE.times(1 << 29))]);
        assert_eq!(fits(&quota, &memory), Ok(()));
        let mut more = quota;
        write_used(&mut more, &Usage::from([("requests.memory".to_owned(), Quantity::ONE.times(1 << 30))]));
        assert_eq!(more["status"]["used"], json!({"pods": "2", "requests.memory": "1Gi"}));
        assert_eq!(more["status"]["hard"]["pods"], "2");
    }

    #[test]
    fn only_growth_of_what_the_quota_is_about_counts() {
        let quota = json!({"spec": {"hard": {"services.nodeports": "5"}}});
        let service = |ports: usize| json!({"spec": {"type": "NodePort", "ports": vec![json!({}); ports]}});
        let resource = GroupResource::new("", "services");
        let need = |new, old: Option<&Value>| {
            needed(&quota, &resource, &service(new), old)
                .into_iter()
                .map(|(k, v)| format!("{k}={v}"))
                .collect::<Vec<_>>()
        };
        assert_eq!(need(2, None), ["services.nodeports=2"]);
        assert_eq!(need(3, Some(&service(2))), ["services.nodeports=1"]);
        assert_eq!(need(1, Some(&service(2))), [""; 0]);
        let scoped = json!({"spec": {"scopes": ["Terminating"], "hard": {"pods": "1"}}});
        assert!(!selects(&scoped, &resource, &service(1)));
    }
}
