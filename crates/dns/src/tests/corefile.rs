//! What a Corefile changes, and what it may not ask.

use super::*;

/// Answers by Corefile, without sockets: code, and the data of the answer.
fn told(responder: &Responder, name: &str, kind: RecordType) -> (ResponseCode, Vec<String>) {
    let mut message = Message::query();
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    let Some(bytes) = begin(responder, &message.to_vec().unwrap()) else {
        return (ResponseCode::NoError, vec!["asked upstream".into()]);
    };
    let answer = Message::from_vec(&bytes).unwrap();
    let all = answer.answers.iter().map(|r| format!("{} {} {}", r.name, r.ttl, r.data)).collect();
    (answer.metadata.response_code, all)
}

fn by(corefile: &str) -> Responder {
    configured(zone(), corefile)
}

#[test]
fn the_corefile_of_minikube_is_honoured() {
    // Word for word what its kubeadm and its own start write.
    let responder = by(".:53 {
    log
    errors
    health {
       lameduck 5s
    }
    ready
    kubernetes cluster.local in-addr.arpa ip6.arpa {
       pods insecure
       fallthrough in-addr.arpa ip6.arpa
       ttl 30
    }
    prometheus :9153
    hosts {
       192.168.49.1 host.minikube.internal
       fallthrough
    }
    forward . /etc/resolv.conf {
       max_concurrent 1000
    }
    cache 30 {
       disable success cluster.local
       disable denial cluster.local
    }
    loop
    reload
    loadbalance
}
");
    assert_eq!(responder.config().lameduck(), Duration::from_secs(5));
    let ok = |text: &str| (ResponseCode::NoError, vec![text.to_owned()]);
    let host = "host.minikube.internal.";
    assert_eq!(told(&responder, host, RecordType::A), ok(&format!("{host} 3600 192.168.49.1")));
    assert_eq!(told(&responder, host, RecordType::AAAA), (ResponseCode::NoError, vec![]));
    let back = "1.49.168.192.in-addr.arpa.";
    assert_eq!(told(&responder, back, RecordType::PTR), ok(&format!("{back} 3600 {host}")));
    let web = "web.default.svc.cluster.local.";
    assert_eq!(told(&responder, web, RecordType::A), ok(&format!("{web} 30 10.96.0.7")));
    assert_eq!(told(&responder, "1.1.1.1.in-addr.arpa.", RecordType::PTR), ok("asked upstream"));
    assert_eq!(told(&responder, "a.internal.", RecordType::A), ok("asked upstream"));
    assert_eq!(told(&responder, "no.svc.cluster.local.", RecordType::A), (ResponseCode::NXDomain, vec![]));
}

#[test]
fn directives_change_answers() {
    let none = |code| (code, Vec::<String>::new());
    let responder = by(
        "cluster.local in-addr.arpa {\n kubernetes cluster.local in-addr.arpa\n rewrite name suffix \
                        .corp.cluster.local .default.svc.cluster.local\n}\nexample.org {\n hosts {\n  1.2.3.4 a.example.org\n  ttl 7\n }\n}\n",
    );
    let web = told(&responder, "Web.corp.cluster.local.", RecordType::A);
    assert_eq!(web.1, ["Web.corp.cluster.local. 5 10.96.0.7"], "the asked name, CoreDNS's ttl");
    let pod = told(&responder, "1-2-3-4.default.pod.cluster.local.", RecordType::A);
    assert_eq!(pod, none(ResponseCode::NXDomain), "pods are disabled unless asked for");
    let nobody = told(&responder, "1.1.1.1.in-addr.arpa.", RecordType::PTR);
    assert_eq!(nobody, none(ResponseCode::NXDomain), "no fallthrough");
    assert_eq!(told(&responder, "a.example.org.", RecordType::A).1, ["a.example.org. 7 1.2.3.4"]);
    assert_eq!(told(&responder, "b.example.org.", RecordType::A), none(ResponseCode::ServFail));
    assert_eq!(told(&responder, "example.com.", RecordType::A), none(ResponseCode::Refused), "nobody's zone");
    assert_eq!(told(&responder, "example.com.", RecordType::AXFR), none(ResponseCode::Refused));
    let responder = by(".:53 {\n kubernetes cluster.local {\n  fallthrough\n }\n forward . 192.0.2.1\n}\n");
    let asked = (ResponseCode::NoError, vec!["asked upstream".to_owned()]);
    assert_eq!(told(&responder, "no.svc.cluster.local.", RecordType::A), asked);
    let reverse = told(&responder, "7.0.96.10.in-addr.arpa.", RecordType::PTR);
    assert_eq!(reverse, asked, "reverse zones are others' unless listed");
}

