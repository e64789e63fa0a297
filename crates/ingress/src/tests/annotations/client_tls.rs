//! Certificates of clients.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use super::*;

struct Authority {
    pem: String,
    /// Its own certificate and those above it, but for the root's.
    chain: Vec<rustls::pki_types::CertificateDer<'static>>,
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
}

impl Authority {
    fn new(name: &str) -> Self {
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        let key = rcgen::KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { pem, chain: Vec::new(), issuer: rcgen::Issuer::new(params, key) }
    }

    /// An authority for which this one vouches.
    fn beneath(&self, name: &str) -> Self {
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        let key = rcgen::KeyPair::generate().unwrap();
        let own = params.signed_by(&key, &self.issuer).unwrap();
        let chain = [&[own.der().clone()], &self.chain[..]].concat();
        Self { pem: own.pem(), chain, issuer: rcgen::Issuer::new(params, key) }
    }

    /// A client with a certificate for this name.
    fn client(&self, name: &str) -> Arc<rustls::ClientConfig> {
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.extended_key_usages.push(rcgen::ExtendedKeyUsagePurpose::ClientAuth);
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap();
        let config = config.dangerous().with_custom_certificate_verifier(tls::anyone());
        let key = key.serialize_der().try_into().unwrap();
        Arc::new(
            config
                .with_client_auth_cert([&[certificate.der().clone()], &self.chain[..]].concat(), key)
                .unwrap(),
        )
    }
}

/// An element of DER: what it holds, behind its tag and length.
fn der(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = u16::try_from(content.len()).unwrap();
    [&[tag, 0x82][..], &length.to_be_bytes(), content].concat()
}

/// A certificate of version 1, which says neither its version nor anything in extensions (X.509), and its key, as DER.
fn old(authority: &Authority, signer: &Authority) -> (Vec<u8>, Vec<u8>) {
    use rcgen::SigningKey as _;
    use x509_parser::prelude::{FromDer, X509Certificate};
    let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(rcgen::DnType::CommonName, "old");
    let key = rcgen::KeyPair::generate().unwrap();
    let new = params.signed_by(&key, &authority.issuer).unwrap();
    let (_, parsed) = X509Certificate::from_der(new.der()).unwrap();
    let whole = parsed.tbs_certificate.as_ref();
    let end = parsed.tbs_certificate.subject_pki.raw.as_ptr_range().end as usize - whole.as_ptr() as usize;
    // SEQUENCE with its length in two or three bytes, then [0] of five bytes.
    let begin = if whole[1] == 0x82 { 4 } else { 3 } + 5;
    let body = der(0x30, &whole[begin..end]);
    let signature = signer.issuer.key().sign(&body).unwrap();
    // ecdsa-with-SHA256 (RFC 5758).
    let algorithm = [0x30, 10, 6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2];
    let bits = der(3, &[&[0][..], &signature].concat());
    let certificate = der(0x30, &[&body[..], &algorithm, &bits].concat());
    (certificate, key.serialize_der())
}

#[tokio::test]
async fn auth_tls_secret_takes_certificates_of_version_1_from_the_authority_itself() {
    let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
    let dir = tempfile::tempdir().unwrap();
    let world = mutual(&[], &ours).await;
    let lax = mutual(&[("auth-tls-verify-client", "optional_no_ca")], &ours).await;
    for (name, (certificate, key), strict) in [
        ("good", old(&ours, &ours), "200"),
        ("stranger", old(&theirs, &theirs), "400"),
        // Names our authority; another has signed it.
        ("forged", old(&ours, &theirs), "400"),
    ] {
        let file = |kind: &str, content: &[u8]| {
            let path = dir.path().join(format!("{name}.{kind}"));
            std::fs::write(&path, content).unwrap();
            path
        };
        let (certificate, key) = (file("crt", &certificate), file("key", &key));
        for version in ["1.2", "1.3"] {
            for (world, wanted) in [(&world, strict), (&lax, "200")] {
                let port = world.secure.port();
                let mut curl = tokio::process::Command::new("curl");
                curl.args([
                    "-sk",
                    "-o",
                    "/dev/null",
                    "-w",
                    "%{http_code}",
                    "--noproxy",
                    "*",
                    "--tls-max",
                    version,
                ]);
                curl.args(["--cert-type", "DER", "--key-type", "DER"]);
                curl.arg("--cert").arg(&certificate).arg("--key").arg(&key);
                curl.args(["--resolve", &format!("h:{port}:127.0.0.1")]).arg(format!("https://h:{port}/"));
                let out = curl.output().await.expect("apt-get install curl");
                assert_eq!(String::from_utf8_lossy(&out.stdout), wanted, "{name}, TLS {version}");
            }
        }
    }
}

