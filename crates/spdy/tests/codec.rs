//! Every frame survives the wire however it is cut, and no bytes make the decoder panic or hold much memory.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use bytes::{Bytes, BytesMut};
use proptest::prelude::*;
use spdy::{Decoder, Encoder, Error, Frame, Headers};

fn headers() -> impl Strategy<Value = Headers> {
    proptest::collection::btree_map("[a-z][a-z-]{0,15}", "[ -~é]{0,40}", 0..6)
        .prop_map(|map| map.into_iter().collect())
}

fn frame() -> impl Strategy<Value = Frame> {
    let id = 1..=0x7fff_ffffu32;
    prop_oneof![
        (id.clone(), 0..=0x7fff_ffffu32, 0..8u8, any::<bool>(), any::<bool>(), headers()).prop_map(
            |(id, associated, priority, fin, unidirectional, headers)| Frame::SynStream {
                id,
                associated,
                priority,
                fin,
                unidirectional,
                headers
            }
        ),
        (id.clone(), any::<bool>(), headers()).prop_map(|(id, fin, headers)| Frame::SynReply {
            id,
            fin,
            headers
        }),
        (id.clone(), any::<bool>(), headers()).prop_map(|(id, fin, headers)| Frame::Headers {
            id,
            fin,
            headers
        }),
        (id.clone(), any::<u32>()).prop_map(|(id, status)| Frame::RstStream { id, status }),
        proptest::collection::vec((0..0x0100_0000u32, any::<u32>()), 0..5).prop_map(Frame::Settings),
        any::<u32>().prop_map(Frame::Ping),
        (0..=0x7fff_ffffu32, any::<u32>())
            .prop_map(|(last_good, status)| Frame::GoAway { last_good, status }),
        (0..=0x7fff_ffffu32, id.clone()).prop_map(|(id, delta)| Frame::WindowUpdate { id, delta }),
        (id, any::<bool>(), proptest::collection::vec(any::<u8>(), 0..300))
            .prop_map(|(id, fin, data)| Frame::Data { id, fin, data: data.into() }),
    ]
}

fn encode(frames: &[Frame]) -> BytesMut {
    let (mut encoder, mut wire) = (Encoder::default(), BytesMut::new());
    frames.iter().for_each(|frame| encoder.encode(frame, &mut wire).unwrap());
    wire
}

/// Decodes bytes that come in pieces, and joins what a data frame was cut into.
fn decode(wire: &[u8], step: usize) -> Result<Vec<Frame>, Error> {
    let (mut decoder, mut input, mut out) = (Decoder::default(), BytesMut::new(), Vec::new());
    let mut partial: Option<(u32, Vec<u8>)> = None;
    let mut expected = data_lengths(wire).into_iter();
    let mut missing = 0;
    for piece in wire.chunks(step) {
        input.extend_from_slice(piece);
        while let Some(frame) = decoder.decode(&mut input)? {
            let Frame::Data { id, fin, data } = frame else {
                out.push(frame);
                continue;
            };
            let (_, mut joined) = partial.take().unwrap_or_else(|| {
                missing = expected.next().unwrap_or(0);
                (id, Vec::new())
            });
            missing -= data.len();
            joined.extend_from_slice(&data);
            if missing == 0 {
                out.push(Frame::Data { id, fin, data: joined.into() });
            } else {
                assert!(!fin, "only the last piece ends the half");
                partial = Some((id, joined));
            }
        }
    }
    Ok(out)
}

/// The lengths of the data frames of a well-formed wire.
fn data_lengths(mut wire: &[u8]) -> Vec<usize> {
    let mut out = Vec::new();
    while wire.len() >= 8 {
        let length = u32::from_be_bytes([0, wire[5], wire[6], wire[7]]) as usize;
        if wire[0] & 0x80 == 0 {
            out.push(length);
        }
        wire = wire.get(8 + length..).unwrap_or_default();
    }
    out
}

proptest! {
    #[test]
    fn frames_survive_the_wire(frames in proptest::collection::vec(frame(), 1..12), step in 1usize..200) {
        prop_assert_eq!(decode(&encode(&frames), step).unwrap(), frames);
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let (mut decoder, mut input) = (Decoder::default(), BytesMut::from(&bytes[..]));
        while let Ok(Some(_)) = decoder.decode(&mut input) {}
    }

    #[test]
    fn no_damage_makes_it_panic(
        frames in proptest::collection::vec(frame(), 1..6),
        damage in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut wire = encode(&frames);
        for (at, value) in damage {
            let at = at.index(wire.len());
            wire[at] = value;
        }
        let mut decoder = Decoder::default();
        while let Ok(Some(_)) = decoder.decode(&mut wire) {}
    }
}

#[test]
fn the_wire_is_the_drafts() {
    assert_eq!(&encode(&[Frame::Ping(1)])[..], b"\x80\x03\x00\x06\0\0\0\x04\0\0\0\x01");
    assert_eq!(
        &encode(&[Frame::Data { id: 5, fin: true, data: Bytes::from_static(b"hi") }])[..],
        b"\0\0\0\x05\x01\0\0\x02hi"
    );
    assert_eq!(
        &encode(&[Frame::RstStream { id: 3, status: 5 }])[..],
        b"\x80\x03\0\x03\0\0\0\x08\0\0\0\x03\0\0\0\x05"
    );
    let syn = encode(&[Frame::SynStream {
        id: 1,
        associated: 0,
        priority: 2,
        fin: false,
        unidirectional: false,
        headers: Headers::default(),
    }]);
    assert_eq!(&syn[..5], b"\x80\x03\0\x01\0");
    assert_eq!(&syn[8..18], b"\0\0\0\x01\0\0\0\0\x40\0");
}

#[test]
fn breaches_are_named() {
    for (bytes, error) in [
        (&b"\x80\x02\0\x06\0\0\0\x04\0\0\0\x01"[..], Error::Version(2)),
        (b"\x80\x03\0\x01\0\xff\xff\xff", Error::TooLong(0x00ff_ffff)),
        (b"\x80\x03\0\x06\0\0\0\x03\0\0\0", Error::Malformed("PING")),
        (b"\x80\x03\0\x03\0\0\0\x08\0\0\0\0\0\0\0\x05", Error::Malformed("RST_STREAM")),
        (b"\x80\x03\0\x09\0\0\0\x08\0\0\0\x01\0\0\0\0", Error::Malformed("WINDOW_UPDATE")),
        (b"\x80\x03\0\x04\0\0\0\x04\0\0\0\x09", Error::Malformed("SETTINGS")),
        (b"\0\0\0\0\0\0\0\0", Error::Malformed("DATA")),
        (b"\x80\x03\0\x01\0\0\0\x0e\0\0\0\x01\0\0\0\0\0\0nope", Error::Compression),
    ] {
        assert_eq!(Decoder::default().decode(&mut BytesMut::from(bytes)), Err(error));
    }
}

#[test]
fn an_unknown_type_is_skipped() {
    let mut wire = BytesMut::from(&b"\x80\x03\0\x0a\0\0\0\x02xx\x80\x03\0\x06\0\0\0\x04\0\0\0\x07"[..]);
    assert_eq!(Decoder::default().decode(&mut wire), Ok(Some(Frame::Ping(7))));
}
