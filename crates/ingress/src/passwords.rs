//! Users and passwords as `htpasswd` writes them: bcrypt, SHA-crypt, Apache's MD5, and the old `{SHA}`.
//!
//! A good hash is slow to compute, and browsers send their password with each request: one that was right is
//! remembered, as a keyed hash of it, until the Secret changes.

use std::collections::{BTreeMap, HashMap};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::HeaderValue;
use k8s_openapi::ByteString;
use md5::{Digest, Md5};
use parking_lot::Mutex;
use sha1::Sha1;

use crate::annotations::auth::SecretType;

/// Right passwords that are remembered.
const REMEMBERED: usize = 4_096;
const ALPHABET: &[u8; 64] = b"./0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// The users of one Secret.
#[derive(Debug)]
pub(crate) struct Users {
    hashes: HashMap<String, String>,
    /// What was right, with a secret of this process before it.
    known: Mutex<HashMap<[u8; 32], ()>>,
    salt: [u8; 16],
}

impl Users {
    /// Reads a Secret.
    ///
    /// # Errors
    /// What it lacks.
    pub fn read(data: &BTreeMap<String, ByteString>, kind: SecretType) -> Result<Self, String> {
        let text = |bytes: &ByteString| String::from_utf8_lossy(&bytes.0).trim().to_owned();
        let hashes = match kind {
            SecretType::Map => data.iter().map(|(user, hash)| (user.clone(), text(hash))).collect(),
            SecretType::File => {
                let file = data.get("auth").ok_or("has no key auth, which holds a file of htpasswd")?;
                let file = text(file);
                let lines = file.lines().filter(|line| !line.starts_with('#'));
                let pairs = lines.filter_map(|line| line.trim().split_once(':'));
                pairs
                    .map(|(user, hash)| {
                        (user.to_owned(), hash.split(':').next().unwrap_or_default().to_owned())
                    })
                    .collect()
            }
        };
        Ok(Self { hashes, known: Mutex::default(), salt: rand::random() })
    }

    /// The user, if the header holds one and the right password.
    pub async fn check(self: &std::sync::Arc<Self>, header: &HeaderValue) -> Option<String> {
        let (user, password) = credentials(header)?;
        let hash = self.hashes.get(&user)?.clone();
        let mut digest = sha2::Sha256::new();
        for part in [&self.salt[..], user.as_bytes(), &[0], password.as_bytes()] {
            digest.update(part);
        }
        let key: [u8; 32] = digest.finalize().into();
        if self.known.lock().contains_key(&key) {
            return Some(user);
        }
        // Made to be slow: not where requests are served.
        let right = tokio::task::spawn_blocking(move || matches(&password, &hash)).await.ok()?;
        if !right {
            return None;
        }
        let mut known = self.known.lock();
        if known.len() >= REMEMBERED {
            known.clear();
        }
        known.insert(key, ());
        Some(user)
    }
}

/// User and password of `Basic` (RFC 7617).
fn credentials(header: &HeaderValue) -> Option<(String, String)> {
    let text = header.to_str().ok()?;
    let (scheme, coded) = text.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let plain = String::from_utf8(STANDARD.decode(coded.trim()).ok()?).ok()?;
    let (user, password) = plain.split_once(':')?;
    Some((user.to_owned(), password.to_owned()))
}

fn matches(password: &str, hash: &str) -> bool {
    if hash.starts_with("$2") {
        return bcrypt::verify(password, hash).unwrap_or(false);
    }
    if hash.starts_with("$5$") || hash.starts_with("$6$") {
        return sha_crypt(password, hash);
    }
    if let Some(coded) = hash.strip_prefix("{SHA}") {
        return equal(STANDARD.encode(Sha1::digest(password)).as_bytes(), coded.as_bytes());
    }
    if let Some(coded) = hash.strip_prefix("{SSHA}") {
        return salted(password, coded).unwrap_or(false);
    }
    if let Some(plain) = hash.strip_prefix("{PLAIN}") {
        return equal(password.as_bytes(), plain.as_bytes());
    }
    for magic in ["$apr1$", "$1$"] {
        if let Some((salt, _)) = hash.strip_prefix(magic).and_then(|rest| rest.split_once('$')) {
            return equal(md5_crypt(password.as_bytes(), salt.as_bytes(), magic).as_bytes(), hash.as_bytes());
        }
    }
    false
}

fn sha_crypt(password: &str, hash: &str) -> bool {
    use sha_crypt::{PasswordVerifier, ShaCrypt};
    ShaCrypt::default().verify_password(password.as_bytes(), hash).is_ok()
}

