//! The part of JSON path that printer columns and scale paths use: `.a.b`, `['a.b']`, `[0]`, `[*]` and
//! `[?(@.type=="Ready")]` (<https://kubernetes.io/docs/reference/kubectl/jsonpath/>).

use serde_json::Value;

enum Step<'p> {
    Field(String),
    Index(usize),
    Any,
    Where(Vec<&'p str>, &'p str),
}

/// The first value that a path leads to; `None` for a path that leads nowhere or is not understood.
pub fn find<'v>(root: &'v Value, path: &str) -> Option<&'v Value> {
    let inner = path.trim().strip_prefix('{').and_then(|p| p.strip_suffix('}')).unwrap_or(path);
    walk(root, &steps(inner.trim_start_matches('$'))?)
}

fn walk<'v>(value: &'v Value, steps: &[Step<'_>]) -> Option<&'v Value> {
    let Some((step, rest)) = steps.split_first() else { return Some(value) };
    match step {
        Step::Field(name) => walk(value.get(name)?, rest),
        Step::Index(i) => walk(value.get(*i)?, rest),
        Step::Any => value.as_array()?.iter().find_map(|v| walk(v, rest)),
        Step::Where(path, wanted) => {
            let matches = |v: &&Value| {
                let found = path.iter().try_fold(*v, |v, key| v.get(key));
                found.is_some_and(|f| {
                    f.as_str().map_or_else(|| format!("{f}").as_str() == *wanted, |text| text == *wanted)
                })
            };
            value.as_array()?.iter().filter(matches).find_map(|v| walk(v, rest))
        }
    }
}

fn steps(mut path: &str) -> Option<Vec<Step<'_>>> {
    let mut out = Vec::new();
    while !path.is_empty() {
        if let Some(rest) = path.strip_prefix('[') {
            let end = rest.find(']')?;
            out.push(bracket(rest[..end].trim())?);
            path = &rest[end + 1..];
            continue;
        }
        let rest = path.strip_prefix('.').unwrap_or(path);
        let mut name = String::new();
        let mut chars = rest.char_indices();
        let mut end = rest.len();
        while let Some((i, c)) = chars.next() {
            match c {
                '\\' => name.extend(chars.next().map(|(_, c)| c)),
                '.' | '[' => {
                    end = i;
                    break;
                }
                other => name.push(other),
            }
        }
        if !name.is_empty() {
            out.push(Step::Field(name));
        } else if end == rest.len() {
            break;
        } else if rest[end..].starts_with('.') {
            return None;
        }
        path = &rest[end..];
    }
    Some(out)
}

fn bracket(inner: &str) -> Option<Step<'_>> {
    if inner == "*" {
        return Some(Step::Any);
    }
    if let Some(name) = unquote(inner) {
        return Some(Step::Field(name.to_owned()));
    }
    if let Some(filter) = inner.strip_prefix("?(").and_then(|f| f.strip_suffix(')')) {
        let (left, right) = filter.split_once("==")?;
        let path = left.trim().strip_prefix("@.")?.split('.').collect();
        let right = right.trim();
        return Some(Step::Where(path, unquote(right).unwrap_or(right)));
    }
    inner.parse().ok().map(Step::Index)
}

fn unquote(text: &str) -> Option<&str> {
    ['\'', '"'].iter().find_map(|q| text.strip_prefix(*q)?.strip_suffix(*q))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn paths_of_printer_columns() {
        let object = json!({"spec": {"n": 3, "a.b": "dot"}, "status": {"conditions": [
            {"type": "Synced", "status": "False"}, {"type": "Ready", "status": "True"},
        ]}});
        for (path, expected) in [
            (".spec.n", Some(json!(3))),
            ("{.spec.n}", Some(json!(3))),
            (".spec['a.b']", Some(json!("dot"))),
            (r".spec.a\.b", Some(json!("dot"))),
            (".status.conditions[?(@.type==\"Ready\")].status", Some(json!("True"))),
            (".status.conditions[0].type", Some(json!("Synced"))),
            (".status.conditions[*].status", Some(json!("False"))),
            (".spec.nope", None),
            (".spec[", None),
        ] {
            assert_eq!(find(&object, path), expected.as_ref(), "{path}");
        }
    }
}
