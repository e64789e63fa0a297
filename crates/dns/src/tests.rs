//! The server over real sockets on loopback, asked by `dig` and busybox's `nslookup`.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use parking_lot::RwLock;
use proptest::prelude::*;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::config::Config;
use crate::name::Domain;
use crate::respond::{Responder, Step, Transport};
use crate::wire::Response;
use crate::zone::Zone;

mod corefile;
mod directives;
mod hostile;
mod names;
mod rows;
mod upstreams;
mod whole;

fn zone() -> Zone {
    let mut zone = Zone::new(Domain::parse("cluster.local").unwrap(), 30);
    zone.set_namespace("default", true);
    let web: Service = serde_json::from_value(
        json!({"spec": {"clusterIP": "10.96.0.7", "ports": [{"name": "http", "port": 80}]}}),
    )
    .unwrap();
    let big: Service = serde_json::from_value(json!({"spec": {"clusterIP": "None"}})).unwrap();
    let out: Service =
        serde_json::from_value(json!({"spec": {"type": "ExternalName", "externalName": "www.example.org"}}))
            .unwrap();
    let many: Vec<_> = (0..200).map(|i| json!({"addresses": [format!("10.244.1.{i}")]})).collect();
    let slice: EndpointSlice =
        serde_json::from_value(json!({"metadata": {}, "addressType": "IPv4", "endpoints": many})).unwrap();
    zone.set_service("default", "web", Some(&web));
    zone.set_service("default", "big", Some(&big));
    zone.set_slice("default", "big-1", Some(("big", &slice)));
    zone.set_service("default", "out", Some(&out));
    zone.set_synced(1);
    zone
}

fn responder(zone: Option<Zone>, resolv_conf: &str) -> Responder {
    let path = std::path::Path::new(resolv_conf);
    match zone {
        Some(zone) => configured(zone, &crate::addon::corefile("cluster.local", &[], path)),
        None => Responder::new(None, Config::relay(path)),
    }
}

fn configured(zone: Zone, corefile: &str) -> Responder {
    let config = Config::read(corefile, zone.origin()).unwrap();
    Responder::new(Some(Arc::new(RwLock::new(zone))), config)
}

/// A server on a loopback address of its own; it ends with the guard.
async fn start(responder: Responder, ip: &str, port: u16) -> (SocketAddr, DropGuard) {
    let (udp, tcp) = sockets(ip, port).await;
    let addr = udp.local_addr().unwrap();
    let stop = CancellationToken::new();
    tokio::spawn(crate::server::serve(vec![udp], vec![tcp], Arc::new(responder), stop.clone()));
    (addr, stop.drop_guard())
}

/// Both sockets of a server on one port. A port that the kernel picks for UDP (0) may be in use for TCP, for instance by
/// a connection of another test; then the kernel is asked again.
async fn sockets(ip: &str, port: u16) -> (UdpSocket, TcpListener) {
    for _ in 0..100 {
        let udp = UdpSocket::bind((ip, port)).await.unwrap();
        match TcpListener::bind(udp.local_addr().unwrap()).await {
            Err(error) if port == 0 && error.kind() == std::io::ErrorKind::AddrInUse => {}
            tcp => return (udp, tcp.unwrap()),
        }
    }
    panic!("no port of {ip} is free for both protocols");
}

async fn run(program: &str, args: Vec<String>) -> String {
    let program = program.to_owned();
    let out = tokio::task::spawn_blocking(move || Command::new(program).args(args).output().unwrap()).await;
    String::from_utf8_lossy(&out.unwrap().stdout).into_owned()
}

async fn dig(server: SocketAddr, args: &str) -> String {
    let mut all = vec![format!("@{}", server.ip()), "-p".into(), server.port().to_string()];
    all.extend(["+tries=1", "+time=3"].map(str::to_owned));
    all.extend(args.split_whitespace().map(str::to_owned));
    // dig aligns its columns by tabs and blanks, depending on the name's length.
    run("dig", all).await.replace('\t', " ")
}

