//! The networking tutorial that skiff grew from, word for word: `minikube tutorial` with the real nginx, httpd and
//! busybox, then `skiff tutorial` on a machine without a network and so without a registry, and what a user does who
//! has had enough. The course and the shapes of its outputs stand in `src/tutorial/`; that a wrong output is told from a
//! right one is tested there.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use testkit::command::run;
use testkit::images;
use testkit::machine::Machine;
use testkit::user::User;

const SKIFF: &str = env!("CARGO_BIN_EXE_skiff");
const SOON: Duration = Duration::from_secs(60);
/// The tutorial's own commands, in its order.
const COMMANDS: &str = include_str!("tutorial/commands.txt");

#[test]
fn the_tutorial_word_for_word() {
    assert!(nix::unistd::geteuid().is_root(), "end-to-end tests need root: sudo make test");
    let before = Machine::now();
    let hosts = std::fs::read("/etc/hosts").unwrap();
    let user = User::new(SKIFF);
    {
        let _clusters = user.clusters(&["tutorial", "tut-off", "tut-dns"]);
        with_real_images(&user);
        offline(&user);
        one_section_brings_what_it_needs(&user);
        enough_at_any_time_leaves_nothing(&user);
        keys_of_a_terminal_go_on_and_end_it(&user);
        what_cannot_be_is_said_before(&user);
    }
    assert_eq!(std::fs::read("/etc/hosts").unwrap(), hosts);
    assert!(!user.kubeconfig().exists(), "the course has a kubeconfig of its own");
    before.is_again(SOON);
}

/// The commands that were shown, under the name that skiff was called by.
fn typed(shown: &str) -> Vec<&str> {
    shown.lines().filter_map(|line| line.strip_prefix("$ ")).collect()
}

fn with_real_images(user: &User) {
    let dir = images::tar("nginx").parent().unwrap().to_owned();
    for image in ["httpd", "busybox"] {
        images::tar(image);
    }
    let shown = user.minikube(&format!("tutorial --yes --brief --images {}", dir.display())).out();
    let mut typed = typed(&shown).into_iter();
    for command in COMMANDS.lines() {
        // Where minikube's users look for their node's container, there is none.
        let command = if command == "docker ps" { "minikube node list" } else { command };
        assert!(typed.any(|line| line == command), "{command:?} is missing, or out of order, in\n{shown}");
    }
    assert!(shown.contains("Server:") && !shown.contains("stand-ins out of skiff"), "{shown}");
}

/// A fresh network namespace has no way out: no registry, no name server.
fn offline(user: &User) {
    let mut machine = user.command("unshare", "--net sh -c");
    let shown =
        run(machine.arg(format!("ip link set lo up && exec {SKIFF} -p tut-off tutorial --yes"))).out();
    assert!(shown.contains("stand-ins out of skiff"), "{shown}");
    for told in [
        "cluster: + Deployment nginx-app; + Pod nginx-app-",
        "+ EndpointSlice nginx-app-",
        "+ DNS nginx-app.default.svc.cluster.local (10.",
        "~ Service nginx-app (NodePort 10.",
        "  node: + route 10.244.",
        ". tcp . 80 : goto o3",
        "+ skiff-policy isolated-in 10.244.",
        "+ NetworkPolicy access-nginx",
    ] {
        assert!(shown.contains(told), "{told:?} in\n{shown}");
    }
    assert!(shown.contains("every output as the course has it"), "{shown}");
    assert!(typed(&shown).len() > COMMANDS.lines().count(), "{shown}");
}

fn one_section_brings_what_it_needs(user: &User) {
    let shown = user.skiff("-p tut-dns tutorial dns --yes --brief").out();
    let typed = typed(&shown);
    assert_eq!(typed[..2], ["skiff start", COMMANDS.lines().next().unwrap()]);
    assert!(shown.contains("Name:") && !shown.contains("cluster: "), "{shown}");
}

fn enough_at_any_time_leaves_nothing(user: &User) {
    let mut command = user.command(SKIFF, "tutorial services --yes");
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut rest = lines.map(Result::unwrap).skip_while(|line| !line.contains("kubectl expose"));
    rest.next().expect("the course comes to a Service");
    kill(Pid::from_raw(child.id().try_into().unwrap()), Signal::SIGINT).unwrap();
    rest.for_each(drop);
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(user.skiff("-p tutorial status").err().contains("there is no cluster"));
}

fn keys_of_a_terminal_go_on_and_end_it(user: &User) {
    let mut command = user.command("script", "--quiet --return --command");
    command.arg(format!("{SKIFF} tutorial services --brief")).arg("/dev/null");
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let (mut keys, mut screen) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let (mut seen, mut buffer) = (String::new(), [0; 4096]);
    let mut pressed = 0;
    while let Ok(count @ 1..) = screen.read(&mut buffer) {
        seen += &String::from_utf8_lossy(&buffer[..count]);
        if seen.matches("a key goes on, q ends").count() > pressed {
            pressed += 1;
            keys.write_all(if pressed < 3 { b" " } else { b"q" }).unwrap();
        }
    }
    assert_eq!((child.wait().unwrap().code(), pressed), (Some(130), 3), "{seen}");
    let shown: Vec<&str> = COMMANDS.lines().filter(|line| seen.contains(line)).collect();
    assert_eq!(shown, COMMANDS.lines().take(2).collect::<Vec<_>>(), "{seen}");
    assert!(user.skiff("-p tutorial status").err().contains("there is no cluster"));
}

fn what_cannot_be_is_said_before(user: &User) {
    assert!(user.skiff("tutorial ingres --yes").err().contains("'ingress'"));
    assert!(user.skiff("tutorial").err().contains("there is no keyboard to wait for"));
    let empty = tempfile::tempdir().unwrap();
    let bare = run(Command::new(SKIFF).args(["tutorial", "--yes"]).env("PATH", empty.path()));
    assert!(bare.err().contains("kubectl, which is not on the PATH; install one"));
}
