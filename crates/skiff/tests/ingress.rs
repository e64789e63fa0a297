//! Ingress from `skiff addons enable ingress` to `disable`: the tutorial's steps with the real kubectl and curl, TLS by the
//! name a client asks for, and nothing left afterwards.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::Value;
use testkit::cluster::Cluster;
use testkit::command::{Ran, program, run};
use testkit::kubectl::Kubectl;
use testkit::{eventually, images};

const SOON: Duration = Duration::from_secs(30);

#[test]
fn ingress_as_in_the_tutorial() {
    let cluster = Cluster::start(env!("CARGO_BIN_EXE_skiff"), "ing");
    let kubectl = cluster.kubectl();
    for name in ["nginx", "httpd"] {
        cluster.skiff(&format!("image load {}", images::tar(name).display())).out();
    }
    let node = Node(cluster.skiff("ip").out().trim().to_owned());
    let before = everything(&kubectl);
    the_addon_is_enabled(&cluster, &kubectl);
    a_fan_out_with_a_missing_service_is_fixed(&kubectl, &node);
    hosts_have_applications_of_their_own(&kubectl, &node);
    tls_shows_the_certificate_of_the_name(&kubectl, &node);
    what_cannot_be_is_refused_when_it_is_written(&kubectl, &node);
    lint_reads_the_cluster_and_files(&cluster);
    settings_are_followed(&kubectl, &node);
    a_new_controller_takes_over_and_no_request_is_lost(&kubectl, &node);
    kubectl.out("delete ingress --all");
    kubectl.out("delete deploy,service nginx-app newdeploy foo bar");
    kubectl.out("delete secret foo-tls");
    the_addon_leaves_nothing(&cluster, &kubectl, &before);
}

/// The node's address, as a user has it from `skiff ip`.
struct Node(String);

impl Node {
    fn curl(&self, args: &[&str], host: &str, rest: &str) -> Ran {
        let (http, https) = (format!("{host}:80:{}", self.0), format!("{host}:443:{}", self.0));
        let scheme = if args.contains(&"-k") || args.contains(&"--cacert") { "https" } else { "http" };
        let mut command = Command::new("curl");
        command.args(["-s", "--max-time", "10", "--noproxy", "*", "--resolve", &http, "--resolve", &https]);
        run(command.args(args).arg(format!("{scheme}://{host}{rest}")))
    }

    fn page(&self, host: &str, rest: &str) -> String {
        self.curl(&[], host, rest).stdout
    }

    /// Waits for a page that holds some text.
    #[track_caller]
    fn shows(&self, host: &str, rest: &str, text: &str) {
        let mut last = String::new();
        let what = format!("{host}{rest} shows {text:?}");
        let found = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            eventually(&what, SOON, || {
                last = self.page(host, rest);
                last.contains(text).then_some(())
            });
        }));
        assert!(found.is_ok(), "{what}; the last was:\n{last}");
    }
}

/// Names of all that an add-on could leave.
fn everything(kubectl: &Kubectl) -> String {
    let kinds = "namespaces,ingressclasses,clusterroles,clusterrolebindings,validatingwebhookconfigurations";
    let all = kubectl.out(&format!("get {kinds} -o name"));
    all + &kubectl.out("get deploy,service,serviceaccounts,pods -A -o name")
}

