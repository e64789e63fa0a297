//! `skiff tutorial`: the networking course live, in a cluster of its own that goes at the end.

use std::io::{IsTerminal, Read};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anstyle::{AnsiColor, Style};
use anyhow::{Context, bail};
use clap::Args;
use cluster::Profile;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::termios::{LocalFlags, SetArg, tcgetattr, tcsetattr};

use super::{ask_running, need_root};
use crate::control::Request;
use crate::program::{advice, name, on_path};
use crate::tutorial::course::{Kind, Section, Step};
use crate::tutorial::stage::{Ran, Stage};
use crate::tutorial::story::{Look, story};
use crate::tutorial::witness::{Seen, look};

/// Arguments of `tutorial`.
#[derive(Debug, Args)]
pub struct Options {
    /// One section alone [default: all].
    #[arg(value_enum)]
    section: Option<Section>,
    /// Go on without waiting for a key.
    #[arg(short, long)]
    yes: bool,
    /// Show commands and outputs, not what happened in the cluster.
    #[arg(long)]
    brief: bool,
    /// A directory whose nginx.tar, httpd.tar and busybox.tar are used in place of the stand-ins.
    #[arg(long, value_name = "DIR")]
    images: Option<PathBuf>,
}

/// The cluster of the course, unless -p names another.
const PROFILE: &str = "tutorial";
/// How long an output may take to become right, and a cluster to settle.
const PATIENCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(100);
const BOLD: Style = Style::new().bold();
const DIM: Style = Style::new().dimmed();
const CYAN: Style = AnsiColor::Cyan.on_default();

