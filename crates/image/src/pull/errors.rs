//! What a registry's or the network's trouble means, in containerd's words.

use oci_client::errors::{OciDistributionError, OciErrorCode};

use crate::digest::Digest;
use crate::error::{Error, chain};

/// Why a place did not give the image, by who is to blame.
#[derive(Debug)]
pub(super) enum Failure {
    /// Nobody answered: another place may.
    Unreachable(Error),
    /// The place answered, and the answer is no.
    Refused(Error),
    /// This machine's own trouble, the same everywhere.
    Local(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match error {
            error @ (Error::Io { .. } | Error::Config(_) | Error::Cancelled) => Self::Local(error),
            error => Self::Refused(error),
        }
    }
}

/// Worth another try at the same place: a connection that broke, a server that stumbled, bytes that were damaged.
pub(super) fn is_transient(error: &OciDistributionError) -> bool {
    match error {
        // Failing to connect is the caller's to judge (another place, the kubelet's back-off).
        OciDistributionError::RequestError(error) => !error.is_connect() && !error.is_builder(),
        OciDistributionError::ServerError { code, .. } => *code >= 500 || *code == 408,
        OciDistributionError::IoError(_) | OciDistributionError::DigestError(_) => true,
        _ => false,
    }
}

/// A manifest could not be had.
pub(super) fn of_manifest(name: &str, error: OciDistributionError) -> Failure {
    let detail = chain(&error);
    let detail = match &error {
        OciDistributionError::RequestError(cause) => {
            let host = cause.url().and_then(|url| url.host_str()).unwrap_or_default();
            format!("failed to do request: {}", as_go_says(&detail, host))
        }
        _ => detail,
    };
    classify(name, error, format!("failed to resolve reference {name:?}: {detail}"), name.to_owned())
}

/// A blob could not be had.
pub(super) fn of_blob(name: &str, digest: &Digest, error: OciDistributionError) -> Failure {
    let detail = format!("failed to copy {digest}: {}", chain(&error));
    classify(name, error, detail, format!("{name}: blob {digest}"))
}

/// The two failures that people search for, as they know them; the whole chain otherwise.
fn as_go_says(text: &str, host: &str) -> String {
    if text.contains("no records found") {
        format!("dial tcp: lookup {host}: no such host")
    } else if text.contains("Connection refused") {
        format!("dial tcp {host}: connect: connection refused ({text})")
    } else {
        text.to_owned()
    }
}

fn classify(name: &str, error: OciDistributionError, detail: String, missing: String) -> Failure {
    let reference = name.to_owned();
    if matches!(&error, OciDistributionError::RequestError(cause) if cause.is_connect()) {
        return Failure::Unreachable(Error::Pull { reference, detail });
    }
    Failure::Refused(match verdict(&error) {
        Verdict::NotFound => Error::NotFound { reference, detail: missing },
        Verdict::Unauthorized(words) => Error::Unauthorized { reference, detail: words },
        Verdict::Other => Error::Pull { reference, detail },
    })
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    NotFound,
    Unauthorized(String),
    Other,
}

fn verdict(error: &OciDistributionError) -> Verdict {
    match error {
        OciDistributionError::ImageManifestNotFoundError(_) => Verdict::NotFound,
        OciDistributionError::UnauthorizedError { .. } => {
            Verdict::Unauthorized("server message: insufficient_scope: authorization failed".into())
        }
        OciDistributionError::AuthenticationFailure(reason) => {
            let reason: String = reason.trim().chars().take(300).collect();
            Verdict::Unauthorized(format!("failed to authorize: {reason}"))
        }
        OciDistributionError::ServerError { code: 404, .. } => Verdict::NotFound,
        OciDistributionError::ServerError { code: 403, .. } => Verdict::Unauthorized("403 Forbidden".into()),
        OciDistributionError::RegistryError { envelope, .. } => {
            envelope.errors.first().map_or(Verdict::Other, |error| match error.code {
                OciErrorCode::ManifestUnknown
                | OciErrorCode::NameUnknown
                | OciErrorCode::NotFound
                | OciErrorCode::BlobUnknown
                | OciErrorCode::ManifestBlobUnknown => Verdict::NotFound,
                OciErrorCode::Unauthorized | OciErrorCode::Denied => {
                    Verdict::Unauthorized(format!("server message: {}", error.message))
                }
                _ => Verdict::Other,
            })
        }
        _ => Verdict::Other,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn registry(code: &str) -> OciDistributionError {
        let envelope = format!(r#"{{"errors":[{{"code":"{code}","message":"words"}}]}}"#);
        let (envelope, url) = (serde_json::from_str(&envelope).unwrap(), "http://r/v2/".into());
        OciDistributionError::RegistryError { envelope, url }
    }

    #[test]
    fn verdicts() {
        assert_eq!(verdict(&registry("MANIFEST_UNKNOWN")), Verdict::NotFound);
        assert_eq!(verdict(&registry("NAME_UNKNOWN")), Verdict::NotFound);
        assert_eq!(verdict(&registry("DENIED")), Verdict::Unauthorized("server message: words".into()));
        assert_eq!(verdict(&registry("TOOMANYREQUESTS")), Verdict::Other);
        let server =
            |code| OciDistributionError::ServerError { code, url: String::new(), message: String::new() };
        assert_eq!(verdict(&server(404)), Verdict::NotFound);
        assert!(
            is_transient(&server(503)) && !is_transient(&server(429)) && !is_transient(&registry("DENIED"))
        );
    }

    #[test]
    fn messages_read_as_containerds() {
        let name = "docker.io/library/nope:latest";
        let Failure::Refused(error) = of_manifest(name, registry("MANIFEST_UNKNOWN")) else { panic!() };
        assert_eq!(
            error.rpc(),
            "rpc error: code = NotFound desc = failed to pull and unpack image \"docker.io/library/nope:latest\": \
             failed to resolve reference \"docker.io/library/nope:latest\": docker.io/library/nope:latest: not found"
        );
        let unauthorized = OciDistributionError::UnauthorizedError { url: String::new() };
        let Failure::Refused(error) = of_manifest(name, unauthorized) else { panic!() };
        assert_eq!(
            error.rpc(),
            "rpc error: code = Unknown desc = failed to pull and unpack image \"docker.io/library/nope:latest\": \
             failed to resolve reference \"docker.io/library/nope:latest\": pull access denied, repository does not \
             exist or may require authorization: server message: insufficient_scope: authorization failed"
        );
    }
}
