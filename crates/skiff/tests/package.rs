//! `make dist`: what is in the Debian package and in the tarball, and that both can be installed.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::{Path, PathBuf};
use std::process::Command;

use testkit::command::{program, run};

const SKIFF: &str = env!("CARGO_BIN_EXE_skiff");

#[test]
fn packages_hold_what_is_installed() {
    let dir = tempfile::tempdir().unwrap();
    // The tests' binary is mostly debug information.
    let binary = dir.path().join("skiff");
    program("strip", &["-o", binary.to_str().unwrap(), SKIFF]).out();
    let out = dir.path().join("out");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../hack/package.sh");
    run(Command::new(script)
        .arg(&binary)
        .arg(&out)
        .env("DEB_COMPRESSION", "none")
        .env("SOURCE_DATE_EPOCH", "1700000000"))
    .out();
    let version = run(Command::new(SKIFF).args(["version", "--short"])).out();
    let version = version.trim();
    the_debian_package_is_sound(&out.join(format!("skiff_{version}_amd64.deb")), version);
    the_tarball_unpacks_over_a_prefix(&out.join(format!("skiff-{version}-x86_64-linux.tar.gz")), dir.path());
}

fn the_debian_package_is_sound(deb: &Path, version: &str) {
    let deb = deb.to_str().unwrap();
    let field = |name: &str| program("dpkg-deb", &["--field", deb, name]).out().trim().to_owned();
    assert_eq!([field("Package"), field("Version"), field("Architecture")], ["skiff", version, "amd64"]);
    assert!(
        field("Description").lines().count() > 2 && field("Installed-Size").parse::<u64>().unwrap() > 1000
    );
    let listed = program("dpkg-deb", &["--contents", deb]).out();
    for file in [
        "/usr/bin/skiff",
        "/usr/lib/systemd/system/skiff@.service",
        "/usr/share/man/man1/skiff-start.1.gz",
        "/usr/share/bash-completion/completions/skiff",
        "/usr/share/zsh/vendor-completions/_skiff",
        "/usr/share/fish/vendor_completions.d/skiff.fish",
        "/usr/share/doc/skiff/copyright",
        "/usr/share/doc/skiff/changelog.gz",
        "/usr/share/doc/skiff/networking.md",
    ] {
        assert!(listed.lines().any(|line| line.ends_with(&format!(".{file}"))), "{file} in\n{listed}");
    }
    for line in listed.lines() {
        let mode = line.split(' ').next().unwrap();
        assert!(line.contains("root/root"), "not root's: {line}");
        assert!(!mode[5..].contains('w') && !mode.contains('s'), "a mode that is too wide: {line}");
        assert!(
            !line.contains("/usr/local") && !line.contains("/tmp"),
            "a place that is not a package's: {line}"
        );
    }
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    program("dpkg-deb", &["--extract", deb, root.to_str().unwrap()]).out();
    program("dpkg-deb", &["--control", deb, root.join("control").to_str().unwrap()]).out();
    run(Command::new("md5sum").args(["--quiet", "--check", "control/md5sums"]).current_dir(root)).out();
    let unit = std::fs::read_to_string(root.join("usr/lib/systemd/system/skiff@.service")).unwrap();
    assert!(unit.contains("ExecStart=/usr/bin/skiff -p %i start") && !unit.contains('@'), "{unit}");
    assert!(run(Command::new(root.join("usr/bin/skiff")).arg("version")).out().contains(version));
    the_unit_is_understood(&root.join("usr/lib/systemd/system/skiff@.service"));
}

/// By systemd itself, where there is one; that the binary is not installed here is no fault of the unit.
fn the_unit_is_understood(unit: &Path) {
    let Some(analyze) = which("systemd-analyze") else { return };
    let checked = run(Command::new(analyze).arg("verify").arg("--man=no").arg(unit));
    let complaints: Vec<&str> = checked
        .stderr
        .lines()
        .filter(|line| line.contains("skiff") && !line.contains("is not executable"))
        .collect();
    assert!(complaints.is_empty(), "{complaints:?}");
}

fn which(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(name)).find(|file| file.is_file())
}

fn the_tarball_unpacks_over_a_prefix(tarball: &Path, dir: &Path) {
    let prefix = dir.join("prefix");
    std::fs::create_dir(&prefix).unwrap();
    let place = prefix.to_str().unwrap();
    program("tar", &["-C", place, "--strip-components=1", "-xzf", tarball.to_str().unwrap()]).out();
    for file in
        ["bin/skiff", "share/man/man1/skiff.1", "share/doc/skiff/LICENSE", "share/zsh/site-functions/_skiff"]
    {
        assert!(prefix.join(file).is_file(), "{file}");
    }
    let unit = std::fs::read_to_string(prefix.join("lib/systemd/system/skiff@.service")).unwrap();
    assert!(unit.contains("ExecStart=/usr/local/bin/skiff "), "{unit}");
    assert!(run(Command::new(prefix.join("bin/skiff")).arg("version")).ok);
}
