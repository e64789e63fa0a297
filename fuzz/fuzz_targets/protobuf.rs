//! kubectl's protobuf bodies: whatever comes, no panic; what decodes and encodes again decodes to the same.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let mut body = b"k8s\0".to_vec();
    body.extend_from_slice(data);
    if let Ok(object) = schema::protobuf::decode(&body)
        && let Ok(again) = schema::protobuf::encode(&object)
    {
        assert_eq!(schema::protobuf::decode(&again).ok().as_ref(), Some(&object));
    }
});
