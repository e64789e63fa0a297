//! Bad input, one test for each kind: malformed, oversized, compressed in loops, many questions, floods, and a Service of
//! thousands of endpoints. Memory is bounded, the code is right, nothing panics.

use super::*;

fn code(responder: &Responder, bytes: &[u8]) -> Option<ResponseCode> {
    begin(responder, bytes).map(|bytes| Message::from_vec(&bytes).unwrap().metadata.response_code)
}

#[test]
fn names_that_point_to_themselves_are_malformed() {
    let responder = responder(Some(zone()), "/dev/null");
    let header = [0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    // To itself, to and fro, beyond the end, and a label type that nobody has.
    for name in
        [&[0xc0, 12][..], &[1, b'a', 0xc0, 12], &[0xc0, 14, 0xc0, 12], &[0xc3, 0xff], &[0x80, 1], &[0x40, 1]]
    {
        let bytes = [&header[..], name, &[0, 1, 0, 1]].concat();
        assert_eq!(code(&responder, &bytes), Some(ResponseCode::FormErr), "{name:?}");
    }
    // In an additional record a pointer is allowed, and not followed.
    let mut bytes = question("web.default.svc.cluster.local.");
    bytes[11] = 1;
    bytes.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0]);
    assert_eq!(code(&responder, &bytes), code(&responder, &question("web.default.svc.cluster.local.")));
}

#[test]
fn oversized_questions_and_names_are_malformed() {
    let responder = responder(Some(zone()), "/dev/null");
    let label = [&[63][..], &[b'a'; 63]].concat();
    let name = [&label[..], &label, &label, &label, &[0]].concat();
    let bytes = [&[0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0][..], &name, &[0, 1, 0, 1]].concat();
    assert_eq!(code(&responder, &bytes), Some(ResponseCode::FormErr), "257 octets of a name");
    let mut many = question("a.b.");
    many[4..6].copy_from_slice(&u16::MAX.to_be_bytes());
    assert_eq!(code(&responder, &many), Some(ResponseCode::FormErr), "65535 questions are said to be there");
    many = question("a.b.");
    many[10..12].copy_from_slice(&u16::MAX.to_be_bytes());
    assert_eq!(code(&responder, &many), Some(ResponseCode::FormErr), "65535 records are said to be there");
    let mut long = question("a.b.");
    long.resize(60_000, 0);
    assert!(begin(&responder, &long).is_none_or(|answer| answer.len() <= 512));
}

#[test]
fn two_opts_or_one_out_of_place_are_malformed() {
    let responder = responder(Some(zone()), "/dev/null");
    let opt = [0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0];
    let with = |at: usize, count: u8, data: &[u8]| {
        let mut bytes = question("web.default.svc.cluster.local.");
        bytes[at] = count;
        bytes.extend_from_slice(data);
        code(&responder, &bytes)
    };
    assert_eq!(with(11, 2, &[opt, opt].concat()), Some(ResponseCode::FormErr));
    assert_eq!(with(7, 1, &opt), Some(ResponseCode::FormErr), "in the answer section");
    let cookie = |size: u8| [&opt[..10], &[4 + size, 0, 10, 0, size], &vec![7; usize::from(size)]].concat();
    assert_eq!(with(11, 1, &cookie(7)), Some(ResponseCode::FormErr), "RFC 7873, 5.2.2");
    assert_ne!(with(11, 1, &cookie(8)), Some(ResponseCode::FormErr));
}

