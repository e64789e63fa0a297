//! What can go wrong while a cluster is put together or taken apart.

use std::path::PathBuf;

/// A failed operation on the cluster's files; each names the file and what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The profile's name cannot be used.
    #[error(
        "profile name {0:?} must be 1 to 11 lower-case letters, digits or '-', begin with a letter and not end with '-'"
    )]
    ProfileName(String),
    /// A node's number is out of range.
    #[error("a cluster has 1 to {max} nodes; there is no room for node {0}", max = crate::MAX_NODES)]
    NodeNumber(u8),
    /// No node has that name.
    #[error("the cluster {profile:?} has no node {node:?}; see: skiff node list")]
    NoNode {
        /// The cluster.
        profile: String,
        /// What was asked for.
        node: String,
    },
    /// A file operation failed.
    #[error("{operation} {}: {source}", path.display())]
    File {
        /// What was tried.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
    /// A file of ours, or the user's kubeconfig, does not parse.
    #[error("{} is malformed ({reason}); mend or move it and try again", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What the parser says.
        reason: String,
    },
    /// A key or certificate could not be made.
    #[error("make the certificate of {subject}: {reason}")]
    Certificate {
        /// Whose.
        subject: String,
        /// Why.
        reason: String,
    },
}
