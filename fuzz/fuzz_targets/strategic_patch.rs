//! A strategic merge patch of any shape on a Pod of any shape.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: (&str, &str)| {
    let (Ok(original), Ok(patch)) = (serde_json::from_str(data.0), serde_json::from_str(data.1)) else {
        return;
    };
    if let Some(ty) = schema::Table::builtin().kind("", "v1", "Pod") {
        let _ = schema::patch::strategic(ty, original, &patch);
    }
});
