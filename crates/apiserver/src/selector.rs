//! Label and field selectors: parsed once per request, matched against every object of a list or watch.
//!
//! Grammar: <https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/#label-selectors>.

use serde_json::Value;

use crate::names;
use crate::resource::{Resource, SelectableField};
use crate::status::Status;

#[derive(Debug, Clone, PartialEq, Eq)]
enum Operator {
    In,
    NotIn,
    Exists,
    Missing,
    Greater(i64),
    Less(i64),
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Requirement {
    key: String,
    operator: Operator,
    values: Vec<String>,
}

/// A parsed label selector; empty matches everything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LabelSelector(Vec<Requirement>);

impl LabelSelector {
    /// Parses the query parameter `labelSelector`.
    ///
    /// # Errors
    /// 400 that says where the text stops making sense.
    pub fn parse(text: &str) -> Result<Self, Status> {
        let fail = |why: String| Status::bad_request(format!("unable to parse requirement: {why}"));
        let mut out = Vec::new();
        for part in split_requirements(text) {
            out.push(requirement(trim(part)).map_err(fail)?);
        }
        Ok(LabelSelector(out))
    }

    /// From a `meta/v1.LabelSelector` object; `None` for one that cannot be understood.
    pub fn from_object(selector: &Value) -> Option<Self> {
        let mut out = Vec::new();
        for (key, value) in selector["matchLabels"].as_object().into_iter().flatten() {
            let values = vec![value.as_str()?.to_owned()];
            out.push(Requirement { key: key.clone(), operator: Operator::In, values });
        }
        for expression in selector["matchExpressions"].as_array().into_iter().flatten() {
            let operator = match expression["operator"].as_str()? {
                "In" => Operator::In,
                "NotIn" => Operator::NotIn,
                "Exists" => Operator::Exists,
                "DoesNotExist" => Operator::Missing,
                _ => return None,
            };
            let values = expression["values"].as_array().into_iter().flatten();
            let values = values.filter_map(Value::as_str).map(str::to_owned).collect();
            out.push(Requirement { key: expression["key"].as_str()?.to_owned(), operator, values });
        }
        Some(LabelSelector(out))
    }

    /// Whether everything matches.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether an object's `metadata.labels` match.
    pub fn matches(&self, labels: &Value) -> bool {
        self.0.iter().all(|r| r.matches(labels.get(&r.key).and_then(Value::as_str)))
    }
}

impl Requirement {
    fn matches(&self, value: Option<&str>) -> bool {
        let number = |v: &str| v.parse::<i64>().ok();
        match (&self.operator, value) {
            (Operator::In, Some(v)) => self.values.iter().any(|w| w == v),
            (Operator::NotIn, Some(v)) => !self.values.iter().any(|w| w == v),
            (Operator::Exists, value) => value.is_some(),
            (Operator::Missing, value) => value.is_none(),
            (Operator::Greater(n), Some(v)) => number(v).is_some_and(|v| v > *n),
            (Operator::Less(n), Some(v)) => number(v).is_some_and(|v| v < *n),
            (Operator::In | Operator::Greater(_) | Operator::Less(_), None) => false,
            (Operator::NotIn, None) => true,
        }
    }
}

/// The blanks of the grammar; no other character stands for them.
const BLANKS: [char; 4] = [' ', '\t', '\r', '\n'];

fn trim(text: &str) -> &str {
    text.trim_matches(BLANKS)
}

/// Splits at commas outside of parentheses.
fn split_requirements(text: &str) -> Vec<&str> {
    let (mut depth, mut start, mut out) = (0i32, 0, Vec::new());
    if trim(text).is_empty() {
        return out;
    }
    for (i, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            ',' if depth <= 0 => {
                out.push(&text[start..i]);
                start = i + 1;
            }
            _ => {}
        }
    }
    out.push(&text[start..]);
    out
}

fn requirement(text: &str) -> Result<Requirement, String> {
    if let Some(key) = text.strip_prefix('!') {
        return checked(trim(key), Operator::Missing, Vec::new());
    }
    for (symbol, operator) in [("!=", Operator::NotIn), ("==", Operator::In), ("=", Operator::In)] {
        if let Some((key, value)) = text.split_once(symbol) {
            return checked(trim(key), operator, vec![trim(value).into()]);
        }
    }
    for symbol in ['>', '<'] {
        if let Some((key, value)) = text.split_once(symbol) {
            let value = trim(value);
            names::label_value(value).map_err(|problems| wrong_value(key, value, &problems))?;
            let number = value.parse().map_err(|_| {
                format!("values[0][{key}]: Invalid value: {value:?}: for 'Gt', 'Lt' operators, the value must be an integer")
            })?;
            let operator = if symbol == '>' { Operator::Greater(number) } else { Operator::Less(number) };
            return checked(trim(key), operator, Vec::new());
        }
    }
    if let Some((head, list)) = text.split_once('(') {
        let (key, word) = trim(head)
            .rsplit_once(BLANKS)
            .ok_or_else(|| format!("found '(', expected: identifier in {text:?}"))?;
        let operator = match word {
            "in" => Operator::In,
            "notin" => Operator::NotIn,
            other => return Err(format!("found '{other}', expected: in, notin, =, ==, !=, gt, lt")),
        };
        let list = trim(list).strip_suffix(')').ok_or_else(|| "found '', expected: ',' or ')'".to_owned())?;
        return checked(trim(key), operator, list.split(',').map(|v| trim(v).to_owned()).collect());
    }
    checked(text, Operator::Exists, Vec::new())
}

