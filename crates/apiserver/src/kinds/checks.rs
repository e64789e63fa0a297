//! Forms of names and other text, with the sentences the API answers when one is broken.
//!
//! Every check gives the sentences of what is wrong, none when the text is fine. The forms of [`names`] are passed
//! on; here are those only rules of kinds need: port names (RFC 6335), environment names, addresses, config keys.

use std::net::IpAddr;

use crate::names;

const SUBDOMAIN_MAX: usize = 253;

fn max_len(limit: usize) -> String {
    format!("must be no more than {limit} bytes")
}

fn example(text: &str, regex: &str, examples: &[&str]) -> String {
    // Two spaces before each further example: clients compare these sentences.
    let shown: Vec<String> = examples.iter().map(|e| format!("'{e}', ")).collect();
    format!("{text} (e.g. {}regex used for validation is '{regex}')", shown.join(" or "))
}

fn told(result: Result<(), Vec<String>>) -> Vec<String> {
    result.err().unwrap_or_default()
}

/// RFC 1123 label.
pub fn dns1123_label(s: &str) -> Vec<String> {
    told(names::dns1123_label(s))
}

/// RFC 1123 subdomain.
pub fn dns1123_subdomain(s: &str) -> Vec<String> {
    told(names::dns1123_subdomain(s))
}

/// RFC 1035 label.
pub fn dns1035_label(s: &str) -> Vec<String> {
    told(names::dns1035_label(s))
}

/// Value of a label.
pub fn label_value(s: &str) -> Vec<String> {
    told(names::label_value(s))
}

/// Key of a label or annotation: `[prefix/]name`.
pub fn qualified_name(s: &str) -> Vec<String> {
    told(names::qualified_name(s))
}

/// Usable as one segment of a path.
pub fn path_segment(s: &str) -> Vec<String> {
    told(names::path_segment(s))
}

/// RFC 1123 subdomain whose first label may be `*`, as Ingress hosts have it.
pub fn wildcard_subdomain(s: &str) -> Vec<String> {
    let mut out = Vec::new();
    if s.len() > SUBDOMAIN_MAX {
        out.push(max_len(SUBDOMAIN_MAX));
    }
    let rest = s.strip_prefix("*.");
    if rest.is_none_or(|r| names::dns1123_subdomain(r).is_err()) {
        out.push(example(
            "a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain, which must consist of lower case alphanumeric characters, '-' or '.' and end with an alphanumeric character",
            r"\*\.[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*",
            &["*.example.com"],
        ));
    }
    out
}

/// Key of a ConfigMap or Secret.
pub fn config_map_key(s: &str) -> Vec<String> {
    let mut out = Vec::new();
    if s.len() > SUBDOMAIN_MAX {
        out.push(max_len(SUBDOMAIN_MAX));
    }
    if s.is_empty() || !s.bytes().all(|c| c.is_ascii_alphanumeric() || b"-._".contains(&c)) {
        out.push(example(
            "a valid config key must consist of alphanumeric characters, '-', '_' or '.'",
            "[-._a-zA-Z0-9]+",
            &["key.name", "KEY_NAME", "key-name"],
        ));
    }
    match s {
        "." => out.push("must not be '.'".into()),
        ".." => out.push("must not be '..'".into()),
        s if s.starts_with("..") => out.push("must not start with '..'".into()),
        _ => {}
    }
    out
}

/// Name of a port, RFC 6335.
pub fn port_name(s: &str) -> Vec<String> {
    let mut out = Vec::new();
    if s.len() > 15 {
        out.push(max_len(15));
    }
    if !s.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-') {
        out.push("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".into());
    }
    if !s.bytes().any(|c| c.is_ascii_lowercase()) {
        out.push("must contain at least one letter (a-z)".into());
    }
    if s.contains("--") {
        out.push("must not contain consecutive hyphens".into());
    }
    if s.starts_with('-') || s.ends_with('-') {
        out.push("must not begin or end with a hyphen".into());
    }
    out
}

/// Number of a port.
pub fn port_number(n: i64) -> Vec<String> {
    if (1..=65535).contains(&n) { vec![] } else { vec!["must be between 1 and 65535, inclusive".into()] }
}

/// Name of an environment variable (any printable ASCII but `=`, as relaxed upstream).
pub fn env_name(s: &str) -> Vec<String> {
    if !s.is_empty() && s.bytes().all(|c| (0x20..0x7f).contains(&c) && c != b'=') {
        return vec![];
    }
    vec![
        "a valid environment variable name must consist only of printable ASCII characters other than '='"
            .into(),
    ]
}

/// An address, without leading zeros.
pub fn ip(s: &str) -> Vec<String> {
    if s.parse::<IpAddr>().is_ok() {
        return vec![];
    }
    vec!["must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)".into()]
}

/// A block of addresses.
pub fn cidr(s: &str) -> Vec<String> {
    if s.parse::<ipnet::IpNet>().is_ok() {
        return vec![];
    }
    vec!["must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)".into()]
}

/// `50%`.
pub fn percent(s: &str) -> Vec<String> {
    let digits = s.strip_suffix('%').unwrap_or("");
    if !digits.is_empty() && digits.bytes().all(|c| c.is_ascii_digit()) {
        return vec![];
    }
    vec![example(
        "a valid percent string must be a numeric string followed by an ending '%'",
        "[0-9]+%",
        &["1%", "93%"],
    )]
}

/// Name of an HTTP header.
pub fn http_header_name(s: &str) -> Vec<String> {
    if !s.is_empty() && s.bytes().all(|c| c.is_ascii_alphanumeric() || b"-_".contains(&c)) {
        return vec![];
    }
    vec![example(
        "a valid HTTP header must consist of alphanumeric characters or '-'",
        "[-A-Za-z0-9]+",
        &["X-Header-Name"],
    )]
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn forms() {
        type Check = fn(&str) -> Vec<String>;
        let long = "a".repeat(64);
        let table: &[(Check, &[&str], &[&str])] = &[
            (dns1123_label, &["a", "0", "a-b", "a0"], &["", "A", "-a", "a-", "a.b", &long]),
            (dns1123_subdomain, &["a.b", "1.2"], &["a..b", ".a", "a.", "A.b", "a_b"]),
            (dns1035_label, &["a", "a-0"], &["0a", "A", "", "a-"]),
            (label_value, &["", "A.b_c-0"], &["-a", "a/b", &long]),
            (qualified_name, &["a", "x.y/A_b"], &["", "/a", "a/", "a/b/c", "X/a", "-a"]),
            (config_map_key, &["a.b", "_A-"], &["", ".", "..", "..a", "a/b"]),
            (port_name, &["http", "a-1"], &["", "HTTP", "80", "a--b", "-a", "abcdefghijklmnop"]),
            (ip, &["10.0.0.1", "::1"], &["10.0.0.01", "10.0.0", "x", ""]),
            (cidr, &["10.0.0.0/8", "::/0"], &["10.0.0.0", "10.0.0.0/33"]),
            (percent, &["5%"], &["5", "%", "-5%"]),
            (env_name, &["A", "a.b", "a b"], &["", "a=b", "é"]),
        ];
        for (i, (check, good, bad)) in table.iter().enumerate() {
            for s in *good {
                assert_eq!(check(s), Vec::<String>::new(), "row {i}: {s:?}");
            }
            for s in *bad {
                assert!(!check(s).is_empty(), "row {i}: {s:?}");
            }
        }
    }
}
