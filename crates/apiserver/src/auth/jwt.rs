//! JSON Web Tokens as the cluster signs them: ES256 (ECDSA P-256, RFC 7518) in compact form, and the JWK set that
//! lets others verify them (RFC 7517).
//!
//! One algorithm only: a header that names another one, `none` included, is refused before anything is computed.

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair, UnparsedPublicKey,
};
use serde_json::{Value, json};

/// Why a key or token was refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum JwtError {
    /// The private key is not PKCS#8 PEM of an ECDSA P-256 key.
    #[error("reading the service account key: {0}")]
    Key(&'static str),
    /// Not three base64url parts with JSON in them.
    #[error("token is malformed")]
    Malformed,
    /// Another algorithm or another key.
    #[error("token was signed by another issuer")]
    Foreign,
    /// The signature does not hold.
    #[error("token signature is invalid")]
    Signature,
    /// The machine's random source failed.
    #[error("signing the token failed")]
    Sign,
}

/// The key pair of ServiceAccount tokens.
pub struct SigningKey {
    pair: EcdsaKeyPair,
    random: SystemRandom,
    kid: String,
}

/// DER before the 65 bytes of an uncompressed P-256 point in a SubjectPublicKeyInfo (RFC 5480).
const SPKI_PREFIX: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86,
    0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];

impl SigningKey {
    /// Reads a PKCS#8 PEM.
    pub fn from_pem(pem: &str) -> Result<Self, JwtError> {
        let body: String = pem
            .lines()
            .map(str::trim)
            .skip_while(|l| *l != "-----BEGIN PRIVATE KEY-----")
            .skip(1)
            .take_while(|l| !l.starts_with("-----END"))
            .collect();
        if body.is_empty() {
            return Err(JwtError::Key("no PRIVATE KEY block"));
        }
        let der = STANDARD.decode(body).map_err(|_| JwtError::Key("block is not base64"))?;
        Self::from_der(&der)
    }

    /// Reads PKCS#8 DER.
    pub fn from_der(der: &[u8]) -> Result<Self, JwtError> {
        let random = SystemRandom::new();
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der, &random)
            .map_err(|_| JwtError::Key("not an ECDSA P-256 key"))?;
        let mut spki = SPKI_PREFIX.to_vec();
        spki.extend_from_slice(pair.public_key().as_ref());
        let hash = ring::digest::digest(&ring::digest::SHA256, &spki);
        Ok(SigningKey { pair, random, kid: URL_SAFE_NO_PAD.encode(hash) })
    }

    /// Signs claims into a compact token.
    pub fn sign(&self, claims: &Value) -> Result<String, JwtError> {
        let header = json!({"alg": "ES256", "kid": self.kid});
        let encode = |v: &Value| URL_SAFE_NO_PAD.encode(v.to_string());
        let message = format!("{}.{}", encode(&header), encode(claims));
        let signature = self.pair.sign(&self.random, message.as_bytes()).map_err(|_| JwtError::Sign)?;
        Ok(format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }

    /// The claims of a token whose signature holds. Times, issuer and audience are the caller's to check.
    pub fn verify(&self, token: &str) -> Result<Value, JwtError> {
        let (message, signature) = token.rsplit_once('.').ok_or(JwtError::Malformed)?;
        let (header, claims) = message.split_once('.').ok_or(JwtError::Malformed)?;
        let header = json_part(header)?;
        if header["alg"] != "ES256" || header["kid"] != self.kid.as_str() {
            return Err(JwtError::Foreign);
        }
        let signature = URL_SAFE_NO_PAD.decode(signature).map_err(|_| JwtError::Malformed)?;
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, self.pair.public_key().as_ref())
            .verify(message.as_bytes(), &signature)
            .map_err(|_| JwtError::Signature)?;
        json_part(claims)
    }

    /// The JWK set with the public key.
    pub fn jwks(&self) -> Value {
        let point = self.pair.public_key().as_ref();
        let (x, y) = point[1..].split_at(32);
        json!({"keys": [{
            "use": "sig", "kty": "EC", "kid": self.kid, "crv": "P-256", "alg": "ES256",
            "x": URL_SAFE_NO_PAD.encode(x), "y": URL_SAFE_NO_PAD.encode(y),
        }]})
    }
}

fn json_part(part: &str) -> Result<Value, JwtError> {
    let bytes = URL_SAFE_NO_PAD.decode(part).map_err(|_| JwtError::Malformed)?;
    serde_json::from_slice(&bytes).map_err(|_| JwtError::Malformed)
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    /// A fresh key, as PEM.
    pub(crate) fn key_pem() -> String {
        let der =
            EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new()).unwrap();
        format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", STANDARD.encode(der.as_ref()))
    }

    #[test]
    fn round_trip_and_tampering() {
        let key = SigningKey::from_pem(&key_pem()).unwrap();
        let claims = json!({"sub": "system:serviceaccount:a:b"});
        let token = key.sign(&claims).unwrap();
        assert_eq!(key.verify(&token).unwrap(), claims);

        let parts: Vec<&str> = token.split('.').collect();
        let forged = URL_SAFE_NO_PAD.encode(r#"{"sub":"root"}"#);
        let none = URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#);
        let table = [
            (format!("{}.{forged}.{}", parts[0], parts[2]), JwtError::Signature),
            (format!("{none}.{}.", parts[1]), JwtError::Foreign),
            (format!("{}.{}", parts[0], parts[1]), JwtError::Malformed),
            ("x".into(), JwtError::Malformed),
        ];
        for (bad, expected) in table {
            assert_eq!(key.verify(&bad).unwrap_err(), expected, "{bad}");
        }
        let other = SigningKey::from_pem(&key_pem()).unwrap();
        assert_eq!(other.verify(&token).unwrap_err(), JwtError::Foreign);
    }

    #[test]
    fn keys_that_are_none() {
        for pem in ["", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----"] {
            assert!(matches!(SigningKey::from_pem(pem), Err(JwtError::Key(_))));
        }
    }
}
