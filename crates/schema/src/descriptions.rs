//! The prose of the table: 650 KB of text that only OpenAPI documents and `kubectl explain` ask for. It stays compressed
//! until then, and is freed when no reader holds it: a document is built rarely and cached by its
//! reader.

use flate2::read::ZlibDecoder;
use std::io::Read as _;
use std::sync::{Arc, Mutex, PoisonError, Weak};

static COMPRESSED: &[u8] = include_bytes!("../data/descriptions.bin");
static SHARED: Mutex<Weak<Vec<String>>> = Mutex::new(Weak::new());

/// The inflated texts; whoever builds a document holds them for as long as that takes.
pub(crate) fn hold() -> Arc<Vec<String>> {
    let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(held) = shared.upgrade() {
        return held;
    }
    let mut text = String::new();
    // The bytes are our own; a test inflates them.
    let _ = ZlibDecoder::new(COMPRESSED).read_to_string(&mut text);
    let fresh = Arc::new(text.split('\0').map(str::to_owned).collect::<Vec<_>>());
    *shared = Arc::downgrade(&fresh);
    fresh
}

/// One text by its position.
pub(crate) fn get(position: u32) -> Option<String> {
    hold().get(position as usize).filter(|text| !text.is_empty()).cloned()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use crate::Table;

    #[test]
    fn texts_stand_at_their_fields() {
        let ty = Table::builtin().by_name("apps/v1.DeploymentSpec").unwrap();
        assert!(ty.description().unwrap().starts_with("DeploymentSpec is the specification"));
        assert!(ty.field("replicas").unwrap().description().unwrap().starts_with("Number of desired pods."));
        let last = Table::builtin().types().last().unwrap();
        let name = last.short_name().to_owned();
        assert!(last.description().unwrap().contains(&name), "the last type, {name}, has another one's text");
    }
}
