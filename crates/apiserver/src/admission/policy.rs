//! ValidatingAdmissionPolicy: what policies in CEL say of a write, where a binding brings them to bear
//! (<https://kubernetes.io/docs/reference/access-authn-authz/validating-admission-policy/>).

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};

use super::scene::{Scene, conditions};
use super::{Write, rules};
use crate::cel::{self, Budget};
use crate::core::Call;
use crate::kinds::value::{list, name, text};
use crate::resource::{GroupResource, Resource};
use crate::selector::LabelSelector;
use crate::status::{Details, Status};

const GROUP: &str = "admissionregistration.k8s.io";
/// Longer messages are not shown.
const MESSAGE: usize = 5 << 10;

/// Judges a write by all policies.
///
/// # Errors
/// The first refusal of a binding that denies.
pub async fn check(call: &Call, write: Write<'_>) -> Result<(), Status> {
    if rules::is_exempt(&call.row) {
        return Ok(());
    }
    let resource = GroupResource::new(GROUP, "validatingadmissionpolicybindings");
    let (bindings, _) = call.cx.objects.list(&resource, None).await?;
    if bindings.is_empty() {
        return Ok(());
    }
    let resource = GroupResource::new(GROUP, "validatingadmissionpolicies");
    let (policies, _) = call.cx.objects.list(&resource, None).await?;
    let mut budget = Budget::default();
    for policy in &policies {
        let own: Vec<&Arc<Value>> =
            bindings.iter().filter(|b| text(&b["spec"], "policyName") == name(policy)).collect();
        if own.is_empty() {
            continue;
        }
        let Some(row) = matched(call, &policy["spec"]["matchConstraints"], write).await? else { continue };
        for binding in own {
            let narrowed = &binding["spec"]["matchResources"];
            if narrowed.is_object() && matched(call, narrowed, write).await?.is_none() {
                continue;
            }
            let mut judge = Judge { call, write, row: &row, policy, binding, budget: &mut budget };
            judge.run().await?;
        }
    }
    Ok(())
}

/// The row in whose form the write concerns a policy or a binding.
async fn matched(
    call: &Call,
    constraints: &Value,
    write: Write<'_>,
) -> Result<Option<Arc<Resource>>, Status> {
    let (operation, equivalent) = (write.operation.name(), text(constraints, "matchPolicy") != "Exact");
    let concerned = |key: &str| -> Vec<Value> {
        let object = write.new.or(write.old).map(name).filter(|n| !n.is_empty()).unwrap_or(call.name());
        let named = |rule: &&Value| {
            let names = list(rule, "resourceNames");
            names.is_empty() || names.iter().any(|n| n == object)
        };
        list(constraints, key).iter().filter(named).cloned().collect()
    };
    let excluded = concerned("excludeResourceRules");
    if rules::matching_row(call, &excluded, operation, equivalent).is_some() {
        return Ok(None);
    }
    let wanted = concerned("resourceRules");
    // A binding may narrow by selectors alone.
    let row = if list(constraints, "resourceRules").is_empty() {
        Some(call.row.clone())
    } else {
        rules::matching_row(call, &wanted, operation, equivalent)
    };
    match row {
        Some(row) if rules::selected(call, constraints, write).await? => Ok(Some(row)),
        _ => Ok(None),
    }
}

struct Judge<'a> {
    call: &'a Call,
    write: Write<'a>,
    row: &'a Arc<Resource>,
    policy: &'a Value,
    binding: &'a Value,
    budget: &'a mut Budget,
}

