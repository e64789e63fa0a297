//! Kinds that are questions: access reviews, rules reviews, token reviews, and TokenRequest. Nothing is stored; the
//! answer is the body with its status filled in.

use std::sync::Arc;

use async_trait::async_trait;
use serde_json::{Value, json};

use super::rbac::authorizer::fresh_index;
use super::token::{Binding, Reference, Request, Tokens};
use crate::field::{FieldError, FieldErrors};
use crate::identity::{Attributes, UserInfo};
use crate::kinds::value::{list, namespace, set, text};
use crate::resource::GroupResource;
use crate::status::Status;
use crate::strategy::{Context, Strategy};

/// Reviews of access, of rules, of tokens and of oneself.
pub struct Reviews {
    /// For token reviews.
    pub tokens: Arc<Tokens>,
}

#[async_trait]
impl Strategy for Reviews {
    async fn respond(&self, cx: &Context, body: &Value) -> Option<Result<Value, Status>> {
        Some(match cx.resource.kind.as_str() {
            "SubjectAccessReview" => access(cx, body, subject(&body["spec"])).await,
            "LocalSubjectAccessReview" => local_access(cx, body).await,
            "SelfSubjectAccessReview" => access(cx, body, Some(cx.user.clone())).await,
            "SelfSubjectRulesReview" => rules(cx, body).await,
            "SelfSubjectReview" => Ok(answer(body, json!({"userInfo": user_value(&cx.user)}))),
            "TokenReview" => self.token(cx, body).await,
            _ => return None,
        })
    }
}

fn answer(body: &Value, status: Value) -> Value {
    let mut out = body.clone();
    set(&mut out, "status", status);
    out
}

fn strings(value: &Value, key: &str) -> Vec<String> {
    list(value, key).iter().filter_map(Value::as_str).map(str::to_owned).collect()
}

/// A user as reviews show it.
pub fn user_value(user: &UserInfo) -> Value {
    let mut out = json!({"username": user.name});
    if !user.uid.is_empty() {
        out["uid"] = json!(user.uid);
    }
    out["groups"] = json!(user.groups);
    if !user.extra.is_empty() {
        out["extra"] = json!(user.extra);
    }
    out
}

fn subject(spec: &Value) -> Option<UserInfo> {
    let user = UserInfo {
        name: text(spec, "user").into(),
        uid: text(spec, "uid").into(),
        groups: strings(spec, "groups"),
        extra: Default::default(),
    };
    (!user.name.is_empty() || !user.groups.is_empty()).then_some(user)
}

fn question(spec: &Value) -> Option<Attributes> {
    match (spec["resourceAttributes"].is_object(), spec["nonResourceAttributes"].is_object()) {
        (true, false) => {
            let a = &spec["resourceAttributes"];
            Some(Attributes {
                verb: text(a, "verb").into(),
                is_resource: true,
                group: text(a, "group").into(),
                version: text(a, "version").into(),
                resource: text(a, "resource").into(),
                subresource: text(a, "subresource").into(),
                namespace: text(a, "namespace").into(),
                name: text(a, "name").into(),
                path: String::new(),
            })
        }
        (false, true) => {
            let a = &spec["nonResourceAttributes"];
            Some(Attributes {
                verb: text(a, "verb").into(),
                path: text(a, "path").into(),
                ..Default::default()
            })
        }
        _ => None,
    }
}

fn invalid(cx: &Context, errors: FieldErrors) -> Status {
    Status::invalid(&cx.resource.group, &cx.resource.kind, "", &errors)
}