#[tokio::test(flavor = "multi_thread")]
async fn dig_and_nslookup_read_our_answers() {
    let (server, _stop) = start(responder(Some(zone()), "/dev/null"), "127.0.0.1", 0).await;
    let text = dig(server, "web.default.svc.cluster.local A").await;
    assert!(text.contains("status: NOERROR") && text.contains("flags: qr aa rd ra;"), "{text}");
    assert!(text.contains("web.default.svc.cluster.local. 30 IN A 10.96.0.7"), "{text}");
    assert!(!text.contains("recursion requested but not available"), "{text}");
    let text = dig(server, "+tcp -t SRV _http._tcp.web.default.svc.cluster.local").await;
    assert!(text.contains("SRV 0 100 80 web.default.svc.cluster.local."), "{text}");
    assert!(text.contains("ADDITIONAL: 2"), "{text}");
    assert!(dig(server, "+short -x 10.96.0.7").await.contains("web.default.svc.cluster.local."));
    let text = dig(server, "nope.default.svc.cluster.local").await;
    assert!(text.contains("status: NXDOMAIN") && text.contains("IN SOA ns.dns.cluster.local."), "{text}");
    let text = dig(server, "web.default.svc.cluster.local AAAA").await;
    assert!(text.contains("status: NOERROR") && text.contains("ANSWER: 0, AUTHORITY: 1"), "{text}");
    assert!(dig(server, "example.org").await.contains("status: SERVFAIL"), "no upstream");
    assert!(dig(server, "cluster.local AXFR").await.contains("Transfer failed"));
    assert!(dig(server, "+opcode=notify cluster.local").await.contains("status: NOTIMP"));
    assert!(
        dig(server, "+edns=1 +noednsneg web.default.svc.cluster.local").await.contains("status: BADVERS")
    );
    let name = "web.default.svc.cluster.local".to_owned();
    let text = run("busybox", vec!["nslookup".into(), name, server.to_string()]).await;
    assert!(text.contains("Name:\tweb.default.svc.cluster.local\nAddress: 10.96.0.7"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn large_answers_are_cut_by_udp_and_whole_by_tcp() {
    let (server, _stop) = start(responder(Some(zone()), "/dev/null"), "127.0.0.1", 0).await;
    let name = "big.default.svc.cluster.local";
    let count = |text: &str| text.lines().filter(|l| l.starts_with("10.244.")).count();
    let cut = dig(server, &format!("+ignore +noedns {name}")).await;
    assert!(cut.contains("flags: qr aa tc rd ra;"), "{cut}");
    let cut = dig(server, &format!("+ignore +noedns +short {name}")).await;
    assert!((25..=30).contains(&count(&cut)), "as many as fit into 512 bytes: {}", count(&cut));
    let more = dig(server, &format!("+ignore +bufsize=1232 +short {name}")).await;
    assert!((65..=75).contains(&count(&more)), "{}", count(&more));
    assert_eq!(count(&dig(server, &format!("+short {name}")).await), 200, "dig asks again by tcp");
}

/// An upstream that knows `www.example.org` (twice: a small and a large name) and counts questions.
async fn upstream(ip: &'static str) -> (Arc<std::sync::atomic::AtomicUsize>, DropGuard) {
    let asked = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let udp = UdpSocket::bind((ip, 53)).await.unwrap();
    let tcp = TcpListener::bind((ip, 53)).await.unwrap();
    let stop = CancellationToken::new();
    let (token, count) = (stop.clone(), asked.clone());
    tokio::spawn(async move {
        let mut buffer = [0; 4096];
        loop {
            let (len, peer) = tokio::select! {
                () = token.cancelled() => return,
                Ok(received) = udp.recv_from(&mut buffer) => received,
                Ok((mut stream, _)) = tcp.accept() => {
                    let len = stream.read_u16().await.unwrap();
                    let mut question = vec![0; usize::from(len)];
                    stream.read_exact(&mut question).await.unwrap();
                    let answer = reply(&question, false);
                    stream.write_u16(answer.len() as u16).await.unwrap();
                    stream.write_all(&answer).await.unwrap();
                    continue;
                }
            };
            count.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            // A forged answer first: wrong id, then wrong name. Both must be passed over.
            let mut forged = Message::from_vec(&reply(&buffer[..len], true)).unwrap();
            forged.metadata.id = forged.metadata.id.wrapping_add(1);
            udp.send_to(&forged.to_vec().unwrap(), peer).await.unwrap();
            udp.send_to(&reply(&buffer[..len], true), peer).await.unwrap();
        }
    });
    (asked, stop.drop_guard())
}

fn reply(question: &[u8], by_udp: bool) -> Vec<u8> {
    let question = Message::from_vec(question).unwrap();
    let query = question.queries[0].clone();
    let mut message = Message::response(question.metadata.id, question.metadata.op_code);
    message.queries = vec![query.clone()];
    let record = |data| Record::from_rdata(query.name.clone(), 300, data);
    match query.name.to_ascii().to_lowercase().as_str() {
        "www.example.org." => message.answers = vec![record(RData::A(A::new(1, 2, 3, 4)))],
        "large.example.org." if by_udp => message.metadata.truncation = true,
        "large.example.org." => {
            message.answers =
                (0..9).map(|i| record(RData::TXT(TXT::new(vec![format!("{i}").repeat(200)])))).collect();
        }
        _ => message.metadata.response_code = ResponseCode::NXDomain,
    }
    message.to_vec().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn other_names_come_from_upstream_and_are_kept() {
    let (asked, _up) = upstream("127.0.53.1").await;
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&file, "nameserver 127.0.53.1\n").unwrap();
    let path = file.path().to_str().unwrap();
    let (server, _stop) = start(responder(Some(zone()), path), "127.0.0.1", 0).await;
    let text = dig(server, "www.example.org").await;
    assert!(text.contains("www.example.org. 30 IN A 1.2.3.4"), "{text}");
    let text = dig(server, "WWW.example.org").await;
    assert!(text.contains("1.2.3.4") && text.contains(";WWW.example.org."), "{text}");
    assert_eq!(asked.load(std::sync::atomic::Ordering::SeqCst), 1, "the second came from the cache");
    let text = dig(server, "out.default.svc.cluster.local").await;
    assert!(text.contains("IN CNAME www.example.org.") && text.contains("A 1.2.3.4"), "{text}");
    assert!(dig(server, "gone.example.org").await.contains("status: NXDOMAIN"));
    let large = dig(server, "+tcp large.example.org TXT").await;
    assert!(large.contains("ANSWER: 9"), "fetched by tcp: {large}");
    let cut = dig(server, "+ignore +bufsize=512 large.example.org TXT").await;
    assert!(cut.contains(" tc ") && cut.contains("status: NOERROR"), "{cut}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_server_is_passed_over_and_a_changed_file_is_read_again() {
    let (asked, _up) = upstream("127.0.53.2").await;
    let file = tempfile::NamedTempFile::new().unwrap();
    // Nobody listens on the first: the kernel says so at once.
    std::fs::write(&file, "nameserver 127.0.53.250\nnameserver 127.0.53.2\n").unwrap();
    let responder = responder(None, file.path().to_str().unwrap());
    let (server, _stop) = start(responder, "127.0.0.1", 0).await;
    assert_eq!(dig(server, "+short www.example.org").await.trim(), "1.2.3.4");
    assert_eq!(asked.load(std::sync::atomic::Ordering::SeqCst), 1);
    std::fs::write(&file, "# none\n").unwrap();
    tokio::time::sleep(Duration::from_millis(1100)).await;
    assert!(dig(server, "other.example.org").await.contains("status: SERVFAIL"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_relay_serves_sockets_that_others_made() {
    let (_asked, _up) = upstream("127.0.53.3").await;
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&file, "nameserver 127.0.53.3\n").unwrap();
    let (udp, tcp) = sockets("127.0.0.1", 0).await;
    let (udp, tcp) = (udp.into_std().unwrap(), tcp.into_std().unwrap());
    let addr = udp.local_addr().unwrap();
    let stop = CancellationToken::new();
    let relay = tokio::spawn(crate::relay::run(udp, tcp, file.path().to_owned(), stop.clone()));
    assert_eq!(dig(addr, "+short www.example.org").await.trim(), "1.2.3.4");
    assert_eq!(dig(addr, "+short +tcp www.example.org").await.trim(), "1.2.3.4");
    // The cluster's names are nobody's here: the upstream says so.
    assert!(dig(addr, "web.default.svc.cluster.local").await.contains("status: NXDOMAIN"));
    stop.cancel();
    relay.await.unwrap().unwrap();
}

#[tokio::test]
async fn pages_tell_health_readiness_and_counts() {
    let unsynced = Zone::new(Domain::parse("cluster.local").unwrap(), 30);
    let responder = Arc::new(responder(Some(unsynced), "/dev/null"));
    let stop = CancellationToken::new();
    let mut ports = Vec::new();
    for page in [crate::http::Page::Health, crate::http::Page::Ready, crate::http::Page::Metrics] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        ports.push(listener.local_addr().unwrap());
        tokio::spawn(crate::http::serve(listener, page, responder.clone(), stop.clone()));
    }
    async fn get(addr: SocketAddr, path: &str) -> String {
        let mut stream = tokio::net::TcpStream::connect(addr).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        text
    }
    assert!(get(ports[0], "/health").await.starts_with("HTTP/1.1 200"));
    assert!(get(ports[0], "/other").await.starts_with("HTTP/1.1 404"));
    assert!(get(ports[1], "/ready").await.starts_with("HTTP/1.1 503"));
    responder.zone.as_ref().unwrap().write().set_synced(1);
    assert!(get(ports[1], "/ready").await.starts_with("HTTP/1.1 200"));
    begin(&responder, &question("web.default.svc.cluster.local."));
    let page = get(ports[2], "/metrics").await;
    assert!(page.contains("coredns_dns_requests_total{family=\"1\",proto=\"udp\",server=\"dns://:53\",view=\"\",zone=\".\",type=\"A\"} 1"), "{page}");
    let told = "coredns_dns_responses_total{plugin=\"kubernetes\",rcode=\"NXDOMAIN\",server=\"dns://:53\",view=\"\",zone=\".\"} 1";
    assert!(page.contains(told), "{page}");
    crate::metrics::count_panics();
    assert!(std::panic::catch_unwind(|| panic!("that is counted")).is_err());
    assert!(!get(ports[2], "/metrics").await.contains("coredns_panics_total 0"));
    assert!(page.contains("coredns_reload_version_info{hash=\"sha512\",value=\""), "{page}");
    // What CoreDNS documents of itself and of the plugins that are done here.
    for (kind, names) in [
        ("gauge", "build_info plugin_enabled cache_entries hosts_entries reload_version_info"),
        (
            "counter",
            "panics_total dns_requests_total dns_do_requests_total dns_responses_total cache_hits_total \
             cache_requests_total cache_misses_total cache_prefetch_total \
             cache_served_stale_total cache_evictions_total forward_healthcheck_broken_total \
             forward_max_concurrent_rejects_total proxy_healthcheck_failures_total proxy_conn_cache_hits_total \
             proxy_conn_cache_misses_total autopath_success_total reload_failed_total \
             template_matches_total",
        ),
        (
            "histogram",
            "dns_request_duration_seconds dns_request_size_bytes dns_response_size_bytes \
             proxy_request_duration_seconds kubernetes_dns_programming_duration_seconds",
        ),
    ] {
        for name in names.split_whitespace() {
            assert!(page.contains(&format!("# TYPE coredns_{name} {kind}\n")), "{name} in\n{page}");
        }
    }
    stop.cancel();
}

/// What is said at once; nothing when nothing is.
fn begin(responder: &Responder, bytes: &[u8]) -> Option<Vec<u8>> {
    let mut out = Response::default();
    match responder.begin(bytes, [127, 0, 0, 1].into(), Transport::Udp, &mut out) {
        Step::Answer => Some(out.into_bytes()),
        Step::Ignore | Step::Forward(_) => None,
    }
}

fn question(name: &str) -> Vec<u8> {
    let mut message = Message::query();
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
    message.to_vec().unwrap()
}

#[test]
fn what_is_no_question_is_told_so_or_ignored() {
    let responder = responder(Some(zone()), "/dev/null");
    let code = |bytes: &[u8]| {
        begin(&responder, bytes).map(|bytes| Message::from_vec(&bytes).unwrap().metadata.response_code)
    };
    assert_eq!(code(b""), None);
    assert_eq!(code(b"short"), None);
    assert_eq!(code(&[0xff; 40]), None, "an answer, however odd, is not answered");
    let mut cut = question("web.default.svc.cluster.local.");
    cut.truncate(20);
    assert_eq!(code(&cut), Some(ResponseCode::FormErr));
    let mut two = Message::from_vec(&question("a.b.")).unwrap();
    two.add_query(two.queries[0].clone());
    assert_eq!(code(&two.to_vec().unwrap()), Some(ResponseCode::FormErr), "two questions");
    let mut reply = Message::from_vec(&question("a.b.")).unwrap();
    reply.metadata.message_type = hickory_proto::op::MessageType::Response;
    assert_eq!(code(&reply.to_vec().unwrap()), None, "no loops between servers");
}

proptest! {
    /// Whatever arrives, the answer parses, has the same id and fits.
    #[test]
    fn any_datagram_gets_a_sane_answer_or_none(bytes in prop::collection::vec(any::<u8>(), 0..200), flip in 0usize..60, to in any::<u8>()) {
        let responder = responder(Some(zone()), "/dev/null");
        let mut close = question("big.default.svc.cluster.local.");
        let at = flip % close.len();
        close[at] = to;
        for datagram in [&bytes, &close] {
            if let Some(answer) = begin(&responder, datagram) {
                let message = Message::from_vec(&answer).unwrap();
                prop_assert_eq!(message.metadata.id.to_be_bytes().to_vec(), datagram[..2].to_vec());
                prop_assert!(answer.len() <= 4096);
            }
        }
    }
}
