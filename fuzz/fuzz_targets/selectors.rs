//! Label and field selectors. Labels are compared with a second reading of upstream's grammar, written as it is documented
//! (tokens first); a field's value survives being escaped.
#![no_main]

use std::sync::LazyLock;

use apiserver::resource::Resource;
use apiserver::selector::{FieldSelector, LabelSelector};
use serde_json::json;

static PODS: LazyLock<Resource> =
    LazyLock::new(|| apiserver::builtin::resources().into_iter().find(|r| r.plural == "pods").unwrap());

libfuzzer_sys::fuzz_target!(|input: (&str, &str, &str)| {
    let (text, label, field) = input;
    let ours = LabelSelector::parse(text);
    match reference(text) {
        None => assert!(ours.is_err(), "taken: {text:?}"),
        Some(requirements) => {
            let ours = ours.unwrap_or_else(|e| panic!("refused: {text:?}: {e:?}"));
            let mut labels = vec![json!({}), json!({"a": label, "b": "1", "in": ""})];
            labels.extend(requirements.iter().flat_map(|r| r.values.iter().map(|v| json!({&r.key: v}))));
            for labels in labels {
                let wanted =
                    requirements.iter().all(|r| r.matches(labels.get(&r.key).and_then(|v| v.as_str())));
                assert_eq!(ours.matches(&labels), wanted, "{text:?} on {labels}");
            }
        }
    }
    let _ = FieldSelector::parse(text, &PODS);
    let escaped: String = field
        .chars()
        .flat_map(|c| matches!(c, '\\' | ',' | '=').then_some('\\').into_iter().chain([c]))
        .collect();
    for (operator, equal) in [("=", true), ("==", true), ("!=", false)] {
        let text = format!("metadata.name{operator}{escaped},status.phase=Running");
        let selector = FieldSelector::parse(&text, &PODS).expect("an escaped value");
        let pod = json!({"metadata": {"name": field}, "status": {"phase": "Running"}});
        let matches = selector.matches_key("n", field) && selector.matches(&pod);
        assert_eq!(matches, equal, "{text:?}");
    }
});

struct Requirement {
    key: String,
    operator: String,
    values: Vec<String>,
}

impl Requirement {
    fn matches(&self, value: Option<&str>) -> bool {
        let listed = value.is_some_and(|value| self.values.iter().any(|v| v == value));
        let compared = || Some((value?.parse::<i64>().ok()?, self.values.first()?.parse::<i64>().ok()?));
        match self.operator.as_str() {
            "exists" => value.is_some(),
            "!" => value.is_none(),
            "=" | "==" | "in" => listed,
            "!=" | "notin" => !listed,
            ">" => compared().is_some_and(|(a, b)| a > b),
            _ => compared().is_some_and(|(a, b)| a < b),
        }
    }
}

/// Words, and the symbols `( ) , = == != ! > <`.
fn tokens(text: &str) -> Vec<String> {
    let special = |c: char| "=!(),<>".contains(c);
    let blank = |c: char| " \t\r\n".contains(c);
    let (mut out, mut rest) = (Vec::new(), text);
    loop {
        rest = rest.trim_start_matches(blank);
        let Some(first) = rest.chars().next() else { return out };
        let length = if special(first) {
            if rest.starts_with("==") || rest.starts_with("!=") { 2 } else { 1 }
        } else {
            rest.find(|c| special(c) || blank(c)).unwrap_or(rest.len())
        };
        out.push(rest[..length].to_owned());
        rest = &rest[length..];
    }
}

fn reference(text: &str) -> Option<Vec<Requirement>> {
    let tokens = tokens(text);
    let symbol = |t: &str| ["(", ")", ",", "=", "==", "!=", "!", ">", "<"].contains(&t);
    let mut at = tokens.iter().map(String::as_str).peekable();
    let mut out = Vec::new();
    while at.peek().is_some() {
        let absent = at.next_if_eq(&"!").is_some();
        let key = at.next_if(|t| !symbol(t))?.to_owned();
        let ends = at.peek().is_none_or(|t| *t == ",");
        let (operator, values) = match (absent, ends) {
            (true, true) => ("!".to_owned(), Vec::new()),
            (false, true) => ("exists".to_owned(), Vec::new()),
            (true, false) => return None,
            (false, false) => {
                let operator = at.next()?.to_owned();
                let values = match operator.as_str() {
                    "in" | "notin" => {
                        at.next_if_eq(&"(")?;
                        let (mut values, mut word) = (Vec::new(), None);
                        loop {
                            match at.next()? {
                                ")" => break values.push(word.unwrap_or_default()),
                                "," => values.push(word.take().unwrap_or_default()),
                                other if symbol(other) || word.is_some() => return None,
                                other => word = Some(other.to_owned()),
                            }
                        }
                        values
                    }
                    "=" | "==" | "!=" | ">" | "<" if at.peek().is_none_or(|t| *t == ",") => {
                        vec![String::new()]
                    }
                    "=" | "==" | "!=" | ">" | "<" => vec![at.next_if(|t| !symbol(t))?.to_owned()],
                    _ => return None,
                };
                (operator, values)
            }
        };
        apiserver::names::qualified_name(&key).ok()?;
        for value in &values {
            apiserver::names::label_value(value).ok()?;
        }
        if matches!(operator.as_str(), ">" | "<") {
            values[0].parse::<i64>().ok()?;
        }
        out.push(Requirement { key, operator, values });
        match at.next() {
            None => break,
            // Something must follow.
            Some(",") if at.peek().is_some() => {}
            Some(_) => return None,
        }
    }
    Some(out)
}