impl Judge<'_> {
    fn ignores_failures(&self) -> bool {
        text(&self.policy["spec"], "failurePolicy") == "Ignore"
    }

    async fn run(&mut self) -> Result<(), Status> {
        let mut scene = Scene::of(self.call, self.row, self.write).await?;
        match conditions(&self.policy["spec"], &scene, self.budget) {
            Ok(true) => {}
            Ok(false) => return Ok(()),
            Err(_) if self.ignores_failures() => return Ok(()),
            Err(why) => return self.act(why, ""),
        }
        let params = match self.params().await {
            Ok(params) => params,
            Err(_) if self.ignores_failures() => return Ok(()),
            Err(why) => return self.act(format!("failed to configure binding: {why}"), ""),
        };
        for params in params {
            scene.set("params", cel::convert::dynamic(&params));
            let failed = self.variables(&mut scene);
            for validation in list(&self.policy["spec"], "validations") {
                self.validate(validation, &scene, &failed)?;
            }
            self.annotate(&scene);
        }
        Ok(())
    }

    /// The composed variables, in order; one that fails is missed only where it is used.
    fn variables(&mut self, scene: &mut Scene) -> BTreeMap<String, String> {
        let (mut known, mut failed): (Vec<(String, cel::Value)>, BTreeMap<String, String>) =
            (Vec::new(), BTreeMap::new());
        scene.set("variables", cel::convert::object(Vec::new()));
        for variable in list(&self.policy["spec"], "variables") {
            let key = text(variable, "name").to_owned();
            let value = cel::compile(text(variable, "expression"))
                .and_then(|program| program.evaluate(&scene.variables(), self.budget));
            match value {
                Ok(value) => known.push((key, value)),
                Err(why) => drop(failed.insert(key, why)),
            }
            scene.set("variables", cel::convert::object(known.clone()));
        }
        failed
    }

    fn validate(
        &mut self,
        validation: &Value,
        scene: &Scene,
        failed: &BTreeMap<String, String>,
    ) -> Result<(), Status> {
        let expression = text(validation, "expression").trim();
        let verdict = cel::compile(expression)
            .and_then(|program| program.holds(&scene.variables(), self.budget))
            .map_err(|why| {
                let cause = why.strip_prefix("no such key: ").and_then(|key| failed.get(key));
                cause.cloned().unwrap_or(why)
            });
        match verdict {
            Ok(true) => Ok(()),
            Ok(false) => {
                let message = self.message(validation, scene);
                self.act(message, text(validation, "reason"))
            }
            Err(_) if self.ignores_failures() => Ok(()),
            Err(why) => self.act(format!("expression '{expression}' resulted in error: {why}"), ""),
        }
    }

    fn message(&mut self, validation: &Value, scene: &Scene) -> String {
        let source = text(validation, "messageExpression");
        if !source.is_empty()
            && let Ok(said) = cel::compile(source).and_then(|p| p.text(&scene.variables(), self.budget))
            && !said.trim().is_empty()
            && said.len() <= MESSAGE
            && !said.contains('\n')
        {
            return said.trim().to_owned();
        }
        match text(validation, "message").trim() {
            "" => format!("failed expression: {}", text(validation, "expression").trim()),
            message => message.to_owned(),
        }
    }

    /// Does what the binding asks for a failed validation.
    fn act(&self, message: String, reason: &str) -> Result<(), Status> {
        let (policy, binding) = (name(self.policy), name(self.binding));
        let actions = list(&self.binding["spec"], "validationActions");
        if actions.iter().any(|a| a == "Warn") {
            self.call.cx.warn(format!(
                "Validation failed for ValidatingAdmissionPolicy '{policy}' with binding '{binding}': {message}"
            ));
        }
        if actions.iter().any(|a| a == "Audit") {
            let note = json!([{"message": message, "policy": policy, "binding": binding, "validationActions": actions}]);
            self.call.cx.note("validation.policy.admission.k8s.io/validation_failure", note.to_string());
        }
        if !actions.iter().any(|a| a == "Deny") {
            return Ok(());
        }
        let reason = if reason.is_empty() { "Invalid" } else { reason };
        let code = match reason {
            "Unauthorized" => 401,
            "Forbidden" => 403,
            "RequestEntityTooLarge" => 413,
            _ => 422,
        };
        let object =
            self.write.new.or(self.write.old).map(name).filter(|n| !n.is_empty()).unwrap_or(self.call.name());
        let why = format!(
            "ValidatingAdmissionPolicy '{policy}' with binding '{binding}' denied request: {message}"
        );
        let refusal = self.call.forbidden(object, &why);
        Err(Status::new(code, reason.to_owned(), refusal.message().to_owned()).with_details(Details {
            name: object.to_owned(),
            group: self.call.row.group.clone(),
            kind: self.call.row.plural.clone(),
            causes: vec![crate::status::Cause { reason: String::new(), message: why, field: String::new() }],
            ..Details::default()
        }))
    }

    fn annotate(&mut self, scene: &Scene) {
        for annotation in list(&self.policy["spec"], "auditAnnotations") {
            let said = cel::compile(text(annotation, "valueExpression"))
                .and_then(|program| program.text(&scene.variables(), self.budget));
            if let Ok(said) = said {
                self.call.cx.note(format!("{}/{}", name(self.policy), text(annotation, "key")), said);
            }
        }
    }

    /// The objects that the binding gives the policy; one that is null where it takes none.
    async fn params(&self) -> Result<Vec<Value>, String> {
        let (kind, reference) = (&self.policy["spec"]["paramKind"], &self.binding["spec"]["paramRef"]);
        if !kind.is_object() || !reference.is_object() {
            return Ok(vec![Value::Null]);
        }
        let row = self.param_row(kind)?;
        let namespace = match text(reference, "namespace") {
            "" => self.call.namespace(),
            given => given,
        };
        if row.namespaced && namespace.is_empty() {
            return Err(
                "cannot use namespaced paramRef in policy binding that matches cluster-scoped resources"
                    .into(),
            );
        }
        let (resource, within) = (row.group_resource(), if row.namespaced { namespace } else { "" });
        let objects = &self.call.cx.objects;
        let found: Vec<Value> = if reference["selector"].is_object() {
            let selector = LabelSelector::from_object(&reference["selector"]);
            let listed = objects.list(&resource, Some(within).filter(|n| !n.is_empty())).await;
            let (listed, _) = listed.map_err(|e| e.to_string())?;
            let chosen =
                |o: &&Arc<Value>| selector.as_ref().is_none_or(|s| s.matches(&o["metadata"]["labels"]));
            listed.iter().filter(chosen).map(|o| Value::clone(o)).collect()
        } else {
            let found = objects.get(&resource, within, text(reference, "name")).await;
            found.map_err(|e| e.to_string())?.iter().map(|o| Value::clone(o)).collect()
        };
        if found.is_empty() && text(reference, "parameterNotFoundAction") == "Deny" {
            return Err("no params found for policy binding with `Deny` parameterNotFoundAction".into());
        }
        Ok(found)
    }

    fn param_row(&self, kind: &Value) -> Result<Arc<Resource>, String> {
        let registry = self.call.core.registry.load();
        let all = registry.versions.iter().flat_map(|v| &v.resources);
        let (version, wanted) = (text(kind, "apiVersion"), text(kind, "kind"));
        let row = all.into_iter().find(|row| row.api_version() == version && row.kind == wanted).cloned();
        row.ok_or_else(|| format!("paramKind {version}, Kind={wanted} is not known"))
    }
}
