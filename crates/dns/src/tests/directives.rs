//! What single directives do: template, autopath, rewrite, any, and kubernetes' options.

use std::net::IpAddr;

use super::*;

fn by(corefile: &str) -> Responder {
    configured(names::zone(), corefile)
}

/// What a client at this address is told: code, answers and authorities.
fn told(
    responder: &Responder,
    client: IpAddr,
    name: &str,
    kind: RecordType,
) -> (ResponseCode, Vec<String>, usize) {
    let mut message = Message::query();
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    let mut out = Response::default();
    match responder.begin(&message.to_vec().unwrap(), client, Transport::Udp, &mut out) {
        Step::Answer => {}
        Step::Ignore | Step::Forward(_) => return (ResponseCode::NoError, vec!["asked upstream".into()], 0),
    }
    let answer = Message::from_vec(out.bytes()).unwrap();
    let all = answer.answers.iter().map(|r| format!("{} {} {}", r.name, r.ttl, r.data)).collect();
    (answer.metadata.response_code, all, answer.authorities.len())
}

const POD: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 244, 0, 77));

fn answers(responder: &Responder, name: &str, kind: RecordType) -> Vec<String> {
    told(responder, POD, name, kind).1
}

#[test]
fn templates_answer() {
    let responder = by(
        ".:53 {\n template IN A ip.test {\n  match \"^ip-(?P<a>[0-9]*)-(?P<b>[0-9]*)[.]ip[.]test[.]$\"\n  \
         answer \"{{ .Name }} 60 IN A 10.0.{{ .Group.a }}.{{ index .Match 2 }}\"\n  fallthrough\n }\n \
         template ANY ANY never.test {\n  rcode NXDOMAIN\n }\n template IN A to.test {\n  \
         answer \"{{ .Name }} 5 IN CNAME web.default.svc.cluster.local.\"\n }\n template IN A broken.test {\n  \
         answer \"{{ .Name }} 5 IN A nonsense\"\n }\n kubernetes cluster.local\n forward . 192.0.2.1\n}\n",
    );
    assert_eq!(answers(&responder, "ip-3-4.ip.test.", RecordType::A), ["ip-3-4.ip.test. 60 10.0.3.4"]);
    assert_eq!(answers(&responder, "other.ip.test.", RecordType::A), ["asked upstream"], "fallthrough");
    assert_eq!(answers(&responder, "ip-3-4.ip.test.", RecordType::AAAA), ["asked upstream"], "another type");
    assert_eq!(told(&responder, POD, "a.never.test.", RecordType::TXT).0, ResponseCode::NXDomain);
    let web = "web.default.svc.cluster.local.";
    let followed = answers(&responder, "a.to.test.", RecordType::A);
    assert_eq!(followed, [format!("a.to.test. 5 {web}"), format!("{web} 5 10.96.0.7")]);
    assert_eq!(told(&responder, POD, "a.broken.test.", RecordType::A).0, ResponseCode::ServFail);
}

#[test]
fn rewrites_go_and_come_back() {
    let responder = by(
        ".:53 {\n rewrite name regex (.*)[.]in[.]([a-z]+)[.]test[.] {1}.{2}.svc.cluster.local answer name \
                        (.*)[.]default[.]svc[.]cluster[.]local[.] {1}.in.default.test\n \
                        rewrite stop {\n  name suffix .corp.test. .default.svc.cluster.local.\n  answer auto\n }\n \
                        rewrite type ANY A\n kubernetes cluster.local\n}\n",
    );
    assert_eq!(
        answers(&responder, "web.in.default.test.", RecordType::A),
        ["web.in.default.test. 5 10.96.0.7"]
    );
    let srv = answers(&responder, "_http._tcp.web.corp.test.", RecordType::SRV);
    assert_eq!(srv, ["_http._tcp.web.corp.test. 5 0 100 80 web.corp.test."], "names in the answer too");
    let any = answers(&responder, "web.default.svc.cluster.local.", RecordType::ANY);
    assert_eq!(any, ["web.default.svc.cluster.local. 5 10.96.0.7"]);
}