fn the_addon_is_enabled(cluster: &Cluster, kubectl: &Kubectl) {
    let list = cluster.skiff("addons list").out();
    assert!(
        list.contains("| ADDON NAME | PROFILE | STATUS") && list.contains("| ingress    | ing "),
        "{list}"
    );
    assert!(list.contains("disabled"), "{list}");
    let unknown = cluster.skiff("addons enable nonsense").err();
    assert!(unknown.contains("there is no add-on \"nonsense\"; there are: ingress"), "{unknown}");
    kubectl.out("create namespace ingress-nginx");
    let taken = cluster.skiff("addons enable ingress").err();
    assert!(taken.contains("Namespace ingress-nginx is there and not skiff's"), "{taken}");
    kubectl.out("delete namespace ingress-nginx");
    assert!(cluster.skiff("addons enable ingress").out().contains("The 'ingress' addon is enabled"));
    assert!(cluster.skiff("addons list").out().contains("enabled ✅"));
    assert!(kubectl.out("get ns").contains("ingress-nginx"));
    let all = kubectl.out("get all -n ingress-nginx");
    for part in
        ["pod/ingress-nginx-controller-", "NodePort", "deployment.apps/ingress-nginx-controller   1/1"]
    {
        assert!(all.contains(part), "{part} in {all}");
    }
    let class = kubectl.json("get ingressclass nginx");
    assert_eq!(class["spec"]["controller"], "k8s.io/ingress-nginx");
    assert!(cluster.skiff("addons enable ingress").ok, "a second time changes nothing");
}

fn a_fan_out_with_a_missing_service_is_fixed(kubectl: &Kubectl, node: &Node) {
    kubectl.out("create deploy nginx-app --image=nginx --replicas=5");
    kubectl.out("expose deploy nginx-app --port=80");
    kubectl.out("rollout status deploy/nginx-app --timeout=60s");
    let rules = "--rule=/=nginx-app:80 --rule=/hello=newdeploy:8080";
    let created = kubectl.out(&format!("create ingress nginx-app-ingress {rules}"));
    assert_eq!(created, "ingress.networking.k8s.io/nginx-app-ingress created\n");
    eventually("the Ingress has the node's address", SOON, || {
        kubectl.out("get ingress nginx-app-ingress").contains(&node.0).then_some(())
    });
    let row = kubectl.out("get ingress nginx-app-ingress");
    let cells: Vec<&str> = row.lines().nth(1).unwrap().split_whitespace().take(5).collect();
    assert_eq!(cells, ["nginx-app-ingress", "nginx", "*", &node.0, "80"]);
    let described = eventually("describe shows the Event", SOON, || {
        let text = kubectl.out("describe ingress nginx-app-ingress");
        text.contains("nginx-ingress-controller  Scheduled for sync").then_some(text)
    });
    for part in
        ["nginx-app:80 (10.244.", "+ 2 more...)", "newdeploy:8080 (<error: ", "\"newdeploy\" not found>)"]
    {
        assert!(described.contains(part), "{part} in {described}");
    }
    assert!(described.contains(&format!("Address:          {}", node.0)), "{described}");
    node.shows("nginx-app.demo", "/", "<title>Welcome to nginx!</title>");
    let missing = node.curl(&["-i"], "nginx-app.demo", "/hello").out();
    assert!(missing.starts_with("HTTP/1.1 503 "), "{missing}");
    assert!(
        missing.contains("<html>\n<head><title>503 Service Temporarily Unavailable</title></head>"),
        "{missing}"
    );
    let nowhere = node.curl(&["-i"], "nginx-app.demo", "/nowhere").out();
    assert!(
        nowhere.starts_with("HTTP/1.1 404 ") && nowhere.contains("Server: skiff")
            || nowhere.contains("server: skiff"),
        "{nowhere}"
    );

    kubectl.out("create deployment newdeploy --image=localhost/skiff:latest -- serve");
    kubectl.out("expose deployment newdeploy --port=8080");
    node.shows("nginx-app.demo", "/hello", "Hostname: newdeploy-");
}

