//! A whole API server on a temporary store, reachable in process and over TLS on the loopback.

#![allow(dead_code, clippy::unwrap_used, clippy::expect_used)]

pub mod hook;

use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

use apiserver::{ApiServer, Config};
use bytes::Bytes;
use http::{Method, Request};
use http_body_util::{BodyExt, Full};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::Value;
use storage::Embedded;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tower::Service;

pub struct Pki {
    pub ca: CertificateDer<'static>,
    pub ca_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Pki {
    pub fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "test-ca");
        let certificate = params.self_signed(&key).unwrap();
        Pki { ca: certificate.der().clone(), ca_pem: certificate.pem(), issuer: Issuer::new(params, key) }
    }

    /// Certificate and key, PEM and DER.
    pub fn issue(
        &self,
        name: &str,
        groups: &[&str],
        addresses: &[&str],
    ) -> (String, String, CertificateDer<'static>, KeyPair) {
        let key = KeyPair::generate().unwrap();
        let names: Vec<String> = addresses.iter().map(|a| (*a).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        for group in groups {
            params.distinguished_name.push(DnType::OrganizationName, *group);
        }
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        (certificate.pem(), key.serialize_pem(), certificate.der().clone(), key)
    }
}

pub struct Fixture {
    pub api: Arc<ApiServer>,
    pub pki: Pki,
    pub dir: TempDir,
    pub address: Option<SocketAddr>,
    pub stop: CancellationToken,
}

pub async fn start() -> Fixture {
    start_with(storage::Options::default()).await
}

pub async fn start_with(options: storage::Options) -> Fixture {
    start_audited(options, None).await
}

/// The same with an audit policy; the log is `audit.log` in its directory.
pub async fn start_audited(options: storage::Options, policy: Option<&str>) -> Fixture {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let dir = tempfile::tempdir().unwrap();
    let store = Embedded::open(&dir.path().join("store.redb"), options).unwrap();
    let pki = Pki::new();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(pki.ca.clone()).unwrap();
    let kubelet = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    let config = Config {
        advertise_address: IpAddr::V4(Ipv4Addr::LOCALHOST),
        advertise_port: 8443,
        service_cidrs: vec!["10.96.0.0/12".parse().unwrap()],
        node_ports: 30000..=32767,
        policies: apiserver::Enforcement::Full,
        client_ca: vec![pki.ca.clone()],
        service_account_key: KeyPair::generate().unwrap().serialize_pem(),
        service_account_issuer: "https://kubernetes.default.svc.cluster.local".into(),
        kubelet_tls: Arc::new(kubelet),
        audit: policy.map(|policy| apiserver::audit::Settings {
            policy: Arc::new(apiserver::audit::policy::Policy::parse(policy).unwrap()),
            path: dir.path().join("audit.log"),
            max_size: 1 << 30,
            max_backups: 1,
        }),
    };
    let api = ApiServer::new(config, Arc::new(store)).await.unwrap();
    Fixture { api, pki, dir, address: None, stop: CancellationToken::new() }
}

/// An answer, read to its end.
pub struct Got {
    pub code: u16,
    pub headers: http::HeaderMap,
    pub bytes: Bytes,
}

impl Got {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.bytes).unwrap_or_else(|e| panic!("{e}: {:?}", self.bytes))
    }

    /// Code and message of a Status.
    pub fn status(&self) -> (u16, String) {
        (self.code, self.json()["message"].as_str().unwrap_or_default().to_owned())
    }
}

impl Fixture {
    /// Also serves on the loopback.
    pub async fn serve(&mut self, port: u16) {
        let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
        self.address = Some(listener.local_addr().unwrap());
        let (_, _, certificate, key) = self.pki.issue("kube-apiserver", &[], &["127.0.0.1", "localhost"]);
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let tls = rustls::ServerConfig::builder()
            .with_client_cert_verifier(
                apiserver::serve::client_verifier(std::slice::from_ref(&self.pki.ca)).unwrap(),
            )
            .with_single_cert(vec![certificate], key)
            .unwrap();
        tokio::spawn(self.api.clone().serve(listener, tls, self.stop.clone()));
    }

