//! `$(NAME)` references in commands, arguments and environment values.
//!
//! `$$` writes one `$`; a reference to an unknown name stays as it is; an unclosed one too.

/// `text` with its references replaced by what `lookup` knows.
pub fn expand(text: &str, lookup: impl Fn(&str) -> Option<String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some((name, after)) = rest.strip_prefix('(').and_then(|inner| inner.split_once(')')) {
            match lookup(name) {
                Some(value) => out.push_str(&value),
                None => out.push_str(&format!("$({name})")),
            }
            rest = after;
        } else {
            out.push('$');
        }
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references() {
        let lookup = |name: &str| match name {
            "A" => Some("1".to_string()),
            "B" => Some("$(A)".to_string()),
            "" => Some("empty".to_string()),
            _ => None,
        };
        for (text, expected) in [
            ("$(A)", "1"),
            ("x$(A)y$(A)", "x1y1"),
            ("$$(A)", "$(A)"),
            ("$$$(A)", "$1"),
            ("$$$$(A)", "$$(A)"),
            ("$(B)", "$(A)"),
            ("$(C)-$(A)", "$(C)-1"),
            ("$(A", "$(A"),
            ("$A $", "$A $"),
            ("$(", "$("),
            ("$()", "empty"),
            ("$($(A))", "$($(A))"),
            ("", ""),
        ] {
            assert_eq!(expand(text, lookup), expected, "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn text_without_a_dollar_is_untouched(text in "[^$]{0,40}") {
            proptest::prop_assert_eq!(expand(&text, |_| None), text);
        }

        #[test]
        fn doubling_every_dollar_escapes_everything(text in ".{0,40}") {
            proptest::prop_assert_eq!(expand(&text.replace('$', "$$"), |_| Some("no".into())), text);
        }
    }
}
