//! Regular expressions and URLs.

use cel::common::types::{INT_TYPE, STRING_TYPE};
use cel::objects::Opaque;
use cel::{DeclarationError, Env, Value};
use http::Uri;
use percent_encoding::percent_decode_str;
use regex::RegexBuilder;

use super::{Outcome, functions, int_of, opaque, text_of, unwrap, wrap};
use crate::cel::convert::{object, string};

const URL: &str = "kubernetes.URL";
/// Compiled regular expressions may take so many bytes.
const REGEX_SIZE: usize = 1 << 20;

/// Adds the functions.
pub fn add(env: &mut Env) -> Result<(), DeclarationError> {
    env.add_type(opaque(URL))?;
    functions! { env,
        "find" on STRING_TYPE, (STRING_TYPE) => |a| {
            let found = regex(&a[1])?.find(text_of(&a[0])?).map_or(String::new(), |m| m.as_str().to_owned());
            Ok(string(&found))
        };
        "findAll" on STRING_TYPE, (STRING_TYPE) => |a| all(&a[0], &a[1], usize::MAX);
        "findAll" on STRING_TYPE, (STRING_TYPE, INT_TYPE) => |a| {
            // Below zero is no limit.
            all(&a[0], &a[1], usize::try_from(int_of(&a[2])?).unwrap_or(usize::MAX))
        };
        "url", (STRING_TYPE) => |a| parse(text_of(&a[0])?).map(wrap);
        "isURL", (STRING_TYPE) => |a| Ok(Value::Bool(parse(text_of(&a[0])?).is_ok()));
        "getScheme" on opaque(URL), () => |a| Ok(string(&unwrap::<Url>(&a[0])?.scheme));
        "getHost" on opaque(URL), () => |a| Ok(string(&unwrap::<Url>(&a[0])?.host));
        "getHostname" on opaque(URL), () => |a| Ok(string(unwrap::<Url>(&a[0])?.host_and_port().0));
        "getPort" on opaque(URL), () => |a| Ok(string(unwrap::<Url>(&a[0])?.host_and_port().1));
        "getEscapedPath" on opaque(URL), () => |a| Ok(string(&unwrap::<Url>(&a[0])?.path));
        "getQuery" on opaque(URL), () => |a| Ok(unwrap::<Url>(&a[0])?.query());
    }
    Ok(())
}

fn regex(pattern: &Value) -> Result<regex::Regex, String> {
    let built = RegexBuilder::new(text_of(pattern)?).size_limit(REGEX_SIZE).build();
    built.map_err(|e| format!("illegal regex: {e}"))
}

fn all(text: &Value, pattern: &Value, limit: usize) -> Outcome {
    let regex = regex(pattern)?;
    let found: Vec<Value> = regex.find_iter(text_of(text)?).take(limit).map(|m| string(m.as_str())).collect();
    Ok(Value::List(found.into()))
}

/// An absolute URL or an absolute path, in parts.
#[derive(Debug, PartialEq, Eq)]
struct Url {
    scheme: String,
    /// With the port.
    host: String,
    path: String,
    query: String,
}

impl Opaque for Url {
    fn runtime_type_name(&self) -> &str {
        URL
    }
}

impl Url {
    fn host_and_port(&self) -> (&str, &str) {
        let host = self.host.as_str();
        match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((inside, after)) => (inside, after.trim_start_matches(':')),
            None => host.rsplit_once(':').unwrap_or((host, "")),
        }
    }

    fn query(&self) -> Value {
        let mut keys: Vec<(String, Vec<Value>)> = Vec::new();
        for (key, value) in form_urlencoded::parse(self.query.as_bytes()) {
            let value = string(&value);
            match keys.iter_mut().find(|(known, _)| *known == key) {
                Some((_, values)) => values.push(value),
                None => keys.push((key.into_owned(), vec![value])),
            }
        }
        object(keys.into_iter().map(|(key, values)| (key, Value::List(values.into()))))
    }
}

fn parse(text: &str) -> Result<Url, String> {
    let wrong = |why: &str| format!("URL parse error during conversion from string: parse {text:?}: {why}");
    if text.starts_with('/') && !text.starts_with("//") {
        let (path, query) = text.split_once('?').unwrap_or((text, ""));
        return Ok(Url {
            scheme: String::new(),
            host: String::new(),
            path: path.into(),
            query: query.into(),
        });
    }
    let (scheme, rest) = text.split_once("://").ok_or_else(|| wrong("invalid URI for request"))?;
    let rest = rest.split('#').next().unwrap_or_default();
    let (authority, tail) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    let host = authority.rsplit('@').next().unwrap_or_default();
    let checked: Result<Uri, _> = format!("{scheme}://{}/", if host.is_empty() { "x" } else { host }).parse();
    if checked.is_err() || percent_decode_str(tail).decode_utf8().is_err() || tail.contains([' ', '\\']) {
        return Err(wrong("invalid URI for request"));
    }
    let (path, query) = tail.split_once('?').unwrap_or((tail, ""));
    Ok(Url { scheme: scheme.to_lowercase(), host: host.into(), path: path.into(), query: query.into() })
}
