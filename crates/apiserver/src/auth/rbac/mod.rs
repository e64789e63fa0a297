//! Role-based access control: rules, the index over stored objects, the authorizer and the default policy.

pub mod authorizer;
pub mod escalation;
pub mod index;
pub mod policy;
pub mod rule;