fn hosts_have_applications_of_their_own(kubectl: &Kubectl, node: &Node) {
    kubectl.out("create deploy foo --image=nginx");
    kubectl.out("create deploy bar --image=httpd");
    kubectl.out("expose deploy foo --port=80");
    kubectl.out("expose deploy bar --port=80");
    let rules = "--rule=foo.example.com/=foo:80 --rule=bar.example.com/=bar:80";
    let created = kubectl.out(&format!("create ingress multihost {rules}"));
    assert_eq!(created, "ingress.networking.k8s.io/multihost created\n");
    node.shows("foo.example.com", "/", "<title>Welcome to nginx!</title>");
    // Exact, so far: the answer is ours.
    assert!(!node.page("foo.example.com", "/lololol").contains("<hr>"));
    let mut edit = kubectl.command();
    edit.args(["edit", "ingress", "multihost"]).env("KUBE_EDITOR", "sed -i s/Exact/Prefix/");
    assert_eq!(run(&mut edit).out(), "ingress.networking.k8s.io/multihost edited\n");
    eventually("the Ingress has the node's address", SOON, || {
        let row = kubectl.out("get ingress multihost");
        (row.contains("foo.example.com,bar.example.com") && row.contains(&node.0)).then_some(())
    });
    // nginx's and Apache's own pages.
    node.shows("foo.example.com", "/lololol", "<hr><center>nginx");
    assert!(node.page("foo.example.com", "/lololol").contains("<head><title>404 Not Found</title></head>"));
    node.shows("bar.example.com", "/", "It works!");
    node.shows("bar.example.com", "/lololol", "<title>404 Not Found</title>");
    let apaches = node.page("bar.example.com", "/lololol");
    assert!(apaches.starts_with("<!DOCTYPE HTML PUBLIC "), "{apaches}");
    assert!(apaches.contains("<p>The requested URL was not found on this server.</p>"), "{apaches}");
}

fn tls_shows_the_certificate_of_the_name(kubectl: &Kubectl, node: &Node) {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| dir.path().join(name).display().to_string();
    let (cert, key) = (file("tls.crt"), file("tls.key"));
    let name = ["-subj", "/CN=foo.example.com", "-addext", "subjectAltName=DNS:foo.example.com"];
    let new =
        ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"];
    program("openssl", &[&new[..], &name, &["-keyout", &key, "-out", &cert]].concat()).out();
    kubectl.out(&format!("create secret tls foo-tls --cert={cert} --key={key}"));
    let patch = r#"{"spec":{"tls":[{"hosts":["foo.example.com"],"secretName":"foo-tls"}]}}"#;
    kubectl.args(&["patch", "ingress", "multihost", "--type=merge", "-p", patch]).out();
    // Verified by curl: this name, this certificate; HTTP/2 where both can.
    let fetched = eventually("foo.example.com has its certificate", SOON, || {
        let got = node.curl(&["-i", "--cacert", &cert], "foo.example.com", "/");
        got.ok.then_some(got.stdout)
    });
    assert!(fetched.starts_with("HTTP/2 200") && fetched.contains("Welcome to nginx!"), "{fetched}");
    let old = node.curl(&["-i", "--http1.1", "--cacert", &cert], "foo.example.com", "/").out();
    assert!(old.starts_with("HTTP/1.1 200"), "{old}");
    let other = node.curl(&["--cacert", &cert], "bar.example.com", "/");
    assert_eq!(other.code, Some(60), "a name without certificate is shown one of nobody: {other:?}");
    assert!(node.curl(&["-k"], "bar.example.com", "/").out().contains("It works!"));
    let redirect = node.curl(&["-i"], "foo.example.com", "/a?b=c").out();
    assert!(redirect.starts_with("HTTP/1.1 308 "), "{redirect}");
    assert!(redirect.contains("ocation: https://foo.example.com/a?b=c\r\n"), "{redirect}");
    let row = kubectl.out("get ingress multihost");
    assert!(row.contains("80, 443"), "{row}");
}

