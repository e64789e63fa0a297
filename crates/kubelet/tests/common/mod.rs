//! A node of its own for each test: API server in this process, a real shim, real Pod network, busybox as the image.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use client::Informer;
use k8s_openapi::api::core::v1::{Event, Pod};
use kube::Api;
use kube::api::{DeleteParams, PostParams};
use kube::runtime::watcher;
use kubelet::edge::{EdgeError, Image, Images, PullSecret};
use kubelet::real::PodNet;
use kubelet::spec::ImageConfig;
use kubelet::{Config, Kubelet};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use runtime::{Runtime, ShimOptions};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::Value;
use testkit::node::{ShimGuard, busybox};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

static NUMBER: AtomicU32 = AtomicU32::new(0);
pub const NODE_IP: &str = "192.168.49.2";

/// One image, here under every name that begins with `busybox`; nothing else can be pulled.
struct Busybox(PathBuf);

#[async_trait]
impl Images for Busybox {
    async fn get(&self, reference: &str) -> Option<Image> {
        reference.starts_with("busybox").then(|| Image {
            image_id: "sha256:busybox".into(),
            reference: format!("docker.io/library/{reference}"),
            config: ImageConfig {
                cmd: vec!["sh".into()],
                env: vec!["IMG=1".into()],
                ..ImageConfig::default()
            },
            layers: vec![self.0.clone()],
            size: 1,
            side_loaded: true,
            ..Image::default()
        })
    }

    async fn pull(&self, reference: &str, _: Vec<PullSecret>) -> Result<Image, EdgeError> {
        Err(EdgeError(format!("failed to pull {reference}: not found")))
    }

    async fn list(&self) -> Vec<(Vec<String>, u64)> {
        vec![(vec!["docker.io/library/busybox:latest".into()], 1)]
    }
}

pub struct Pki {
    ca: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl Pki {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap();
        Self { ca: certificate.der().clone(), issuer: Issuer::new(params, key) }
    }

    fn issue(&self, groups: &[&str]) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![NODE_IP.to_string()]).unwrap();
        for group in groups {
            params.distinguished_name.push(DnType::OrganizationName, *group);
        }
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        (vec![certificate.der().clone()], PrivateKeyDer::try_from(key.serialize_der()).unwrap())
    }

    fn roots(&self) -> rustls::RootCertStore {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.ca.clone()).unwrap();
        roots
    }

    fn server(&self) -> Arc<rustls::ServerConfig> {
        let verifier = apiserver::serve::client_verifier(std::slice::from_ref(&self.ca)).unwrap();
        let (chain, key) = self.issue(&[]);
        let builder = rustls::ServerConfig::builder().with_client_cert_verifier(verifier);
        Arc::new(builder.with_single_cert(chain, key).unwrap())
    }

    /// Certificate and key of a user, in PEM.
    fn user(&self, groups: &[&str]) -> (String, String) {
        let pem = |kind: &str, der: &[u8]| {
            use base64::Engine as _;
            let text = base64::engine::general_purpose::STANDARD.encode(der);
            format!("-----BEGIN {kind}-----\n{text}\n-----END {kind}-----\n")
        };
        let (chain, key) = self.issue(groups);
        (pem("CERTIFICATE", &chain[0]), pem("PRIVATE KEY", key.secret_der()))
    }

    pub fn client(&self, groups: &[&str]) -> Arc<rustls::ClientConfig> {
        let (chain, key) = self.issue(groups);
        let builder = rustls::ClientConfig::builder().with_root_certificates(self.roots());
        Arc::new(builder.with_client_auth_cert(chain, key).unwrap())
    }
}

pub struct Node {
    pub dir: tempfile::TempDir,
    pub client: kube::Client,
    pub runtime: Runtime,
    pub pki: Pki,
    /// Runs on threads in the node's network namespace.
    pub inside: Option<tokio::runtime::Runtime>,
    api: Arc<apiserver::ApiServer>,
    options: ShimOptions,
    network: PodNet,
    kubelet: Option<(CancellationToken, tokio::task::JoinHandle<Result<(), kubelet::Error>>)>,
    guard: ShimGuard,
}