#[test]
fn what_a_corefile_may_not_ask_is_said_with_its_line() {
    let domain = Domain::parse("cluster.local.").unwrap();
    for (line, part) in [
        ("frobnicate", "unknown directive \"frobnicate\"; known are: any, autopath,"),
        ("template IN A example.org {\n  answer \"{{ .Meta }}\"\n }", "3: {{ .Meta }} is not understood"),
        ("template IN NONE", "not a type of records"),
        ("template IN A {\n  match (\n }", "3: \"(\" is no regular expression"),
        ("autopath kubernetes", "neither @kubernetes nor a file"),
        ("cache 30 example.org", "a cache of some zones only"),
        ("cache {\n  prefetch 5 1m 10\n }", "3: \"10\" is no percentage"),
        ("cache {\n  serve_stale 1h later\n }", "3: \"serve_stale 1h later\""),
        ("errors {\n  stacktrace\n }", "3: \"stacktrace\" is not understood here"),
        ("kubernetes other.local", "the domain of this cluster is cluster.local."),
        ("kubernetes in-addr.arpa", "cluster.local., is missing"),
        ("kubernetes cluster.local {\n  pods maybe\n }", "3: \"pods maybe\""),
        ("kubernetes cluster.local {\n  endpoint https://x\n }", "3: the add-on's Pod asks"),
        ("kubernetes cluster.local {\n  ttl 9999\n }", "whole number from 0 to 3600"),
        ("forward .", "at least one server"),
        ("forward . tls://one", "neither an address"),
        ("forward . 1.1.1.1 {\n  tls /does/not/exist\n }", "3: /does/not/exist: "),
        ("forward . 1.1.1.1 {\n  max_concurrent many\n }", "3: \"many\""),
        ("cache 99999", "whole number"),
        ("hosts /etc/hosts", "cannot be read"),
        ("hosts {\n  1.2.3 a\n }", "3: \"1.2.3\" is not an IP address"),
        ("rewrite edns0 local replace 0xffee abcd", "write set"),
        ("rewrite edns0 local set 0xffff0 abcd", "not the number of an option"),
        ("rewrite edns0 local set 0xffee 0xabc", "hexadecimal digits"),
        ("rewrite edns0 local set 0xffee {server_ip}", "known are {qname}"),
        ("rewrite edns0 subnet set 33 56", "0 to 32"),
        ("rewrite edns0 subnet set", "not understood"),
        ("rewrite ttl a.test. 30-10", "the least is more than the most"),
        ("rewrite ttl fuzzy a.test. 30", "not understood"),
        ("rewrite rcode a.test. SERVFAIL FINE", "not a code of answers"),
        ("rewrite class IN XX", "not a class"),
        ("rewrite name regex ( b", "no regular expression"),
        ("health :9999", "port of the add-on"),
        ("health {\n  lameduck soon\n }", "no time"),
        ("ready\n ready", "twice"),
        ("loadbalance weighted", "not understood"),
    ] {
        let error = Config::read(&format!(".:53 {{\n {line}\n}}\n"), &domain).unwrap_err().to_string();
        assert!(error.starts_with("Corefile:") && error.contains(part), "{line}: {error}");
    }
    for (text, part) in [
        ("", "no server block"),
        (".:5353 {\n}\n", "listens on port 53 only"),
        ("tls://. {\n}\n", "plain DNS"),
        (".:53 {\n}\n. {\n}\n", "Corefile:3: zone . has a server block already"),
    ] {
        let error = Config::read(text, &domain).unwrap_err().to_string();
        assert!(error.contains(part), "{text}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn zones_have_servers_of_their_own_and_a_loop_is_found() {
    let (asked, _up) = upstream("127.0.53.4").await;
    let (server, _stop) = start(
        by(".:53 {\n kubernetes cluster.local\n forward example.org 127.0.53.4:53 {\n  except no.example.org\n  force_tcp\n }\n}\n"),
        "127.0.0.1",
        0,
    )
    .await;
    assert_eq!(dig(server, "+short www.example.org").await.trim(), "1.2.3.4");
    assert_eq!(asked.load(std::sync::atomic::Ordering::SeqCst), 0, "by tcp");
    assert!(dig(server, "a.no.example.org").await.contains("status: SERVFAIL"), "nobody to ask");

    let (udp, tcp) = sockets("127.0.0.1", 0).await;
    let own = udp.local_addr().unwrap();
    let responder =
        Arc::new(by(&format!(".:53 {{\n kubernetes cluster.local\n forward . {own}\n loop\n}}\n")));
    let stop = CancellationToken::new();
    tokio::spawn(crate::server::serve(vec![udp], vec![tcp], responder.clone(), stop.clone()));
    responder.find_loops().await;
    assert!(dig(own, "www.example.org").await.contains("status: SERVFAIL"));
    assert_eq!(dig(own, "+short web.default.svc.cluster.local").await.trim(), "10.96.0.7");
    stop.cancel();
}
