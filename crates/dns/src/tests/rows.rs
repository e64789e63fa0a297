//! Every row of the record table and of the table of answer codes, asked over sockets by the programs and libraries that
//! people ask with: dig, nslookup of BIND and of busybox, glibc's getent, and the resolver that Rust programs use.

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{NameServerConfig, ResolverConfig};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};

use super::*;

/// A server on the usual port of a loopback address, and a `resolv.conf` that names it.
struct Asked {
    server: SocketAddr,
    file: tempfile::NamedTempFile,
    resolver: TokioResolver,
    _stop: DropGuard,
}

impl Asked {
    async fn of(responder: Responder, ip: &'static str) -> Self {
        let (server, _stop) = start(responder, ip, 53).await;
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, format!("nameserver {ip}\noptions timeout:5 attempts:1\n")).unwrap();
        let servers = vec![NameServerConfig::udp_and_tcp(server.ip())];
        let config = ResolverConfig::from_parts(None, vec![], servers);
        let provider = TokioRuntimeProvider::default();
        let resolver = TokioResolver::builder_with_config(config, provider).build().unwrap();
        Self { server, file, resolver, _stop }
    }

    async fn bind(&self, name: &str, kind: &str) -> String {
        let args =
            [format!("-type={kind}"), "-timeout=5".into(), name.to_owned(), self.server.ip().to_string()];
        run("nslookup", args.into()).await
    }

    async fn busybox(&self, name: &str, kind: &str) -> String {
        let args =
            ["nslookup".to_owned(), format!("-type={kind}"), name.to_owned(), self.server.ip().to_string()];
        run("busybox", args.into()).await
    }

    /// What glibc finds: this test's `resolv.conf` stands in place of the machine's, for that one process.
    async fn getent(&self, args: &str) -> String {
        let script = format!("mount --bind {} /etc/resolv.conf && getent {args}", self.file.path().display());
        run("unshare", vec!["-m".into(), "sh".into(), "-c".into(), script]).await
    }

    /// What the Rust resolver finds; the code otherwise.
    async fn rust(&self, name: &str, kind: RecordType) -> String {
        match self.resolver.lookup(name, kind).await {
            Ok(found) => found.answers().iter().map(|r| format!("{} {}\n", r.name, r.data)).collect(),
            Err(NetError::Dns(DnsError::NoRecordsFound(none))) => format!("{:?}", none.response_code),
            Err(NetError::Dns(DnsError::ResponseCode(code))) => format!("{code:?}"),
            Err(other) => panic!("{name}: {other}"),
        }
    }
}

/// A row of the record table: what it says, how to ask for it, and what every answer holds.
struct Row {
    says: &'static str,
    name: &'static str,
    kind: RecordType,
    holds: &'static [&'static str],
    /// How getent asks, where it can.
    getent: Option<&'static str>,
}