/// A shim with its network, and threads inside.
async fn boot(options: &ShimOptions) -> (Runtime, ShimGuard, PodNet, tokio::runtime::Runtime) {
    let (runtime, _) = Runtime::start_or_connect(options.clone()).await.unwrap();
    let guard = ShimGuard(runtime.pid());
    let netns = runtime.node_netns().await.unwrap();
    podnet::within(netns.as_fd(), || {
        for args in [["link", "set", "lo", "up"].as_slice(), &["addr", "add", "192.168.49.2/32", "dev", "lo"]]
        {
            assert!(std::process::Command::new("ip").args(args).status().unwrap().success());
        }
        Ok(())
    })
    .unwrap();
    let range: ipnet::IpNet = "10.244.0.0/24".parse().unwrap();
    let netns = Arc::new(netns);
    let network = PodNet::open(netns.clone(), vec![range]).await.unwrap();
    let inside = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .on_thread_start(move || {
            nix::sched::setns(netns.as_ref(), nix::sched::CloneFlags::CLONE_NEWNET).unwrap()
        })
        .build()
        .unwrap();
    (runtime, guard, network, inside)
}

impl Node {
    pub async fn start() -> Self {
        assert!(nix::unistd::geteuid().is_root(), "containers need root: run the tests as root");
        let _ = rustls::crypto::ring::default_provider().install_default();
        let _ = tracing_subscriber::fmt().with_env_filter("kubelet=warn").with_test_writer().try_init();
        let dir = tempfile::Builder::new().prefix("skiff-kubelet").tempdir().unwrap();
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let options = ShimOptions {
            socket: dir.path().join("run/shim.sock"),
            run_dir: dir.path().join("run"),
            cgroup: format!("/skiff-kubelet-{}-{number}", std::process::id()),
        };
        busybox(&dir.path().join("busybox"));
        let (runtime, guard, network, inside) = boot(&options).await;
        let pki = Pki::new();
        let store =
            storage::Embedded::open(&dir.path().join("store.redb"), storage::Options::default()).unwrap();
        let config = apiserver::Config {
            advertise_address: IpAddr::V4(Ipv4Addr::LOCALHOST),
            advertise_port: 8443,
            service_cidrs: vec!["10.96.0.0/12".parse().unwrap()],
            node_ports: 30000..=32767,
            policies: apiserver::Enforcement::Full,
            client_ca: vec![pki.ca.clone()],
            service_account_key: KeyPair::generate().unwrap().serialize_pem(),
            service_account_issuer: "https://kubernetes.default.svc.cluster.local".into(),
            kubelet_tls: pki.client(&["system:masters"]),
            audit: None,
        };
        let api = apiserver::ApiServer::new(config, Arc::new(store)).await.unwrap();
        let client = kube::Client::new(api.in_process("admin", &["system:masters"]), "default");
        let mut node = Self {
            dir,
            client,
            runtime,
            pki,
            inside: Some(inside),
            api,
            options,
            network,
            kubelet: None,
            guard,
        };
        node.run().await;
        let account = serde_json::json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}});
        let accounts: Api<k8s_openapi::api::core::v1::ServiceAccount> =
            Api::default_namespaced(node.client.clone());
        match accounts.create(&PostParams::default(), &serde_json::from_value(account).unwrap()).await {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            Err(error) => panic!("{error}"),
        }
        let root = serde_json::json!({"metadata": {"name": "kube-root-ca.crt"}, "data": {"ca.crt": "CA"}});
        let maps: Api<k8s_openapi::api::core::v1::ConfigMap> = Api::default_namespaced(node.client.clone());
        maps.create(&PostParams::default(), &serde_json::from_value(root).unwrap()).await.unwrap();
        node
    }

    /// Starts the agent (again).
    pub async fn run(&mut self) {
        let (runtime, events) = Runtime::start_or_connect(self.options.clone()).await.unwrap();
        self.runtime = runtime.clone();
        let at = |name: &str| self.dir.path().join(name);
        fs::write(at("resolv.conf"), "nameserver 127.0.0.53\nsearch lan\n").unwrap();
        let config = Config {
            node_name: "node".into(),
            node_ips: vec![NODE_IP.parse().unwrap()],
            port: 10250,
            root_dir: at("pods"),
            volatile_dir: at("volatile"),
            log_dir: at("logs"),
            cgroup: self.options.cgroup.clone(),
            cluster_dns: vec!["10.96.0.10".parse().unwrap()],
            cluster_domain: "cluster.local".into(),
            host_resolv_conf: at("resolv.conf"),
            node_dns: None,
            node_labels: BTreeMap::new(),
            node_annotations: BTreeMap::new(),
            pod_cidr: Some("10.244.0.0/24".into()),
            max_pods: 110,
            runtime_handlers: Vec::new(),
            pause: None,
        };
        let user = self.api.in_process("system:node:node", &["system:masters"]);
        let client = kube::Client::new(user, "default");
        let handle = self.inside.as_ref().unwrap().handle().clone();
        let _inside = handle.enter();
        let kubelet = Kubelet {
            config,
            pods: Informer::start(Api::all(client.clone()), watcher::Config::default()),
            client,
            containers: Arc::new(runtime),
            events,
            images: Arc::new(Busybox(at("busybox"))),
            network: Arc::new(self.network.clone()),
            defaults: kubelet::real::defaults().unwrap(),
            tls: self.pki.server(),
            host_ports: watch::Sender::new(Vec::new()),
        };
        let stop = CancellationToken::new();
        let task = handle.spawn(kubelet::run(kubelet, stop.clone()));
        self.kubelet = Some((stop, task));
    }

    /// Everything volatile is lost, as when the machine starts again.
    pub async fn reboot(&mut self) {
        self.halt().await;
        self.runtime.clone().shutdown().await.unwrap();
        let _ = fs::remove_dir_all(self.dir.path().join("volatile"));
        let (runtime, guard, network, inside) = boot(&self.options).await;
        self.runtime = runtime;
        self.guard = guard;
        self.network = network;
        if let Some(old) = self.inside.replace(inside) {
            old.shutdown_background();
        }
        self.run().await;
    }

    /// Stops the agent; containers run on.
    pub async fn halt(&mut self) {
        if let Some((stop, task)) = self.kubelet.take() {
            stop.cancel();
            task.await.unwrap().unwrap();
        }
    }

    /// Serves the API inside the node; a kubectl that talks to it, as a function of arguments to (success, output).
    pub async fn kubectl(&self) -> impl Fn(&[&str]) -> (bool, String) + Clone + Send + 'static {
        use base64::Engine as _;
        let encode = |text: &[u8]| base64::engine::general_purpose::STANDARD.encode(text);
        let (api, tls) = (self.api.clone(), self.pki.server());
        let serve = async move {
            let listener = tokio::net::TcpListener::bind((NODE_IP, 8443)).await.unwrap();
            tokio::spawn(api.serve(listener, (*tls).clone(), CancellationToken::new()));
        };
        self.inside.as_ref().unwrap().handle().spawn(serve).await.unwrap();
        let (certificate, key) = self.pki.user(&["system:masters"]);
        let config = serde_json::json!({"apiVersion": "v1", "kind": "Config", "current-context": "t",
            "clusters": [{"name": "t", "cluster": {"server": format!("https://{NODE_IP}:8443"), "insecure-skip-tls-verify": true}}],
            "users": [{"name": "t", "user": {"client-certificate-data": encode(certificate.as_bytes()), "client-key-data": encode(key.as_bytes())}}],
            "contexts": [{"name": "t", "context": {"cluster": "t", "user": "t"}}]});
        let path = self.dir.path().join("kubeconfig");
        fs::write(&path, config.to_string()).unwrap();
        let netns = Arc::new(self.runtime.node_netns().await.unwrap());
        let home = self.dir.path().to_path_buf();
        move |args: &[&str]| {
            podnet::within(netns.as_fd(), || {
                let mut command = std::process::Command::new("timeout");
                command.args(["30", "kubectl"]).args(args).env("KUBECONFIG", &path).env("HOME", &home);
                let done = command.stdin(std::process::Stdio::null()).output().unwrap();
                let text = [done.stdout, done.stderr].concat();
                Ok((done.status.success(), String::from_utf8_lossy(&text).into_owned()))
            })
            .unwrap()
        }
    }

    pub fn pods(&self) -> Api<Pod> {
        Api::default_namespaced(self.client.clone())
    }

    /// Creates a Pod that is bound to this node.
    pub async fn create(&self, name: &str, mut spec: Value) {
        spec["nodeName"] = "node".into();
        let pod = serde_json::json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}}, "spec": spec});
        self.pods().create(&PostParams::default(), &serde_json::from_value(pod).unwrap()).await.unwrap();
    }

    /// Waits until the Pod is as wanted and gives it.
    pub async fn wait(&self, name: &str, what: &str, done: impl Fn(&Value) -> bool) -> Value {
        let end = Instant::now() + Duration::from_secs(40);
        loop {
            let pod = serde_json::to_value(self.pods().get(name).await.unwrap()).unwrap();
            if done(&pod) {
                return pod;
            }
            if Instant::now() > end {
                let events = self.events(name).await;
                panic!("{name} is not {what} after 40 s: {:#}\n{events:#?}", pod["status"]);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub async fn ready(&self, name: &str) -> Value {
        self.wait(name, "ready", |pod| is_true(pod, "Ready")).await
    }

    pub async fn gone(&self, name: &str) {
        let end = Instant::now() + Duration::from_secs(40);
        while self.pods().get_opt(name).await.unwrap().is_some() {
            assert!(Instant::now() < end, "{name} is still there");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub async fn delete(&self, name: &str) {
        self.pods().delete(name, &DeleteParams::default()).await.unwrap();
        self.gone(name).await;
    }

    /// `type reason message` of a Pod's Events.
    pub async fn events(&self, name: &str) -> Vec<String> {
        let api: Api<Event> = Api::default_namespaced(self.client.clone());
        let mut all = api.list(&Default::default()).await.unwrap().items;
        all.retain(|e| e.involved_object.name.as_deref() == Some(name));
        all.sort_by_key(|e| e.metadata.resource_version.as_ref().and_then(|v| v.parse::<u64>().ok()));
        let text = |e: &Event| {
            let part = |o: &Option<String>| o.clone().unwrap_or_default();
            format!("{} {} {}", part(&e.type_), part(&e.reason), part(&e.message))
        };
        all.iter().map(text).collect()
    }

    /// Waits for an Event that contains the text.
    pub async fn event(&self, name: &str, text: &str) {
        let end = Instant::now() + Duration::from_secs(20);
        loop {
            let events = self.events(name).await;
            if events.iter().any(|e| e.contains(text)) {
                return;
            }
            assert!(Instant::now() < end, "no event {text:?} in {events:#?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Ends everything and asserts that nothing is left.
    pub async fn finish(mut self) {
        // Files go after the API object.
        let left = |dir: &str| fs::read_dir(self.dir.path().join(dir)).into_iter().flatten().count();
        let end = Instant::now() + Duration::from_secs(20);
        while left("pods") + left("volatile") + left("logs") > 0 && Instant::now() < end {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!((left("pods"), left("volatile"), left("logs")), (0, 0, 0), "files of Pods are left");
        self.halt().await;
        let listed = self.runtime.list().await.unwrap();
        assert!(listed.sandboxes.is_empty() && listed.containers.is_empty(), "{listed:?}");
        self.runtime.clone().shutdown().await.unwrap();
        let pid = self.guard.0;
        let end = Instant::now() + Duration::from_secs(5);
        while Path::new(&format!("/proc/{pid}")).exists() {
            let state = fs::read_to_string(format!("/proc/{pid}/stat"));
            assert!(Instant::now() < end, "the shim is still there: {state:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        if let Some(inside) = self.inside.take() {
            inside.shutdown_background();
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(inside) = self.inside.take() {
            inside.shutdown_background();
        }
    }
}

pub fn is_true(pod: &Value, condition: &str) -> bool {
    let conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
    conditions.iter().any(|c| c["type"] == condition && c["status"] == "True")
}
