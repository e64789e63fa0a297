//! What can go wrong with images, in the words that `kubectl describe pod` shows for containerd.

use std::io;
use std::path::{Path, PathBuf};

/// Result of every operation of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failed image operation.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The name breaks the grammar: the Pod's reason is `InvalidImageName`.
    #[error("couldn't parse image name {reference:?}: {source}")]
    InvalidReference {
        /// The name as given.
        reference: String,
        /// What is wrong with it.
        source: oci_spec::distribution::ParseError,
    },
    /// The registry does not have it, or not for this platform.
    #[error(
        "failed to pull and unpack image {reference:?}: failed to resolve reference {reference:?}: {detail}: not found"
    )]
    NotFound {
        /// Full image name.
        reference: String,
        /// What was looked for.
        detail: String,
    },
    /// The registry wants (other) credentials.
    #[error(
        "failed to pull and unpack image {reference:?}: failed to resolve reference {reference:?}: pull access denied, \
         repository does not exist or may require authorization: {detail}"
    )]
    Unauthorized {
        /// Full image name.
        reference: String,
        /// The registry's words.
        detail: String,
    },
    /// The registry could not be reached, or answered nonsense.
    #[error("failed to pull and unpack image {reference:?}: {detail}")]
    Pull {
        /// Full image name.
        reference: String,
        /// The step that failed and why.
        detail: String,
    },
    /// A layer's archive breaks the rules or could not be written.
    #[error("failed to extract layer {layer}: {source}")]
    Unpack {
        /// Digest of the layer's blob.
        layer: String,
        /// What is wrong with it.
        source: crate::unpack::UnpackError,
    },
    /// Bytes that are not what their digest says.
    #[error("{what}: digest mismatch: expected {expected}, got {actual}")]
    DigestMismatch {
        /// Whose bytes.
        what: String,
        /// The digest asked for.
        expected: String,
        /// The digest of what came.
        actual: String,
    },
    /// An archive or document that is no image.
    #[error("{what}: {detail}")]
    Invalid {
        /// Which document.
        what: String,
        /// What is wrong with it.
        detail: String,
    },
    /// No such image in the store.
    #[error("image {0:?} not found")]
    Unknown(String),
    /// The image cannot be removed while containers run from it.
    #[error("image {0:?} is in use by a container")]
    InUse(String),
    /// The store's disk or files.
    #[error("{operation} {path}: {source}", path = path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On which file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A registry configuration that cannot be used.
    #[error("registry configuration: {0}")]
    Config(String),
    /// The work was cancelled with the runtime that carried it.
    #[error("image work was cancelled")]
    Cancelled,
}

impl Error {
    /// The gRPC code by which container runtimes classify the error.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NotFound { .. } | Self::Unknown(_) => "NotFound",
            Self::InvalidReference { .. } => "InvalidArgument",
            Self::InUse(_) => "FailedPrecondition",
            Self::Cancelled => "Canceled",
            _ => "Unknown",
        }
    }

    /// The error as the kubelet prints what its runtime answered: `rpc error: code = NotFound desc = ...`.
    pub fn rpc(&self) -> String {
        format!("rpc error: code = {} desc = {self}", self.code())
    }

    pub(crate) fn invalid(what: impl Into<String>, detail: impl ToString) -> Self {
        Self::Invalid { what: what.into(), detail: detail.to_string() }
    }
}

/// Names the operation and the file of an [`io::Error`].
pub(crate) trait IoContext<T> {
    fn at(self, operation: &'static str, path: &Path) -> Result<T>;
}

impl<T, E: Into<io::Error>> IoContext<T> for std::result::Result<T, E> {
    fn at(self, operation: &'static str, path: &Path) -> Result<T> {
        self.map_err(|source| Error::Io { operation, path: path.to_owned(), source: source.into() })
    }
}

/// An error with its causes, on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}
