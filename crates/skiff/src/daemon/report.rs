//! Steps to whoever started the daemon: JSON lines on standard output, until it is up or has failed.

use std::io::Write;

use crate::control::{Answer, Reply};
use crate::output::chain;

/// The way to the starter. Once nobody listens any more, reports go nowhere.
#[derive(Debug)]
pub struct Report(());

impl Report {
    /// Reports go to standard output.
    pub fn new() -> Self {
        Self(())
    }

    fn send(&self, reply: &Reply) {
        let Ok(line) = serde_json::to_string(reply) else { return };
        let mut out = std::io::stdout().lock();
        // A starter that was interrupted reads no more; the daemon goes on.
        let _ = writeln!(out, "{line}").and_then(|()| out.flush());
    }

    /// A step begins.
    pub fn step(&self, text: &str) {
        tracing::info!("{text}");
        self.send(&Reply::Step(text.to_owned()));
    }

    /// The cluster is up. Standard output is then closed for the starter.
    pub fn up(&self) {
        self.send(&Reply::Done(Answer::Empty));
        if let Ok(null) = std::fs::OpenOptions::new().write(true).open("/dev/null") {
            // Only fails when out of descriptors; the starter has its answer all the same.
            let _ = nix::unistd::dup2_stdout(&null);
        }
    }

    /// It will not be up.
    pub fn failed(&self, error: &anyhow::Error) {
        self.send(&Reply::Failed(chain(error)));
    }
}