fn wrong_value(key: &str, value: &str, problems: &[String]) -> String {
    format!("values[0][{key}]: Invalid value: {value:?}: {}", problems.join("; "))
}

fn checked(key: &str, operator: Operator, values: Vec<String>) -> Result<Requirement, String> {
    if key.is_empty() {
        return Err("found '', expected: !, identifier, or 'end of string'".into());
    }
    if key.contains(char::is_whitespace) {
        let word = key.split_whitespace().nth(1).unwrap_or_default();
        return Err(format!("found '{word}', expected: in, notin, =, ==, !=, gt, lt"));
    }
    if let Err(problems) = names::qualified_name(key) {
        return Err(format!("key: Invalid value: {key:?}: {}", problems.join("; ")));
    }
    for value in &values {
        if let Err(problems) = names::label_value(value) {
            return Err(wrong_value(key, value, &problems));
        }
    }
    Ok(Requirement { key: key.into(), operator, values })
}

/// A parsed field selector, bound to the fields of a resource.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FieldSelector {
    /// Only this name.
    pub name: Option<String>,
    /// Only this namespace.
    pub namespace: Option<String>,
    terms: Vec<(Field, bool, String)>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Field {
    Name,
    Namespace,
    Own(SelectableField),
}

impl FieldSelector {
    /// Parses the query parameter `fieldSelector`.
    ///
    /// # Errors
    /// 400 for a malformed text or a field that the kind does not offer.
    pub fn parse(text: &str, resource: &Resource) -> Result<Self, Status> {
        let mut out = FieldSelector::default();
        for part in split_terms(text).filter(|p| !p.is_empty()) {
            let (key, equal, value) = split_term(part).ok_or_else(|| {
                Status::bad_request(format!("invalid selector: '{text}'; can't understand '{part}'"))
            })?;
            let value = unescape(value).map_err(Status::bad_request)?;
            let field = find_field(key, resource)?;
            match (&field, equal) {
                (Field::Name, true) if out.name.is_none() => out.name = Some(value),
                (Field::Namespace, true) if out.namespace.is_none() => out.namespace = Some(value),
                _ => out.terms.push((field, equal, value)),
            }
        }
        Ok(out)
    }

    /// The one name that a text asks for, whatever the resource: authorization looks at it before it is known which.
    pub fn name_of(text: &str) -> Option<String> {
        let terms = split_terms(text).filter_map(split_term);
        let mut names = terms.filter(|(key, equal, _)| *key == "metadata.name" && *equal);
        names.find_map(|(_, _, value)| unescape(value).ok())
    }

    /// Whether more than name and namespace (which keys show) must be looked at.
    pub fn needs_object(&self) -> bool {
        !self.terms.is_empty()
    }

    /// Whether everything matches.
    pub fn is_empty(&self) -> bool {
        self.name.is_none() && self.namespace.is_none() && self.terms.is_empty()
    }

    /// Whether name and namespace match.
    pub fn matches_key(&self, namespace: &str, name: &str) -> bool {
        self.name.as_deref().is_none_or(|n| n == name)
            && self.namespace.as_deref().is_none_or(|n| n == namespace)
    }

    /// Whether the other terms match the stored object.
    pub fn matches(&self, object: &Value) -> bool {
        self.terms.iter().all(|(field, equal, wanted)| {
            let (pointer, absent) = match field {
                Field::Name => ("/metadata/name", ""),
                Field::Namespace => ("/metadata/namespace", ""),
                Field::Own(own) => (own.pointer, own.absent),
            };
            (render(object.pointer(pointer), absent) == *wanted) == *equal
        })
    }
}

