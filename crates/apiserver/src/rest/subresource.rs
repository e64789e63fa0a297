//! Subresources that read or change the stored object: status, scale, binding, eviction, finalize, and the parts of
//! a Pod that may change apart. (Those that lead to a node are in [`crate::connect`].)

use bytes::Bytes;
use http::Method;
use serde_json::{Value, json};

use super::answer::{self, Answer};
use super::patch::{self, Patch};
use super::update::{self, MakeNew, Part};
use super::{Expected, decode_object, delete, scale};
use crate::admission::{self, Operation, Write};
use crate::core::Call;
use crate::field::{FieldError, FieldErrors};
use crate::object::{self, make_child, meta};
use crate::resource::{GroupResource, Subresource};
use crate::selector::LabelSelector;
use crate::status::{Cause, Details, Status};

/// Runs a request on a subresource; verb and name are known to be offered.
///
/// # Errors
/// Whatever the verb answers.
pub async fn dispatch(
    call: &Call,
    sub: &Subresource,
    method: &Method,
    body: Bytes,
) -> Result<Answer, Status> {
    match (sub.name.as_str(), method.as_str()) {
        ("scale", _) => scale::dispatch(call, sub, method, body).await,
        (_, "GET" | "HEAD") => answer::stored(call, 200, &call.fetch(call.name()).await?),
        ("status", "PUT") => update::put(call, Part::Status, body).await,
        ("status", "PATCH") => patch::patch(call, Part::Status, body).await,
        ("binding", "POST") => bind(call, decode_object(call, sub, body)?).await,
        ("eviction", "POST") => evict(call, sub, body).await,
        (name, "PUT" | "PATCH") => change_part(call, name, method, body).await,
        (_, "POST") => compute(call, sub, body).await,
        _ => Err(Status::method_not_allowed()),
    }
}

/// Creates that only compute (`serviceaccounts/token`).
async fn compute(call: &Call, sub: &Subresource, body: Bytes) -> Result<Answer, Status> {
    let object = decode_object(call, sub, body)?;
    match call.strategy.respond(&call.cx, &object).await {
        Some(result) => Ok(Answer::json(201, &result?)),
        None => Err(Status::path_not_found()),
    }
}

/// Creates of kinds that are never stored and have no rules of their own: core/v1 Binding.
///
/// # Errors
/// 404 for other kinds.
pub async fn create_virtual(call: &Call, body: Value) -> Result<Answer, Status> {
    if call.row.kind != "Binding" {
        return Err(Status::path_not_found());
    }
    let pods = call.core.registry.load().get("", "v1", "pods").ok_or_else(Status::path_not_found)?;
    let mut pod_call = call.clone();
    pod_call.turn_to(pods);
    pod_call.cx.name = meta(&body, "name").to_owned();
    pod_call.cx.subresource = "binding".into();
    bind(&pod_call, body).await
}

fn created() -> Answer {
    let status =
        json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201});
    Answer::json(201, &status)
}

/// Binds a Pod to a node.
async fn bind(call: &Call, binding: Value) -> Result<Answer, Status> {
    let node = binding["target"]["name"].as_str().unwrap_or_default();
    let kind = binding["target"]["kind"].as_str().unwrap_or_default();
    let mut errors = FieldErrors::new();
    if !matches!(kind, "" | "Node") {
        errors.push(FieldError::not_supported("target.kind", kind, &["Node", "<empty>"]));
    }
    if node.is_empty() {
        errors.push(FieldError::required("target.name", ""));
    }
    if !errors.is_empty() {
        return Err(Status::invalid("", "Binding", meta(&binding, "name"), &errors));
    }
    let name = call.name();
    update::update(call, name, Part::Trusted, &|pod| assign(name, pod, &binding, node)).await?;
    Ok(created())
}

