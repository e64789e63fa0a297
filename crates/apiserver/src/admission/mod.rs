//! What stands between a request and the store besides the rules of the kind itself: first those who may change the
//! object, then, once it is valid, those who may only refuse it.
//!
//! The server's own writes pass by: they keep objects in line that were admitted already.
//! <https://kubernetes.io/docs/reference/access-authn-authz/admission-controllers/>

mod limits;
mod policy;
mod review;
mod rules;
mod scene;
mod security;
mod webhook;

pub(crate) use review::user;
use serde_json::Value;

use crate::core::Call;
use crate::object;
use crate::status::Status;

/// What a request does to an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// A new object, or a POST to a subresource.
    Create,
    /// A change of a stored object.
    Update,
    /// A removal.
    Delete,
    /// A connection to what the object stands for: exec, attach, port-forward, proxy.
    Connect,
}

impl Operation {
    /// As rules and reviews spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Create => "CREATE",
            Self::Update => "UPDATE",
            Self::Delete => "DELETE",
            Self::Connect => "CONNECT",
        }
    }
}

/// One write as admission sees it; objects are in stored form.
#[derive(Debug, Clone, Copy)]
pub struct Write<'a> {
    /// What is done.
    pub operation: Operation,
    /// The object as it will be; none for a delete.
    pub new: Option<&'a Value>,
    /// The object as it is; none for a create.
    pub old: Option<&'a Value>,
}

/// Lets everybody change the object who may.
///
/// # Errors
/// The refusal of one of them.
pub async fn mutate(call: &Call, new: &mut Value, old: Option<&Value>) -> Result<(), Status> {
    if call.internal {
        return Ok(());
    }
    let operation = if old.is_some() { Operation::Update } else { Operation::Create };
    let filled = operation == Operation::Create && limits::fill_in(call, new).await?;
    let hooked = webhook::mutate(call, operation, new, old).await?;
    if filled || hooked {
        object::strip_nulls(new);
        call.omit(new);
        call.strategy.default(new);
    }
    Ok(())
}

/// Asks everybody who may refuse the write; nothing changes any more.
///
/// # Errors
/// The first refusal.
pub async fn check(call: &Call, write: Write<'_>) -> Result<(), Status> {
    if call.internal {
        return Ok(());
    }
    if let (Operation::Create, Some(object)) = (write.operation, write.new) {
        limits::check(call, object).await?;
    }
    security::check(call, write).await?;
    policy::check(call, write).await?;
    webhook::check(call, write).await
}