async fn access(cx: &Context, body: &Value, user: Option<UserInfo>) -> Result<Value, Status> {
    let mut errors = FieldErrors::new();
    let question = question(&body["spec"]);
    if question.is_none() {
        errors.push(FieldError::invalid(
            "spec.resourceAttributes",
            body["spec"]["resourceAttributes"].clone(),
            "exactly one of nonResourceAttributes or resourceAttributes must be specified",
        ));
    }
    if user.is_none() {
        errors.push(FieldError::invalid("spec.user", "", "at least one of user or group must be specified"));
    }
    let (Some(question), Some(user)) = (question, user) else { return Err(invalid(cx, errors)) };
    let decision = cx.authorizer.authorize(&user, &question).await;
    let mut status = json!({"allowed": decision.allowed});
    if !decision.reason.is_empty() {
        status["reason"] = json!(decision.reason);
    }
    Ok(answer(body, status))
}

async fn local_access(cx: &Context, body: &Value) -> Result<Value, Status> {
    let asked = text(&body["spec"]["resourceAttributes"], "namespace");
    if asked != cx.namespace {
        let mut errors = FieldErrors::new();
        errors.push(FieldError::invalid(
            "spec.resourceAttributes.namespace",
            asked,
            "must match metadata.namespace",
        ));
        return Err(invalid(cx, errors));
    }
    access(cx, body, subject(&body["spec"])).await
}

async fn rules(cx: &Context, body: &Value) -> Result<Value, Status> {
    let namespace = text(&body["spec"], "namespace");
    if namespace.is_empty() {
        return Err(Status::bad_request("no namespace on request"));
    }
    let index = fresh_index(cx.objects.as_ref()).await?;
    let held = index.rules(&cx.user, namespace);
    let (paths, resources): (Vec<_>, Vec<_>) = held.iter().partition(|r| !r.non_resource_urls.is_empty());
    let resources: Vec<Value> = resources
        .iter()
        .map(|r| {
            let mut out = json!({"verbs": r.verbs, "apiGroups": r.api_groups, "resources": r.resources});
            if !r.resource_names.is_empty() {
                out["resourceNames"] = json!(r.resource_names);
            }
            out
        })
        .collect();
    let paths: Vec<Value> =
        paths.iter().map(|r| json!({"verbs": r.verbs, "nonResourceURLs": r.non_resource_urls})).collect();
    let status = json!({"resourceRules": resources, "nonResourceRules": paths, "incomplete": false});
    Ok(answer(body, status))
}

impl Reviews {
    async fn token(&self, cx: &Context, body: &Value) -> Result<Value, Status> {
        let spec = &body["spec"];
        let token = text(spec, "token");
        if token.is_empty() {
            return Err(Status::bad_request("token is required for TokenReview in authentication"));
        }
        let now = jiff::Timestamp::now().as_second();
        let verified = self.tokens.verify(token, &strings(spec, "audiences"), cx.objects.as_ref(), now).await;
        let status = match verified {
            Ok(verified) => json!({
                "authenticated": true,
                "user": user_value(&verified.user),
                "audiences": verified.audiences,
            }),
            Err(error) => json!({"user": {}, "error": format!("[invalid bearer token, {error}]")}),
        };
        Ok(answer(body, status))
    }
}

