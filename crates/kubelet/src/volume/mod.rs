//! Volumes: where they are on the node, what is in them, how they are kept up to date.

pub mod atomic;
pub mod ownership;
pub mod payload;
pub mod subpath;