const RECORDS: [Row; 13] = [
    Row {
        says: "dns-version.ZONE TXT",
        name: "dns-version.cluster.local.",
        kind: RecordType::TXT,
        holds: &["1.1.0"],
        getent: None,
    },
    Row {
        says: "SVC.NS.svc.ZONE (ClusterIP) A",
        name: "web.default.svc.cluster.local.",
        kind: RecordType::A,
        holds: &["10.96.0.7"],
        getent: Some("ahostsv4 web.default.svc.cluster.local."),
    },
    Row {
        says: "SVC.NS.svc.ZONE (ClusterIP) AAAA",
        name: "web.default.svc.cluster.local.",
        kind: RecordType::AAAA,
        holds: &["fd00::7"],
        getent: None,
    },
    Row {
        says: "_PORT._PROTO.SVC.NS.svc.ZONE (ClusterIP) SRV",
        name: "_http._tcp.web.default.svc.cluster.local.",
        kind: RecordType::SRV,
        holds: &["0 100 80 web.default.svc.cluster.local"],
        getent: None,
    },
    Row {
        says: "reverse of a cluster IP PTR",
        name: "7.0.96.10.in-addr.arpa.",
        kind: RecordType::PTR,
        holds: &["web.default.svc.cluster.local"],
        getent: Some("hosts 10.96.0.7"),
    },
    Row {
        says: "SVC.NS.svc.ZONE (headless) A: the ready ones",
        name: "db.default.svc.cluster.local.",
        kind: RecordType::A,
        holds: &["10.244.0.11", "10.244.0.12"],
        getent: Some("ahostsv4 db.default.svc.cluster.local."),
    },
    Row {
        says: "HOST.SVC.NS.svc.ZONE (headless) A",
        name: "db-0.db.default.svc.cluster.local.",
        kind: RecordType::A,
        holds: &["10.244.0.11"],
        getent: Some("ahostsv4 db-0.db.default.svc.cluster.local."),
    },
    Row {
        says: "_PORT._PROTO.SVC.NS.svc.ZONE (headless) SRV",
        name: "_http._tcp.db.default.svc.cluster.local.",
        kind: RecordType::SRV,
        holds: &["8080 db-0.db.default.svc.cluster.local", "8080 10-244-0-12.db.default.svc.cluster.local"],
        getent: None,
    },
    Row {
        says: "reverse of an endpoint PTR, one per Service",
        name: "11.0.244.10.in-addr.arpa.",
        kind: RecordType::PTR,
        holds: &["db-0.db.default.svc.cluster.local", "db-0.eager.default.svc.cluster.local"],
        getent: None,
    },
    Row {
        says: "SVC.NS.svc.ZONE (ExternalName) CNAME",
        name: "inward.default.svc.cluster.local.",
        kind: RecordType::CNAME,
        holds: &["web.default.svc.cluster.local"],
        getent: None,
    },
    Row {
        says: "SVC.NS.svc.ZONE (ExternalName) A with the target's",
        name: "inward.default.svc.cluster.local.",
        kind: RecordType::A,
        holds: &["10.96.0.7"],
        getent: Some("ahostsv4 inward.default.svc.cluster.local."),
    },
    Row {
        says: "a-b-c-d.NS.pod.ZONE A",
        name: "10-244-0-99.default.pod.cluster.local.",
        kind: RecordType::A,
        holds: &["10.244.0.99"],
        getent: Some("ahostsv4 10-244-0-99.default.pod.cluster.local."),
    },
    Row {
        says: "publishNotReadyAddresses: unready endpoints too",
        name: "eager.default.svc.cluster.local.",
        kind: RecordType::A,
        holds: &["10.244.0.11", "10.244.0.12", "10.244.0.13"],
        getent: Some("ahostsv4 eager.default.svc.cluster.local."),
    },
];

#[tokio::test(flavor = "multi_thread")]
async fn every_row_of_the_record_table_is_read_by_all() {
    let asked = Asked::of(responder(Some(names::zone()), "/dev/null"), "127.0.53.20").await;
    for row in &RECORDS {
        let kind = row.kind.to_string();
        let mut told = vec![
            ("dig", dig(asked.server, &format!("{} {kind}", row.name)).await),
            ("nslookup of BIND", asked.bind(row.name, &kind).await),
            ("nslookup of busybox", asked.busybox(row.name, &kind).await),
            ("the Rust resolver", asked.rust(row.name, row.kind).await),
        ];
        if let Some(args) = row.getent {
            told.push(("getent", asked.getent(args).await));
        }
        for (by, text) in told {
            for part in row.holds {
                assert!(text.contains(part), "{}, asked by {by}: no {part} in {text}", row.says);
            }
        }
    }
    let unready = dig(asked.server, "+short db.default.svc.cluster.local").await;
    assert!(!unready.contains("10.244.0.13"), "{unready}");
    for unnamed in ["__tcp", "_._tcp"] {
        let text = dig(asked.server, &format!("{unnamed}.web.default.svc.cluster.local SRV")).await;
        assert!(text.contains("status: NXDOMAIN"), "an unnamed port has no SRV: {text}");
    }
}

/// A row of the table of answer codes.
struct Code {
    situation: &'static str,
    name: &'static str,
    kind: RecordType,
    /// As dig says it, with the number of records in the authority section.
    status: &'static str,
    authorities: usize,
}

const fn code(
    situation: &'static str,
    name: &'static str,
    kind: RecordType,
    status: &'static str,
    authorities: usize,
) -> Code {
    Code { situation, name, kind, status, authorities }
}

const CODES: [Code; 12] = [
    code("unknown service", "nope.default.svc.cluster.local.", RecordType::A, "NXDOMAIN", 1),
    code("unknown namespace", "web.nowhere.svc.cluster.local.", RecordType::A, "NXDOMAIN", 1),
    code("unknown endpoint", "nope.db.default.svc.cluster.local.", RecordType::A, "NXDOMAIN", 1),
    code(
        "other type: AAAA on IPv4 only",
        "v4only.default.svc.cluster.local.",
        RecordType::AAAA,
        "NOERROR",
        1,
    ),
    code("other type: MX", "web.default.svc.cluster.local.", RecordType::MX, "NOERROR", 1),
    code("NS.svc.ZONE", "default.svc.cluster.local.", RecordType::A, "NOERROR", 1),
    code("svc.ZONE", "svc.cluster.local.", RecordType::A, "NOERROR", 1),
    code("NS.pod.ZONE", "default.pod.cluster.local.", RecordType::A, "NOERROR", 1),
    code("headless without ready endpoints", "down.default.svc.cluster.local.", RecordType::A, "NXDOMAIN", 1),
    code(
        "ExternalName with port labels",
        "_http._tcp.out.default.svc.cluster.local.",
        RecordType::SRV,
        "NXDOMAIN",
        1,
    ),
    code("IXFR", "cluster.local.", RecordType::IXFR, "REFUSED", 0),
    code("AXFR", "cluster.local.", RecordType::AXFR, "REFUSED", 0),
];

