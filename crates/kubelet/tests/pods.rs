//! Real Pods: API server, agent, shim and network together; what users see of them.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::time::{Duration, Instant};

use common::{Node, is_true};
use k8s_openapi::api::core::v1::{ConfigMap, Service};
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::json;

runtime::shim_in_tests!();

fn sh(script: &str) -> serde_json::Value {
    json!(["sh", "-c", script])
}

async fn log(node: &Node, pod: &serde_json::Value, container: &str, attempt: u32) -> String {
    let meta = &pod["metadata"];
    let text = |v: &serde_json::Value| v.as_str().unwrap().to_string();
    let dir = format!("{}_{}_{}", text(&meta["namespace"]), text(&meta["name"]), text(&meta["uid"]));
    let path = node.dir.path().join("logs").join(dir).join(container).join(format!("{attempt}.log"));
    let raw = tokio::fs::read_to_string(path).await.unwrap();
    raw.lines().map(|l| l.splitn(4, ' ').nth(3).unwrap().to_string() + "\n").collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_lives_and_leaves_nothing() {
    let node = Node::start().await;
    let maps: Api<ConfigMap> = Api::default_namespaced(node.client.clone());
    let map = json!({"metadata": {"name": "m"}, "data": {"key": "value", "FROM": "map"}});
    maps.create(&PostParams::default(), &serde_json::from_value(map).unwrap()).await.unwrap();
    let services: Api<Service> = Api::default_namespaced(node.client.clone());
    let service = json!({"metadata": {"name": "my-svc"}, "spec": {"ports": [{"port": 80}]}});
    services.create(&PostParams::default(), &serde_json::from_value(service).unwrap()).await.unwrap();
    node.create("web", json!({
        "hostname": "h", "subdomain": "sub", "terminationGracePeriodSeconds": 5,
        "securityContext": {"fsGroup": 77, "runAsUser": 1000},
        "initContainers": [{"name": "init", "image": "busybox", "command": sh("echo made > /data/init"),
            "volumeMounts": [{"name": "data", "mountPath": "/data"}]}],
        "containers": [{"name": "c", "image": "busybox", "workingDir": "/tmp",
            "command": sh("id; pwd; echo $IMG $FROM $REF $MY_SVC_SERVICE_PORT $ME; cat /data/init /etc/conf/key; hostname; \
                cat /etc/hosts /etc/resolv.conf; ls /var/run/secrets/kubernetes.io/serviceaccount; stat -c %g:%a /mem; \
                trap 'echo bye; exit 0' TERM; echo ready; while :; do sleep 0.1; done"),
            "env": [{"name": "REF", "value": "$(FROM)-x"}, {"name": "ME", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}],
            "envFrom": [{"configMapRef": {"name": "m"}}],
            "volumeMounts": [{"name": "data", "mountPath": "/data"}, {"name": "conf", "mountPath": "/etc/conf"},
                {"name": "mem", "mountPath": "/mem"}]}],
        "volumes": [{"name": "data", "emptyDir": {}}, {"name": "conf", "configMap": {"name": "m"}},
            {"name": "mem", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}}]
    })).await;
    let pod = node.ready("web").await;
    let status = &pod["status"];
    assert_eq!(status["phase"], "Running");
    assert_eq!(status["initContainerStatuses"][0]["state"]["terminated"]["reason"], "Completed");
    let ip = status["podIP"].as_str().unwrap();
    assert!(ip.starts_with("10.244.0."), "{ip}");
    assert!(is_true(&pod, "Initialized") && is_true(&pod, "PodReadyToStartContainers"));
    tokio::time::sleep(Duration::from_millis(300)).await;
    let text = log(&node, &pod, "c", 0).await;
    for expected in [
        "uid=1000 gid=0 groups=0,77\n",
        "\n/tmp\n",
        &format!("\n1 map map-x 80 {ip}\n"),
        "\nmade\n",
        "value",
        "h\n",
        &format!("{ip}\th.sub.default.svc.cluster.local\th\n"),
        "search default.svc.cluster.local svc.cluster.local cluster.local lan\nnameserver 10.96.0.10\noptions ndots:5\n",
        "ca.crt\nnamespace\ntoken\n",
        "\n77:2777\n",
    ] {
        assert!(text.contains(expected), "{expected:?} is not in {text}");
    }
    // A changed ConfigMap reaches the running container.
    let change = json!({"data": {"key": "changed"}});
    maps.patch("m", &PatchParams::default(), &Patch::Merge(change)).await.unwrap();
    let uid = pod["metadata"]["uid"].as_str().unwrap();
    let file = node.dir.path().join(format!("pods/{uid}/volumes/kubernetes.io~configmap/conf/key"));
    let end = Instant::now() + Duration::from_secs(10);
    while std::fs::read_to_string(&file).unwrap() != "changed" {
        assert!(Instant::now() < end, "the volume is not refreshed");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    for event in [
        "Pulled Container image \"busybox\" already present",
        "Created Created container: c",
        "Started Started container c",
    ] {
        node.event("web", event).await;
    }
    node.delete("web").await;
    node.event("web", "Killing Stopping container c").await;
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn work_that_ends() {
    let node = Node::start().await;
    let run = |policy: &str, script: &str| json!({"restartPolicy": policy, "containers": [{"name": "c", "image": "busybox", "command": sh(script)}]});
    node.create("good", run("Never", "echo last > /dev/termination-log")).await;
    node.create("bad", run("Never", "exit 3")).await;
    node.create("loop", run("Always", "echo run; exit 1")).await;
    node.create("nocmd", json!({"containers": [{"name": "c", "image": "busybox", "command": ["/nope"]}]}))
        .await;
    node.create(
        "noimage",
        json!({"containers": [{"name": "c", "image": "nowhere", "imagePullPolicy": "Always"}]}),
    )
    .await;
    node.create(
        "nomap",
        json!({"containers": [{"name": "c", "image": "busybox", "command": sh("sleep 100"),
        "envFrom": [{"configMapRef": {"name": "later"}}]}]}),
    )
    .await;
    node.create(
        "late",
        json!({"activeDeadlineSeconds": 1, "terminationGracePeriodSeconds": 1, "containers": [
        {"name": "c", "image": "busybox", "command": sh("sleep 100")}]}),
    )
    .await;
    let phase = |name: &'static str, phase: &'static str| {
        node.wait(name, phase, move |p| p["status"]["phase"] == phase)
    };
    let good = phase("good", "Succeeded").await;
    let end = &good["status"]["containerStatuses"][0]["state"]["terminated"];
    assert_eq!(
        (&end["exitCode"], &end["message"], &end["reason"]),
        (&json!(0), &json!("last\n"), &json!("Completed"))
    );
    let bad = phase("bad", "Failed").await;
    assert_eq!(bad["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"], 3);
    let waiting = |name: &'static str, reason: &'static str| {
        node.wait(name, reason, move |p| {
            p["status"]["containerStatuses"][0]["state"]["waiting"]["reason"] == reason
        })
    };
    let looping = waiting("loop", "CrashLoopBackOff").await;
    assert_eq!(looping["status"]["containerStatuses"][0]["restartCount"], 1);
    assert_eq!(looping["status"]["phase"], "Running");
    node.event("loop", "Warning BackOff Back-off restarting failed container c in pod loop_default(").await;
    waiting("nocmd", "CrashLoopBackOff").await;
    node.event("nocmd", "/nope").await;
    waiting("noimage", "ImagePullBackOff").await;
    node.event("noimage", "Warning Failed Error: ErrImagePull").await;
    waiting("nomap", "CreateContainerConfigError").await;
    node.event("nomap", "configmap \"later\" not found").await;
    let maps: Api<ConfigMap> = Api::default_namespaced(node.client.clone());
    let map = json!({"metadata": {"name": "later"}, "data": {}});
    maps.create(&PostParams::default(), &serde_json::from_value(map).unwrap()).await.unwrap();
    node.ready("nomap").await;
    let late = phase("late", "Failed").await;
    assert_eq!(late["status"]["reason"], "DeadlineExceeded");
    for name in ["good", "bad", "loop", "nocmd", "noimage", "nomap", "late"] {
        let grace = kube::api::DeleteParams::default().grace_period(0);
        node.pods().delete(name, &grace).await.unwrap();
        node.gone(name).await;
    }
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn probes_reach_pods_and_restart_them() {
    let node = Node::start().await;
    node.create("web", json!({"terminationGracePeriodSeconds": 1, "containers": [{"name": "c", "image": "busybox",
        "command": sh("sleep 0.3; exec httpd -f -p 8080 -h /www"),
        "ports": [{"name": "http", "containerPort": 8080}],
        "startupProbe": {"tcpSocket": {"port": "http"}, "periodSeconds": 1, "failureThreshold": 30},
        "readinessProbe": {"httpGet": {"path": "/index.html", "port": "http"}, "periodSeconds": 10},
        "livenessProbe": {"exec": {"command": ["test", "!", "-e", "/sick"]}, "periodSeconds": 1, "failureThreshold": 1}}]})).await;
    let begin = Instant::now();
    let pod = node.ready("web").await;
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    let id = pod["status"]["containerStatuses"][0]["containerID"]
        .as_str()
        .unwrap()
        .trim_start_matches("skiff://")
        .to_string();
    let args = vec!["touch".to_string(), "/sick".to_string()];
    let done = kubelet::process::run(&node.runtime, &id, &args, None).await.unwrap();
    assert_eq!(done, kubelet::process::Outcome::Exited { code: 0, output: String::new() });
    let pod =
        node.wait("web", "restarted", |p| p["status"]["containerStatuses"][0]["restartCount"] == 1).await;
    assert_eq!(pod["status"]["containerStatuses"][0]["lastState"]["terminated"]["exitCode"], 137);
    node.event("web", "Killing Container c failed liveness probe, will be restarted").await;
    node.event("web", "Unhealthy Liveness probe failed:").await;
    node.ready("web").await;
    node.delete("web").await;
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_agent_takes_over() {
    let mut node = Node::start().await;
    let spec = |script: &str| json!({"terminationGracePeriodSeconds": 1, "containers": [{"name": "c", "image": "busybox", "command": sh(script)}]});
    node.create("stays", spec("sleep 1000")).await;
    node.create("ends", spec("sleep 2; exit 4")).await;
    node.create("goes", spec("sleep 1000")).await;
    let before = node.ready("stays").await;
    node.ready("ends").await;
    node.ready("goes").await;
    node.halt().await;
    // While nobody watches, one container ends and one Pod is removed.
    let grace = kube::api::DeleteParams::default().grace_period(0);
    node.pods().delete("goes", &grace).await.unwrap();
    tokio::time::sleep(Duration::from_millis(2500)).await;
    node.run().await;
    let ends =
        node.wait("ends", "restarted", |p| p["status"]["containerStatuses"][0]["restartCount"] == 1).await;
    assert_eq!(ends["status"]["containerStatuses"][0]["lastState"]["terminated"]["exitCode"], 4);
    let after = node.ready("stays").await;
    assert_eq!(before["status"]["containerStatuses"], after["status"]["containerStatuses"]);
    assert_eq!(before["status"]["podIP"], after["status"]["podIP"]);
    node.delete("stays").await;
    node.delete("ends").await;
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hooks_sidecars_and_a_privileged_neighbour() {
    let node = Node::start().await;
    node.create("p", json!({"terminationGracePeriodSeconds": 10,
        "initContainers": [{"name": "side", "image": "busybox", "restartPolicy": "Always",
            "command": sh("trap 'echo side-end >> /d/log; exit 0' TERM; echo side >> /d/log; while :; do sleep 0.05; done"),
            "startupProbe": {"exec": {"command": ["test", "-s", "/d/log"]}, "periodSeconds": 1},
            "volumeMounts": [{"name": "d", "mountPath": "/d"}]}],
        "containers": [{"name": "main", "image": "busybox", "volumeMounts": [{"name": "d", "mountPath": "/d"}],
            "command": sh("trap 'echo main-end >> /d/log; exit 0' TERM; echo main >> /d/log; while :; do sleep 0.05; done"),
            "lifecycle": {"postStart": {"exec": {"command": sh("echo post >> /d/log")}},
                "preStop": {"exec": {"command": sh("echo pre >> /d/log")}}}}],
        "volumes": [{"name": "d", "hostPath": {"path": node.dir.path().join("shared"), "type": "DirectoryOrCreate"}}]})).await;
    let privileged = json!({"hostNetwork": true, "hostPID": true, "containers": [{"name": "c", "image": "busybox",
        "securityContext": {"privileged": true},
        "command": sh("grep CapEff /proc/self/status; ls /dev/kmsg; ip -4 addr show dev lo | grep -o 192.168.49.2; echo ok; sleep 100")}]});
    node.create("priv", privileged).await;
    let drop = json!({"containers": [{"name": "c", "image": "busybox", "command": sh("grep -E 'CapEff|NoNewPrivs|Seccomp:' /proc/self/status; \
        touch /x; unshare -n true; echo ok; sleep 100"),
        "securityContext": {"capabilities": {"drop": ["ALL"], "add": ["NET_RAW"]}, "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true, "seccompProfile": {"type": "RuntimeDefault"}}}]});
    node.create("drop", drop).await;
    let refused = json!({"containers": [{"name": "c", "image": "busybox", "command": sh("sleep 100"),
        "securityContext": {"seccompProfile": {"type": "Localhost", "localhostProfile": "x.json"}}}]});
    node.create("refused", refused).await;
    node.ready("p").await;
    let (privileged, dropped) = (node.ready("priv").await, node.ready("drop").await);
    assert_eq!(privileged["status"]["podIP"], "192.168.49.2");
    node.event("refused", "Localhost profiles are not supported by this node").await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let text = log(&node, &privileged, "c", 0).await;
    assert!(text.contains("/dev/kmsg\n192.168.49.2\nok\n"), "{text}");
    let text = log(&node, &dropped, "c", 0).await;
    for expected in [
        "CapEff:\t0000000000002000\n",
        "NoNewPrivs:\t1\n",
        "Seccomp:\t2\n",
        "Read-only file system",
        "unshare:",
    ] {
        assert!(text.contains(expected), "{expected:?} is not in {text}");
    }
    let begin = Instant::now();
    node.delete("p").await;
    assert!(begin.elapsed() < Duration::from_secs(8), "{:?}", begin.elapsed());
    let shared = std::fs::read_to_string(node.dir.path().join("shared/log")).unwrap();
    let lines: Vec<&str> = shared.lines().collect();
    assert_eq!(lines[0], "side");
    assert!(lines[1..3].contains(&"main") && lines[1..3].contains(&"post"), "{lines:?}");
    assert_eq!(&lines[3..], ["pre", "main-end", "side-end"]);
    for name in ["priv", "drop", "refused"] {
        node.pods().delete(name, &kube::api::DeleteParams::default().grace_period(0)).await.unwrap();
    }
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_reboot_everything_comes_back() {
    let mut node = Node::start().await;
    let spec = json!({"terminationGracePeriodSeconds": 1, "initContainers": [{"name": "i", "image": "busybox",
        "command": sh("echo x >> /d/runs"), "volumeMounts": [{"name": "d", "mountPath": "/d"}]}],
        "containers": [{"name": "c", "image": "busybox", "command": sh("cat /d/runs; sleep 1000"),
            "volumeMounts": [{"name": "d", "mountPath": "/d"}]}],
        "volumes": [{"name": "d", "emptyDir": {}}]});
    node.create("again", spec).await;
    node.create("done", json!({"restartPolicy": "Never", "containers": [{"name": "c", "image": "busybox", "command": sh("true")}]})).await;
    node.ready("again").await;
    let done = node.wait("done", "Succeeded", |p| p["status"]["phase"] == "Succeeded").await;
    node.reboot().await;
    let again = node
        .wait("again", "restarted", |p| {
            p["status"]["containerStatuses"][0]["restartCount"] == 1 && is_true(p, "Ready")
        })
        .await;
    assert_eq!(again["status"]["initContainerStatuses"][0]["restartCount"], 1);
    assert_eq!(
        again["status"]["containerStatuses"][0]["lastState"]["terminated"]["reason"],
        "ContainerStatusUnknown"
    );
    let after = serde_json::to_value(node.pods().get("done").await.unwrap()).unwrap();
    assert_eq!(after["status"]["containerStatuses"], done["status"]["containerStatuses"]);
    assert_eq!(after["status"]["phase"], "Succeeded");
    node.delete("again").await;
    node.delete("done").await;
    node.finish().await;
}
