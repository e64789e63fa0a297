//! resolv.conf of any text.
#![no_main]

libfuzzer_sys::fuzz_target!(|text: &str| {
    let resolver = toolbox::resolve::Resolver::parse(text);
    assert!(!resolver.candidates("name").is_empty());
});
