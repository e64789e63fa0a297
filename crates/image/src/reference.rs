//! Image names, as people write them and as registries know them.
//!
//! `nginx` is short for `docker.io/library/nginx:latest`; the grammar is that of the distribution project's `reference`
//! package. Read by hand: the client library's own parser is one regular expression that takes 20 ms to compile (400 ms
//! unoptimised) before the first name is read, and it lets upper-case repositories through. A property test holds the two
//! together.

use oci_client::Reference;
use oci_spec::distribution::ParseError;

use crate::digest::Digest;
use crate::error::{Error, Result};

const HUB: &str = "docker.io";
const MAX_REPOSITORY: usize = 255;
const MAX_TAG: usize = 128;

/// Reads an image name; a missing registry, `library/` or tag is filled in.
pub fn parse(name: &str) -> Result<Reference> {
    read(name)
        .map_err(|source| Error::InvalidReference { reference: name.chars().take(300).collect(), source })
}

fn read(text: &str) -> Result<Reference, ParseError> {
    if text.is_empty() {
        return Err(ParseError::NameEmpty);
    }
    let (named, digest) = match text.split_once('@') {
        Some((named, digest)) => (named, Some(digest)),
        None => (text, None),
    };
    // A colon before a slash belongs to the registry's port.
    let (name, tag) = match named.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
        _ => (named, None),
    };
    let (registry, repository) = split(name);
    if !is_registry(registry) {
        return Err(ParseError::ReferenceInvalidFormat);
    }
    if !repository.split('/').all(is_component) {
        let lower = repository.to_ascii_lowercase();
        let only_case = lower != repository && lower.split('/').all(is_component);
        return Err(if only_case {
            ParseError::NameContainsUppercase
        } else {
            ParseError::ReferenceInvalidFormat
        });
    }
    if repository.len() > MAX_REPOSITORY {
        return Err(ParseError::NameTooLong);
    }
    if tag.is_some_and(|tag| !is_tag(tag)) {
        return Err(ParseError::ReferenceInvalidFormat);
    }
    if let Some(digest) = digest {
        check_digest(digest)?;
    }
    let (registry, tag, digest) = (registry.to_owned(), tag.map(str::to_owned), digest.map(str::to_owned));
    Ok(match (tag, digest) {
        (Some(tag), Some(digest)) => Reference::with_tag_and_digest(registry, repository, tag, digest),
        (None, Some(digest)) => Reference::with_digest(registry, repository, digest),
        (tag, None) => Reference::with_tag(registry, repository, tag.unwrap_or_else(|| "latest".into())),
    })
}

/// Registry and repository: what is before the first slash is a registry if it looks like a host.
fn split(name: &str) -> (&str, String) {
    let (registry, repository) = match name.split_once('/') {
        Some((host, rest)) if host.contains(['.', ':']) || host == "localhost" => (host, rest),
        _ => (HUB, name),
    };
    let registry = if registry == "index.docker.io" { HUB } else { registry };
    let library = registry == HUB && !repository.contains('/');
    (registry, if library { format!("library/{repository}") } else { repository.to_owned() })
}

fn is_registry(text: &str) -> bool {
    let (host, port) = match text.split_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (text, None),
    };
    let label = |label: &str| {
        label.starts_with(|c: char| c.is_ascii_alphanumeric())
            && label.ends_with(|c: char| c.is_ascii_alphanumeric())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    host.split('.').all(label)
        && port.is_none_or(|port| !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()))
}

/// Lower-case words and digits, joined by `.`, `_`, `__` or any number of `-`.
fn is_component(text: &str) -> bool {
    let word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    text.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        && text.bytes().last().is_some_and(word)
        && text.bytes().all(|b| word(b) || b"._-".contains(&b))
        && text
            .split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
            .all(|between| matches!(between, "." | "_" | "__") || between.bytes().all(|b| b == b'-'))
}

fn is_tag(text: &str) -> bool {
    (1..=MAX_TAG).contains(&text.len())
        && !text.starts_with(['.', '-'])
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
}

fn check_digest(text: &str) -> Result<(), ParseError> {
    let (algorithm, hex) = text.split_once(':').ok_or(ParseError::ReferenceInvalidFormat)?;
    match Digest::parse(text) {
        Ok(_) => Ok(()),
        Err(_) if algorithm != "sha256" => Err(ParseError::DigestUnsupported),
        Err(_) if hex.len() != 64 => Err(ParseError::DigestInvalidLength),
        Err(_) => Err(ParseError::DigestInvalidFormat),
    }
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
    use proptest::prelude::*;

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
        let error = parse("UPPER/Case").unwrap_err();
        assert!(error.to_string().starts_with("couldn't parse image name \"UPPER/Case\": "), "{error}");
        assert_eq!(normalize("a b"), "a b");
        let too_long = format!("a:{}", "t".repeat(129));
        let bad = [
            "", " nginx", "nginx:", "nginx@", ":1", "a//b", "/a", "a/", "-a", "a-", "a..b", "a___b", "a:-1",
            "a:b:c",
        ];
        for bad in
            bad.iter().chain(&[too_long.as_str(), "h.io:x/a", "h..io/a", "a@sha256:00", "a@md5:00", "é"])
        {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }

    fn name() -> impl Strategy<Value = String> {
        let registry =
            "(|localhost/|[a-z0-9]{1,4}(-[a-z0-9]{1,3})?[.][a-z]{2,3}(:[0-9]{1,5})?/|[a-z]{1,3}:[0-9]{1,4}/)";
        let component = "[a-z0-9]{1,5}(([.]|_|__|-{1,3})[a-z0-9]{1,4}){0,2}";
        let rest = "(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,8})?(@sha256:[0-9a-f]{64})?";
        (registry, component, component, rest).prop_map(|(registry, a, b, rest)| {
            // Without a registry, a dot in the first word would make it one.
            let a = if registry.is_empty() { a.replace('.', "-") } else { a };
            format!("{registry}{a}/{b}{rest}")
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Good names are read as the client library reads them.
        #[test]
        fn good_names_are_read_alike(name in name()) {
            prop_assert_eq!(parse(&name).unwrap(), name.parse::<Reference>().unwrap());
        }

        /// What is accepted here is accepted there, and means the same; full names are fixed points.
        #[test]
        fn nothing_else_is_accepted(text in "[a-zA-Z0-9./:@_-]{0,20}") {
            if let Ok(reference) = parse(&text) {
                prop_assert_eq!(&reference, &text.parse::<Reference>().unwrap());
                prop_assert_eq!(normalize(&full(&reference)), full(&reference));
            }
        }
    }
}
