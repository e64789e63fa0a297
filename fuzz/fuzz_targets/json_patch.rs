//! JSON patches and merge patches of any shape. A JSON patch applies whole, as the reference library does it, or not at all;
//! the difference of two documents makes the one from the other; a merge patch merged twice is merged once.
#![no_main]

use schema::patch;
use serde_json::Value;

libfuzzer_sys::fuzz_target!(|texts: (&str, &str)| {
    let parse = serde_json::from_str::<Value>;
    let (Ok(old), Ok(given)) = (parse(texts.0), parse(texts.1)) else { return };
    let mut ours = old.clone();
    let outcome = patch::json(&mut ours, &given);
    if outcome.is_err() {
        assert_eq!(ours, old, "a refused patch left something");
    } else if let Ok(whole) = serde_json::from_value::<json_patch::Patch>(given.clone()) {
        let mut reference = old.clone();
        json_patch::patch(&mut reference, &whole).expect("the reference refuses what we took");
        assert_eq!(ours, reference);
    }
    let difference = serde_json::to_value(json_patch::diff(&old, &given)).expect("a patch");
    let mut made = old.clone();
    if patch::json(&mut made, &difference).is_ok() {
        assert_eq!(made, given);
    }
    let mut once = old.clone();
    patch::merge(&mut once, &given);
    let mut reference = old;
    json_patch::merge(&mut reference, &given);
    assert_eq!(once, reference);
    let mut twice = once.clone();
    patch::merge(&mut twice, &given);
    assert_eq!(once, twice);
});
