//! An API server on a temporary store, the controllers, and toys for what else a cluster has.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use apiserver::ApiServer;
use client::{Change, Informer};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::runtime::watcher;
use kube::{Api, Client, ResourceExt};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::json;
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};

/// A running cluster without containers; everything stops when it is dropped.
pub struct World {
    pub client: Client,
    kubeconfig: PathBuf,
    _dir: TempDir,
    _stop: DropGuard,
}

fn certificate(
    params: CertificateParams,
    key: &KeyPair,
    issuer: &Issuer<'_, KeyPair>,
) -> (String, CertificateDer<'static>) {
    let made = params.signed_by(key, issuer).unwrap();
    (made.pem(), made.der().clone())
}

impl World {
    pub async fn start() -> Self {
        // A second test may have installed it.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let dir = tempfile::tempdir().unwrap();
        let stop = CancellationToken::new();
        let ca_key = KeyPair::generate().unwrap();
        let mut ca = CertificateParams::new(Vec::new()).unwrap();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca_made = ca.self_signed(&ca_key).unwrap();
        let (ca_pem, ca_der) = (ca_made.pem(), ca_made.der().clone());
        let issuer = Issuer::new(ca, ca_key);

        let mut roots = rustls::RootCertStore::empty();
        roots.add(ca_der.clone()).unwrap();
        let kubelet = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        let config = apiserver::Config {
            advertise_address: IpAddr::V4(Ipv4Addr::LOCALHOST),
            advertise_port: 8443,
            service_cidrs: vec!["10.96.0.0/12".parse().unwrap()],
            node_ports: 30000..=32767,
            policies: apiserver::Enforcement::Full,
            client_ca: vec![ca_der.clone()],
            service_account_key: KeyPair::generate().unwrap().serialize_pem(),
            service_account_issuer: "https://kubernetes.default.svc.cluster.local".into(),
            kubelet_tls: Arc::new(kubelet),
            audit: None,
        };
        let store =
            storage::Embedded::open(&dir.path().join("store.redb"), storage::Options::default()).unwrap();
        let api = ApiServer::new(config, Arc::new(store)).await.unwrap();

        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let key = KeyPair::generate().unwrap();
        let server = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        let (_, server) = certificate(server, &key, &issuer);
        let verifier = apiserver::serve::client_verifier(std::slice::from_ref(&ca_der)).unwrap();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let tls = rustls::ServerConfig::builder()
            .with_client_cert_verifier(verifier)
            .with_single_cert(vec![server], key)
            .unwrap();
        tokio::spawn(api.clone().serve(listener, tls, stop.clone()));
        let kubeconfig = kubeconfig(dir.path(), address, &ca_pem, &issuer);

        let transport = api.in_process("system:kube-controller-manager", &["system:masters"]);
        let client = Client::new(transport, "default");
        let config = controllers::Config {
            ca_pem,
            cluster_cidrs: vec![("10.244.0.0/16".parse().unwrap(), 24)],
            load_balancers: vec![[192, 168, 49, 101].into()..=[192, 168, 49, 254].into()],
        };
        let shared = client::SharedInformers::start(&client);
        tokio::spawn(controllers::run(client.clone(), shared, config, stop.clone()));
        join_node(&client).await;
        tokio::spawn(stop.clone().run_until_cancelled_owned(toy_kubelet(client.clone())));
        Self { client, kubeconfig, _dir: dir, _stop: stop.drop_guard() }
    }

    /// Runs kubectl, which must succeed; what it printed.
    pub async fn kubectl(&self, arguments: &[&str]) -> String {
        self.run(arguments, "").await
    }

    pub async fn apply(&self, manifest: &str) {
        self.run(&["apply", "-f", "-"], manifest).await;
    }

    async fn run(&self, arguments: &[&str], input: &str) -> String {
        let mut child = tokio::process::Command::new("kubectl")
            .arg("--kubeconfig")
            .arg(&self.kubeconfig)
            .args(arguments)
            .env("HOME", self._dir.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("kubectl must be on the PATH");
        child.stdin.take().unwrap().write_all(input.as_bytes()).await.unwrap();
        let limit = Duration::from_secs(60);
        let output =
            tokio::time::timeout(limit, child.wait_with_output()).await.expect("kubectl hangs").unwrap();
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "kubectl {arguments:?}\n{out}{err}");
        out.into_owned()
    }
}

