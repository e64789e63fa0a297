//! The outside world at its worst: forged, hanging, dying and lying servers, and what the cache makes of them.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::*;

/// What a made-up upstream does with a datagram; `None` is silence.
type Behaviour = dyn Fn(&[u8]) -> Vec<Vec<u8>> + Send + Sync;

/// A server by UDP and TCP that does as it is told, and counts datagrams and connections.
struct Upstream {
    addr: SocketAddr,
    datagrams: Arc<AtomicUsize>,
    connections: Arc<AtomicUsize>,
    _stop: DropGuard,
}

async fn behaving(udp_does: Arc<Behaviour>) -> Upstream {
    let (udp, tcp) = sockets("127.0.0.1", 0).await;
    let addr = udp.local_addr().unwrap();
    let (datagrams, connections) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let stop = CancellationToken::new();
    let (token, seen, opened) = (stop.clone(), datagrams.clone(), connections.clone());
    tokio::spawn(async move {
        let mut buffer = [0; 4096];
        loop {
            tokio::select! {
                () = token.cancelled() => return,
                Ok((len, peer)) = udp.recv_from(&mut buffer) => {
                    seen.fetch_add(1, Ordering::SeqCst);
                    for datagram in udp_does(&buffer[..len]) {
                        udp.send_to(&datagram, peer).await.unwrap();
                    }
                }
                Ok((stream, _)) = tcp.accept() => {
                    opened.fetch_add(1, Ordering::SeqCst);
                    tokio::spawn(by_stream(stream));
                }
            }
        }
    });
    Upstream { addr, datagrams, connections, _stop: stop.drop_guard() }
}

/// Answers truthfully, question after question.
async fn by_stream(mut stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin) {
    while let Ok(len) = stream.read_u16().await {
        let mut question = vec![0; usize::from(len)];
        stream.read_exact(&mut question).await.unwrap();
        let answer = reply(&question, false);
        stream.write_u16(answer.len() as u16).await.unwrap();
        stream.write_all(&answer).await.unwrap();
        stream.flush().await.unwrap();
    }
}

fn truth(question: &[u8]) -> Vec<Vec<u8>> {
    vec![reply(question, true)]
}

fn forwarding(to: &str, options: &str) -> Responder {
    by(&format!(".:53 {{\n kubernetes cluster.local\n forward . {to} {{\n{options} }}\n}}\n"))
}

