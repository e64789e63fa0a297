//! `skiff start`: runs the daemon in the background, shows its steps, points kubectl at it.

use std::fs::OpenOptions;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, anyhow, bail};
use apiserver::audit::policy::Policy;
use clap::Args;
use clap::builder::PossibleValuesParser;
use cluster::kubeconfig::Kubeconfig;
use cluster::pki::{Authority, Subject};
use cluster::{API_PORT, Cni, IpFamily, MAX_NODES, Member, Profile};
use nix::sys::signal::kill;
use nix::unistd::Pid;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::node::tell;
use super::{existing, need_root};
use crate::control::{NodeChange, Reply, Request, ask};
use crate::program::{advice, did_you_mean};
use crate::ui::Steps;

/// Options of `start`; those of minikube that have nothing to choose here are answered with a note.
#[derive(Debug, Args)]
pub struct Options {
    /// How many nodes it has, all on this machine: what is missing is added, none is ever removed.
    #[arg(short, long, value_parser = clap::value_parser!(u8).range(1..=i64::from(MAX_NODES)))]
    nodes: Option<u8>,
    /// The network, kept for the next start: auto enforces network policies, kubenet does not; names of plugins that
    /// scripts pass mean auto, with a note. A path (a .conflist, or a directory such as /etc/cni/net.d) has CNI plugins
    /// connect the Pods; they are looked for in $CNI_PATH, else /opt/cni/bin and /usr/lib/cni.
    #[arg(long, value_name = "NAME|PATH")]
    cni: Option<String>,
    /// Add-ons to enable once it runs, separated by commas.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    addons: Vec<String>,
    /// The IP families of Pods, Services and nodes: ipv4, ipv6 or dual; chosen at the first start (dual, where the kernel
    /// has IPv6) and kept.
    #[arg(long, value_name = "FAMILY", value_parser = PossibleValuesParser::new(IpFamily::NAMES))]
    ip_family: Option<String>,
    /// Log requests as this audit policy (audit.k8s.io/v1) says, kept for the next start; none logs no more. The log is
    /// audit.log in the cluster's directory, 0600; at 100 MB it is set aside, and the last five are kept.
    #[arg(long, value_name = "FILE|none")]
    audit_policy: Option<String>,
    /// The Kubernetes version that is wanted; another than the one served is taken with a note.
    #[arg(long, value_name = "VERSION")]
    kubernetes_version: Option<String>,
    /// Taken with a note: a node is made of namespaces, whatever the driver.
    #[arg(long, visible_alias = "vm-driver", value_name = "NAME")]
    driver: Option<String>,
    /// Taken with a note: containers run in the one that is built in.
    #[arg(long, value_name = "NAME")]
    container_runtime: Option<String>,
    /// Taken with a note: Pods use the memory of this machine.
    #[arg(long, value_name = "SIZE")]
    memory: Option<String>,
    /// Taken with a note: Pods use the processors of this machine.
    #[arg(long, value_name = "N")]
    cpus: Option<String>,
    /// Taken with a note: Pods use the disk of this machine.
    #[arg(long, value_name = "SIZE")]
    disk_size: Option<String>,
    /// Taken with a note: a start always waits for the node and its DNS.
    #[arg(long, value_name = "WHAT", num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    wait: Option<String>,
    /// Taken with a note: what cannot run is refused all the same.
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    force: Option<String>,
}

/// Values of --cni that mean the network that comes with the cluster.
const COMES_WITH_IT: [&str; 4] = ["auto", "true", "bridge", "skiff"];
/// The one that means it without enforcement of network policies.
const PLAIN: &str = "kubenet";
/// Plugins that minikube installs by name.
const PLUGINS: [&str; 4] = ["calico", "cilium", "flannel", "kindnet"];

/// Where CNI plugins are by convention, and where Debian has them.
const PLUGIN_DIRS: [&str; 2] = ["/opt/cni/bin", "/usr/lib/cni"];

