//! Short names for versions of a template: `pod-template-hash`, `controller-revision-hash`.
//!
//! Upstream hashes Go's in-memory form with FNV-1a (32 bits) and maps the decimal digits onto an alphabet without
//! vowels, so that no word appears. The value is opaque to everyone; ours hashes the canonical JSON instead.

use serde::Serialize;

/// FNV-1a, 32 bits. <http://www.isthe.com/chongo/tech/comp/fnv/>
fn fnv1a(bytes: impl IntoIterator<Item = u8>) -> u32 {
    bytes.into_iter().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

/// The hash of a template; `collisions` moves it when a name is already taken by something else.
pub(crate) fn template_hash<T: Serialize>(template: &T, collisions: Option<i32>) -> String {
    // Our own types always serialize; an empty hash input would still be a valid, stable name.
    let json = serde_json::to_vec(template).unwrap_or_default();
    let salt = collisions.map(i32::to_le_bytes).into_iter().flatten();
    safe_encode(fnv1a(json.into_iter().chain(salt)))
}

fn safe_encode(hash: u32) -> String {
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    hash.to_string().bytes().map(|b| char::from(ALPHABET[usize::from(b) % ALPHABET.len()])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_fnv_and_the_alphabet_has_no_vowels() {
        assert_eq!(fnv1a(*b"foobar"), 0xbf9c_f968);
        assert_eq!(safe_encode(1_234_567_890), "56789bcdf4");
        assert_ne!(template_hash(&"a", None), template_hash(&"a", Some(1)));
        assert_eq!(template_hash(&"a", None), template_hash(&"a", None));
    }
}
