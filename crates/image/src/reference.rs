//! Image names, as people write them and as registries know them.
//!
//! `nginx` is short for `docker.io/library/nginx:latest`; the grammar is that of the distribution project's `reference`
//! package, which `oci-spec` carries.

use oci_client::Reference;

use crate::digest::Digest;
use crate::error::{Error, Result};

/// Reads an image name; a missing registry, `library/` or tag is filled in.
pub fn parse(name: &str) -> Result<Reference> {
    name.trim()
        .parse()
        .map_err(|source| Error::InvalidReference { reference: name.chars().take(300).collect(), source })
}

/// The full name of an image: `nginx` becomes `docker.io/library/nginx:latest`. A text that is no image name comes back
/// unchanged, so that it can be shown; [`parse`] tells the two apart.
pub fn normalize(name: &str) -> String {
    parse(name).map_or_else(|_| name.to_owned(), |reference| full(&reference))
}

/// `registry/repository:tag`, `registry/repository@digest` or both, as containerd writes it.
pub(crate) fn full(reference: &Reference) -> String {
    let mut text = repository(reference);
    if let Some(tag) = reference.tag() {
        text.push(':');
        text.push_str(tag);
    }
    if let Some(digest) = reference.digest() {
        text.push('@');
        text.push_str(digest);
    }
    text
}

/// `registry/repository`, without tag and digest.
pub(crate) fn repository(reference: &Reference) -> String {
    format!("{}/{}", reference.registry(), reference.repository())
}

/// The name under which an image pulled by digest is listed among `repoDigests`.
pub(crate) fn repo_digest(reference: &Reference, digest: &Digest) -> String {
    format!("{}@{digest}", repository(reference))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn short_names_are_docker_hubs() {
        let digest = format!("sha256:{}", "0".repeat(64));
        let with_digest = format!("nginx@{digest}");
        let full_digest = format!("docker.io/library/nginx@{digest}");
        for (short, long) in [
            ("nginx", "docker.io/library/nginx:latest"),
            ("nginx:1.27", "docker.io/library/nginx:1.27"),
            ("bitnami/nginx", "docker.io/bitnami/nginx:latest"),
            ("index.docker.io/library/nginx", "docker.io/library/nginx:latest"),
            ("localhost/skiff:latest", "localhost/skiff:latest"),
            ("localhost:5000/a/b", "localhost:5000/a/b:latest"),
            ("registry.k8s.io/pause:3.9", "registry.k8s.io/pause:3.9"),
            (with_digest.as_str(), full_digest.as_str()),
        ] {
            assert_eq!(normalize(short), long);
        }
    }

    #[test]
    fn a_bad_name_is_reported_as_upstream_does() {
        let error = parse("UPPER/Case!").unwrap_err();
        assert!(error.to_string().starts_with("couldn't parse image name \"UPPER/Case!\": "), "{error}");
        assert_eq!(normalize("a b"), "a b");
    }
}