/// The Pod on its node.
fn assign(name: &str, pod: &Value, binding: &Value, node: &str) -> Result<Value, Status> {
    let conflict = |why: String| Err(Status::conflict("", "pods/binding", name, &why));
    let uid = meta(binding, "uid");
    if !uid.is_empty() && uid != meta(pod, "uid") {
        let current = meta(pod, "uid");
        return conflict(format!(
            "Precondition failed: UID in precondition: {uid}, UID in object meta: {current}"
        ));
    }
    if !pod["metadata"]["deletionTimestamp"].is_null() {
        return conflict(format!("pod {name} is being deleted, cannot be assigned to a host"));
    }
    if let Some(taken) = pod["spec"]["nodeName"].as_str().filter(|n| !n.is_empty()) {
        return conflict(format!("pod {name} is already assigned to node {taken:?}"));
    }
    if pod["spec"]["schedulingGates"].as_array().is_some_and(|g| !g.is_empty()) {
        return conflict(format!("pod {name} has non-empty .spec.schedulingGates"));
    }
    let mut pod = pod.clone();
    make_child(&mut pod, "spec").insert("nodeName".into(), node.into());
    if let Some(more) = binding["metadata"]["annotations"].as_object() {
        let mut all = pod["metadata"]["annotations"].as_object().cloned().unwrap_or_default();
        all.extend(more.clone());
        object::set_meta(&mut pod, "annotations", all.into());
    }
    let condition = json!({"type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": object::now()});
    let conditions = make_child(&mut pod, "status").entry("conditions").or_insert_with(|| json!([]));
    if let Some(list) = conditions.as_array_mut() {
        match list.iter_mut().find(|c| c["type"] == "PodScheduled") {
            Some(old) => *old = condition,
            None => list.push(condition),
        }
    }
    Ok(pod)
}

/// Deletes a Pod if its disruption budget allows.
async fn evict(call: &Call, sub: &Subresource, body: Bytes) -> Result<Answer, Status> {
    let eviction = decode_object(call, sub, body)?;
    let write = Write { operation: Operation::Create, new: Some(&eviction), old: None };
    admission::check(call, write).await?;
    let named = meta(&eviction, "name");
    if !named.is_empty() && named != call.name() {
        return Err(Status::bad_request("name in URL does not match name in Eviction object"));
    }
    let options = match &eviction["deleteOptions"] {
        Value::Null => Bytes::new(),
        options => options.to_string().into(),
    };
    let mut inner = call.clone();
    inner.headers.clear();
    let options = delete::Options::read(&inner, &options)?;
    let kv = call.fetch(call.name()).await?;
    let pod = call.parse(&kv)?;
    if !options.dry_run() {
        take_from_budget(call, &pod).await?;
    }
    // Admitted as an eviction; it is not a delete as well.
    inner.internal = true;
    delete::remove(&inner, call.name(), &options).await?;
    Ok(created())
}

async fn take_from_budget(call: &Call, pod: &Value) -> Result<(), Status> {
    let phase = pod["status"]["phase"].as_str().unwrap_or_default();
    if matches!(phase, "Succeeded" | "Failed" | "Pending") || !pod["metadata"]["deletionTimestamp"].is_null()
    {
        return Ok(());
    }
    let budgets = GroupResource::new("policy", "poddisruptionbudgets");
    let (all, _) = call.cx.objects.list(&budgets, Some(call.namespace())).await?;
    let covers = |budget: &Value| {
        LabelSelector::from_object(&budget["spec"]["selector"])
            .is_some_and(|s| s.matches(&pod["metadata"]["labels"]))
    };
    let mut matching = all.iter().filter(|b| covers(b));
    let Some(budget) = matching.next() else { return Ok(()) };
    if matching.next().is_some() {
        return Err(Status::internal(
            "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.",
        ));
    }
    let Some(row) = call.core.registry.load().storage_row(&budgets) else { return Ok(()) };
    let mut inner = call.clone();
    inner.turn_to(row);
    inner.cx.subresource = "status".into();
    let pod_name = call.name();
    update::update(&inner, meta(budget, "name"), Part::Status, &|budget| allow_one(pod_name, budget)).await?;
    Ok(())
}

