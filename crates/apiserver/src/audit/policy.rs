//! `audit.k8s.io/v1.Policy`: which requests are logged, and how much of them. The choice is a pure function.

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;

use crate::field::{FieldError, FieldErrors};
use crate::identity::{Attributes, UserInfo};
use crate::kinds::checks;

/// How much of a request is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Nothing.
    None,
    /// Who asked for what when, and whether it was done.
    Metadata,
    /// The request's object, too.
    Request,
    /// The answer's object, too.
    RequestResponse,
}

impl Level {
    /// All, least first.
    pub const ALL: [Level; 4] = [Level::None, Level::Metadata, Level::Request, Level::RequestResponse];

    /// As policies and events spell it.
    pub fn name(self) -> &'static str {
        match self {
            Level::None => "None",
            Level::Metadata => "Metadata",
            Level::Request => "Request",
            Level::RequestResponse => "RequestResponse",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|level| level.name() == text)
    }
}

/// When in the life of a request an event is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Before anything is done.
    RequestReceived,
    /// The head of the answer is sent; of requests that last as long as their clients wish.
    ResponseStarted,
    /// Nothing more is sent.
    ResponseComplete,
    /// A defect of the server.
    Panic,
}

impl Stage {
    const ALL: [Stage; 4] =
        [Stage::RequestReceived, Stage::ResponseStarted, Stage::ResponseComplete, Stage::Panic];

    /// As policies and events spell it.
    pub fn name(self) -> &'static str {
        match self {
            Stage::RequestReceived => "RequestReceived",
            Stage::ResponseStarted => "ResponseStarted",
            Stage::ResponseComplete => "ResponseComplete",
            Stage::Panic => "Panic",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|stage| stage.name() == text)
    }
}

/// A policy that was read and holds.
#[derive(Debug, Default)]
pub struct Policy {
    rules: Vec<Rule>,
    omit_stages: Vec<Stage>,
    omit_managed_fields: bool,
}

#[derive(Debug)]
struct Rule {
    level: Level,
    spec: RuleSpec,
    omit_stages: Vec<Stage>,
}

