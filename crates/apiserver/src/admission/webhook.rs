//! Webhooks: mutating ones one after the other in order of their configurations' names, validating ones side by side.
//!
//! <https://kubernetes.io/docs/reference/access-authn-authz/extensible-admission-controllers/>

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use serde_json::Value;

use super::scene::{self, Scene};
use super::{Operation, Write, review, rules};
use crate::cel::Budget;
use crate::core::Call;
use crate::kinds::value::{list, name, text};
use crate::post;
use crate::resource::{GroupResource, Resource};
use crate::status::Status;

/// One webhook that a request is to be sent to.
struct Hook {
    /// The configuration it stands in.
    configuration: Arc<Value>,
    index: usize,
    /// The version it wants to see.
    row: Arc<Resource>,
}

impl Hook {
    fn spec(&self) -> &Value {
        &self.configuration["webhooks"][self.index]
    }

    fn name(&self) -> &str {
        text(self.spec(), "name")
    }

    fn ignores_failures(&self) -> bool {
        text(self.spec(), "failurePolicy") == "Ignore"
    }

    /// Asks; `None` where a failure counts as yes.
    async fn ask(&self, call: &Call, write: Write<'_>) -> Result<Option<review::Verdict>, Status> {
        let spec = self.spec();
        if call.cx.dry_run && !matches!(text(spec, "sideEffects"), "None" | "NoneOnDryRun") {
            let why = format!("admission webhook {:?} does not support dry run", self.name());
            return Err(Status::bad_request(why));
        }
        let spoken = |v: &&str| list(spec, "admissionReviewVersions").iter().any(|w| w == *v);
        let version = review::VERSIONS.into_iter().find(spoken).unwrap_or(review::VERSIONS[0]);
        let uid = uuid::Uuid::new_v4().to_string();
        let body = review::question(call, &self.row, write, &uid, version).await?;
        let timeout = Duration::from_secs(spec["timeoutSeconds"].as_u64().unwrap_or(10));
        let answered = post::post(call.cx.objects.as_ref(), &spec["clientConfig"], &body, timeout).await;
        let verdict = answered
            .map_err(|why| format!("failed to call webhook: {why}"))
            .and_then(|answer| review::verdict(&answer, &uid, version));
        match verdict {
            Ok(verdict) => {
                verdict.warnings.iter().for_each(|text| call.cx.warn(text.clone()));
                match &verdict.refusal {
                    Some(refusal) => Err(refusal.status(self.name())),
                    None => Ok(Some(verdict)),
                }
            }
            Err(why) if self.ignores_failures() => {
                tracing::warn!(webhook = self.name(), why, "a webhook failed, going on as it asks");
                Ok(None)
            }
            Err(why) => Err(Status::internal(format!("failed calling webhook {:?}: {why}", self.name()))),
        }
    }
}

/// The webhooks of one kind of configuration that a write is to be sent to.
async fn hooks(call: &Call, plural: &str, write: Write<'_>) -> Result<Vec<Hook>, Status> {
    let mut found = Vec::new();
    if rules::is_exempt(&call.row) {
        return Ok(found);
    }
    let resource = GroupResource::new("admissionregistration.k8s.io", plural);
    let (mut configurations, _) = call.cx.objects.list(&resource, None).await?;
    configurations.sort_by(|a, b| name(a).cmp(name(b)));
    for configuration in configurations {
        for (index, hook) in list(&configuration, "webhooks").iter().enumerate() {
            let equivalent = text(hook, "matchPolicy") != "Exact";
            let operation = write.operation.name();
            let row = rules::matching_row(call, list(hook, "rules"), operation, equivalent);
            let Some(row) = row else { continue };
            if rules::selected(call, hook, write).await? && conditions_hold(call, hook, &row, write).await? {
                found.push(Hook { configuration: configuration.clone(), index, row });
            }
        }
    }
    Ok(found)
}

/// Whether the hook's `matchConditions` let the request through to it.
async fn conditions_hold(
    call: &Call,
    hook: &Value,
    row: &Arc<Resource>,
    write: Write<'_>,
) -> Result<bool, Status> {
    if list(hook, "matchConditions").is_empty() {
        return Ok(true);
    }
    let scene = Scene::of(call, row, write).await?;
    match scene::conditions(hook, &scene, &mut Budget::default()) {
        Ok(holds) => Ok(holds),
        Err(_) if text(hook, "failurePolicy") == "Ignore" => Ok(false),
        Err(why) => Err(call.forbidden(call.name(), &why)),
    }
}

/// Lets the mutating webhooks change the object; whether one did.
///
/// # Errors
/// A refusal, or a failure that counts as one.
pub async fn mutate(
    call: &Call,
    operation: Operation,
    new: &mut Value,
    old: Option<&Value>,
) -> Result<bool, Status> {
    let all = hooks(call, "mutatingwebhookconfigurations", Write { operation, new: Some(new), old }).await?;
    if all.is_empty() {
        return Ok(false);
    }
    call.complete(new);
    let before = new.clone();
    let mut last_change = 0;
    for (i, hook) in all.iter().enumerate() {
        if change(call, hook, operation, new, old).await? {
            last_change = i;
        }
    }
    // Who asked to see later changes by others gets one more look.
    for (i, hook) in all.iter().enumerate() {
        if i < last_change && text(hook.spec(), "reinvocationPolicy") == "IfNeeded" {
            change(call, hook, operation, new, old).await?;
        }
    }
    Ok(before != *new)
}

async fn change(
    call: &Call,
    hook: &Hook,
    operation: Operation,
    new: &mut Value,
    old: Option<&Value>,
) -> Result<bool, Status> {
    let verdict = hook.ask(call, Write { operation, new: Some(new), old }).await?;
    let Some(patch) = verdict.and_then(|v| v.patch) else { return Ok(false) };
    let before = review::outward(call, &hook.row, new).await?;
    let mut after = before.clone();
    schema::patch::json(&mut after, &patch).map_err(|why| {
        Status::internal(format!("failed calling webhook {:?}: applying its patch: {why}", hook.name()))
    })?;
    if after == before {
        return Ok(false);
    }
    *new = review::inward(call, &hook.row, new, after).await?;
    Ok(true)
}

/// Asks all validating webhooks.
///
/// # Errors
/// The first refusal, or a failure that counts as one.
pub async fn check(call: &Call, write: Write<'_>) -> Result<(), Status> {
    let all = hooks(call, "validatingwebhookconfigurations", write).await?;
    join_all(all.iter().map(|hook| hook.ask(call, write))).await.into_iter().try_for_each(|v| v.map(drop))
}