fn by(corefile: &str) -> Responder {
    configured(zone(), corefile)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forged_answer_needs_port_id_and_spelling() {
    let asked = Arc::new(parking_lot::Mutex::new(Vec::<(Vec<u8>, String)>::new()));
    let seen = asked.clone();
    let up = behaving(Arc::new(move |question| {
        let message = Message::from_vec(question).unwrap();
        seen.lock().push((question[..2].to_vec(), message.queries[0].name.to_ascii()));
        let lie = |change: &dyn Fn(&mut Message)| {
            let mut forged = Message::from_vec(&reply(question, true)).unwrap();
            forged.answers[0].data = RData::A(A::new(6, 6, 6, 6));
            change(&mut forged);
            forged.to_vec().unwrap()
        };
        vec![
            lie(&|m| m.metadata.id = m.metadata.id.wrapping_add(1)),
            lie(&|m| {
                m.queries[0].set_name(Name::from_ascii("other.example.org.").unwrap());
            }),
            lie(&|m| m.metadata.message_type = hickory_proto::op::MessageType::Query),
            lie(&|m| m.queries.clear()),
            reply(question, true),
        ]
    }))
    .await;
    let (server, _stop) = start(forwarding(&up.addr.to_string(), ""), "127.0.0.1", 0).await;
    for _ in 0..8 {
        assert_eq!(dig(server, "+short www.example.org").await.trim(), "1.2.3.4");
    }
    let asked = asked.lock();
    let distinct = |part: fn(&(Vec<u8>, String)) -> Vec<u8>| {
        asked.iter().map(part).collect::<std::collections::HashSet<_>>().len()
    };
    assert!(distinct(|(id, _)| id.clone()) > 5, "ids are random: {asked:?}");
    assert!(distinct(|(_, name)| name.clone().into_bytes()) > 5, "spellings are random: {asked:?}");
    assert!(asked.iter().all(|(_, name)| name.eq_ignore_ascii_case("www.example.org.")));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_in_another_spelling_is_asked_for_by_tcp() {
    let up = behaving(Arc::new(|question| {
        let mut message = Message::from_vec(&reply(question, true)).unwrap();
        let lower = message.queries[0].name.to_lowercase();
        message.queries[0].set_name(lower);
        message.answers[0].data = RData::A(A::new(6, 6, 6, 6));
        vec![message.to_vec().unwrap()]
    }))
    .await;
    let (server, _stop) = start(forwarding(&up.addr.to_string(), ""), "127.0.0.1", 0).await;
    // That a random spelling is all lower case has odds of 1 to 8192.
    assert_eq!(dig(server, "+short www.example.org").await.trim(), "1.2.3.4", "as the connection says");
    assert_eq!(up.connections.load(Ordering::SeqCst), 1);
    assert_eq!(dig(server, "+short www.example.org").await.trim(), "1.2.3.4");
    assert_eq!(up.connections.load(Ordering::SeqCst), 1, "the connection is kept");
}

#[tokio::test(flavor = "multi_thread")]
async fn identical_questions_are_asked_once() {
    let gate = Arc::new(AtomicBool::new(false));
    let open = gate.clone();
    // The first answer comes late: whoever asks meanwhile waits for the same one.
    let up = behaving(Arc::new(
        move |question| if open.load(Ordering::SeqCst) { truth(question) } else { Vec::new() },
    ))
    .await;
    let responder = Arc::new(forwarding(&up.addr.to_string(), ""));
    let mut waiting = tokio::task::JoinSet::new();
    for _ in 0..50 {
        let mut out = Response::default();
        let bytes = question("www.example.org.");
        let Step::Forward(pending) = responder.begin(&bytes, [127, 0, 0, 1].into(), Transport::Udp, &mut out)
        else {
            panic!("nobody knows it here");
        };
        let responder = responder.clone();
        waiting.spawn(async move { responder.finish(*pending).await });
    }
    while up.datagrams.load(Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    gate.store(true, Ordering::SeqCst);
    let all = waiting.join_all().await;
    for bytes in &all {
        assert_eq!(Message::from_vec(bytes).unwrap().answers.len(), 1);
    }
    assert_eq!(all.len(), 50);
    assert!(up.datagrams.load(Ordering::SeqCst) <= 2, "one question, and its second try");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hanging_server_is_passed_over_and_comes_back() {
    let alive = Arc::new(AtomicBool::new(false));
    let is_alive = alive.clone();
    let up = behaving(Arc::new(
        move |question| if is_alive.load(Ordering::SeqCst) { truth(question) } else { Vec::new() },
    ))
    .await;
    let other = behaving(Arc::new(truth)).await;
    let to = format!("{} {}", up.addr, other.addr);
    let options = "  policy sequential\n  max_fails 1\n  health_check 50ms\n";
    let (server, _stop) = start(forwarding(&to, options), "127.0.0.1", 0).await;
    assert_eq!(dig(server, "+short www.example.org").await.trim(), "1.2.3.4", "by the second, after a while");
    let before = std::time::Instant::now();
    assert_eq!(dig(server, "+short www.example.org").await.trim(), "1.2.3.4");
    assert!(before.elapsed() < Duration::from_millis(1500), "the first is known to be down");
    alive.store(true, Ordering::SeqCst);
    let asked = other.datagrams.load(Ordering::SeqCst);
    let mut tries = 0;
    loop {
        let before = other.datagrams.load(Ordering::SeqCst);
        assert_eq!(dig(server, "+short www.example.org").await.trim(), "1.2.3.4");
        if other.datagrams.load(Ordering::SeqCst) == before {
            break;
        }
        tries += 1;
        assert!(tries < 500, "the first is probed and comes back");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(asked >= 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn all_servers_hanging_is_a_failure_in_time() {
    let up = behaving(Arc::new(|_| Vec::new())).await;
    let responder = forwarding(&up.addr.to_string(), "  max_concurrent 1\n");
    let mut out = Response::default();
    let mut pending = |name: &str| match responder.begin(
        &question(name),
        [127, 0, 0, 1].into(),
        Transport::Udp,
        &mut out,
    ) {
        Step::Forward(pending) => *pending,
        _ => panic!("nobody knows {name} here"),
    };
    let (first, second) = (pending("a.example.org."), pending("b.example.org."));
    let code = |bytes: &[u8]| Message::from_vec(bytes).unwrap().metadata.response_code;
    let before = std::time::Instant::now();
    let (first, second) = tokio::join!(responder.finish(first), responder.finish(second));
    assert_eq!(code(&first), ResponseCode::ServFail);
    assert_eq!(code(&second), ResponseCode::Refused, "more than max_concurrent");
    assert!(before.elapsed() < Duration::from_secs(10));
}

#[tokio::test(flavor = "multi_thread")]
async fn policies_spread_or_do_not() {
    let (one, two) = (behaving(Arc::new(truth)).await, behaving(Arc::new(truth)).await);
    let to = format!("{} {}", one.addr, two.addr);
    for (policy, expected) in [("sequential", (10, 0)), ("round_robin", (5, 5))] {
        one.datagrams.store(0, Ordering::SeqCst);
        two.datagrams.store(0, Ordering::SeqCst);
        let (server, _stop) = start(forwarding(&to, &format!("  policy {policy}\n")), "127.0.0.1", 0).await;
        for _ in 0..10 {
            assert_eq!(dig(server, "+short www.example.org").await.trim(), "1.2.3.4");
        }
        let counts = (one.datagrams.load(Ordering::SeqCst), two.datagrams.load(Ordering::SeqCst));
        assert_eq!(counts, expected, "{policy}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn old_servers_are_asked_without_edns() {
    let up = behaving(Arc::new(|question| {
        let message = Message::from_vec(question).unwrap();
        if message.edns.is_none() {
            return truth(question);
        }
        let mut header = question[..12].to_vec();
        header[2] |= 0x80;
        header[3] |= 1;
        header[4..12].fill(0);
        vec![header]
    }))
    .await;
    let (server, _stop) = start(forwarding(&up.addr.to_string(), ""), "127.0.0.1", 0).await;
    assert_eq!(dig(server, "+short www.example.org").await.trim(), "1.2.3.4");
}

#[tokio::test(flavor = "multi_thread")]
async fn dns_over_tls_is_spoken_to_the_named_server_only() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let made = rcgen::generate_simple_self_signed(vec!["dns.example.org".to_owned()]).unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&file, made.cert.pem()).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let config = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let handshakes = Arc::new(AtomicUsize::new(0));
    let counted = handshakes.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            if let Ok(stream) = acceptor.accept(stream).await {
                counted.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(by_stream(stream));
            }
        }
    });
    let to = format!("tls://{addr}");
    let trust = |name: &str| format!("  tls {}\n  tls_servername {name}\n", file.path().display());
    let (server, _stop) = start(forwarding(&to, &trust("dns.example.org")), "127.0.0.1", 0).await;
    for _ in 0..2 {
        assert_eq!(dig(server, "+short www.example.org").await.trim(), "1.2.3.4");
    }
    assert_eq!(handshakes.load(Ordering::SeqCst), 1, "one connection for both");
    for wrong in [trust("other.example.org"), String::new()] {
        let (server, _stop) = start(forwarding(&to, &wrong), "127.0.0.1", 0).await;
        assert!(dig(server, "www.example.org").await.contains("status: SERVFAIL"), "{wrong}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn stale_answers_outlive_their_servers() {
    let alive = Arc::new(AtomicBool::new(true));
    let is_alive = alive.clone();
    let up = behaving(Arc::new(
        move |question| if is_alive.load(Ordering::SeqCst) { truth(question) } else { Vec::new() },
    ))
    .await;
    let to = up.addr;
    for mode in ["immediate", "verify"] {
        alive.store(true, Ordering::SeqCst);
        let corefile = format!(
            ".:53 {{\n kubernetes cluster.local\n forward . {to}\n cache {{\n  success 100 1 0\n  serve_stale 1h {mode}\n }}\n}}\n"
        );
        let (server, _stop) = start(by(&corefile), "127.0.0.1", 0).await;
        let fresh = dig(server, "www.example.org").await;
        assert!(fresh.contains("www.example.org. 1 IN A 1.2.3.4"), "{fresh}");
        alive.store(false, Ordering::SeqCst);
        let mut tries = 0;
        loop {
            let text = dig(server, "+time=9 www.example.org").await;
            assert!(text.contains("A 1.2.3.4"), "{mode}: {text}");
            if text.contains("www.example.org. 0 IN A") {
                break;
            }
            tries += 1;
            assert!(tries < 500, "{mode}: its life of one second ends");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_client_says_by_edns_goes_through() {
    let seen = Arc::new(parking_lot::Mutex::new(Vec::new()));
    let notes = seen.clone();
    let up = behaving(Arc::new(move |question| {
        let message = Message::from_vec(question).unwrap();
        notes.lock().push((message.edns.unwrap().flags().dnssec_ok, message.metadata.checking_disabled));
        let mut message = Message::from_vec(&reply(question, true)).unwrap();
        message.metadata.authentic_data = true;
        vec![message.to_vec().unwrap()]
    }))
    .await;
    let (server, _stop) = start(forwarding(&up.addr.to_string(), ""), "127.0.0.1", 0).await;
    let text = dig(server, "+dnssec +cd www.example.org").await;
    assert!(text.contains("flags: do;") && text.contains(" ad"), "{text}");
    let text = dig(server, "+noad +nocookie www.example.org").await;
    assert!(!text.contains("flags: do;") && !text.contains(" ad") && !text.contains("COOKIE"), "{text}");
    assert_eq!(*seen.lock(), [(true, true), (false, false)]);
    let text = dig(server, "+cookie=0123456789abcdef web.default.svc.cluster.local").await;
    assert!(text.contains("COOKIE: 0123456789abcdef (echoed)"), "{text}");
}
