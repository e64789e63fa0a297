//! Real images without a registry: made from Debian packages by `hack/make-test-images.sh`.

use std::path::PathBuf;
use std::process::Command;

use crate::command::run;

/// The tar of a test image (`nginx`, `httpd` or `busybox`); made at the first use.
///
/// # Panics
/// When it cannot be made.
pub fn tar(name: &str) -> PathBuf {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..");
    let given = std::env::var_os("SKIFF_TEST_IMAGES").map(PathBuf::from);
    let dir = given.unwrap_or_else(|| root.join("target/images"));
    let tar = dir.join(format!("{name}.tar"));
    if !tar.exists() {
        run(Command::new(root.join("hack/make-test-images.sh")).arg(&dir)).out();
    }
    assert!(tar.exists(), "{} was not made", tar.display());
    tar
}