#[test]
fn a_service_of_thousands_of_endpoints_is_answered_within_the_limits() {
    let mut zone = zone();
    let service: Service = serde_json::from_value(json!({"spec": {"clusterIP": "None"}})).unwrap();
    zone.set_service("default", "huge", Some(&service));
    for slice in 0..50 {
        let endpoints: Vec<_> = (0..100)
            .map(|i| json!({"addresses": [format!("10.{}.{}.{i}", 100 + slice / 10, slice % 10)]}))
            .collect();
        let ports = json!([{"name": "http", "port": 80}]);
        let slice_of: EndpointSlice = serde_json::from_value(
            json!({"metadata": {}, "addressType": "IPv4", "endpoints": endpoints, "ports": ports}),
        )
        .unwrap();
        zone.set_slice("default", &format!("huge-{slice}"), Some(("huge", &slice_of)));
    }
    let responder = responder(Some(zone), "/dev/null");
    let asked = |kind: RecordType, transport| {
        let mut message = Message::from_vec(&question("huge.default.svc.cluster.local.")).unwrap();
        message.queries[0].set_query_type(kind);
        let mut out = Response::default();
        let step = responder.begin(&message.to_vec().unwrap(), [127, 0, 0, 1].into(), transport, &mut out);
        assert!(matches!(step, Step::Answer));
        let bytes = out.into_bytes();
        (Message::from_vec(&bytes).unwrap(), bytes.len())
    };
    let (cut, size) = asked(RecordType::A, Transport::Udp);
    assert!(cut.metadata.truncation && size <= 512 && cut.answers.len() >= 25, "{size}");
    let (whole, size) = asked(RecordType::A, Transport::Tcp);
    assert!(size <= 65_535 && whole.metadata.truncation, "80000 octets fit into no message");
    assert!(whole.answers.len() > 4000, "as many as fit: {}", whole.answers.len());
    let (srv, size) = asked(RecordType::SRV, Transport::Tcp);
    assert!(size <= 65_535 && srv.metadata.truncation && !srv.answers.is_empty());
    let host = begin(&responder, &question("10-104-9-99.huge.default.svc.cluster.local.")).unwrap();
    assert_eq!(Message::from_vec(&host).unwrap().answers.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_is_survived_and_answered_in_part() {
    let (server, _stop) = start(responder(Some(zone()), "/dev/null"), "127.0.0.1", 0).await;
    let flood = tokio::task::spawn_blocking(move || {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.connect(server).unwrap();
        socket.set_nonblocking(true).unwrap();
        let good = question("web.default.svc.cluster.local.");
        let mut buffer = [0; 4096];
        let mut answers = 0;
        for i in 0..50_000u32 {
            let bytes = if i % 2 == 0 { &good[..] } else { &good[..(i as usize) % good.len()] };
            let _ = socket.send(bytes);
            while socket.recv(&mut buffer).is_ok() {
                answers += 1;
            }
        }
        answers
    });
    assert!(flood.await.unwrap() > 0);
    assert_eq!(dig(server, "+short web.default.svc.cluster.local").await.trim(), "10.96.0.7", "and goes on");
}

proptest! {
    /// What we write is read by another library, and says the same when it is written again.
    #[test]
    fn answers_come_through_another_library_unchanged(
        host in "[a-z0-9][a-zA-Z0-9-]{0,19}",
        kind in prop::sample::select(vec![1u16, 2, 5, 6, 12, 15, 16, 28, 33, 255]),
        size in 512u16..4096,
    ) {
        let responder = responder(Some(names::zone()), "/dev/null");
        for name in [format!("{host}.default.svc.cluster.local."), "db.default.svc.cluster.local.".into(),
            "inward.default.svc.cluster.local.".into(), "7.0.96.10.in-addr.arpa.".into(), "cluster.local.".into()] {
            let mut message = Message::from_vec(&question(&name)).unwrap();
            message.queries[0].set_query_type(RecordType::from(kind));
            let mut edns = hickory_proto::op::Edns::new();
            edns.set_max_payload(size);
            message.set_edns(edns);
            let Some(bytes) = begin(&responder, &message.to_vec().unwrap()) else { continue };
            prop_assert!(bytes.len() <= usize::from(size));
            let read = Message::from_vec(&bytes).unwrap();
            prop_assert_eq!(&read.queries, &message.queries);
            let again = Message::from_vec(&read.to_vec().unwrap()).unwrap();
            prop_assert_eq!(again, read);
        }
    }
}
