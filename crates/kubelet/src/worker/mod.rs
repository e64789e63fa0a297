//! One task per Pod: [`step::step`] decides, operations act, outcomes come back, the status follows.

pub mod pause;
pub mod pull;
pub mod record;
pub mod run;
pub mod sandbox;
pub mod start;
pub mod state;
pub mod status;
pub mod step;
pub mod stop;

use jiff::Timestamp;
use runtime::Exit;

use state::Ended;

/// A start that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StartError {
    /// The waiting reason.
    pub reason: &'static str,
    /// Details.
    pub message: String,
    /// The runtime had it in hand: it counts as a run that failed, with back-off.
    pub ran: bool,
}

/// How a container ended, from what the runtime tells.
pub fn ended(id: &str, started_at: Option<Timestamp>, exit: &Exit) -> Ended {
    let reason = match (exit.oom_killed, exit.code) {
        (true, _) => "OOMKilled",
        (false, 0) => "Completed",
        (false, _) => "Error",
    };
    let finished =
        i64::try_from(exit.finished_at / 1_000_000_000).ok().and_then(|s| Timestamp::from_second(s).ok());
    Ended {
        id: id.into(),
        code: exit.code,
        signal: exit.signal,
        reason: reason.into(),
        message: None,
        started_at,
        finished_at: finished.unwrap_or_else(Timestamp::now),
    }
}

/// A fresh container id: 64 hexadecimal digits.
pub fn new_id() -> String {
    let bytes: [u8; 32] = rand::random();
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