fn render(value: Option<&Value>, absent: &str) -> String {
    match value {
        None | Some(Value::Null) => absent.into(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    }
}

/// Splits at commas that no backslash stands before.
fn split_terms(text: &str) -> impl Iterator<Item = &str> {
    let mut escaped = false;
    text.split(move |c| {
        let ends = c == ',' && !escaped;
        escaped = c == '\\' && !escaped;
        ends
    })
}

/// Key, whether it is to be equal, and the value, at the first operator that no backslash stands before.
fn split_term(part: &str) -> Option<(&str, bool, &str)> {
    let mut escaped = false;
    for (at, c) in part.char_indices() {
        if !escaped {
            for (symbol, equal) in [("!=", false), ("==", true), ("=", true)] {
                if let Some(value) = part[at..].strip_prefix(symbol) {
                    return Some((&part[..at], equal, value));
                }
            }
        }
        escaped = c == '\\' && !escaped;
    }
    None
}

/// A value as it was meant: backslash, comma and equals sign come behind a backslash.
fn unescape(value: &str) -> Result<String, String> {
    let (mut out, mut chars) = (String::with_capacity(value.len()), value.chars());
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some(meant @ ('\\' | ',' | '=')) => out.push(meant),
                other => {
                    let sequence: String = [c].into_iter().chain(other).collect();
                    return Err(format!("invalid field selector: invalid escape sequence: {sequence}"));
                }
            },
            ',' | '=' => {
                return Err(format!("invalid field selector: unescaped character in value: {c}"));
            }
            other => out.push(other),
        }
    }
    Ok(out)
}

fn find_field(key: &str, resource: &Resource) -> Result<Field, Status> {
    if key == "metadata.name" {
        return Ok(Field::Name);
    }
    if key == "metadata.namespace" && (resource.namespaced || !resource.fields.is_empty()) {
        return Ok(Field::Namespace);
    }
    if let Some(own) = resource.fields.iter().find(|f| f.label == key) {
        return Ok(Field::Own(*own));
    }
    Err(Status::bad_request(if resource.fields.is_empty() {
        format!("{key:?} is not a known field selector: only \"metadata.name\", \"metadata.namespace\"")
    } else {
        format!("field label not supported: {key}")
    }))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    #[test]
    fn a_name_inside_a_value_is_no_name() {
        let name = |text| FieldSelector::name_of(text).unwrap_or_default();
        assert_eq!(name("metadata.name=a"), "a");
        assert_eq!(name("status.phase=Running,metadata.name==a"), "a");
        assert_eq!(name(r"spec.nodeName!=x\,metadata.name=a"), "", "lists all Pods but those of one node");
        assert_eq!(name(r"spec.nodeName!=x\\,metadata.name=a"), "a");
        assert_eq!(name("metadata.name!=a"), "");
    }

    #[test]
    fn label_selectors() {
        let labels = json!({"app": "web", "tier": "1"});
        for (text, matches) in [
            ("", true),
            ("app=web", true),
            ("app==web,tier=1", true),
            ("app!=web", false),
            ("other!=x", true),
            ("app in (db, web)", true),
            ("app notin (db),tier", true),
            ("!app", false),
            ("!other", true),
            ("tier>0", true),
            ("tier<1", false),
            ("x.y/z=", false),
        ] {
            assert_eq!(LabelSelector::parse(text).unwrap().matches(&labels), matches, "{text}");
        }
        for bad in [
            "app=a b",
            "=x",
            ",",
            "app in x",
            "app foo (x)",
            "a in (x",
            "a>-5",
            "a>+5",
            "a in\u{a0}(b)",
            "\u{a0}",
        ] {
            assert_eq!(LabelSelector::parse(bad).unwrap_err().code(), 400, "{bad}");
        }
    }

    #[test]
    fn field_selectors() {
        let pods = crate::builtin::resources().into_iter().find(|r| r.plural == "pods").unwrap();
        let pod =
            json!({"metadata": {"name": "p"}, "spec": {"nodeName": "n"}, "status": {"phase": "Running"}});
        for (text, matches) in [
            ("spec.nodeName=n", true),
            ("spec.nodeName!=n", false),
            ("status.phase==Running,spec.hostNetwork=false", true),
            ("status.podIP=", true),
        ] {
            assert_eq!(FieldSelector::parse(text, &pods).unwrap().matches(&pod), matches, "{text}");
        }
        let named = FieldSelector::parse("metadata.name=p,metadata.namespace=d", &pods).unwrap();
        assert!(named.matches_key("d", "p") && !named.matches_key("d", "q") && !named.needs_object());
        let named = FieldSelector::parse(r"metadata.name=a\,b\=c\\", &pods).unwrap();
        assert_eq!(named.name.as_deref(), Some(r"a,b=c\"));
        for bad in [r"metadata.name=a\b", r"metadata.name=a\", "metadata.name=a=b", r"metadata.name\=a", "x"]
        {
            assert_eq!(FieldSelector::parse(bad, &pods).unwrap_err().code(), 400, "{bad}");
        }
        assert_eq!(
            FieldSelector::parse("spec.x=1", &pods).unwrap_err().message(),
            "field label not supported: spec.x"
        );
    }
}