#[test]
fn rewrites_of_ttl_rcode_and_class() {
    let rules = [
        "continue ttl suffix .svc.cluster.local. 60-",
        "continue ttl regex ^db-[0-9]+[.] -2",
        "rcode substring nope NXDOMAIN NOERROR",
        "continue class CH IN",
        "ttl exact web.default.svc.cluster.local. 7",
    ];
    let lines: String = rules.iter().map(|rule| format!(" rewrite {rule}\n")).collect();
    let responder = by(&format!(".:53 {{\n{lines} kubernetes cluster.local\n}}\n"));
    let web = "web.default.svc.cluster.local.";
    // Of several the last one sees what the others made of it, as in CoreDNS the first answers last.
    assert_eq!(answers(&responder, web, RecordType::A), [format!("{web} 60 10.96.0.7")]);
    let (code, all, authority) = told(&responder, POD, "nope.default.svc.cluster.local.", RecordType::A);
    assert_eq!((code, all.len(), authority), (ResponseCode::NoError, 0, 1));
    let (code, ..) = told(&responder, POD, "gone.default.svc.cluster.local.", RecordType::A);
    assert_eq!(code, ResponseCode::NXDomain);
    let mut message = Message::query();
    let mut query = Query::query(Name::from_ascii(web).unwrap(), RecordType::A);
    query.set_query_class(hickory_proto::rr::DNSClass::CH);
    message.add_query(query);
    let mut out = Response::default();
    assert!(matches!(
        responder.begin(&message.to_vec().unwrap(), POD, Transport::Udp, &mut out),
        Step::Answer
    ));
    let answer = Message::from_vec(out.bytes()).unwrap();
    assert_eq!((answer.answers.len(), answer.answers[0].data.to_string().as_str()), (1, "10.96.0.7"));
}

/// Options go to upstreams, and answers to different ones are kept apart.
#[tokio::test(flavor = "multi_thread")]
async fn rewrites_of_edns0_tell_upstreams_more() {
    let udp = UdpSocket::bind("127.0.53.31:53").await.unwrap();
    let seen = Arc::new(parking_lot::Mutex::new(Vec::new()));
    let heard = seen.clone();
    tokio::spawn(async move {
        let mut buffer = [0; 4096];
        loop {
            let (len, peer) = udp.recv_from(&mut buffer).await.unwrap();
            let message = Message::from_vec(&buffer[..len]).unwrap();
            let options = message.edns.as_ref().unwrap().options().as_ref().to_vec();
            heard.lock().push(
                options.into_iter().map(|(code, o)| (u16::from(code), Vec::try_from(&o).unwrap())).collect(),
            );
            udp.send_to(&reply(&buffer[..len], true), peer).await.unwrap();
        }
    });
    let responder = by(".:53 {\n rewrite continue edns0 local set 0xffee 0x61626364\n \
                        rewrite continue edns0 local set 0xffed {qname}\n rewrite edns0 subnet set 24 56\n \
                        forward . 127.0.53.31\n cache 30\n}\n");
    let (server, _stop) = start(responder, "127.0.0.1", 0).await;
    for _ in 0..2 {
        assert_eq!(dig(server, "+short www.example.org").await.trim(), "1.2.3.4");
    }
    let all: Vec<Vec<(u16, Vec<u8>)>> = seen.lock().clone();
    let wanted: [(u16, &[u8]); 3] =
        [(0xffee, b"abcd"), (0xffed, b"www.example.org."), (8, &[0, 1, 24, 0, 127, 0, 0])];
    assert_eq!(all, [wanted.map(|(code, data)| (code, data.to_vec())).to_vec()]);
}

