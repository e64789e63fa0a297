//! May the user who asks do something else too: `authorizer.group('apps').resource('deployments').check('create')`.

use std::fmt;
use std::sync::Arc;

use cel::common::types::STRING_TYPE;
use cel::objects::Opaque;
use cel::{DeclarationError, Env, Value};
use futures::FutureExt as _;

use super::{Outcome, functions, opaque, text_of, unwrap, wrap};
use crate::cel::convert::string;
use crate::identity::{Attributes, Authorizer, Decision, UserInfo};

const ASK: &str = "kubernetes.authorization.Authorizer";
const PATH: &str = "kubernetes.authorization.PathCheck";
const RESOURCE: &str = "kubernetes.authorization.ResourceCheck";
const DECISION: &str = "kubernetes.authorization.Decision";

/// A question being put together.
#[derive(Clone)]
struct Question {
    authorizer: Arc<dyn Authorizer>,
    user: UserInfo,
    attributes: Attributes,
    /// What it is so far.
    sort: &'static str,
}

impl fmt::Debug for Question {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct(self.sort).field("user", &self.user.name).finish_non_exhaustive()
    }
}

impl PartialEq for Question {
    fn eq(&self, other: &Self) -> bool {
        self.sort == other.sort && self.user.name == other.user.name
    }
}

impl Eq for Question {}

impl Opaque for Question {
    fn runtime_type_name(&self) -> &str {
        self.sort
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Answer {
    allowed: bool,
    reason: String,
}

impl Opaque for Answer {
    fn runtime_type_name(&self) -> &str {
        DECISION
    }
}

/// The variable `authorizer`, and `authorizer.requestResource`, which asks about what the request is about.
pub fn variables(authorizer: Arc<dyn Authorizer>, user: UserInfo, about: Attributes) -> (Value, Value) {
    let ask = Question { authorizer, user, attributes: Attributes::default(), sort: ASK };
    let request = Question { attributes: about, sort: RESOURCE, ..ask.clone() };
    (wrap(ask), wrap(request))
}

/// The same question with something more said.
fn with(value: &Value, sort: &'static str, change: impl Fn(&mut Attributes)) -> Outcome {
    let mut question = unwrap::<Question>(value)?.clone();
    question.sort = sort;
    change(&mut question.attributes);
    Ok(wrap(question))
}

/// Adds the functions.
pub fn add(env: &mut Env) -> Result<(), DeclarationError> {
    for name in [ASK, PATH, RESOURCE, DECISION] {
        env.add_type(opaque(name))?;
    }
    functions! { env,
        "path" on opaque(ASK), (STRING_TYPE) => |a| {
            let path = text_of(&a[1])?;
            with(&a[0], PATH, |q| q.path = path.into())
        };
        "group" on opaque(ASK), (STRING_TYPE) => |a| {
            let group = text_of(&a[1])?;
            with(&a[0], ASK, |q| (q.group, q.version, q.is_resource) = (group.into(), "*".into(), true))
        };
        "serviceAccount" on opaque(ASK), (STRING_TYPE, STRING_TYPE) => |a| {
            let (namespace, name) = (text_of(&a[1])?, text_of(&a[2])?);
            let mut question = unwrap::<Question>(&a[0])?.clone();
            question.user = UserInfo::new(
                &format!("system:serviceaccount:{namespace}:{name}"),
                &["system:serviceaccounts", &format!("system:serviceaccounts:{namespace}"), "system:authenticated"],
            );
            Ok(wrap(question))
        };
        "resource" on opaque(ASK), (STRING_TYPE) => |a| {
            let resource = text_of(&a[1])?;
            with(&a[0], RESOURCE, |q| q.resource = resource.into())
        };
        "subresource" on opaque(RESOURCE), (STRING_TYPE) => |a| {
            let sub = text_of(&a[1])?;
            with(&a[0], RESOURCE, |q| q.subresource = sub.into())
        };
        "namespace" on opaque(RESOURCE), (STRING_TYPE) => |a| {
            let namespace = text_of(&a[1])?;
            with(&a[0], RESOURCE, |q| q.namespace = namespace.into())
        };
        "name" on opaque(RESOURCE), (STRING_TYPE) => |a| {
            let name = text_of(&a[1])?;
            with(&a[0], RESOURCE, |q| q.name = name.into())
        };
        "check" on opaque(RESOURCE), (STRING_TYPE) => |a| check(&a[0], text_of(&a[1])?);
        "check" on opaque(PATH), (STRING_TYPE) => |a| check(&a[0], text_of(&a[1])?);
        "allowed" on opaque(DECISION), () => |a| Ok(Value::Bool(unwrap::<Answer>(&a[0])?.allowed));
        "reason" on opaque(DECISION), () => |a| Ok(string(&unwrap::<Answer>(&a[0])?.reason));
        "errored" on opaque(DECISION), () => |a| unwrap::<Answer>(&a[0]).map(|_| Value::Bool(false));
    }
    Ok(())
}

fn check(question: &Value, verb: &str) -> Outcome {
    let question = unwrap::<Question>(question)?;
    let attributes = Attributes { verb: verb.to_owned(), ..question.attributes.clone() };
    // Decided from memory, so it never waits.
    let decided = question.authorizer.authorize(&question.user, &attributes).now_or_never();
    let decision = decided.unwrap_or(Decision { allowed: false, reason: String::new() });
    Ok(wrap(Answer { allowed: decision.allowed, reason: decision.reason }))
}
