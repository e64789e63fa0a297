//! Request bodies: parsing and field validation of any bytes as a Deployment.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Ok(mut parsed) = schema::json::parse(data) else { return };
    if let Some(ty) = schema::Table::builtin().kind("apps", "v1", "Deployment") {
        schema::validate::fields(ty, &mut parsed.value, &parsed.duplicates, schema::validate::Mode::Strict);
    }
});
