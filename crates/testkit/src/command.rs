//! Running programs and keeping what they print.

use std::process::{Command, Output};

/// What a program printed, and whether it succeeded.
#[derive(Debug, Clone)]
pub struct Ran {
    /// The command line.
    pub line: String,
    /// Exit status 0.
    pub ok: bool,
    /// Exit code, if it ended by itself.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Ran {
    /// Standard output of a program that must have succeeded.
    ///
    /// # Panics
    /// When it failed.
    #[track_caller]
    pub fn out(self) -> String {
        assert!(self.ok, "{} failed ({:?})\n{}{}", self.line, self.code, self.stdout, self.stderr);
        self.stdout
    }

    /// Standard error of a program that must have failed.
    ///
    /// # Panics
    /// When it succeeded.
    #[track_caller]
    pub fn err(self) -> String {
        assert!(!self.ok, "{} should have failed\n{}{}", self.line, self.stdout, self.stderr);
        self.stderr
    }
}

/// Runs a command to its end.
///
/// # Panics
/// When it cannot be started.
#[track_caller]
pub fn run(command: &mut Command) -> Ran {
    let line = format!("{command:?}");
    let output = command.output();
    let Output { status, stdout, stderr } = output
        .unwrap_or_else(|e| panic!("cannot run {line}: {e}; the tests' tools are installed by: make deps"));
    Ran {
        line,
        ok: status.success(),
        code: status.code(),
        stdout: String::from_utf8_lossy(&stdout).into_owned(),
        stderr: String::from_utf8_lossy(&stderr).into_owned(),
    }
}

/// Runs a program with arguments.
#[track_caller]
pub fn program(name: &str, args: &[&str]) -> Ran {
    run(Command::new(name).args(args))
}
