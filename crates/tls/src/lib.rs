//! TLS to servers that nobody vouches for: encrypted, but whatever certificate they have is taken.
//!
//! Upstream does so in two places: the API server's proxy to Pods and Services, and the node agent's probes, which ask
//! whether something answers and not who. All other connections verify; their settings are made from the cluster's
//! authority where it is at hand. Signatures of the handshake are checked here as well (RFC 8446, RFC 5246).

use std::sync::{Arc, OnceLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme};

/// Takes every certificate; signatures of the handshake are still checked.
#[derive(Debug)]
struct Anyone(CryptoProvider);

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// The judge that takes every certificate, for a configuration that shows one of its own.
pub fn anyone() -> Arc<dyn ServerCertVerifier> {
    Arc::new(Anyone(ring::default_provider()))
}

/// The client configuration for such connections; made once.
///
/// # Errors
/// A crypto provider without usable TLS versions.
pub fn unverified() -> Result<Arc<ClientConfig>, Error> {
    static MADE: OnceLock<Arc<ClientConfig>> = OnceLock::new();
    if let Some(made) = MADE.get() {
        return Ok(made.clone());
    }
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(anyone())
        .with_no_client_auth();
    Ok(MADE.get_or_init(|| Arc::new(config)).clone())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use rustls::server::{ClientHello, ResolvesServerCert};
    use rustls::sign::CertifiedKey;
    use rustls::{ClientConnection, ServerConfig, ServerConnection};

    #[derive(Debug)]
    struct Shows(Arc<CertifiedKey>);

    impl ResolvesServerCert for Shows {
        fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
            Some(self.0.clone())
        }
    }

    /// A handshake with a server that shows one certificate and signs with a key, in memory.
    fn handshake(shown: &rcgen::CertifiedKey<rcgen::KeyPair>, signing: &rcgen::KeyPair) -> Result<(), Error> {
        let provider = Arc::new(ring::default_provider());
        let key = provider.key_provider.load_private_key(signing.serialize_der().try_into().unwrap())?;
        let certified = CertifiedKey::new(vec![shown.cert.der().clone()], key);
        let server = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(Shows(Arc::new(certified))));
        let mut server = ServerConnection::new(Arc::new(server))?;
        let mut client = ClientConnection::new(unverified()?, "10.244.0.7".try_into().unwrap())?;
        for _ in 0..10 {
            let mut wire = Vec::new();
            client.write_tls(&mut wire).unwrap();
            server.read_tls(&mut wire.as_slice()).unwrap();
            server.process_new_packets()?;
            wire.clear();
            server.write_tls(&mut wire).unwrap();
            client.read_tls(&mut wire.as_slice()).unwrap();
            client.process_new_packets()?;
        }
        assert!(!client.is_handshaking() && !server.is_handshaking());
        Ok(())
    }

    #[test]
    fn a_certificate_of_nobody_is_taken_but_its_key_is_proved() {
        let own = rcgen::generate_simple_self_signed(["somewhere.else".to_owned()]).unwrap();
        assert_eq!(handshake(&own, &own.signing_key), Ok(()));
        let other = rcgen::KeyPair::generate().unwrap();
        let refused = handshake(&own, &other);
        assert!(matches!(refused, Err(Error::InvalidCertificate(_))), "{refused:?}");
    }
}
