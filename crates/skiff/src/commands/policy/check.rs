//! `skiff policy check`: what a policy would change, before it does.

use std::io::Read;

use anyhow::{Context, bail};
use clap::Args;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client, ResourceExt};
use netpol::check::{Check, Checked, Line, check};
use netpol::model::Policy;

use super::{BOLD, GREEN, RED, count, fetch};
use crate::commands::api::{said, with_client};
use crate::output::Print;
use crate::ui::table;

/// Lines of each list that people are shown; machines get all.
const SHOWN: usize = 40;

/// Options of `policy check`.
#[derive(Debug, Args)]
pub struct Options {
    /// The file with the policies, in YAML or JSON; - is standard input.
    #[arg(short, long, value_name = "FILE")]
    filename: String,
    /// The namespace of policies that name none.
    #[arg(short, long, default_value = "default")]
    namespace: String,
    #[command(flatten)]
    print: Print,
}

/// Prints what would change.
pub fn run(profile: &str, options: &Options) -> anyhow::Result<()> {
    let text = match options.filename.as_str() {
        "-" => {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).context("read standard input")?;
            text
        }
        file => std::fs::read_to_string(file).with_context(|| format!("read {file}"))?,
    };
    let policies = policies(&text).with_context(|| format!("read {}", options.filename))?;
    let answer = with_client(profile, async |client| {
        let mut tried = Vec::new();
        for policy in policies {
            tried.push(
                trial(&client, policy, &options.namespace).await.map_err(|error| said(profile, error))?,
            );
        }
        let world = fetch::world(&client).await.map_err(|error| said(profile, error))?;
        Ok(check(&world, &tried.iter().filter_map(Policy::of).collect::<Vec<_>>()))
    })?;
    options.print.print(&answer, text_of)
}

/// The NetworkPolicies of a file, be they documents or items of a List.
fn policies(text: &str) -> anyhow::Result<Vec<NetworkPolicy>> {
    let documents: Vec<serde_json::Value> =
        serde_saphyr::from_multiple(text).map_err(|error| anyhow::anyhow!("{error}"))?;
    let (mut found, mut others) = (Vec::new(), Vec::new());
    for document in documents {
        let items = match document.get("items").and_then(serde_json::Value::as_array) {
            Some(items) => items.clone(),
            None => vec![document],
        };
        for item in items.into_iter().filter(|item| !item.is_null()) {
            match item.get("kind").and_then(serde_json::Value::as_str) {
                Some("NetworkPolicy") => {
                    let name = item["metadata"]["name"].as_str().unwrap_or_default().to_owned();
                    let policy = serde_json::from_value(item);
                    found.push(policy.with_context(|| format!("read NetworkPolicy {name}"))?);
                }
                kind => others.push(kind.unwrap_or("something without a kind").to_owned()),
            }
        }
    }
    if found.is_empty() {
        bail!(
            "there is no NetworkPolicy in it, only: {}",
            if others.is_empty() { "nothing".into() } else { others.join(", ") }
        );
    }
    Ok(found)
}

/// Has the API server judge a policy without storing it.
async fn trial(client: &Client, mut policy: NetworkPolicy, namespace: &str) -> kube::Result<NetworkPolicy> {
    let namespace = policy.namespace().unwrap_or_else(|| namespace.to_owned());
    // What a server has written into it is not what somebody applies.
    policy.metadata.managed_fields = None;
    policy.metadata.resource_version = None;
    policy.metadata.namespace = Some(namespace.clone());
    let params = PatchParams { dry_run: true, ..PatchParams::apply("skiff-policy-check").force() };
    let api: Api<NetworkPolicy> = Api::namespaced(client.clone(), &namespace);
    api.patch(&policy.name_any(), &params, &Patch::Apply(&policy)).await?;
    Ok(policy)
}

fn text_of(answer: &Check) -> String {
    let mut out: String = answer.policies.iter().map(policy_line).collect();
    out += &lines(&answer.cut, "cut", "that are allowed now", RED);
    out += &lines(&answer.opened, "open", "that are refused now", GREEN);
    out
}

fn policy_line(policy: &Checked) -> String {
    let kind = if policy.replaces { "replaces the one that is there" } else { "is new" };
    let audit = if policy.audit { " It is only audited: it drops nothing." } else { "" };
    let pods = match policy.pods.as_slice() {
        [] => ": check its podSelector and its namespace".to_owned(),
        pods if pods.len() <= 10 => format!(": {}", pods.join(", ")),
        pods => format!(": {} and {} more", pods[..10].join(", "), pods.len() - 10),
    };
    format!(
        "{BOLD}NetworkPolicy {}{BOLD:#} {kind}.{audit} It selects {} for {}{pods}\n",
        policy.policy,
        count(policy.pods.len(), "Pod"),
        policy.directions.join(" and "),
    )
}

fn lines(lines: &[Line], verb: &str, what: &str, style: anstyle::Style) -> String {
    if lines.is_empty() {
        return format!("\nIt would {style}{verb}{style:#} nothing.\n");
    }
    let row = |line: &Line| vec![line.from.clone(), line.to.clone(), line.port.clone(), line.by.join(", ")];
    let rows: Vec<Vec<String>> = lines.iter().take(SHOWN).map(row).collect();
    let mut out = format!("\nIt would {style}{verb}{style:#} {} {what}:\n", count(lines.len(), "connection"));
    out += &table(&["FROM", "TO", "PORT", "BY"], &rows);
    match lines.len().checked_sub(SHOWN) {
        Some(more) if more > 0 => out + &format!("and {more} more; all of them: -o json\n"),
        _ => out,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn documents_lists_and_other_kinds() {
        let policy = "kind: NetworkPolicy\nmetadata: {name: a}\nspec: {podSelector: {}}\n";
        let names = |text: &str| -> Vec<String> {
            policies(text).unwrap().iter().map(ResourceExt::name_any).collect()
        };
        assert_eq!(names(policy), ["a"]);
        assert_eq!(names(&format!("{policy}---\nkind: Pod\n---\n{policy}")), ["a", "a"]);
        let list = r#"{"kind": "List", "items": [{"kind": "NetworkPolicy", "metadata": {"name": "b"}, "spec": {"podSelector": {}}}]}"#;
        assert_eq!(names(list), ["b"]);
        assert!(policies("kind: Pod\n").unwrap_err().to_string().contains("only: Pod"));
        assert!(policies("kind: NetworkPolicy\nmetadata: {name: a}\nspec: {podSelector: 7}\n").is_err());
        assert!(policies("a: [").is_err());
    }
}
