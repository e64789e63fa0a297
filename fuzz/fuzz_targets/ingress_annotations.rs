//! Annotations of any values: read, linted, checked at admission, and routed by. Lint and admission say the same, and what
//! both call fine leaves no problem to tell when it is built.
#![no_main]

use ingress::annotations::{PREFIX, known};
use k8s_openapi::api::networking::v1::Ingress;

libfuzzer_sys::fuzz_target!(|input: (Vec<(u8, &str)>, &str, &str)| {
    let (picks, path, asked) = input;
    let names: Vec<&str> = known().map(|annotation| annotation.name).collect();
    let annotations: serde_json::Map<_, _> = picks
        .into_iter()
        .map(|(pick, value)| (format!("{PREFIX}{}", names[usize::from(pick) % names.len()]), value.into()))
        .collect();
    let ingress: Ingress = serde_json::from_value(serde_json::json!({
        "metadata": {"name": "x", "namespace": "ns", "annotations": annotations},
        "spec": {"rules": [{"host": "h", "http": {"paths": [{
            "path": path, "pathType": "ImplementationSpecific",
            "backend": {"service": {"name": "a", "port": {"number": 80}}},
        }]}}]},
    }))
    .expect("an Ingress");
    let faults = ingress::admission::faults(&ingress);
    let reports = ingress::lint::lint(std::slice::from_ref(&ingress), &[]);
    for (field, why) in &faults {
        assert!(
            field.starts_with("metadata.annotations[") || field.starts_with("spec.rules["),
            "{field}: {why}"
        );
    }
    // A value that admission refuses by itself is refused by lint.
    let alone = |why: &str| !why.contains("need") && !why.contains("group");
    if faults.iter().any(|(_, why)| alone(why)) {
        assert!(reports[0].fails(), "{faults:?} but {reports:?}");
    }
    let objects = ingress::build::Objects { ingresses: vec![ingress.into()], ..Default::default() };
    let (table, _) = ingress::build::table(&objects, &mut ingress::state::State::default());
    let Some(normal) = ingress::path::normal(asked) else { return };
    if let Some(location) = table.find("h", &normal).location() {
        let _ = location.rewritten(&normal);
    }
});