/// Goes through the course; exit status 130 when it was broken off.
pub fn run(named: Option<&str>, options: &Options) -> anyhow::Result<ExitCode> {
    need_root()?;
    let profile = Profile::new(named.unwrap_or(PROFILE))?;
    check(&profile, options)?;
    let interrupted = interrupts()?;
    let stage = Stage::new(&profile.name, interrupted.clone())?;
    let mut guide = Guide { profile, stage, options, interrupted, seen: Look::default(), taken: 0 };
    let began = Instant::now();
    let outcome = guide.course();
    let broken_off = guide.interrupted.swap(false, Ordering::Relaxed);
    guide.show("minikube delete");
    let gone = guide.stage.types(&shown("minikube delete"));
    match (broken_off, outcome) {
        (true, _) | (false, Ok(false)) => {
            gone?;
            Ok(ExitCode::from(130))
        }
        (false, Err(error)) => Err(error),
        (false, Ok(true)) => {
            if !gone?.succeeded {
                bail!("the course's cluster is not all gone; run: {}", advice("delete", &guide.profile.name));
            }
            let (count, time) = (guide.taken, began.elapsed().as_secs_f64());
            anstream::println!("\n{count} commands, every output as the course has it, {time:.1} s.");
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// What can be said before anything is made.
fn check(profile: &Profile, options: &Options) -> anyhow::Result<()> {
    if profile.state_dir.exists() {
        let delete = advice("delete", &profile.name);
        bail!(
            "there is a cluster {:?} already, and the course makes its own; delete it ({delete}) or name another: -p NAME",
            profile.name
        );
    }
    if on_path(&["kubectl"]).is_none() {
        bail!("the course is typed with kubectl, which is not on the PATH; {}", super::kubectl::INSTALL);
    }
    if on_path(&["curl"]).is_none() {
        bail!(
            "the course fetches pages with curl, which is not on the PATH; for example: apt-get install curl"
        );
    }
    if !options.yes && !std::io::stdin().is_terminal() {
        bail!("there is no keyboard to wait for; go on without: {} tutorial --yes", name());
    }
    Ok(())
}

/// Set when the user presses Ctrl-C.
fn interrupts() -> anyhow::Result<Arc<AtomicBool>> {
    use tokio::signal::unix::{SignalKind, signal};
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (mut interrupt, mut terminate) = {
        let _inside = runtime.enter();
        let interrupt = signal(SignalKind::interrupt()).context("listen for Ctrl-C")?;
        (interrupt, signal(SignalKind::terminate()).context("listen for SIGTERM")?)
    };
    let flag = Arc::new(AtomicBool::new(false));
    let set = flag.clone();
    std::thread::spawn(move || {
        loop {
            runtime.block_on(async {
                tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
            });
            set.store(true, Ordering::Relaxed);
        }
    });
    Ok(flag)
}

/// Who goes through the course.
struct Guide<'a> {
    profile: Profile,
    stage: Stage,
    options: &'a Options,
    interrupted: Arc<AtomicBool>,
    /// The cluster as it was last seen.
    seen: Look,
    /// Commands of the course so far.
    taken: usize,
}

impl Guide<'_> {
    /// All of it; false when the user has had enough.
    fn course(&mut self) -> anyhow::Result<bool> {
        self.introduce();
        if !self.step(&start())? {
            return Ok(false);
        }
        let sections = match self.options.section {
            Some(section) => vec![section],
            None => Section::ALL.to_vec(),
        };
        for section in sections {
            anstream::println!("\n{BOLD}{CYAN}== {} =={CYAN:#}{BOLD:#}", section.title());
            for step in section.steps() {
                let is_needed = step.kind != Kind::Before || self.options.section.is_some();
                if is_needed && !self.step(&step)? {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    fn introduce(&self) {
        let profile = &self.profile.name;
        anstream::println!(
            "The networking course in a cluster of its own, {profile:?}, which goes at the end. Your kubeconfig, your \
             /etc/hosts\nand other clusters are not touched."
        );
        match &self.options.images {
            Some(dir) => {
                anstream::println!("Images come from {}; what is not there has a stand-in.", dir.display())
            }
            None => anstream::println!(
                "No registry is asked: nginx, httpd, busybox and hello-app are small stand-ins out of skiff itself that \
                 show the\nsame pages. With the real ones: --images DIR."
            ),
        }
    }

    fn show(&self, command: &str) {
        anstream::println!("\n{BOLD}$ {}{BOLD:#}", shown(command));
    }

    /// Takes a step; false when the user has had enough.
    fn step(&mut self, step: &Step) -> anyhow::Result<bool> {
        if !self.options.brief {
            let mut lead = "\n";
            for line in &step.told {
                anstream::println!("{lead}{DIM}{line}{DIM:#}");
                lead = "";
            }
        }
        self.show(&step.command);
        if let Some(script) = &step.edit {
            self.stage.set_editor(script)?;
            anstream::println!("{DIM}(in the editor, in sed's words: {script}){DIM:#}");
        }
        if !self.options.yes && !self.key()? {
            return Ok(false);
        }
        let ran = self.take(step)?;
        anstream::print!("{}", ran.output);
        if step.command.starts_with("minikube start") {
            self.supply_images()?;
        }
        if !self.options.brief && !step.only_looks() {
            self.tell()?;
        }
        self.taken += 1;
        Ok(true)
    }

    /// Runs the command until its output is right.
    fn take(&self, step: &Step) -> anyhow::Result<Ran> {
        let began = Instant::now();
        loop {
            let ran = self.stage.types(&shown(&step.command))?;
            if step.is_right(ran.succeeded, &ran.output) {
                return Ok(ran);
            }
            if self.interrupted.load(Ordering::Relaxed) {
                bail!("interrupted");
            }
            let once = matches!(step.kind, Kind::Once | Kind::Before);
            if once || began.elapsed() > PATIENCE {
                let ended = if ran.succeeded { "succeeded" } else { "failed" };
                bail!(
                    "{}\nshould have printed\n{}\nbut {ended} and printed\n{}",
                    shown(&step.command),
                    step.output.join("\n"),
                    ran.output
                );
            }
            std::thread::sleep(POLL);
        }
    }

    /// Gives a new cluster what the course runs.
    fn supply_images(&self) -> anyhow::Result<()> {
        for image in ["nginx", "httpd", "busybox"] {
            let Some(tar) = self.options.images.as_ref().map(|dir| dir.join(format!("{image}.tar"))) else {
                continue;
            };
            if tar.exists() {
                let tar = tar.canonicalize().with_context(|| format!("open {}", tar.display()))?;
                let loaded = self.stage.types(&format!("skiff image load '{}'", tar.display()))?;
                if !loaded.succeeded {
                    bail!("load {}; what skiff said stands above", tar.display());
                }
            }
        }
        ask_running(&self.profile, &Request::ImageStandIns, |_| ()).context("make the stand-ins").map(drop)
    }

    /// Says what has happened since the last time.
    fn tell(&mut self) -> anyhow::Result<()> {
        let now = self.settled()?;
        for line in story(&self.seen, &now) {
            anstream::println!("{CYAN}  {line}{CYAN:#}");
        }
        self.seen = now;
        Ok(())
    }

    /// Looks until nothing changes any more and no Pod is on its way.
    fn settled(&self) -> anyhow::Result<Look> {
        let (began, mut last) = (Instant::now(), None);
        loop {
            let late = began.elapsed() > PATIENCE || self.interrupted.load(Ordering::Relaxed);
            match look(&self.profile, &self.stage.kubeconfig()) {
                Ok(Seen { look, settled }) => {
                    if late || (settled && last.as_ref() == Some(&look)) {
                        return Ok(look);
                    }
                    last = Some(look);
                }
                Err(error) if late => return Err(error.context("look at the cluster")),
                Err(_) => {}
            }
            std::thread::sleep(POLL);
        }
    }

    /// Waits for a key; false for q or Ctrl-C.
    fn key(&self) -> anyhow::Result<bool> {
        anstream::eprint!("{DIM}-- a key goes on, q ends --{DIM:#}");
        let key = one_key(&self.interrupted);
        anstream::eprint!("\r\x1b[K");
        Ok(!matches!(key?, None | Some(b'q' | b'Q')))
    }
}

/// The step before the course's first.
fn start() -> Step {
    let command = "minikube start".to_owned();
    Step { command, kind: Kind::Once, told: Vec::new(), edit: None, output: Vec::new() }
}

/// The command under the name that skiff was called by.
fn shown(command: &str) -> String {
    command.replace("minikube ", &format!("{} ", name()))
}

/// One key without Enter; nothing at the keyboard's end, or when interrupted.
fn one_key(interrupted: &AtomicBool) -> anyhow::Result<Option<u8>> {
    let mut stdin = std::io::stdin().lock();
    let before = tcgetattr(&stdin).context("read the terminal's settings")?;
    let mut raw = before.clone();
    raw.local_flags.remove(LocalFlags::ICANON | LocalFlags::ECHO);
    tcsetattr(&stdin, SetArg::TCSANOW, &raw).context("change the terminal's settings")?;
    let key = loop {
        if interrupted.load(Ordering::Relaxed) {
            break Ok(None);
        }
        let fd = std::io::stdin();
        let mut ready = [PollFd::new(std::os::fd::AsFd::as_fd(&fd), PollFlags::POLLIN)];
        if poll(&mut ready, PollTimeout::from(100_u8)).is_ok_and(|count| count > 0) {
            let mut byte = [0];
            break stdin.read(&mut byte).map(|count| (count > 0).then_some(byte[0]));
        }
    };
    tcsetattr(&stdin, SetArg::TCSANOW, &before).context("restore the terminal's settings")?;
    key.context("read a key")
}
