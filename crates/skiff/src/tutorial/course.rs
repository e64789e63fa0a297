//! The course as text: what is typed, and what its output must look like.
//!
//! A line that begins with `$` is a command that is taken once and must succeed; `?` is tried until its output is right
//! (somebody at a keyboard looks again), `!` the same with a command that fails; `^` makes what the sections before have
//! made, when a section is taken alone. The lines below are the output: blanks count as one, `{word}` is any word or part
//! of one, `{any}` any rest, `...` any lines. `>` is what the user is told before the next command, `@edit SCRIPT` what
//! its editor does in sed's words, `@instead COMMAND` the word of the original that it stands for. `#` is a comment.

use clap::ValueEnum;

/// A part of the course that can be taken alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Section {
    /// ClusterIP and NodePort, and an editor.
    Services,
    /// Names of Services, and how Pods find them.
    Dns,
    /// Paths and hosts by a controller.
    Ingress,
    /// Who may talk to whom.
    Policies,
}

impl Section {
    /// All, in the course's order.
    pub const ALL: [Self; 4] = [Self::Services, Self::Dns, Self::Ingress, Self::Policies];

    /// What is shown above it.
    pub fn title(self) -> &'static str {
        match self {
            Self::Services => "Services",
            Self::Dns => "Services and DNS",
            Self::Ingress => "Ingress",
            Self::Policies => "Network policies",
        }
    }

    /// Its commands.
    pub fn steps(self) -> Vec<Step> {
        steps(match self {
            Self::Services => include_str!("services.txt"),
            Self::Dns => include_str!("dns.txt"),
            Self::Ingress => include_str!("ingress.txt"),
            Self::Policies => include_str!("policies.txt"),
        })
    }
}

/// How often a command is tried, and how it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Once, with success.
    Once,
    /// Until its output is right, whatever its exit status.
    Patient,
    /// Until its output is right, and it has failed.
    Failing,
    /// What the sections before have made.
    Before,
}

/// One command of the course.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// The line as it is typed.
    pub command: String,
    /// How it is taken.
    pub kind: Kind,
    /// What the user is told before.
    pub told: Vec<String>,
    /// What the editor that it opens does, in sed's words.
    pub edit: Option<String>,
    /// The output's shape.
    pub output: Vec<String>,
}

fn steps(section: &str) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    let (mut edit, mut told) = (None, Vec::new());
    for line in section.lines() {
        let (mark, rest) = line.split_once(' ').unwrap_or((line, ""));
        let kind = match mark {
            "$" => Kind::Once,
            "?" => Kind::Patient,
            "!" => Kind::Failing,
            "^" => Kind::Before,
            ">" => {
                told.push(rest.to_owned());
                continue;
            }
            "@edit" => {
                edit = Some(rest.to_owned());
                continue;
            }
            "@instead" | "#" | "" => continue,
            _ => {
                if let Some(step) = steps.last_mut() {
                    step.output.push(line.to_owned());
                }
                continue;
            }
        };
        let (edit, told) = (edit.take(), std::mem::take(&mut told));
        steps.push(Step { command: rest.to_owned(), kind, told, edit, output: Vec::new() });
    }
    steps
}

impl Step {
    /// Whether the command only looks.
    pub fn only_looks(&self) -> bool {
        let mut words = self.command.split(' ');
        match (words.next(), words.next()) {
            (Some("curl" | "echo"), _) => true,
            (Some("kubectl"), Some(verb)) => ["get", "describe", "exec"].contains(&verb),
            (Some("minikube"), Some(_)) => self.command.ends_with(" list"),
            _ => false,
        }
    }

    /// Whether an output, and the way the command ended, are what the course says.
    pub fn is_right(&self, succeeded: bool, output: &str) -> bool {
        let ended = match self.kind {
            Kind::Once | Kind::Before => succeeded,
            Kind::Patient => true,
            Kind::Failing => !succeeded,
        };
        let shape: Vec<&str> = self.output.iter().map(String::as_str).collect();
        ended && (self.kind == Kind::Before || matches(&shape, &plain(output)))
    }
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

/// Whether a line is what a shape says; placeholders take as little as they can, and more when that does not fit.
fn fits(shape: &str, line: &str) -> bool {
    let Some((fixed, rest)) = shape.split_once('{') else { return shape == line };
    let Some((name, rest)) = rest.split_once('}') else { return shape == line };
    let Some(tail) = line.strip_prefix(fixed) else { return false };
    let ends = tail.char_indices().map(|(at, _)| at).chain([tail.len()]);
    if name == "any" {
        return ends.into_iter().any(|at| fits(rest, &tail[at..]));
    }
    let word = tail.find(char::is_whitespace).unwrap_or(tail.len());
    ends.filter(|at| (1..=word).contains(at)).any(|at| fits(rest, &tail[at..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_output_is_told_from_a_right_one() {
        let shape = ["NAME AGE", "web-{id} {age}", "...", "end{any}"];
        let is_right = |text: &str| matches(&shape, &plain(text));
        assert!(is_right("NAME    AGE\nweb-7f-x  3s\nend"));
        assert!(is_right("NAME AGE\nweb-1 2m\n\nmore\nand more\nend of it\n"));
        assert!(!is_right("NAME AGE\nwob-1 2m\nend"));
        assert!(!is_right("NAME AGE\nweb-1\nend"));
        assert!(!is_right("NAME AGE\nweb- 2m\nend"), "a placeholder is something");
        assert!(!is_right("NAME AGE\nweb-1 2m\n"));
        assert!(!is_right("NAME AGE\nweb-1 2m\nend\nafter"));
        assert!(fits("80:{port}/TCP,443:{port}/TCP {age}", "80:31000/TCP,443:31001/TCP 3s"));
        assert!(!fits("{a}-{b}", "a b"));
        assert!(fits("/ app:80 ({address}:80,{any})", "/ app:80 (10.244.0.4:80,10.244.0.5:80)"));
    }

    #[test]
    fn steps_have_what_stands_above_and_below_them() {
        let parsed = steps(
            "# why\n^ zero\n> told\n> more\n@edit s/a/b/\n$ one\nout\n\n@instead docker ps\n? two\n! no\n",
        );
        let commands: Vec<(&str, Kind)> = parsed.iter().map(|s| (s.command.as_str(), s.kind)).collect();
        let kinds =
            [("zero", Kind::Before), ("one", Kind::Once), ("two", Kind::Patient), ("no", Kind::Failing)];
        assert_eq!(commands, kinds);
        assert_eq!((parsed[1].told.len(), parsed[1].edit.as_deref()), (2, Some("s/a/b/")));
        assert!(parsed[1].output == ["out"] && parsed[2].edit.is_none() && parsed[2].told.is_empty());
        assert!(parsed[1].is_right(true, "out\n") && !parsed[1].is_right(false, "out\n"));
        assert!(parsed[3].is_right(false, "") && !parsed[3].is_right(true, ""));
    }

    #[test]
    fn every_section_has_steps_with_outputs() {
        for section in Section::ALL {
            let steps = section.steps();
            assert!(steps.len() > 4, "{section:?}");
            assert!(steps.iter().any(|step| !step.output.is_empty()), "{section:?}");
            assert!(steps.first().is_some_and(|step| step.kind == Kind::Before || !step.told.is_empty()));
        }
    }
}