fn salted(password: &str, coded: &str) -> Option<bool> {
    let bytes = STANDARD.decode(coded).ok()?;
    let (digest, salt) = bytes.split_at_checked(20)?;
    let mut made = Sha1::new();
    made.update(password);
    made.update(salt);
    Some(equal(&made.finalize(), digest))
}

/// Whether two texts are equal, in a time that does not say where they differ.
fn equal(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |difference, (a, b)| difference | (a ^ b)) == 0
}

/// MD5-crypt as FreeBSD and Apache have it: the digest is stirred a thousand times.
fn md5_crypt(password: &[u8], salt: &[u8], magic: &str) -> String {
    let salt = &salt[..salt.len().min(8)];
    let inner = Md5::new().chain_update(password).chain_update(salt).chain_update(password).finalize();
    let mut first = Md5::new().chain_update(password).chain_update(magic).chain_update(salt);
    for start in (0..password.len()).step_by(16) {
        first.update(&inner[..(password.len() - start).min(16)]);
    }
    let mut length = password.len();
    while length > 0 {
        let byte = if length & 1 == 1 { 0 } else { password[0] };
        first.update([byte]);
        length >>= 1;
    }
    let mut digest = first.finalize();
    for round in 0..1000 {
        let mut next = Md5::new();
        let odd = round % 2 == 1;
        if odd {
            next.update(password)
        } else {
            next.update(digest)
        }
        if round % 3 != 0 {
            next.update(salt);
        }
        if round % 7 != 0 {
            next.update(password);
        }
        if odd {
            next.update(digest)
        } else {
            next.update(password)
        }
        digest = next.finalize();
    }
    let mut out = format!("{magic}{}$", String::from_utf8_lossy(salt));
    let mut sextets = |mut value: u32, count: usize| {
        for _ in 0..count {
            out.push(char::from(ALPHABET[(value & 63) as usize]));
            value >>= 6;
        }
    };
    let byte = |at: usize| u32::from(digest[at]);
    for (a, b, c) in [(0, 6, 12), (1, 7, 13), (2, 8, 14), (3, 9, 15), (4, 10, 5)] {
        sextets(byte(a) << 16 | byte(b) << 8 | byte(c), 4);
    }
    sextets(byte(11), 2);
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use std::sync::Arc;

    use super::*;

    /// Made by openssl passwd and the C library's crypt, of "secret".
    const HASHES: [&str; 7] = [
        "$apr1$saltsalt$LrttParrLPdxvgutaSXWJ0",
        "$1$saltsalt$9xy1btjgzLYfb7hivXtC//",
        "$5$saltsalt$0IyaXrmV7.sGNS6tirgqHLqX/G.FBvgkYA.lpPdS5sA",
        "$6$saltsalt$TVLlQcbpFVof5W3Yz4DTP6gRstiNuHwwTt6GLc1E5n0U0aDehy0S5knV8wiOQSpT0Y77vwPZN.Pq.H91p5hVO1",
        "{SHA}5en6G6MezRroT3XKqkdPOmY/BfQ=",
        "{PLAIN}secret",
        "$2b$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a",
    ];

    fn basic(pair: &str) -> HeaderValue {
        format!("Basic {}", STANDARD.encode(pair)).parse().unwrap()
    }

    #[tokio::test]
    async fn users_of_files_and_maps() {
        let file = format!("# users\nalice:{}\nbob:{{PLAIN}}x\n", "{SHA}5en6G6MezRroT3XKqkdPOmY/BfQ=");
        let data = |key: &str, text: &str| BTreeMap::from([(key.to_owned(), ByteString(text.into()))]);
        let users = Arc::new(Users::read(&data("auth", &file), SecretType::File).unwrap());
        for _ in 0..2 {
            assert_eq!(users.check(&basic("alice:secret")).await.as_deref(), Some("alice"));
        }
        for wrong in ["alice:other", "carol:secret", "alice", ":"] {
            assert_eq!(users.check(&basic(wrong)).await, None, "{wrong}");
        }
        assert_eq!(users.check(&"Bearer x".parse().unwrap()).await, None);
        let map = Arc::new(Users::read(&data("bob", "{PLAIN}x:y"), SecretType::Map).unwrap());
        assert_eq!(map.check(&basic("bob:x:y")).await.as_deref(), Some("bob"));
        assert!(Users::read(&data("other", ""), SecretType::File).unwrap_err().contains("auth"));
    }

    #[test]
    fn every_kind_of_hash() {
        for hash in HASHES {
            assert!(matches("secret", hash), "{hash}");
            assert!(!matches("Secret", hash), "{hash}");
        }
        assert!(!matches("x", "") && !matches("x", "$9$x") && !matches("", "{SSHA}!!"));
    }
}
