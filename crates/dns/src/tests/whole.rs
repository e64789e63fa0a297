//! The whole server of the Pod against an API that changes, goes away and comes back.

use testkit::fake_api::FakeApi;

use super::*;

const SERVICES: &str = "/api/v1/services";
const SLICES: &str = "/apis/discovery.k8s.io/v1/endpointslices";
const NAMESPACES: &str = "/api/v1/namespaces";
const PODS: &str = "/api/v1/pods";
const MAPS: &str = "/api/v1/namespaces/kube-system/configmaps";

fn service(name: &str, ip: &str) -> serde_json::Value {
    json!({"metadata": {"name": name, "namespace": "default"}, "spec": {"clusterIP": ip}})
}

fn map(host: &str, more: &str) -> serde_json::Value {
    let corefile = format!(
        ".:53 {{\n kubernetes cluster.local {{\n  pods insecure\n {more}\n }}\n hosts {{\n  {host}\n  fallthrough\n }}\n}}\n"
    );
    json!({"metadata": {"name": "coredns", "namespace": "kube-system"}, "data": {"Corefile": corefile}})
}

/// A server that follows an API with one Service.
struct Running {
    api: FakeApi,
    server: SocketAddr,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<Result<(), crate::Error>>,
}

impl Running {
    async fn start(offset: u16) -> Self {
        let api = FakeApi::new([
            (SERVICES, vec![service("web", "10.96.0.7")]),
            (SLICES, vec![]),
            (NAMESPACES, vec![json!({"metadata": {"name": "default"}})]),
            (MAPS, vec![map("1.1.1.1 one.test", "")]),
        ]);
        // Below the ports that the kernel gives away by itself, so that nobody can take it in between.
        let port = u16::try_from(10_000 + std::process::id() % 20_000).unwrap() + offset;
        let config = crate::DnsConfig {
            port,
            health: None,
            ready: None,
            metrics: None,
            resolv_conf: "/dev/null".into(),
            ..crate::DnsConfig::default()
        };
        let stop = CancellationToken::new();
        let task = tokio::spawn(crate::run(config, api.client(), stop.clone()));
        let running = Self { api, server: ([127, 0, 0, 1], port).into(), stop, task };
        running.until("web.default.svc", "10.96.0.7").await;
        running
    }

    async fn ask(&self, name: &str, expected: &str) {
        for _ in 0..300 {
            if dig(self.server, &format!("+short {name}")).await.trim() == expected {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("{name} does not become {expected:?}");
    }

    async fn until(&self, name: &str, expected: &str) {
        self.ask(&format!("{name}.cluster.local"), expected).await;
    }

    async fn end(self) {
        self.stop.cancel();
        self.task.await.unwrap().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_whole_server_follows_the_api() {
    let running = Running::start(0).await;
    let api = running.api.clone();
    api.tell(SERVICES, "MODIFIED", &service("web", "10.96.0.8")).await;
    running.until("web.default.svc", "10.96.0.8").await;
    let slice = |addr: &str| {
        json!({"metadata": {"name": "web-1", "namespace": "default", "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": "IPv4", "endpoints": [{"addresses": [addr], "hostname": "h"}]})
    };
    api.tell(SLICES, "ADDED", &slice("10.244.0.5")).await;
    running.until("h.web.default.svc", "10.244.0.5").await;
    api.tell(SLICES, "MODIFIED", &slice("10.244.0.6")).await;
    running.until("h.web.default.svc", "10.244.0.6").await;
    api.tell(SLICES, "DELETED", &slice("10.244.0.6")).await;
    running.until("h.web.default.svc", "").await;
    running.until("1-2-3-4.late.pod", "").await;
    api.tell(NAMESPACES, "ADDED", &json!({"metadata": {"name": "late"}})).await;
    running.until("1-2-3-4.late.pod", "1.2.3.4").await;
    running.ask("one.test", "1.1.1.1").await;
    api.tell(MAPS, "MODIFIED", &map("2.2.2.2 two.test", "")).await;
    running.ask("two.test", "2.2.2.2").await;
    api.tell(MAPS, "MODIFIED", &map("nonsense three.test", "")).await;
    api.tell(MAPS, "MODIFIED", &map("4.4.4.4 two.test", "")).await;
    running.ask("two.test", "4.4.4.4").await;
    api.tell(SERVICES, "DELETED", &service("web", "10.96.0.8")).await;
    running.until("web.default.svc", "").await;
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_are_followed_once_they_are_needed() {
    let running = Running::start(1).await;
    let api = running.api.clone();
    running.until("10-244-0-9.default.pod", "10.244.0.9").await;
    let pod = |network: bool, phase: &str| {
        json!({"metadata": {"name": "p", "namespace": "default"}, "spec": {"hostNetwork": network, "containers": []},
            "status": {"phase": phase, "podIPs": [{"ip": "10.244.0.9"}]}})
    };
    // What is selected has changed, so everything is listed anew.
    api.set_list(SERVICES, vec![service("other", "10.96.0.9")]).await;
    api.tell(MAPS, "MODIFIED", &map("1.1.1.1 one.test", "pods verified")).await;
    running.until("other.default.svc", "10.96.0.9").await;
    running.until("web.default.svc", "").await;
    running.until("10-244-0-9.default.pod", "").await;
    let tell = async |pod: serde_json::Value, expected: &str| {
        for _ in 0..300 {
            api.tell(PODS, "MODIFIED", &pod).await;
            if dig(running.server, "+short 10-244-0-9.default.pod.cluster.local").await.trim() == expected {
                return;
            }
        }
        panic!("{pod} does not lead to {expected:?}");
    };
    tell(pod(false, "Running"), "10.244.0.9").await;
    tell(pod(false, "Succeeded"), "").await;
    tell(pod(false, "Running"), "10.244.0.9").await;
    tell(pod(true, "Running"), "").await;
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_come_from_memory_while_the_api_server_is_away() {
    let running = Running::start(2).await;
    running.api.set_away(true);
    for _ in 0..20 {
        let text = dig(running.server, "web.default.svc.cluster.local").await;
        assert!(text.contains("status: NOERROR") && text.contains("10.96.0.7"), "{text}");
        let text = dig(running.server, "new.default.svc.cluster.local").await;
        assert!(text.contains("status: NXDOMAIN"), "{text}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    running.api.set_away(false);
    running.api.tell(SERVICES, "ADDED", &service("new", "10.96.0.9")).await;
    running.until("new.default.svc", "10.96.0.9").await;
    running.until("web.default.svc", "10.96.0.7").await;
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_is_answered_within_20_ms() {
    let running = Running::start(3).await;
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(running.server).await.unwrap();
    let asked = question("web.default.svc.cluster.local.");
    let mut quickest = Duration::MAX;
    for i in 20..50u8 {
        running.api.tell(SERVICES, "MODIFIED", &service("web", &format!("10.96.0.{i}"))).await;
        let told = std::time::Instant::now();
        let mut buffer = [0; 512];
        loop {
            socket.send(&asked).await.unwrap();
            let len = socket.recv(&mut buffer).await.unwrap();
            if buffer[..len].ends_with(&[10, 96, 0, i]) {
                break;
            }
            assert!(told.elapsed() < Duration::from_secs(20), "{i} is never told");
        }
        quickest = quickest.min(told.elapsed());
    }
    // On a busy machine most are slower; what takes longer by itself never is that quick.
    assert!(quickest < Duration::from_millis(20), "{quickest:?}");
    running.end().await;
}