/// What the policy says of one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// How much.
    pub level: Level,
    /// Not at these stages.
    pub omit_stages: Vec<Stage>,
    /// Objects are logged without `metadata.managedFields`.
    pub omit_managed_fields: bool,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PolicySpec {
    kind: String,
    api_version: String,
    /// Known, and without a meaning here.
    #[serde(default, rename = "metadata")]
    _metadata: IgnoredAny,
    #[serde(default)]
    rules: Vec<Value>,
    #[serde(default)]
    omit_stages: Vec<String>,
    #[serde(default)]
    omit_managed_fields: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct RuleSpec {
    level: String,
    users: Vec<String>,
    user_groups: Vec<String>,
    verbs: Vec<String>,
    resources: Vec<GroupResources>,
    namespaces: Vec<String>,
    #[serde(rename = "nonResourceURLs")]
    non_resource_urls: Vec<String>,
    omit_stages: Vec<String>,
    omit_managed_fields: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct GroupResources {
    group: String,
    resources: Vec<String>,
    resource_names: Vec<String>,
}

/// An entry, or the end of one (`a*`).
fn path_matches(path: &str, spec: &str) -> bool {
    spec == "*" || spec == path || spec.strip_suffix('*').is_some_and(|head| path.starts_with(head))
}

impl GroupResources {
    fn matches(&self, request: &Attributes) -> bool {
        if self.group != request.group {
            return false;
        }
        if self.resources.is_empty() {
            return true;
        }
        if !self.resource_names.is_empty() && !self.resource_names.contains(&request.name) {
            return false;
        }
        let (resource, sub) = (request.resource.as_str(), request.subresource.as_str());
        let combined = if sub.is_empty() { resource.to_owned() } else { format!("{resource}/{sub}") };
        self.resources.iter().any(|wanted| {
            wanted == "*"
                || *wanted == combined
                || (!sub.is_empty() && wanted.strip_prefix("*/") == Some(sub))
                || wanted.strip_suffix("/*") == Some(resource)
        })
    }
}

impl RuleSpec {
    fn matches(&self, user: &UserInfo, request: &Attributes) -> bool {
        let among = |wanted: &[String], got: &String| wanted.is_empty() || wanted.contains(got);
        let grouped = self.user_groups.is_empty() || user.groups.iter().any(|g| self.user_groups.contains(g));
        if !grouped || !among(&self.users, &user.name) || !among(&self.verbs, &request.verb) {
            return false;
        }
        if !self.namespaces.is_empty() || !self.resources.is_empty() {
            return request.is_resource
                && among(&self.namespaces, &request.namespace)
                && (self.resources.is_empty() || self.resources.iter().any(|r| r.matches(request)));
        }
        self.non_resource_urls.is_empty()
            || (!request.is_resource
                && self.non_resource_urls.iter().any(|url| path_matches(&request.path, url)))
    }

    fn check(&self, path: &str, errors: &mut FieldErrors) {
        if self.level.is_empty() {
            errors.push(FieldError::required(format!("{path}.level"), ""));
        } else if Level::parse(&self.level).is_none() {
            let known = Level::ALL.map(Level::name);
            errors.push(FieldError::not_supported(format!("{path}.level"), self.level.as_str(), &known));
        }
        for (i, url) in self.non_resource_urls.iter().enumerate().filter(|(_, url)| *url != "*") {
            let at = format!("{path}.nonResourceURLs[{i}]");
            if !url.starts_with('/') {
                let why = "non-resource URL rules must begin with a '/' character";
                errors.push(FieldError::invalid(&at, url.as_str(), why));
            }
            if url.strip_suffix('*').unwrap_or(url).contains('*') {
                let why = "non-resource URL wildcards '*' must be the final character of the rule";
                errors.push(FieldError::invalid(&at, url.as_str(), why));
            }
        }
        for (i, entry) in self.resources.iter().enumerate() {
            let at = format!("{path}.resources[{i}]");
            let why = checks::dns1123_subdomain(&entry.group);
            if !entry.group.is_empty() && !why.is_empty() {
                errors.push(FieldError::invalid(format!("{at}.group"), entry.group.as_str(), why.join(",")));
            }
            if !entry.resource_names.is_empty() && entry.resources.is_empty() {
                let why = "using resourceNames requires at least one resource";
                let names = entry.resource_names.clone();
                errors.push(FieldError::invalid(format!("{at}.resourceNames"), names, why));
            }
        }
        check_stages(&self.omit_stages, path, errors);
        let both = !self.resources.is_empty() || !self.namespaces.is_empty();
        if !self.non_resource_urls.is_empty() && both {
            let why = "rules cannot apply to both regular resources and non-resource URLs";
            let urls = self.non_resource_urls.clone();
            errors.push(FieldError::invalid(format!("{path}.nonResourceURLs"), urls, why));
        }
    }
}

fn check_stages(stages: &[String], path: &str, errors: &mut FieldErrors) {
    let at = if path.is_empty() { "omitStages".to_owned() } else { format!("{path}.omitStages") };
    for (i, stage) in stages.iter().enumerate().filter(|(_, stage)| Stage::parse(stage).is_none()) {
        let known = Stage::ALL.map(Stage::name);
        errors.push(FieldError::not_supported(format!("{at}[{i}]"), stage.as_str(), &known));
    }
}

fn stages(names: &[String]) -> Vec<Stage> {
    names.iter().filter_map(|name| Stage::parse(name)).collect()
}

impl Policy {
    /// Reads a policy file (YAML or JSON).
    ///
    /// # Errors
    /// What is wrong with it, by rule and field.
    pub fn parse(text: &str) -> Result<Self, String> {
        let value: Value = serde_saphyr::from_str(text).map_err(|e| format!("it is no YAML: {e}"))?;
        let spec: PolicySpec = serde_json::from_value(value).map_err(|e| e.to_string())?;
        if (spec.kind.as_str(), spec.api_version.as_str()) != ("Policy", "audit.k8s.io/v1") {
            let got = format!("{}, Kind={}", spec.api_version, spec.kind);
            return Err(format!("it must be of audit.k8s.io/v1, Kind=Policy, and is of {got}"));
        }
        if spec.rules.is_empty() {
            return Err("rules: Required value: a policy without rules logs nothing".into());
        }
        let mut errors = FieldErrors::new();
        check_stages(&spec.omit_stages, "", &mut errors);
        let mut rules = Vec::with_capacity(spec.rules.len());
        for (i, rule) in spec.rules.into_iter().enumerate() {
            let rule: RuleSpec = serde_json::from_value(rule).map_err(|e| format!("rules[{i}]: {e}"))?;
            rule.check(&format!("rules[{i}]"), &mut errors);
            let level = Level::parse(&rule.level).unwrap_or(Level::None);
            rules.push(Rule { level, omit_stages: stages(&rule.omit_stages), spec: rule });
        }
        if !errors.is_empty() {
            return Err(errors.to_string());
        }
        let (omit_stages, omit_managed_fields) = (stages(&spec.omit_stages), spec.omit_managed_fields);
        Ok(Policy { rules, omit_stages, omit_managed_fields })
    }

    /// What the first rule that is about a request says; nothing is logged without one.
    pub fn choose(&self, user: &UserInfo, request: &Attributes) -> Choice {
        let rule = self.rules.iter().find(|rule| rule.spec.matches(user, request));
        let mut omit_stages = self.omit_stages.clone();
        omit_stages.extend(rule.iter().flat_map(|rule| &rule.omit_stages));
        let own = rule.and_then(|rule| rule.spec.omit_managed_fields);
        Choice {
            level: rule.map_or(Level::None, |rule| rule.level),
            omit_stages,
            omit_managed_fields: own.unwrap_or(self.omit_managed_fields),
        }
    }
}

#[cfg(test)]
mod tests;
