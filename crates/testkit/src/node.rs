//! For tests of containers without a cluster: a root file system, and the end of a shim whose test failed.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Ends the shim with this process id when dropped, unless it has ended itself.
#[derive(Debug)]
pub struct ShimGuard(pub i32);

impl Drop for ShimGuard {
    fn drop(&mut self) {
        let comm = format!("/proc/{}/comm", self.0);
        let is_shim = || fs::read_to_string(&comm).is_ok_and(|comm| comm.trim() == "skiff-shim");
        for _ in 0..500 {
            if !is_shim() {
                return;
            }
            let _ = kill(Pid::from_raw(self.0), Signal::SIGTERM);
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// A root file system of busybox, with the user root and a page in `/www`.
pub fn busybox(root: &Path) {
    for folder in ["bin", "etc", "tmp", "proc", "sys", "dev", "root", "www"] {
        fs::create_dir_all(root.join(folder)).unwrap();
    }
    fs::copy("/bin/busybox", root.join("bin/busybox")).expect("busybox-static is installed");
    let list = Command::new("/bin/busybox").arg("--list").output().unwrap();
    for applet in String::from_utf8(list.stdout).unwrap().lines().filter(|applet| *applet != "busybox") {
        symlink("busybox", root.join("bin").join(applet)).unwrap();
    }
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n").unwrap();
    fs::write(root.join("www/index.html"), "hello\n").unwrap();
}
