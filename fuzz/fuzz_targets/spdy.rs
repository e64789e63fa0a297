//! Bytes of a SPDY client to frames; what was understood must survive the way back.
#![no_main]

use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;
use spdy::{Decoder, Encoder};

fuzz_target!(|bytes: &[u8]| {
    let (mut decoder, mut input) = (Decoder::default(), BytesMut::from(bytes));
    let (mut encoder, mut again) = (Encoder::default(), Decoder::default());
    while let Ok(Some(frame)) = decoder.decode(&mut input) {
        let mut wire = BytesMut::new();
        encoder.encode(&frame, &mut wire).unwrap();
        assert_eq!(again.decode(&mut wire), Ok(Some(frame)));
        assert!(wire.is_empty());
    }
});
