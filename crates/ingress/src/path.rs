//! A request's path as it is matched: percent-decoded, slashes merged, dot segments resolved, as nginx does it.
//!
//! Only matching sees this form; the backend gets what the client sent. Without it `/public/..%2fadmin` would be routed
//! by a rule for `/public` and understood by the backend as `/admin`.

use std::borrow::Cow;

use percent_encoding::percent_decode_str;

/// The form to match; `None` for a path that cannot be: not absolute, with a NUL, or above the root.
pub fn normal(path: &str) -> Option<Cow<'_, [u8]>> {
    if !path.starts_with('/') {
        return None;
    }
    let plain = !path.contains('%') && !path.contains("//") && !path.contains("/.") && !path.contains('\0');
    if plain {
        return Some(Cow::Borrowed(path.as_bytes()));
    }
    let decoded: Cow<'_, [u8]> = percent_decode_str(path).into();
    if decoded.contains(&0) {
        return None;
    }
    let mut kept: Vec<&[u8]> = Vec::new();
    let mut open = false;
    for segment in decoded.split(|b| *b == b'/').skip(1) {
        open = matches!(segment, b"" | b"." | b"..");
        match segment {
            b"" | b"." => {}
            b".." => drop(kept.pop()?),
            other => kept.push(other),
        }
    }
    let mut out = Vec::with_capacity(decoded.len());
    for segment in kept {
        out.push(b'/');
        out.extend_from_slice(segment);
    }
    if open || out.is_empty() {
        out.push(b'/');
    }
    Some(Cow::Owned(out))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn tricks_come_out_as_what_they_mean() {
        for (sent, meant) in [
            ("/", "/"),
            ("/a/b", "/a/b"),
            ("/a//b", "/a/b"),
            ("//a/", "/a/"),
            ("/a/./b", "/a/b"),
            ("/a/../b", "/b"),
            ("/a/..", "/"),
            ("/a/%2e%2e/b", "/b"),
            ("/a/..%2fb", "/b"),
            ("/a%20b", "/a b"),
            ("/.well-known/x", "/.well-known/x"),
            ("/a%2", "/a%2"),
        ] {
            assert_eq!(normal(sent).as_deref(), Some(meant.as_bytes()), "{sent}");
        }
        for never in ["", "*", "a", "/..", "/a/../../b", "/%00", "/a/%2e%2e/%2e%2e"] {
            assert_eq!(normal(never), None, "{never}");
        }
    }

    proptest! {
        #[test]
        fn what_is_matched_has_no_tricks_left(sent in "/([a-c./]|%2e|%2f|%41){0,24}") {
            if let Some(path) = normal(&sent) {
                let path = String::from_utf8(path.into_owned()).unwrap();
                prop_assert!(path.starts_with('/') && !path.contains("//"), "{sent} {path}");
                prop_assert!(path.split('/').all(|s| s != "." && s != ".."), "{sent} {path}");
                prop_assert_eq!(normal(&path).unwrap().into_owned(), path.into_bytes());
            }
        }
    }
}
