//! Any datagram to the DNS server: what is answered is a message that another library reads, of the same id, within the
//! size that the client takes.
#![no_main]

use std::sync::{Arc, LazyLock};

use dns::config::Config;
use dns::name::Domain;
use dns::respond::{Responder, Step, Transport};
use dns::wire::Response;
use dns::zone::Zone;
use hickory_proto::op::Message;

static RESPONDER: LazyLock<Responder> = LazyLock::new(|| {
    let domain = Domain::parse("cluster.local").unwrap();
    let mut zone = Zone::new(domain.clone(), 30);
    zone.set_namespace("default", true);
    let service = serde_json::from_str(
        r#"{"spec": {"clusterIP": "10.96.0.7", "ports": [{"name": "http", "port": 80}]}}"#,
    );
    zone.set_service("default", "web", Some(&service.unwrap()));
    zone.set_synced(1);
    let corefile =
        ".:53 {\n any\n kubernetes cluster.local in-addr.arpa ip6.arpa {\n  pods insecure\n }\n}\n";
    Responder::new(Some(Arc::new(parking_lot::RwLock::new(zone))), Config::read(corefile, &domain).unwrap())
});

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let mut out = Response::default();
    if let Step::Answer = RESPONDER.begin(bytes, [10, 244, 0, 1].into(), Transport::Udp, &mut out) {
        let message = Message::from_vec(out.bytes()).unwrap();
        assert_eq!(message.metadata.id.to_be_bytes(), bytes[..2]);
        assert!(out.bytes().len() <= 4096);
    }
});