async fn mutual(pairs: &[(&str, &str)], authority: &Authority) -> World {
    let mut world = World::start(&[]).await;
    secret(&mut world.objects, "ca", &[("ca.crt", authority.pem.as_bytes())]);
    let on = [("auth-tls-secret", "ns/ca")];
    let this = with(ingress("x", tls_of("h")), &[&on[..], pairs].concat());
    let open = ingress("y", json!({"rules": [rule("open", &[path("/", "Prefix", "b")])]}));
    world.set(&[this, open]);
    world.fine();
    world
}

#[tokio::test]
async fn auth_tls_secret_verify_client_and_pass_certificate_to_upstream() {
    let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
    let world =
        mutual(&[("auth-tls-pass-certificate-to-upstream", "true"), ("auth-tls-verify-depth", "2")], &ours)
            .await;
    assert_eq!(world.ask("h", "/").tls().send().await.status, 400);
    assert_eq!(world.ask("h", "/").shows(theirs.client("alice")).send().await.status, 400);
    let good =
        world.ask("h", "/").header("ssl-client-verify", "forged").shows(ours.client("alice")).send().await;
    assert_eq!(good.sent("ssl-client-verify"), "SUCCESS");
    assert_eq!(good.sent("ssl-client-subject-dn"), "CN=alice");
    assert!(good.sent("ssl-client-issuer-dn").contains("CN=ours"));
    assert!(good.sent("ssl-client-cert").starts_with("-----BEGIN%20CERTIFICATE-----%0A"));
    // A connection that was opened under another name has shown nothing.
    assert_eq!(world.ask("h", "/").sni("open").tls().send().await.status, 421);
    assert_eq!(world.ask("open", "/").tls().send().await.service(), "b");
}

#[tokio::test]
async fn auth_tls_verify_depth() {
    let root = Authority::new("root");
    let middle = root.beneath("middle");
    let last = middle.beneath("last");
    for (depth, through, status) in
        [("0", 0, 200), ("0", 1, 400), ("1", 1, 200), ("1", 2, 400), ("2", 2, 200)]
    {
        let world = mutual(&[("auth-tls-verify-depth", depth)], &root).await;
        let client = [&root, &middle, &last][through].client("alice");
        let got = world.ask("h", "/").shows(client).send().await;
        assert_eq!(got.status, status, "depth {depth}, {through} between");
    }
}

#[tokio::test]
async fn auth_tls_verify_client_optional_and_optional_no_ca() {
    let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
    let world = mutual(&[("auth-tls-verify-client", "optional")], &ours).await;
    assert_eq!(world.ask("h", "/").tls().send().await.sent("ssl-client-verify"), "NONE");
    assert_eq!(world.ask("h", "/").shows(theirs.client("x")).send().await.status, 400);
    let lax = mutual(&[("auth-tls-verify-client", "optional_no_ca")], &ours).await;
    let told = lax.ask("h", "/").shows(theirs.client("x")).send().await.sent("ssl-client-verify");
    assert!(told.starts_with("FAILED:"), "{told}");
}

#[tokio::test]
async fn auth_tls_error_page_and_auth_tls_match_cn() {
    let ours = Authority::new("ours");
    let world = mutual(
        &[("auth-tls-error-page", "https://help.example/"), ("auth-tls-match-cn", "CN=(alice|bob)")],
        &ours,
    )
    .await;
    redirects(&world.ask("h", "/").tls().send().await, 302, "https://help.example/");
    assert_eq!(world.ask("h", "/").shows(ours.client("bob")).send().await.service(), "a");
    assert_eq!(world.ask("h", "/").shows(ours.client("mallory")).send().await.status, 403);
}
