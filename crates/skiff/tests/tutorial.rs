//! The networking tutorial that skiff grew from, as far as it is built: its commands in their order, word for word, in a
//! shell where skiff is called minikube, each with what its output must look like.
//!
//! The files below `tutorial/`: `$ COMMAND` runs once and must succeed, `? COMMAND` is tried until its output is right
//! (somebody at a keyboard looks again), the lines below are the output. Blanks count as one; `{word}` is any word or
//! part of one, `{any}` the rest of a line, `...` any lines. `@edit SCRIPT` is what the next editor does, in sed's words.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use regex::Regex;
use testkit::command::{Ran, run};
use testkit::images;
use testkit::machine::Machine;
use testkit::user::User;

const SKIFF: &str = env!("CARGO_BIN_EXE_skiff");
const PROFILE: &str = "tutorial";
const SECTIONS: [&str; 2] = [include_str!("tutorial/services.txt"), include_str!("tutorial/dns.txt")];
const SOON: Duration = Duration::from_secs(60);

#[derive(Debug)]
struct Step<'a> {
    command: &'a str,
    patient: bool,
    edit: Option<&'a str>,
    output: Vec<&'a str>,
}

fn steps(section: &str) -> Vec<Step<'_>> {
    let mut steps: Vec<Step<'_>> = Vec::new();
    let mut edit = None;
    for line in section.lines() {
        if let Some(script) = line.strip_prefix("@edit ") {
            edit = Some(script);
        } else if let Some(command) = line.strip_prefix("$ ").or_else(|| line.strip_prefix("? ")) {
            let patient = line.starts_with('?');
            steps.push(Step { command, patient, edit: edit.take(), output: Vec::new() });
        } else if !line.is_empty() && !line.starts_with("# ") {
            steps.last_mut().expect("a command above its output").output.push(line);
        }
    }
    steps
}

/// Lines without the blanks that only align columns, and without empty ones.
fn plain(text: &str) -> Vec<String> {
    let lines = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
    lines.filter(|line| !line.is_empty()).collect()
}

fn matches(shape: &[&str], lines: &[String]) -> bool {
    match (shape.split_first(), lines.split_first()) {
        (None, None) => true,
        (Some((&"...", rest)), None) => matches(rest, lines),
        (Some((&"...", rest)), Some((_, others))) => matches(rest, lines) || matches(shape, others),
        (Some((first, rest)), Some((line, others))) => fits(first, line) && matches(rest, others),
        _ => false,
    }
}

fn fits(shape: &str, line: &str) -> bool {
    let escaped = regex::escape(shape).replace("\\{any\\}", ".*");
    let pattern = Regex::new("\\\\\\{[a-z]+\\\\\\}").unwrap().replace_all(&escaped, "\\S+").into_owned();
    Regex::new(&format!("^{pattern}$")).unwrap().is_match(line)
}

/// A shell whose user has typed a line.
fn typed(user: &User, line: &str) -> Ran {
    let path = std::env::var("PATH").unwrap();
    let mut shell = user.command("sh", "-c");
    shell.arg(line).env("PATH", format!("{}:{path}", user.path("").display()));
    run(shell.env("SKIFF_PROFILE", PROFILE).env("KUBE_EDITOR", user.path("editor")))
}

fn take(user: &User, step: &Step<'_>) {
    if let Some(script) = step.edit {
        let editor = user.path("editor");
        std::fs::write(&editor, format!("#!/bin/sh\nexec sed -i -e '{script}' \"$1\"\n")).unwrap();
        std::fs::set_permissions(&editor, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    let began = Instant::now();
    loop {
        let ran = typed(user, step.command);
        let right = matches(&step.output, &plain(&ran.stdout));
        if right && (ran.ok || step.patient) {
            return;
        }
        let more = step.patient && began.elapsed() < SOON;
        assert!(more, "{}\nshould print\n{}\nbut {ran:#?}", step.command, step.output.join("\n"));
        std::thread::sleep(Duration::from_millis(200));
    }
}

#[test]
fn the_tutorial_word_for_word() {
    assert!(nix::unistd::geteuid().is_root(), "end-to-end tests need root: sudo make test");
    let before = Machine::now();
    {
        let user = User::new(SKIFF);
        let _clusters = user.clusters(&[PROFILE]);
        typed(&user, "minikube start").out();
        for image in ["nginx", "busybox"] {
            typed(&user, &format!("minikube image load {}", images::tar(image).display())).out();
        }
        for section in SECTIONS {
            steps(section).iter().for_each(|step| take(&user, step));
        }
    }
    before.is_again(SOON);
}

#[test]
fn a_wrong_output_is_told_from_a_right_one() {
    let shape = ["NAME AGE", "web-{id} {age}", "...", "end{any}"];
    let is_right = |text: &str| matches(&shape, &plain(text));
    assert!(is_right("NAME    AGE\nweb-7f-x  3s\nend"));
    assert!(is_right("NAME AGE\nweb-1 2m\n\nmore\nand more\nend of it\n"));
    assert!(!is_right("NAME AGE\nwob-1 2m\nend"));
    assert!(!is_right("NAME AGE\nweb-1\nend"));
    assert!(!is_right("NAME AGE\nweb-1 2m\n"));
    assert!(!is_right("NAME AGE\nweb-1 2m\nend\nafter"));
    let parsed = steps("# A title\n@edit s/a/b/\n$ one\nout\n? two\n");
    assert_eq!(parsed.len(), 2);
    assert!(parsed[0].edit == Some("s/a/b/") && parsed[0].output == ["out"] && !parsed[0].patient);
    assert!(parsed[1].edit.is_none() && parsed[1].patient, "{parsed:?}");
}