impl Options {
    /// What to say about options that choose nothing here.
    ///
    /// # Errors
    /// For a value that cannot be meant.
    fn notes(&self) -> anyhow::Result<Vec<String>> {
        let mut notes = Vec::new();
        let cni = self.cni.as_deref().unwrap_or("auto");
        if PLUGINS.contains(&cni) {
            notes.push(format!(
                "--cni={cni}: skiff's own network takes its place and enforces network policies; nothing is installed"
            ));
        } else if cni == PLAIN {
            notes.push(format!("--cni={cni}: network policies are kept but not enforced"));
        } else if let Some(path) = as_path(cni) {
            let config = podnet::cni::NetworkConfig::load(path)?;
            podnet::cni::installed(&config, &plugin_dirs())?;
            for services in [cluster::SERVICE_CIDR, cluster::SERVICE_CIDR6] {
                let services: ipnet::IpNet = services.parse().context("the service network")?;
                let overlaps = |net: &ipnet::IpNet| net.contains(&services) || services.contains(net);
                if let Some(net) = config.subnets().into_iter().find(overlaps) {
                    bail!(
                        "--cni={cni}: its subnet {net} overlaps the Services' {services}; give it another one"
                    );
                }
            }
            let plugin = config.main_plugin();
            notes.push(format!("--cni={cni}: the CNI plugin {plugin:?} connects the Pods"));
        } else if !COMES_WITH_IT.contains(&cni) {
            let near = did_you_mean(cni, PLUGINS.into_iter().chain(COMES_WITH_IT).chain([PLAIN]));
            bail!(
                "--cni={cni}: the network is skiff's own, and others are not installed{near}; leave the flag out, or give \
                 the path of a CNI configuration"
            );
        }
        if let Some(version) = &self.kubernetes_version {
            notes.extend(version_note(version)?);
        }
        let needless = [
            ("driver", &self.driver, "a node is made of namespaces of this machine"),
            ("container-runtime", &self.container_runtime, "containers run in the one that is built in"),
            ("memory", &self.memory, "Pods use the memory of this machine"),
            ("cpus", &self.cpus, "Pods use the processors of this machine"),
            ("disk-size", &self.disk_size, "Pods use the disk of this machine"),
            ("wait", &self.wait, "a start always waits for the node and its DNS"),
            ("force", &self.force, "what cannot run is refused all the same"),
        ];
        for (flag, value, why) in needless {
            notes.extend(value.as_ref().map(|value| format!("--{flag}={value} changes nothing: {why}")));
        }
        Ok(notes)
    }

    /// Records the network that is asked for; a cluster that runs has its own until it is stopped.
    fn choose_network(&self, profile: &Profile) -> anyhow::Result<()> {
        let Some(cni) = &self.cni else { return Ok(()) };
        let wanted = match as_path(cni) {
            Some(path) => {
                let config = path.canonicalize().with_context(|| format!("--cni={cni}"))?;
                Cni::Plugins { config, dirs: plugin_dirs() }
            }
            None if cni == PLAIN => Cni::Kubenet,
            None => Cni::Auto,
        };
        if wanted == profile.cni()? {
            return Ok(());
        }
        if ask(&profile.control_plane().control_socket(), &Request::Status, |_| ())?.is_some() {
            let (name, stop) = (&profile.name, advice("stop", &profile.name));
            bail!("--cni={cni}: the cluster {name:?} runs with another network; stop it first: {stop}");
        }
        Ok(profile.set_cni(&wanted)?)
    }

