//! `skiff doctor`: what this machine lacks, and what to do about it.

use std::process::ExitCode;

use anstyle::{AnsiColor, Style};
use anyhow::bail;
use cluster::Profile;

use super::need_root;
use crate::doctor::{self, Finding, Verdict};
use crate::output::Print;
use crate::program::advice;

/// Prints all findings; exit status 1 when one of them keeps a cluster from running.
pub fn run(name: &str, print: Print) -> anyhow::Result<ExitCode> {
    need_root()?;
    let profile = Profile::new(name)?;
    let mut findings = doctor::needed(&profile);
    findings.extend(doctor::wanted());
    findings.extend(doctor::leftovers());
    print.print(&findings, |findings| findings.iter().map(line).collect())?;
    let failed = findings.iter().any(|finding| finding.verdict == Verdict::Failure);
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// The part that `start` runs: refuses to start what cannot run.
pub fn quick(profile: &Profile) -> anyhow::Result<()> {
    let failed = doctor::needed(profile).into_iter().find(|finding| finding.verdict == Verdict::Failure);
    let Some(Finding { check, found, remedy, .. }) = failed else { return Ok(()) };
    bail!(
        "{check}: {found}; {}; all checks: {}",
        remedy.unwrap_or_default(),
        advice("doctor", &profile.name)
    );
}

fn line(finding: &Finding) -> String {
    let (color, mark) = match finding.verdict {
        Verdict::Good => (AnsiColor::Green, "✔"),
        Verdict::Warning => (AnsiColor::Yellow, "!"),
        Verdict::Failure => (AnsiColor::Red, "✘"),
    };
    let style: Style = color.on_default();
    let first = format!("{style}{mark}{style:#} {}: {}\n", finding.check, finding.found);
    match &finding.remedy {
        Some(remedy) => format!("{first}    {remedy}\n"),
        None => first,
    }
}