    /// A kubeconfig of the cluster's admin.
    pub fn kubeconfig(&self) -> PathBuf {
        let path = self.dir.path().join("kubeconfig");
        let (certificate, key, _, _) = self.pki.issue("kubernetes-admin", &["system:masters"], &[]);
        let ca = self.write("ca.crt", &self.pki.ca_pem);
        let (certificate, key) = (self.write("admin.crt", &certificate), self.write("admin.key", &key));
        let server = format!("https://{}", self.address.unwrap());
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: t\n\
             clusters: [{{name: t, cluster: {{server: '{server}', certificate-authority: '{ca}'}}}}]\n\
             users: [{{name: t, user: {{client-certificate: '{certificate}', client-key: '{key}'}}}}]\n\
             contexts: [{{name: t, context: {{cluster: t, user: t}}}}]\n"
        );
        std::fs::write(&path, text).unwrap();
        path
    }

    fn write(&self, name: &str, text: &str) -> String {
        let path = self.dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_string_lossy().into_owned()
    }

    /// Sends a request as the admin, in process.
    pub async fn send(
        &self,
        method: Method,
        uri: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Got {
        let response = self.open(method, uri, headers, body).await;
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        Got { code: parts.status.as_u16(), headers: parts.headers, bytes }
    }

    /// Sends a request, answer unread.
    pub async fn open(
        &self,
        method: Method,
        uri: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> http::Response<apiserver::server::Body> {
        let mut request = Request::builder().method(method).uri(uri);
        for (key, value) in headers {
            request = request.header(*key, *value);
        }
        let mut service = self.api.in_process("admin", &["system:masters"]);
        service.call(request.body(Full::new(body.into())).unwrap()).await.unwrap()
    }

    pub async fn get(&self, uri: &str) -> Got {
        self.send(Method::GET, uri, &[], "").await
    }

    pub async fn post(&self, uri: &str, body: &Value) -> Got {
        self.send(Method::POST, uri, &[], body.to_string()).await
    }

    pub async fn put(&self, uri: &str, body: &Value) -> Got {
        self.send(Method::PUT, uri, &[], body.to_string()).await
    }

    pub async fn patch(&self, uri: &str, media: &str, body: &Value) -> Got {
        self.send(Method::PATCH, uri, &[("content-type", media)], body.to_string()).await
    }

    pub async fn delete(&self, uri: &str, options: Option<Value>) -> Got {
        self.send(Method::DELETE, uri, &[], options.map(|o| o.to_string()).unwrap_or_default()).await
    }
}

/// Waits until a request gives a code.
pub async fn until(f: &Fixture, uri: &str, code: u16) {
    for _ in 0..200 {
        if f.get(uri).await.code == code {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    panic!("{uri} never gave {code}");
}

impl Drop for Fixture {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// A kubectl of some version, if it is there: `None` is the default one.
pub fn kubectl(version: Option<&str>) -> Option<Command> {
    let path = std::env::var_os("PATH")?;
    let program = std::env::split_paths(&path).map(|d| d.join("kubectl")).find(|p| p.is_file())?;
    let program = match version {
        None => program,
        Some(version) => {
            let real = std::fs::canonicalize(program).ok()?;
            let other = real.with_file_name(format!("kubectl.{version}"));
            other.is_file().then_some(other)?
        }
    };
    Some(Command::new(program))
}

/// One kubectl with its own cache, pointed at the server.
pub struct Kubectl {
    pub version: Option<&'static str>,
    pub config: PathBuf,
    pub cache: PathBuf,
}

impl Kubectl {
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = kubectl(self.version).unwrap();
        command.env("KUBECONFIG", &self.config).arg("--cache-dir").arg(&self.cache).args(arguments);
        command
    }

    pub fn output(&self, arguments: &[&str], input: &str) -> Output {
        let mut child = self
            .command(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    }

    /// What a successful command prints.
    pub fn run(&self, arguments: &[&str]) -> String {
        self.feed(arguments, "")
    }

    pub fn feed(&self, arguments: &[&str], input: &str) -> String {
        let output = self.output(arguments, input);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "kubectl {:?} {arguments:?}: {error}", self.version);
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// What a failing command complains about.
    pub fn fail(&self, arguments: &[&str], input: &str) -> String {
        let output = self.output(arguments, input);
        assert!(!output.status.success(), "kubectl {:?} {arguments:?} succeeded", self.version);
        String::from_utf8(output.stderr).unwrap().trim().to_owned()
    }
}