    /// Records the audit policy that is asked for; gives what to say of it.
    fn choose_audit(&self, profile: &Profile) -> anyhow::Result<Option<String>> {
        let Some(given) = &self.audit_policy else { return Ok(None) };
        let (file, log) = (profile.audit_policy(), profile.audit_log());
        let wanted = match given.as_str() {
            "none" => None,
            path => {
                let text = std::fs::read_to_string(path).with_context(|| format!("--audit-policy={path}"))?;
                Policy::parse(&text).map_err(|why| anyhow!("--audit-policy={path}: {why}"))?;
                Some(text.into_bytes())
            }
        };
        if wanted != cluster::files::read_if_there(&file)? {
            if ask(&profile.control_plane().control_socket(), &Request::Status, |_| ())?.is_some() {
                let (name, stop) = (&profile.name, advice("stop", &profile.name));
                bail!(
                    "--audit-policy={given}: the cluster {name:?} runs with another one; stop it first: {stop}"
                );
            }
            match &wanted {
                Some(text) => {
                    cluster::files::make_public_dir(&profile.state_dir)?;
                    cluster::files::write_atomically(&file, text, 0o600)?;
                }
                None => std::fs::remove_file(&file).with_context(|| format!("remove {}", file.display()))?,
            }
        }
        Ok(wanted.is_some().then(|| format!("the audit log is {}", log.display())))
    }

    /// Records the IP families that are asked for; a cluster that is there has its own. Gives what to say where nobody asked
    /// and the kernel has only one.
    fn choose_families(&self, profile: &Profile) -> anyhow::Result<Option<&'static str>> {
        let has_ipv6 = podnet::has_ipv6();
        let wanted = self.ip_family.as_deref().and_then(IpFamily::parse);
        let (name, remove) = (&profile.name, advice("delete", &profile.name));
        match (profile.network()?.map(|network| network.ip_family), wanted) {
            (Some(has), Some(wanted)) if has != wanted => bail!(
                "--ip-family={wanted}: the cluster {name:?} was made with {has}, which its addresses follow; \
                 remove it first: {remove}"
            ),
            (Some(_), _) => Ok(None),
            (None, Some(wanted)) if wanted.has_ipv6() && !has_ipv6 => bail!(
                "--ip-family={wanted}: this kernel has no IPv6; leave the flag out, or start the kernel without ipv6.disable=1"
            ),
            (None, Some(wanted)) => Ok(profile.want_ip_family(wanted).map(|()| None)?),
            (None, None) => {
                Ok((!has_ipv6)
                    .then_some("this kernel has no IPv6: Pods and Services get IPv4 addresses only"))
            }
        }
    }
}

/// A value of --cni that is no name.
fn as_path(cni: &str) -> Option<&Path> {
    cni.contains('/').then_some(Path::new(cni))
}

/// Where CNI plugins are looked for.
fn plugin_dirs() -> Vec<PathBuf> {
    match std::env::var_os("CNI_PATH").filter(|path| !path.is_empty()) {
        Some(path) => std::env::split_paths(&path).collect(),
        None => PLUGIN_DIRS.map(PathBuf::from).into(),
    }
}

fn version_note(wanted: &str) -> anyhow::Result<Option<String>> {
    let served = apiserver::paths::GIT_VERSION;
    let minor = |version: &str| -> Option<(u32, u32)> {
        let mut parts = version.trim_start_matches('v').split('.');
        Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
    };
    if ["stable", "latest"].contains(&wanted) || minor(wanted) == minor(served) {
        return Ok(None);
    }
    if minor(wanted).is_none() {
        bail!("--kubernetes-version={wanted}: give a version such as {served}, or leave the flag out");
    }
    Ok(Some(format!("--kubernetes-version={wanted}: this skiff serves the API of {served}")))
}

