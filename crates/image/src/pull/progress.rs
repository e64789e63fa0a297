//! How far a pull or load has come, told at a rate that suits a terminal.

use std::sync::{Mutex, PoisonError};

/// Bytes between two reports.
const STEP: u64 = 1 << 20;

/// What is being done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Phase {
    /// Asking what the name stands for.
    #[default]
    Resolving,
    /// Fetching (or reading) layers; the first ones may already be unpacked.
    Downloading,
    /// All bytes are here, the last layers are being unpacked.
    Unpacking,
    /// The image is ready.
    Done,
}

/// A snapshot of the work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    /// What is being done.
    pub phase: Phase,
    /// Bytes of layers received.
    pub bytes: u64,
    /// Bytes of layers in all; 0 while unknown.
    pub total_bytes: u64,
    /// Layers unpacked.
    pub layers: usize,
    /// Layers in all.
    pub total_layers: usize,
}

/// Counts, and reports to the callback.
pub(crate) struct Tracker<'a> {
    report: &'a (dyn Fn(Progress) + Send + Sync),
    /// The state, and the bytes at the last report.
    state: Mutex<(Progress, u64)>,
}

impl<'a> Tracker<'a> {
    pub fn new(report: &'a (dyn Fn(Progress) + Send + Sync)) -> Self {
        Self { report, state: Mutex::default() }
    }

    pub fn phase(&self, phase: Phase) {
        self.change(true, |progress| progress.phase = phase);
    }

    pub fn expect(&self, bytes: u64, layers: usize) {
        self.change(true, |progress| {
            progress.phase = Phase::Downloading;
            progress.total_bytes += bytes;
            progress.total_layers += layers;
        });
    }

    pub fn received(&self, bytes: u64) {
        self.change(false, |progress| {
            progress.bytes += bytes;
            if progress.bytes >= progress.total_bytes && progress.phase == Phase::Downloading {
                progress.phase = Phase::Unpacking;
            }
        });
    }

    /// A failed try: its bytes do not count.
    pub fn lost(&self, bytes: u64) {
        self.change(true, |progress| {
            progress.bytes = progress.bytes.saturating_sub(bytes);
            progress.phase = Phase::Downloading;
        });
    }

    pub fn layer_done(&self) {
        self.change(true, |progress| progress.layers += 1);
    }

    fn change(&self, always: bool, change: impl FnOnce(&mut Progress)) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let phase = state.0.phase;
        change(&mut state.0);
        let (progress, reported) = *state;
        if always || progress.phase != phase || progress.bytes.abs_diff(reported) >= STEP {
            state.1 = progress.bytes;
            drop(state);
            (self.report)(progress);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn small_chunks_are_reported_in_steps() {
        let seen = Mutex::new(Vec::new());
        let report = |progress: Progress| seen.lock().unwrap().push((progress.phase, progress.bytes));
        let tracker = Tracker::new(&report);
        tracker.expect(3 * STEP, 1);
        for _ in 0..3 * 1024 {
            tracker.received(1024);
        }
        tracker.layer_done();
        let seen = seen.into_inner().unwrap();
        let phases =
            [Phase::Downloading, Phase::Downloading, Phase::Downloading, Phase::Unpacking, Phase::Unpacking];
        assert_eq!(seen.iter().map(|(phase, _)| *phase).collect::<Vec<_>>(), phases);
        assert_eq!(seen.last().unwrap().1, 3 * STEP);
    }
}
