//! The name forms of Kubernetes (RFC 1123 labels and subdomains, RFC 1035 labels, qualified names, label values)
//! with upstream's wording of what each asks for. Pure functions; `Err` carries the detail of a field error.

const LABEL_1123: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const LABEL_1035: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')";
const NAME_PART: &str = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const LABEL_VALUE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";

fn too_long(max: usize) -> String {
    format!("must be no more than {max} bytes")
}

fn lower(b: u8) -> bool {
    b.is_ascii_lowercase() || b.is_ascii_digit()
}

fn label_form(text: &str) -> bool {
    let bytes = text.as_bytes();
    match (bytes.first(), bytes.last()) {
        (Some(&first), Some(&last)) => {
            lower(first) && lower(last) && bytes.iter().all(|&b| lower(b) || b == b'-')
        }
        _ => false,
    }
}

fn collect(problems: Vec<String>) -> Result<(), Vec<String>> {
    if problems.is_empty() { Ok(()) } else { Err(problems) }
}

/// RFC 1123 label, at most 63 bytes.
pub fn dns1123_label(text: &str) -> Result<(), Vec<String>> {
    let mut problems = Vec::new();
    if text.len() > 63 {
        problems.push(too_long(63));
    }
    if !label_form(text) {
        problems.push(if subdomain_form(text) { "must not contain dots".into() } else { LABEL_1123.into() });
    }
    collect(problems)
}

fn subdomain_form(text: &str) -> bool {
    !text.is_empty() && text.split('.').all(label_form)
}

/// RFC 1123 subdomain, at most 253 bytes.
pub fn dns1123_subdomain(text: &str) -> Result<(), Vec<String>> {
    let mut problems = Vec::new();
    if text.len() > 253 {
        problems.push(too_long(253));
    }
    if !subdomain_form(text) {
        problems.push(SUBDOMAIN.into());
    }
    collect(problems)
}

/// RFC 1035 label, at most 63 bytes.
pub fn dns1035_label(text: &str) -> Result<(), Vec<String>> {
    let mut problems = Vec::new();
    if text.len() > 63 {
        problems.push(too_long(63));
    }
    if !label_form(text) || !text.as_bytes().first().is_some_and(u8::is_ascii_lowercase) {
        problems.push(LABEL_1035.into());
    }
    collect(problems)
}

/// Usable as one segment of a path: RBAC names.
pub fn path_segment(text: &str) -> Result<(), Vec<String>> {
    if text == "." || text == ".." {
        return Err(vec![format!("may not be '{text}'")]);
    }
    collect(
        ["/", "%"].iter().filter(|c| text.contains(**c)).map(|c| format!("may not contain '{c}'")).collect(),
    )
}

fn name_part(text: &str) -> bool {
    let bytes = text.as_bytes();
    match (bytes.first(), bytes.last()) {
        (Some(first), Some(last)) => {
            first.is_ascii_alphanumeric()
                && last.is_ascii_alphanumeric()
                && bytes.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        }
        _ => false,
    }
}

/// `[prefix/]name`: keys of labels and annotations, finalizers, resource names.
pub fn qualified_name(text: &str) -> Result<(), Vec<String>> {
    let (prefix, name) = match text.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, text),
    };
    let mut problems = Vec::new();
    if name.contains('/') {
        return Err(vec![format!(
            "a qualified name {} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')",
            &NAME_PART[10..]
        )]);
    }
    if let Some(prefix) = prefix {
        if prefix.is_empty() {
            problems.push("prefix part must be non-empty".to_owned());
        } else if let Err(found) = dns1123_subdomain(prefix) {
            problems.extend(found.into_iter().map(|p| format!("prefix part {p}")));
        }
    }
    if name.is_empty() {
        problems.push("name part must be non-empty".into());
    } else if name.len() > 63 {
        problems.push(format!("name part {}", too_long(63)));
    }
    if !name_part(name) {
        problems.push(NAME_PART.into());
    }
    collect(problems)
}

/// Value of a label.
pub fn label_value(text: &str) -> Result<(), Vec<String>> {
    let mut problems = Vec::new();
    if text.len() > 63 {
        problems.push(too_long(63));
    }
    if !text.is_empty() && !name_part(text) {
        problems.push(LABEL_VALUE.into());
    }
    collect(problems)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms() {
        for (check, good, bad) in [
            (dns1123_label as fn(&str) -> _, "a-1", "A"),
            (dns1123_label, "1", "a.b"),
            (dns1123_subdomain, "a.b-c.1", "a..b"),
            (dns1035_label, "a1", "1a"),
            (path_segment, "system:a b", "a/b"),
            (qualified_name, "example.com/My_name.1", "example.com/"),
            (label_value, "", "-a"),
        ] {
            assert_eq!(check(good), Ok(()), "{good}");
            assert!(check(bad).is_err(), "{bad}");
        }
        assert!(dns1123_label(&"a".repeat(64)).is_err());
    }
}
