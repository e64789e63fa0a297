//! What tests are made with: a cluster of their own, the real kubectl, images, and proof that nothing is left behind;
//! for crates below the binary, network namespaces ([`netns`]), what stands behind a container ([`node`]) and an API that only tells objects (`fake_api`, a feature
//! of its own because few tests need what it is built with).
//!
//! A failure here is a failed test, so everything panics with the command and what it printed. Nothing skips: a
//! missing tool fails with the line that installs it.
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a panic is how a test fails")]

pub mod cluster;
pub mod command;
#[cfg(feature = "fake-api")]
pub mod fake_api;
pub mod images;
pub mod kubectl;
pub mod machine;
pub mod netns;
pub mod node;
pub mod user;

use std::time::{Duration, Instant};

/// Waits until `probe` gives something, trying every 50 ms.
///
/// # Panics
/// When it gives nothing within `limit`.
pub fn eventually<T>(what: &str, limit: Duration, mut probe: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(value) = probe() {
            return value;
        }
        assert!(began.elapsed() < limit, "{what}: not within {limit:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}