#[test]
fn any_is_refused_in_the_words_of_rfc_8482() {
    let responder = by(".:53 {\n any\n kubernetes cluster.local\n forward . 192.0.2.1\n}\n");
    assert_eq!(
        answers(&responder, "example.org.", RecordType::ANY),
        ["example.org. 8482 ANY obsoleted See RFC 8482"]
    );
    let responder = by(".:53 {\n kubernetes cluster.local\n}\n");
    let (code, all, soa) = told(&responder, POD, "web.default.svc.cluster.local.", RecordType::ANY);
    assert_eq!((code, all.len(), soa), (ResponseCode::NoError, 0, 1), "no data, as CoreDNS without it");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outside_name_costs_a_pod_one_question() {
    let (asked, _up) = upstream("127.0.53.30").await;
    let corefile = ".:53 {\n autopath @kubernetes\n kubernetes cluster.local {\n  pods insecure\n }\n \
                    forward . 127.0.53.30\n cache 30\n}\n";
    let responder = by(corefile);
    responder.zone.as_ref().unwrap().write().set_pod("default", "p", &[[127, 0, 0, 1].into(), POD]);
    let name = "web.other.default.svc.cluster.local.";
    responder.zone.as_ref().unwrap().write().set_namespace("other", true);
    let web: Service = serde_json::from_value(json!({"spec": {"clusterIP": "10.96.0.99"}})).unwrap();
    responder.zone.as_ref().unwrap().write().set_service("other", "web", Some(&web));
    let inside = answers(&responder, name, RecordType::A);
    let there = "web.other.svc.cluster.local.";
    assert_eq!(inside, [format!("{name} 5 {there}"), format!("{there} 5 10.96.0.99")]);
    let (server, _stop) = start(responder, "127.0.0.1", 0).await;
    let text = dig(server, "www.example.org.default.svc.cluster.local").await;
    assert!(text.contains("status: NOERROR") && text.contains("CNAME www.example.org."), "{text}");
    assert!(text.contains("A 1.2.3.4"), "{text}");
    assert_eq!(asked.load(std::sync::atomic::Ordering::SeqCst), 1);
    let gone = dig(server, "gone.example.org.default.svc.cluster.local").await;
    assert!(gone.contains("status: NXDOMAIN") && gone.contains("5 IN SOA ns.dns.cluster.local."), "{gone}");
    let second = dig(server, "www.example.org.svc.cluster.local").await;
    assert!(second.contains("status: NXDOMAIN"), "not the first of its list: {second}");
}

#[test]
fn options_of_kubernetes_change_what_has_names() {
    let with = |options: &str| {
        by(&format!(".:53 {{\n kubernetes cluster.local in-addr.arpa {{\n{options} }}\n}}\n"))
    };
    let code = |responder: &Responder, name: &str| {
        told(responder, POD, &format!("{name}.cluster.local."), RecordType::A).0
    };
    let (yes, no) = (ResponseCode::NoError, ResponseCode::NXDomain);
    let responder = with("  pods verified\n");
    responder.zone.as_ref().unwrap().write().set_pod("default", "p", &[POD]);
    assert_eq!(code(&responder, "10-244-0-77.default.pod"), yes);
    assert_eq!(code(&responder, "10-244-0-78.default.pod"), no, "no Pod's");
    assert_eq!(code(&responder, "10-244-0-77.empty.pod"), no, "another namespace's");
    let responder = with("  noendpoints\n");
    for (name, expected) in [("web.default.svc", yes), ("db.default.svc", no), ("db-0.db.default.svc", no)] {
        assert_eq!(code(&responder, name), expected, "{name}");
    }
    let responder = with("  namespaces empty\n");
    for (name, expected) in [("web.default.svc", no), ("default.svc", no), ("empty.svc", yes)] {
        assert_eq!(code(&responder, name), expected, "{name}");
    }
    let reverse = told(&responder, POD, "7.0.96.10.in-addr.arpa.", RecordType::PTR);
    assert_eq!(reverse.0, no, "its addresses neither");
    assert_eq!(code(&with("  namespace_labels tier=x\n"), "web.nowhere.svc"), no);
    let web = "web.default.svc.cluster.local.";
    assert_eq!(
        answers(&with("  ttl 0\n  startup_timeout 5s\n"), web, RecordType::A),
        [format!("{web} 0 10.96.0.7")]
    );
}

#[test]
fn endpoints_may_have_the_names_of_their_pods() {
    let mut zone = names::zone();
    let options = crate::zone::Options { endpoint_pod_names: true, ..Default::default() };
    zone.set_options(options);
    let endpoints = json!([{"addresses": ["10.244.0.50"], "targetRef": {"kind": "Pod", "name": "Web-abc"}},
        {"addresses": ["10.244.0.51"]}]);
    let slice: EndpointSlice =
        serde_json::from_value(json!({"metadata": {}, "addressType": "IPv4", "endpoints": endpoints}))
            .unwrap();
    zone.set_slice("default", "web-1", Some(("web", &slice)));
    let responder = Responder::new(Some(Arc::new(RwLock::new(zone))), Config::default());
    let corefile = ".:53 {\n kubernetes cluster.local {\n  endpoint_pod_names\n }\n}\n";
    responder.configure(Config::read(corefile, &Domain::parse("cluster.local").unwrap()).unwrap());
    for (host, addr) in [("web-abc", "10.244.0.50"), ("10-244-0-51", "10.244.0.51")] {
        let name = format!("{host}.web.default.svc.cluster.local.");
        assert_eq!(answers(&responder, &name, RecordType::A), [format!("{name} 5 {addr}")]);
    }
}

#[test]
fn bufsize_limits_datagrams() {
    let responder = configured(zone(), ".:53 {\n bufsize 512\n kubernetes cluster.local\n}\n");
    let mut message = Message::from_vec(&question("big.default.svc.cluster.local.")).unwrap();
    let mut edns = hickory_proto::op::Edns::new();
    edns.set_max_payload(4096);
    message.set_edns(edns);
    assert!(begin(&responder, &message.to_vec().unwrap()).unwrap().len() <= 512);
}
