//! Names that are asked for under another name (directive `rewrite name`).

use hickory_proto::rr::Name;

/// Which names a rule is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Match {
    /// The name itself.
    Exact,
    /// Names that begin so.
    Prefix,
    /// Names that end so.
    Suffix,
    /// Names that hold this somewhere.
    Substring,
}

/// One rule. Texts are in lower case; those of [`Match::Exact`] and [`Match::Suffix`] end with a dot.
#[derive(Debug)]
pub struct Rule {
    /// Which names.
    pub by: Match,
    /// What of them is replaced.
    pub from: String,
    /// By what.
    pub to: String,
    /// Whether later rules see the new name.
    pub goes_on: bool,
}

/// The name to look up instead; none when no rule is about it, or what comes out is no name.
pub fn rewritten(rules: &[Rule], name: &Name) -> Option<Name> {
    let mut text = name.to_ascii().to_ascii_lowercase();
    let mut changed = false;
    for Rule { by, from, to, goes_on } in rules {
        let new = match by {
            Match::Exact => (text == *from).then(|| to.clone()),
            Match::Prefix => text.strip_prefix(from.as_str()).map(|rest| format!("{to}{rest}")),
            Match::Suffix => text.strip_suffix(from.as_str()).map(|rest| format!("{rest}{to}")),
            Match::Substring => text.contains(from.as_str()).then(|| text.replace(from.as_str(), to)),
        };
        if let Some(new) = new {
            (text, changed) = (new, true);
            if !goes_on {
                break;
            }
        }
    }
    if !changed {
        return None;
    }
    let mut name = Name::from_ascii(&text).ok()?;
    name.set_fqdn(true);
    Some(name)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    fn rule(by: Match, from: &str, to: &str, goes_on: bool) -> Rule {
        Rule { by, from: from.into(), to: to.into(), goes_on }
    }

    #[test]
    fn the_first_rule_that_fits_decides_unless_it_goes_on() {
        let rules = [
            rule(Match::Suffix, ".corp.", ".default.svc.cluster.local.", true),
            rule(Match::Prefix, "old-", "new-", false),
            rule(Match::Exact, "a.b.", "c.d.", false),
            rule(Match::Substring, "x", "yy", false),
        ];
        let got = |name: &str| rewritten(&rules, &Name::from_ascii(name).unwrap()).map(|n| n.to_ascii());
        assert_eq!(got("Old-web.Corp.").unwrap(), "new-web.default.svc.cluster.local.");
        assert_eq!(got("A.b.").unwrap(), "c.d.");
        assert_eq!(got("x.ax.").unwrap(), "yy.ayy.");
        assert_eq!(got("z.a.b."), None);
        let long = [rule(Match::Substring, "x", &"y".repeat(64), false)];
        assert_eq!(rewritten(&long, &Name::from_ascii("x.").unwrap()), None, "no name comes out");
    }
}
