//! Image references: what is accepted is a fixed point of normalising.
#![no_main]

libfuzzer_sys::fuzz_target!(|text: &str| {
    if image::parse(text).is_ok() {
        let full = image::normalize(text);
        assert_eq!(image::normalize(&full), full);
    }
});
