//! What CNI plugins answer and how their networks are described: never a panic, and what is accepted is accepted again.
#![no_main]

use podnet::cni::{NetworkConfig, Outcome, Refusal, SpecVersion};

libfuzzer_sys::fuzz_target!(|text: &[u8]| {
    let _ = NetworkConfig::parse(text).map(|config| (config.subnets(), config.asks_for("portMappings")));
    let _ = Refusal::parse(text);
    if let Ok(outcome) = Outcome::parse(text, SpecVersion::V1_1_0, "eth0") {
        assert_eq!(Outcome::of(outcome.value.clone(), SpecVersion::V1_1_0, "eth0"), Ok(outcome));
    }
});