fn what_cannot_be_is_refused_when_it_is_written(kubectl: &Kubectl, node: &Node) {
    kubectl.out("create ingress guarded --rule=guarded.example.com/*=foo:80");
    node.shows("guarded.example.com", "/", "Welcome to nginx!");
    // Asked as soon as the API server knows whom to ask.
    let refused = eventually("a snippet is refused with what to use instead", SOON, || {
        let tried = kubectl
            .run("annotate --overwrite ingress guarded nginx.ingress.kubernetes.io/server-snippet=return");
        if tried.ok {
            kubectl.out("annotate ingress guarded nginx.ingress.kubernetes.io/server-snippet-");
        }
        (!tried.ok).then_some(tried.stderr)
    });
    for part in ["validate.nginx.ingress.kubernetes.io", "server-snippet", "custom-headers"] {
        assert!(refused.contains(part), "{part} in {refused}");
    }
    // What nobody knows is taken, and said in an Event; one that guards closes.
    kubectl.out("annotate ingress guarded nginx.ingress.kubernetes.io/auth-something=x");
    node.shows("guarded.example.com", "/", "503 Service Temporarily Unavailable");
    eventually("an Event says why", SOON, || {
        let events: Value =
            kubectl.json("get events --field-selector involvedObject.name=guarded,type=Warning");
        let said = events["items"].to_string();
        said.contains("auth-something").then_some(())
    });
}

fn lint_reads_the_cluster_and_files(cluster: &Cluster) {
    let found = cluster.skiff("ingress lint");
    assert_eq!(found.code, Some(1), "{found:?}");
    assert!(found.stdout.contains("default/guarded\n  unknown   auth-something: "), "{found:?}");
    assert!(found.stdout.contains("default/multihost\n  nothing to say"), "{found:?}");
}

fn settings_are_followed(kubectl: &Kubectl, node: &Node) {
    let patch = r#"{"data":{"custom-http-errors":"404","add-headers":"default/more"}}"#;
    kubectl.out("create configmap more --from-literal=X-Settings=yes");
    kubectl
        .args(&["patch", "configmap", "ingress-nginx-controller", "-n", "ingress-nginx", "-p", patch])
        .out();
    eventually("every answer has the header", SOON, || {
        let answer = node.curl(&["-i", "-k"], "bar.example.com", "/").stdout.to_ascii_lowercase();
        answer.contains("x-settings: yes").then_some(())
    });
    kubectl.out("delete configmap more");
    let none = r#"{"data":null}"#;
    kubectl
        .args(&["patch", "configmap", "ingress-nginx-controller", "-n", "ingress-nginx", "-p", none])
        .out();
}

/// Asks again and again until told to end: over one connection as long as that is kept, or over a new one each time. Gives
/// how many answers were good, and what was wrong with the others.
fn asking(node: &str, keep: bool, end: &AtomicBool) -> (usize, Vec<String>) {
    let (mut good, mut lost) = (0, Vec::new());
    let mut open: Option<BufReader<TcpStream>> = None;
    while !end.load(Ordering::Relaxed) {
        let asked = open.take().map_or_else(|| connect(node), Ok).and_then(|mut stream| {
            let closes = ask(&mut stream, keep)?;
            Ok((!closes).then_some(stream))
        });
        match asked {
            Ok(kept) => (good, open) = (good + 1, kept),
            Err(error) => lost.push(error.to_string()),
        }
        std::thread::sleep(Duration::from_millis(3));
    }
    (good, lost)
}

/// Says at its end that it is the end.
struct Ended<'a>(&'a AtomicBool);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn connect(node: &str) -> std::io::Result<BufReader<TcpStream>> {
    let stream = TcpStream::connect((node, 80))?;
    stream.set_read_timeout(Some(SOON))?;
    Ok(BufReader::new(stream))
}

/// One request; whether the connection ends with it.
fn ask(stream: &mut BufReader<TcpStream>, keep: bool) -> std::io::Result<bool> {
    let connection = if keep { "keep-alive" } else { "close" };
    let request = format!("GET / HTTP/1.1\r\nHost: bar.example.com\r\nConnection: {connection}\r\n\r\n");
    stream.get_mut().write_all(request.as_bytes())?;
    let wrong = |what: &str| std::io::Error::other(what.to_owned());
    let (mut length, mut closes, mut line) = (None, false, String::new());
    for number in 0.. {
        line.clear();
        if stream.read_line(&mut line)? == 0 {
            return Err(wrong("the connection ended without an answer"));
        }
        let text = line.trim_end().to_ascii_lowercase();
        match text.split_once(':') {
            _ if number == 0 && text != "http/1.1 200 ok" => return Err(wrong(&text)),
            Some(("content-length", value)) => length = value.trim().parse().ok(),
            Some(("connection", value)) => closes = value.trim() == "close",
            _ if text.is_empty() => break,
            _ => {}
        }
    }
    let mut body = vec![0; length.ok_or_else(|| wrong("no content-length"))?];
    stream.read_exact(&mut body)?;
    if body.windows(9).any(|part| part == b"It works!") { Ok(closes) } else { Err(wrong("another page")) }
}