fn kubeconfig(dir: &std::path::Path, address: SocketAddr, ca: &str, issuer: &Issuer<'_, KeyPair>) -> PathBuf {
    let key = KeyPair::generate().unwrap();
    let mut admin = CertificateParams::new(Vec::new()).unwrap();
    admin.distinguished_name.push(DnType::CommonName, "kubernetes-admin");
    admin.distinguished_name.push(DnType::OrganizationName, "system:masters");
    let (admin, _) = certificate(admin, &key, issuer);
    let write = |name: &str, text: &str| {
        std::fs::write(dir.join(name), text).unwrap();
        dir.join(name).display().to_string()
    };
    let (ca, admin, key) =
        (write("ca.crt", ca), write("admin.crt", &admin), write("admin.key", &key.serialize_pem()));
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: t\n\
         clusters: [{{name: t, cluster: {{server: 'https://{address}', certificate-authority: '{ca}'}}}}]\n\
         users: [{{name: t, user: {{client-certificate: '{admin}', client-key: '{key}'}}}}]\n\
         contexts: [{{name: t, context: {{cluster: t, user: t}}}}]\n"
    );
    PathBuf::from(write("kubeconfig", &text))
}

async fn join_node(client: &Client) {
    let nodes: Api<Node> = Api::all(client.clone());
    let node = serde_json::from_value(json!({"metadata": {"name": "n1"}})).unwrap();
    nodes.create(&PostParams::default(), &node).await.unwrap();
    let ready = json!({"status": {"conditions": [{"type": "Ready", "status": "True"}]}});
    // The podCIDR is written at the same time, and the server may call that a conflict.
    eventually("the node is ready", || async {
        nodes.patch_status("n1", &PatchParams::default(), &Patch::Merge(&ready)).await.is_ok()
    })
    .await;
}

/// Binds Pods to the one node, makes them run (a container called `finishing` succeeds) and lets them end.
async fn toy_kubelet(client: Client) {
    let pods: Informer<Pod> = Informer::start(Api::all(client.clone()), watcher::Config::default());
    let mut changes = pods.subscribe();
    let mut next = 10u32;
    while let Some(change) = changes.recv().await {
        let Change::Applied { new: pod, .. } = change else { continue };
        let api: Api<Pod> = Api::namespaced(client.clone(), &pod.namespace().unwrap());
        let (name, status) = (pod.name_any(), pod.status.clone().unwrap_or_default());
        // Whatever fails here is a race with a deletion, whose event follows.
        if pod.metadata.deletion_timestamp.is_some() {
            let _ = api.delete(&name, &DeleteParams::default().grace_period(0)).await;
        } else if pod.spec.as_ref().unwrap().node_name.is_none() {
            let binding = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": name},
                "target": {"apiVersion": "v1", "kind": "Node", "name": "n1"}});
            let _: Result<serde_json::Value, _> =
                api.create_subresource("binding", &name, &PostParams::default(), &binding).await;
        } else if status.phase.as_deref() == Some("Pending") {
            next += 1;
            let address = format!("10.244.0.{}", next % 250);
            let finishing = pod.spec.as_ref().unwrap().containers[0].name == "finishing";
            let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
            let ready = if finishing { "False" } else { "True" };
            let status = json!({"status": {
                "phase": if finishing { "Succeeded" } else { "Running" },
                "podIP": address, "podIPs": [{"ip": address}],
                "conditions": [{"type": "Ready", "status": ready, "lastTransitionTime": now}]}});
            let _ = api.patch_status(&name, &PatchParams::default(), &Patch::Merge(status)).await;
        }
    }
}

/// Tries until `holds` does, for twenty seconds.
pub async fn eventually<F: Future<Output = bool>>(what: &str, holds: impl Fn() -> F) {
    for _ in 0..1000 {
        if holds().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("never: {what}");
}