#[tokio::test(flavor = "multi_thread")]
async fn every_row_of_the_table_of_codes_is_read_by_all() {
    let asked = Asked::of(responder(Some(names::zone()), "/dev/null"), "127.0.53.21").await;
    for row in &CODES {
        expect(&asked, row).await;
    }
    // A ClusterIP without endpoints has its address all the same.
    assert_eq!(dig(asked.server, "+short v4only.default.svc.cluster.local").await.trim(), "10.96.0.8");
    let unsynced = Zone::new(Domain::parse("cluster.local").unwrap(), 30);
    let asked = Asked::of(responder(Some(unsynced), "/dev/null"), "127.0.53.22").await;
    let row = code("not yet synced", "web.default.svc.cluster.local.", RecordType::A, "SERVFAIL", 0);
    expect(&asked, &row).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_depend_on_the_corefile() {
    let corefile = ".:53 {\n kubernetes cluster.local in-addr.arpa {\n  ignore empty_service\n }\n}\n";
    let asked = Asked::of(configured(names::zone(), corefile), "127.0.53.23").await;
    let pod =
        code("pod mode disabled", "10-244-0-99.default.pod.cluster.local.", RecordType::A, "NXDOMAIN", 1);
    expect(&asked, &pod).await;
    let empty = "v4only.default.svc.cluster.local.";
    expect(&asked, &code("ClusterIP without endpoints, ignored", empty, RecordType::A, "NXDOMAIN", 1)).await;
}

async fn expect(asked: &Asked, row: &Code) {
    let kind = row.kind.to_string();
    if matches!(row.kind, RecordType::AXFR | RecordType::IXFR) {
        return expect_refused(asked, row).await;
    }
    let text = dig(asked.server, &format!("{} {kind}", row.name)).await;
    let status = format!("status: {}", row.status);
    assert!(text.contains(&status) && text.contains("ANSWER: 0"), "{}: {text}", row.situation);
    let soa = format!("AUTHORITY: {}", row.authorities);
    assert!(text.contains(&soa), "{}: {text}", row.situation);
    assert_eq!(text.contains("flags: qr aa"), row.authorities > 0, "{}: {text}", row.situation);
    let word = match row.status {
        "NOERROR" => "No answer",
        status => status,
    };
    let bind = asked.bind(row.name, &kind).await;
    assert!(bind.contains(word), "{}: nslookup of BIND: {bind}", row.situation);
    let busybox = asked.busybox(row.name, &kind).await;
    let none = row.status == "NOERROR" && !busybox.contains("NXDOMAIN") && !busybox.contains("Name:");
    assert!(busybox.contains(word) || none, "{}: nslookup of busybox: {busybox}", row.situation);
    let rust = asked.rust(row.name, row.kind).await;
    let same = rust.to_ascii_uppercase() == row.status;
    assert!(same, "{}: the Rust resolver: {rust}", row.situation);
    if row.kind == RecordType::A {
        let getent = asked.getent(&format!("ahostsv4 {}", row.name)).await;
        assert_eq!(getent, "", "{}: getent", row.situation);
    }
}

/// Programs print nothing of a zone that they are refused, so the code is looked at as it comes.
async fn expect_refused(asked: &Asked, row: &Code) {
    let whole = if row.kind == RecordType::IXFR { "IXFR=1" } else { "AXFR" };
    let text = dig(asked.server, &format!("{} {whole}", row.name)).await;
    assert!(text.contains("Transfer failed"), "{}: {text}", row.situation);
    let mut message = Message::from_vec(&question(row.name)).unwrap();
    message.queries[0].set_query_type(row.kind);
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.send_to(&message.to_vec().unwrap(), asked.server).await.unwrap();
    let mut buffer = [0; 512];
    let len = socket.recv(&mut buffer).await.unwrap();
    let code = Message::from_vec(&buffer[..len]).unwrap().metadata.response_code;
    assert_eq!(code, ResponseCode::Refused, "{}", row.situation);
}