/// Starts the cluster, or those of its nodes that do not run.
pub fn run(name: &str, options: &Options) -> anyhow::Result<()> {
    need_root()?;
    for note in options.notes()? {
        anstream::eprintln!("note: {note}");
    }
    let profile = Profile::new(name)?;
    Kubeconfig::of_user().check()?;
    super::doctor::quick(&profile)?;
    options.choose_network(&profile)?;
    if let Some(note) = options.choose_audit(&profile)? {
        anstream::eprintln!("note: {note}");
    }
    if let Some(note) = options.choose_families(&profile)? {
        anstream::eprintln!("note: {note}");
    }
    let began = Instant::now();
    let mut steps = Steps::new();
    let started = match start_members(&profile, options.nodes.unwrap_or(1), &mut steps) {
        Ok(started) => started,
        Err(error) => {
            steps.failed();
            return Err(error);
        }
    };
    if started == 0 {
        point_kubectl(&profile)?;
        println!("The cluster {name:?} runs already; kubectl uses it.");
        return enable(&profile, options);
    }
    steps.begin("Pointing kubectl at it");
    point_kubectl(&profile)?;
    steps.done();
    let time = began.elapsed().as_secs_f64();
    anstream::eprintln!("Done in {time:.1} s: kubectl now uses {name:?} and its namespace \"default\".");
    enable(&profile, options)?;
    anstream::eprintln!("Next: kubectl get nodes; remove it all: {}", advice("delete", name));
    Ok(())
}

fn enable(profile: &Profile, options: &Options) -> anyhow::Result<()> {
    options.addons.iter().try_for_each(|addon| super::addons::enable(profile, addon))
}

/// Starts all known nodes, the control plane's first, and new ones until there are so many; gives how many it started.
fn start_members(profile: &Profile, nodes: u8, steps: &mut Steps) -> anyhow::Result<usize> {
    let mut started = 0;
    for member in Member::all(profile) {
        started += usize::from(start_member(&member, steps)?);
    }
    while Member::all(profile).len() < usize::from(nodes) {
        started += usize::from(start_member(&Member::next(profile)?, steps)?);
    }
    Ok(started)
}

/// Starts a node unless it runs; gives whether it did.
pub fn start_member(member: &Member, steps: &mut Steps) -> anyhow::Result<bool> {
    if ask(&member.control_socket(), &Request::Status, |_| ())?.is_some() {
        return Ok(false);
    }
    if member.is_control_plane() {
        start_daemon(member, |news| match news {
            Reply::Step(text) => steps.begin(text),
            other => steps.news(other),
        })?;
    } else {
        steps.begin(&format!("Starting node {}", member.name()));
        start_daemon(member, |news| steps.news(news))?;
        tell(member, NodeChange::Started, steps)?;
    }
    Ok(true)
}

/// Runs a node's daemon in the background until it says that the node is up.
fn start_daemon(member: &Member, mut news: impl FnMut(&Reply)) -> anyhow::Result<()> {
    let profile = &member.profile;
    cluster::files::make_public_dir(&member.state_dir())?;
    let log_path = member.log();
    let log = OpenOptions::new().create(true).append(true).mode(0o600).open(&log_path);
    let log = log.with_context(|| format!("open {}", log_path.display()))?;
    let interrupts = Interrupts::listen()?;
    let mut daemon = Command::new("/proc/self/exe")
        .args(["--profile", &profile.name, "daemon", "--node", &member.number.to_string()])
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()
        .context("start the daemon")?;
    interrupts.stop(daemon.id())?;
    let stdout = daemon.stdout.take().context("read from the daemon")?;
    for line in BufReader::new(stdout).lines() {
        match serde_json::from_str(&line.context("read from the daemon")?).context("read from the daemon")? {
            Reply::Done(_) => return Ok(()),
            Reply::Failed(reason) => {
                daemon.wait().context("wait for the daemon")?;
                bail!(reason);
            }
            other => news(&other),
        }
    }
    let status = daemon.wait().context("wait for the daemon")?;
    bail!("the daemon ended early ({status}); its last words: {}", advice("logs -n 20", &profile.name))
}

/// Ctrl-C at a start. Listening begins before there is a daemon: a signal just after its birth must find us listening, or it
/// would end only us.
struct Interrupts {
    runtime: tokio::runtime::Runtime,
    signals: [Signal; 2],
}

