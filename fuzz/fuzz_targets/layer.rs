//! A layer of any bytes: unpacked below its directory or refused, never outside, never a panic.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let base = std::env::temp_dir().join(format!("fuzz-layer-{}", std::process::id()));
    let dest = base.join("dest");
    if std::fs::create_dir_all(&dest).is_ok() {
        let _ = image::unpack::unpack(data, &dest);
        let beside = std::fs::read_dir(&base).map(|d| d.count());
        assert!(beside.is_ok_and(|n| n == 1), "a layer escaped its directory");
        let _ = std::fs::remove_dir_all(&base);
    }
});