fn a_new_controller_takes_over_and_no_request_is_lost(kubectl: &Kubectl, node: &Node) {
    let end = AtomicBool::new(false);
    let https = || {
        let (mut good, mut lost) = (0, Vec::new());
        while !end.load(Ordering::Relaxed) {
            let got = node.curl(&["-k"], "bar.example.com", "/");
            if got.ok && got.stdout.contains("It works!") { good += 1 } else { lost.push(format!("{got:?}")) }
        }
        (good, lost)
    };
    eventually("the Ingress has the node's address", SOON, || {
        kubectl.out("get ingress multihost").contains(&node.0).then_some(())
    });
    // Whoever writes it, be it the same once more, changes its version.
    let version = kubectl.out("get ingress multihost -o jsonpath={.metadata.resourceVersion}");
    let before = kubectl.out("get pods -n ingress-nginx -o name");
    let asked = std::thread::scope(|scope| {
        // Whatever happens here, the others end.
        let ended = Ended(&end);
        let kept = [0, 1].map(|_| scope.spawn(|| asking(&node.0, true, &end)));
        let new = scope.spawn(|| asking(&node.0, false, &end));
        let https = scope.spawn(https);
        kubectl.out("rollout restart -n ingress-nginx deploy/ingress-nginx-controller");
        let done =
            kubectl.run("rollout status -n ingress-nginx deploy/ingress-nginx-controller --timeout=120s");
        let seen = || kubectl.out("describe deploy,replicasets,pods -n ingress-nginx");
        assert!(done.ok, "{done:?}\n{}", seen());
        eventually("the old controller is gone", SOON, || {
            let now = kubectl.out("get pods -n ingress-nginx -o name");
            (now.lines().count() == 1 && now != before).then_some(())
        });
        drop(ended);
        kept.into_iter().chain([new, https]).map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
    });
    for (good, lost) in asked {
        assert!(good > 0 && lost.is_empty(), "{good} good answers; lost: {lost:?}");
    }
    let now = kubectl.json("get ingress multihost");
    assert_eq!(now["metadata"]["resourceVersion"], version, "the address was written anew meanwhile: {now}");
    assert_eq!(now["status"]["loadBalancer"]["ingress"], serde_json::json!([{"ip": node.0}]));
}

fn the_addon_leaves_nothing(cluster: &Cluster, kubectl: &Kubectl, before: &str) {
    kubectl.out("create ingress left --rule=left.example.com/*=left:80");
    eventually("the Ingress has an address", SOON, || {
        let shown = kubectl.json("get ingress left");
        shown["status"]["loadBalancer"]["ingress"][0]["ip"].is_string().then_some(())
    });
    assert!(cluster.skiff("addons disable ingress").out().contains("The 'ingress' addon is disabled"));
    let left = kubectl.json("get ingress left");
    assert!(
        left["status"]["loadBalancer"]["ingress"][0].is_null(),
        "the address went with the controller: {left}"
    );
    kubectl.out("delete ingress left");
    eventually("everything is as before", SOON, || {
        let now = everything(kubectl);
        if now != before {
            eprintln!("before:\n{before}\nnow:\n{now}");
        }
        (now == before).then_some(())
    });
    assert!(cluster.skiff("addons list").out().contains("disabled"));
    assert!(cluster.skiff("addons disable ingress").ok, "a second time changes nothing");
}
