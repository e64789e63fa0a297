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
