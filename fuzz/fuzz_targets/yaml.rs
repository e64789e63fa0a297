//! YAML bodies: no text makes a panic, and JSON is YAML that means the same.
#![no_main]

use apiserver::body::{Format, parse};
use serde_json::Value;

/// Numbers with a fraction or an exponent are read by rules of their own in YAML.
fn plain(value: &Value) -> bool {
    match value {
        Value::Number(number) => number.is_i64() || number.is_u64(),
        Value::Array(all) => all.iter().all(plain),
        Value::Object(all) => all.values().all(plain),
        _ => true,
    }
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Ok(parsed) = parse(Format::Yaml, bytes) else {
        // What is refused as YAML is so because of what it says, not because it is JSON.
        return;
    };
    let written = parsed.value.to_string();
    if plain(&parsed.value) {
        let again = parse(Format::Yaml, written.as_bytes()).expect("JSON is YAML");
        assert_eq!(again.value, parsed.value, "{written}");
        let json = parse(Format::Json, written.as_bytes()).expect("JSON is JSON");
        assert_eq!(json.value, parsed.value, "{written}");
    }
});