impl Interrupts {
    fn listen() -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let signals = {
            let _inside = runtime.enter();
            let listen = |kind| signal(kind).context("listen for Ctrl-C");
            [listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?]
        };
        Ok(Self { runtime, signals })
    }

    /// Each signal, also one that came since `listen`, tells the daemon to stop, which takes away what it has made; we wait
    /// for its last words. It leads a session of its own, so that the terminal's signal does not reach it.
    fn stop(self, daemon: u32) -> anyhow::Result<()> {
        let Self { runtime, signals: [mut interrupt, mut terminate] } = self;
        let pid = Pid::from_raw(i32::try_from(daemon).context("the daemon's process id")?);
        std::thread::spawn(move || {
            let mut next = || {
                runtime.block_on(async {
                    tokio::select! { s = interrupt.recv() => s, s = terminate.recv() => s }
                })
            };
            while next().is_some() {
                // One that has ended needs no telling.
                let _ = kill(pid, nix::sys::signal::Signal::SIGTERM);
            }
        });
        Ok(())
    }
}

/// `skiff update-context`: points kubectl at the cluster again.
pub fn update_context(name: &str) -> anyhow::Result<()> {
    need_root()?;
    point_kubectl(&existing(name)?)?;
    anstream::eprintln!("kubectl now uses {name:?}.");
    Ok(())
}

fn point_kubectl(profile: &Profile) -> anyhow::Result<()> {
    let network = profile.network()?.context("the cluster has no address yet; try again in a moment")?;
    let authority = Authority::open(&profile.pki())?;
    // kubeadm's names: bound to cluster-admin by the group.
    let admin = authority.client(Subject { user: "kubernetes-admin", groups: &["system:masters"] })?;
    let server = format!("https://{}:{API_PORT}", network.node);
    Kubeconfig::of_user().set(&profile.name, &server, &authority.certificate_pem, &admin)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        options: Options,
    }

    fn notes(line: &str) -> anyhow::Result<Vec<String>> {
        Line::try_parse_from(line.split(' ')).unwrap().options.notes()
    }

    #[test]
    fn flags_of_minikube_are_answered() {
        assert!(notes("start").unwrap().is_empty());
        assert!(notes("start --cni=bridge --kubernetes-version=stable").unwrap().is_empty());
        assert!(notes("start --kubernetes-version v1.33.1").unwrap().is_empty());
        let said =
            notes("start --cni calico --driver=docker --memory=2200 --kubernetes-version=v1.23.3").unwrap();
        assert_eq!(said.len(), 4, "{said:?}");
        assert_eq!(notes("start --wait=all --force --addons=ingress").unwrap().len(), 2);
        assert!(notes("start --cni=kubenet").unwrap()[0].contains("not enforced"));
        assert!(said[0].contains("calico") && said[1].contains("v1.33"), "{said:?}");
        for (line, part) in [
            ("start --cni=calic", "did you mean \"calico\"?"),
            ("start --cni=false", "leave the flag out"),
            ("start --cni=/no/such/dir", "CNI configuration /no/such/dir: No such file"),
            ("start --kubernetes-version=newest", "give a version such as"),
        ] {
            let error = notes(line).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn a_network_of_plugins_is_read_before_anything_is_started() {
        let dir = tempfile::tempdir().unwrap();
        let said = |ipam: &str| {
            let config =
                format!(r#"{{"cniVersion": "1.0.0", "name": "n", "type": "bridge", "ipam": {ipam}}}"#);
            std::fs::write(dir.path().join("10-n.conf"), config).unwrap();
            let line = format!("start --cni={}", dir.path().display());
            notes(&line).map_or_else(|error| error.to_string(), |notes| notes.join("; "))
        };
        let said_of = |subnet: &str| said(&format!(r#"{{"type": "host-local", "subnet": "{subnet}"}}"#));
        assert!(said_of("10.22.0.0/16").ends_with("the CNI plugin \"bridge\" connects the Pods"));
        assert!(said_of("10.99.0.0/24").contains("10.99.0.0/24 overlaps the Services' 10.96.0.0/12"));
        assert!(
            said(r#"{"type": "no-such-ipam"}"#)
                .contains("\"no-such-ipam\" is not in /opt/cni/bin, /usr/lib/cni")
        );
    }
}
