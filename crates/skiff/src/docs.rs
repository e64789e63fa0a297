//! Documents and command line agree: the reference is made from it, every command that a page shows is one, and every
//! link leads somewhere.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use clap::CommandFactory;

use crate::cli::Cli;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// All pages: path from the root, and text.
fn pages() -> Vec<(PathBuf, String)> {
    let own = ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md"].map(PathBuf::from);
    let docs = std::fs::read_dir(root().join("docs")).unwrap();
    let docs = docs.map(|entry| Path::new("docs").join(entry.unwrap().file_name()));
    let pages = own.into_iter().chain(docs.filter(|path| path.extension().is_some_and(|e| e == "md")));
    let mut pages: Vec<PathBuf> = pages.collect();
    pages.sort();
    pages
        .into_iter()
        .map(|path| (path.clone(), std::fs::read_to_string(root().join(path)).unwrap()))
        .collect()
}

/// Text without its fenced blocks, and the lines of those.
fn split(text: &str) -> (String, Vec<String>) {
    let (mut prose, mut code, mut inside) = (String::new(), Vec::new(), false);
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            inside = !inside;
        } else if inside {
            code.push(line.to_owned());
        } else {
            prose += line;
            prose.push('\n');
        }
    }
    (prose, code)
}

/// The words of every skiff command on a line of a shell session.
fn commands(line: &str) -> Vec<Vec<String>> {
    let line = line.trim().trim_start_matches("$ ").replace(['(', ')'], ";");
    let line = line.split(" #").next().unwrap_or_default().to_owned();
    let parts = line.split(['|', ';', '&', '>', '<']).map(str::to_owned).collect::<Vec<_>>();
    let words =
        parts.iter().map(|part| part.split_whitespace().map(|w| w.trim_matches(['"', '\'']).to_owned()));
    let words = words.map(|words| words.skip_while(|w| ["sudo", "time", "-E"].contains(&w.as_str())));
    let words = words.map(Iterator::collect::<Vec<String>>);
    words.filter(|words| words.first().is_some_and(|w| ["skiff", "minikube"].contains(&w.as_str()))).collect()
}

#[test]
fn the_reference_is_that_of_this_command_line() {
    let page = std::fs::read_to_string(root().join("docs/commands.md")).unwrap_or_default();
    assert!(
        page == crate::reference::text(Cli::command()),
        "docs/commands.md is of another command line; run: make docs"
    );
}

#[test]
fn every_command_on_a_page_is_one() {
    let mut seen = 0;
    // The map's drawing of the machine is no session, and the reference is made.
    let drawn = ["ARCHITECTURE.md", "docs/commands.md"].map(Path::new);
    for (path, text) in pages().iter().filter(|(path, _)| !drawn.contains(&path.as_path())) {
        for words in split(text).1.iter().flat_map(|line| commands(line)) {
            seen += 1;
            let parsed = Cli::command().try_get_matches_from(&words);
            if let Err(error) = parsed {
                use clap::error::ErrorKind::{
                    DisplayHelp, DisplayHelpOnMissingArgumentOrSubcommand, DisplayVersion,
                };
                let kinds = [DisplayHelp, DisplayVersion, DisplayHelpOnMissingArgumentOrSubcommand];
                assert!(kinds.contains(&error.kind()), "{}: {words:?}: {error}", path.display());
            }
        }
    }
    assert!(seen > 40, "only {seen} commands found: the pages or this test have changed");
}

#[test]
fn commands_named_in_prose_are_there_and_all_are_named() {
    let root = Cli::command();
    let known: BTreeSet<&str> =
        root.get_subcommands().filter(|c| !c.is_hide_set()).map(clap::Command::get_name).collect();
    let mut named = BTreeSet::new();
    for (path, text) in pages().iter().filter(|(path, _)| !path.ends_with("docs/commands.md")) {
        for span in split(text).0.split('`').skip(1).step_by(2) {
            let mut words = span.split_whitespace().skip_while(|word| *word == "sudo");
            let Some("skiff") = words.next() else { continue };
            let word = words.find(|word| !word.starts_with('-')).unwrap_or_default();
            let hidden = root.get_subcommands().any(|c| c.is_hide_set() && c.get_name() == word);
            let is_name = !word.is_empty() && word.chars().all(|c| c.is_ascii_lowercase() || c == '-');
            assert!(
                !is_name || hidden || known.contains(word),
                "{}: `{span}` names no command",
                path.display()
            );
            if path == Path::new("README.md") {
                named.extend(known.get(word));
            }
        }
    }
    let missing: Vec<_> = known.difference(&named).collect();
    assert!(missing.is_empty(), "README.md does not speak of {missing:?}");
}

/// The anchor that a heading gets.
fn anchor(heading: &str) -> String {
    let kept = heading.trim().to_lowercase();
    let kept = kept.chars().filter(|c| c.is_alphanumeric() || [' ', '-', '_'].contains(c));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

#[test]
fn every_link_leads_somewhere() {
    let mut seen = 0;
    for (path, text) in pages() {
        let prose = split(&text).0;
        for target in prose.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            seen += 1;
            if let Some((_, rest)) = target.split_once("://") {
                assert!(rest.contains('.') && target.starts_with("http"), "{}: {target}", path.display());
                continue;
            }
            let (file, fragment) = target.split_once('#').unwrap_or((target, ""));
            let dir = path.parent().unwrap();
            let file = if file.is_empty() { path.clone() } else { dir.join(file) };
            let there = root().join(&file);
            assert!(there.exists(), "{}: {target} is not there", path.display());
            if !fragment.is_empty() {
                let page = split(&std::fs::read_to_string(there).unwrap()).0;
                let headings = page.lines().filter(|line| line.starts_with('#'));
                let anchors: Vec<_> = headings.map(|line| anchor(line.trim_start_matches('#'))).collect();
                assert!(anchors.iter().any(|a| a == fragment), "{}: {target}: {anchors:?}", path.display());
            }
        }
    }
    assert!(seen > 20, "only {seen} links found: the pages or this test have changed");
}

#[test]
fn sessions_are_read_as_a_shell_would() {
    let said = |line: &str| commands(line).into_iter().map(|words| words.join(" ")).collect::<Vec<_>>();
    assert_eq!(said("$ sudo skiff start --nodes 3   # three"), ["skiff start --nodes 3"]);
    assert_eq!(said("curl http://$(skiff ip):32000 | head"), ["skiff ip"]);
    assert_eq!(said("skiff stop && skiff delete"), ["skiff stop", "skiff delete"]);
    assert!(said("✔ skiff runs").is_empty() && said("kubectl get pods").is_empty());
}