/// Answers `serviceaccounts/NAME/token`.
pub async fn token_request(tokens: &Tokens, cx: &Context, body: &Value) -> Result<Value, Status> {
    let spec = &body["spec"];
    let seconds = spec["expirationSeconds"].as_i64().unwrap_or(3600);
    let mut errors = FieldErrors::new();
    let path = "spec.expirationSeconds";
    if seconds < 600 {
        errors.push(FieldError::invalid(path, seconds, "may not specify a duration less than 10 minutes"));
    }
    if seconds > 1 << 32 {
        errors.push(FieldError::invalid(
            path,
            seconds,
            "may not specify a duration larger than 2^32 seconds",
        ));
    }
    if !errors.is_empty() {
        return Err(Status::invalid("authentication.k8s.io", "TokenRequest", &cx.name, &errors));
    }
    let account = get(cx, "serviceaccounts", &cx.name).await?;
    let binding = bind(cx, spec, reference(&account)).await?;
    let audiences = strings(spec, "audiences");
    let request = Request { audiences: audiences.clone(), seconds, binding };
    let now = jiff::Timestamp::now();
    let (token, expires) = tokens.issue(&request, now.as_second()).map_err(Status::internal)?;
    let time = |t: jiff::Timestamp| t.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let expires = jiff::Timestamp::from_second(expires).map_err(Status::internal)?;

    let mut out = body.clone();
    set(&mut out, "kind", "TokenRequest");
    set(&mut out, "apiVersion", "authentication.k8s.io/v1");
    set(
        &mut out,
        "metadata",
        json!({"name": cx.name, "namespace": cx.namespace, "creationTimestamp": time(now)}),
    );
    let mut spec = json!({
        "audiences": if audiences.is_empty() { vec![tokens.default_audience().to_owned()] } else { audiences },
        "expirationSeconds": seconds,
    });
    set(&mut spec, "boundObjectRef", body["spec"]["boundObjectRef"].clone());
    set(&mut out, "spec", spec);
    set(&mut out, "status", json!({"token": token, "expirationTimestamp": time(expires)}));
    Ok(out)
}

fn reference(object: &Value) -> Reference {
    let meta = &object["metadata"];
    Reference { name: text(meta, "name").into(), uid: text(meta, "uid").into() }
}

async fn get(cx: &Context, plural: &str, name: &str) -> Result<Arc<Value>, Status> {
    let found = cx.objects.get(&GroupResource::new("", plural), &cx.namespace, name).await?;
    found.ok_or_else(|| Status::not_found("", plural, name))
}

/// What the token is bound to: the Pod (and its Node) or Secret of `boundObjectRef`.
async fn bind(cx: &Context, spec: &Value, account: Reference) -> Result<Binding, Status> {
    let mut binding =
        Binding { namespace: cx.namespace.clone(), serviceaccount: account.clone(), ..Default::default() };
    let wanted = &spec["boundObjectRef"];
    if !wanted.is_object() {
        return Ok(binding);
    }
    let (kind, name, uid) = (text(wanted, "kind"), text(wanted, "name"), text(wanted, "uid"));
    let plural = match kind {
        "Pod" => "pods",
        "Secret" => "secrets",
        "Node" => "nodes",
        other => {
            return Err(Status::bad_request(format!(
                "cannot bind token for serviceaccount {:?} to a {other}",
                account.name
            )));
        }
    };
    let object = if kind == "Node" {
        let node = cx.objects.get(&GroupResource::new("", plural), "", name).await?;
        node.ok_or_else(|| Status::not_found("", plural, name))?
    } else {
        get(cx, plural, name).await?
    };
    let found = reference(&object);
    if !uid.is_empty() && uid != found.uid {
        let why = format!(
            "the UID in the bound object reference ({uid}) does not match the UID in record. The object might have been deleted and then recreated"
        );
        return Err(Status::conflict("", plural, name, &why));
    }
    match kind {
        "Pod" => {
            let used = text(&object["spec"], "serviceAccountName");
            if used != account.name {
                let why = format!(
                    "cannot bind token for serviceaccount {:?} to pod running with different serviceaccount name.",
                    account.name
                );
                return Err(Status::bad_request(why));
            }
            binding.node = node_of(cx, &object).await?;
            binding.pod = Some(found);
        }
        "Secret" => binding.secret = Some(found),
        _ => binding.node = Some(found),
    }
    debug_assert_eq!(namespace(&object).is_empty(), kind == "Node");
    Ok(binding)
}

async fn node_of(cx: &Context, pod: &Value) -> Result<Option<Reference>, Status> {
    let node = text(&pod["spec"], "nodeName");
    if node.is_empty() {
        return Ok(None);
    }
    let found = cx.objects.get(&GroupResource::new("", "nodes"), "", node).await?;
    Ok(found.map(|n| reference(&n)))
}