fn allow_one(pod: &str, budget: &Value) -> Result<Value, Status> {
    let allowed = budget["status"]["disruptionsAllowed"].as_i64().unwrap_or(0);
    let stale = budget["status"]["observedGeneration"].as_i64() < budget["metadata"]["generation"].as_i64();
    let name = meta(budget, "name");
    if allowed <= 0 || stale {
        let (healthy, desired) = (&budget["status"]["currentHealthy"], &budget["status"]["desiredHealthy"]);
        let message =
            format!("The disruption budget {name} needs {desired} healthy pods and has {healthy} currently");
        let cause = Cause { reason: "DisruptionBudget".into(), message, field: String::new() };
        let text = "Cannot evict pod as it would violate the pod's disruption budget.";
        let details = Details {
            causes: vec![cause],
            retry_after_seconds: if stale { 10 } else { 0 },
            ..Details::default()
        };
        return Err(Status::new(429, "TooManyRequests", text).with_details(details));
    }
    let mut budget = budget.clone();
    let status = make_child(&mut budget, "status");
    status.insert("disruptionsAllowed".into(), (allowed - 1).into());
    let disrupted = status.entry("disruptedPods").or_insert_with(|| json!({}));
    if let Some(map) = disrupted.as_object_mut() {
        map.insert(pod.into(), object::now().into());
    }
    Ok(budget)
}

/// Subresources that exchange the object itself but change one part of it.
async fn change_part(call: &Call, name: &str, method: &Method, body: Bytes) -> Result<Answer, Status> {
    answer::negotiate(call)?;
    let take: fn(&Value, &mut Value) -> Result<(), FieldErrors> = match name {
        "finalize" => take_finalizers,
        "ephemeralcontainers" => take_ephemeral,
        "resize" => take_resources,
        "approval" => take_conditions,
        _ => return Err(Status::path_not_found()),
    };
    let body: MakeNew<'_> = if method == Method::PATCH {
        let patch = Patch::read(call, &body)?;
        Box::new(move |old| patch::patched(call, &patch, old))
    } else {
        let sent = decode_object(call, Expected::from(call.row.as_ref()), body)?;
        Box::new(move |_| Ok(sent.clone()))
    };
    let stored = update::update(call, call.name(), Part::Trusted, &|old| {
        let sent = body(old)?;
        let mut new = old.clone();
        object::set_meta(&mut new, "resourceVersion", sent["metadata"]["resourceVersion"].clone());
        take(&sent, &mut new)
            .map_err(|errors| Status::invalid(&call.row.group, &call.row.kind, call.name(), &errors))?;
        Ok(new)
    })
    .await?;
    update::respond(call, stored)
}

fn take_finalizers(sent: &Value, new: &mut Value) -> Result<(), FieldErrors> {
    let list = sent["spec"]["finalizers"].as_array().cloned().unwrap_or_default();
    let spec = make_child(new, "spec");
    if list.is_empty() {
        spec.shift_remove("finalizers");
    } else {
        spec.insert("finalizers".into(), list.into());
    }
    Ok(())
}

fn take_ephemeral(sent: &Value, new: &mut Value) -> Result<(), FieldErrors> {
    let wanted = sent["spec"]["ephemeralContainers"].as_array().cloned().unwrap_or_default();
    let old = new["spec"]["ephemeralContainers"].as_array().cloned().unwrap_or_default();
    let mut errors = FieldErrors::new();
    for container in &old {
        let path = "spec.ephemeralContainers";
        let name = container["name"].as_str().unwrap_or_default();
        match wanted.iter().find(|c| c["name"] == container["name"]) {
            None => {
                let why = format!("existing ephemeral containers {name:?} may not be removed\n");
                errors.push(FieldError::forbidden(path, why));
            }
            Some(same) if same["image"] != container["image"] || same["command"] != container["command"] => {
                let why = format!("existing ephemeral containers {name:?} may not be changed\n");
                errors.push(FieldError::forbidden(path, why));
            }
            Some(_) => {}
        }
    }
    if errors.is_empty() {
        make_child(new, "spec").insert("ephemeralContainers".into(), wanted.into());
        Ok(())
    } else {
        Err(errors)
    }
}

fn take_resources(sent: &Value, new: &mut Value) -> Result<(), FieldErrors> {
    let wanted = sent["spec"]["containers"].as_array().cloned().unwrap_or_default();
    for container in new["spec"]["containers"].as_array_mut().into_iter().flatten() {
        let same = wanted.iter().find(|c| c["name"] == container["name"]);
        if let (Some(same), Some(map)) = (same, container.as_object_mut()) {
            map.insert("resources".into(), same["resources"].clone());
        }
    }
    object::strip_nulls(new);
    Ok(())
}

fn take_conditions(sent: &Value, new: &mut Value) -> Result<(), FieldErrors> {
    make_child(new, "status").insert("conditions".into(), sent["status"]["conditions"].clone());
    object::strip_nulls(new);
    Ok(())
}
