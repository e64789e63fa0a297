//! What the user is told: `skiff policy explain|check|matrix`, `skiff flows`, and Events, each held against what the Pods
//! of the course's example really can do.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use serde_json::Value;
use testkit::cluster::Cluster;
use testkit::command::Ran;
use testkit::eventually;
use testkit::kubectl::Kubectl;

use super::{SOON, address, is_refused, reaches};

/// The course's policy is there, and busybox may not talk to nginx.
pub fn while_refused(cluster: &Cluster, kubectl: &Kubectl) {
    let said = explain(cluster, "--from busybox --to nginx --port 80");
    assert_eq!(said.code, Some(1), "{said:?}");
    let service = kubectl.json("get service nginx")["spec"]["clusterIP"].as_str().unwrap().to_owned();
    for line in [
        &format!("name       nginx is Service default/nginx at {service}"),
        "service    port 80 leads to 1 endpoint",
        "✔ egress   no policy selects default/busybox for egress: all is allowed",
        "✘ ingress  NetworkPolicy default/access-nginx isolates default/nginx for ingress, and no rule permits it",
        "NetworkPolicy default/access-nginx ingress[0]: the port fits, but nobody in `from` is the other end",
    ] {
        assert!(said.stdout.contains(line), "{line}\n{}", said.stdout);
    }
    assert!(said.stdout.ends_with("\ndenied\n"), "{}", said.stdout);
    is_refused(kubectl, "busybox", "nginx");
    a_refusal_is_an_event_of_the_pod_and_a_flow(cluster, kubectl);
    // Nobody there: neither allowed nor denied.
    let unknown = explain(cluster, "--from bussybox --to nginx --port 80");
    assert_eq!(unknown.code, Some(2));
    assert!(unknown.stderr.contains("did you mean \"busybox\"?"), "{}", unknown.stderr);
    assert_eq!(explain(cluster, "--from busybox --to nginx --port 81").code, Some(1));
    let matrix = cluster.skiff("policy matrix").out();
    assert!(matrix.contains("1  default/busybox  ·  ✘  ✔"), "{matrix}");
}

fn explain(cluster: &Cluster, words: &str) -> Ran {
    cluster.skiff(&format!("policy explain {words}"))
}

fn a_refusal_is_an_event_of_the_pod_and_a_flow(cluster: &Cluster, kubectl: &Kubectl) {
    let described = eventually("busybox hears of its refusal", SOON, || {
        Some(kubectl.out("describe pod busybox")).filter(|text| text.contains("ConnectionRefused"))
    });
    for words in [
        "connection from default/busybox to default/nginx",
        "refused by NetworkPolicy default/access-nginx (ingress)",
    ] {
        assert!(described.contains(words), "{words}\n{described}");
    }
    let listed = kubectl.json("get events --field-selector reason=ConnectionRefused");
    let of_busybox =
        listed["items"].as_array().unwrap().iter().filter(|e| e["involvedObject"]["name"] == "busybox");
    // It was refused again and again meanwhile.
    assert_eq!(of_busybox.map(|event| event["count"].as_i64().unwrap()).sum::<i64>(), 1, "{listed}");
    let flows: Vec<Value> = serde_json::from_str(&cluster.skiff("flows --denied -o json").out()).unwrap();
    let seen =
        flows.iter().find(|seen| seen["from"]["pod"] == "default/busybox" && seen["outcome"] == "denied");
    let seen = seen.unwrap_or_else(|| panic!("{flows:#?}"));
    assert_eq!(seen["to"]["pod"], "default/nginx");
    assert_eq!(seen["policies"][0], "NetworkPolicy default/access-nginx");
    assert_eq!(seen["direction"], "ingress");
}

/// The label is on, and busybox talks to nginx.
pub fn while_allowed(cluster: &Cluster, kubectl: &Kubectl) {
    let said =
        explain(cluster, "--from default/busybox --to nginx.default.svc.cluster.local --port 80/tcp -o json");
    let answer: Value = serde_json::from_str(&said.stdout).unwrap();
    assert_eq!((said.code, &answer["allowed"]), (Some(0), &Value::Bool(true)));
    let ingress = &answer["connections"][0]["sides"][1];
    assert_eq!(ingress["rule"], "ingress[0].from[0]", "{answer}");
    assert_eq!(ingress["policies"][0], "NetworkPolicy default/access-nginx");
    let own = address(kubectl, "nginx");
    assert_eq!(explain(cluster, &format!("--from busybox --to {own} --port 80")).code, Some(0));
    live_flows(cluster, kubectl);
    the_policy_says_that_it_is_enforced(kubectl);
    a_check_says_what_would_change_and_changes_nothing(cluster, kubectl);
    an_audited_policy_tells_and_drops_nothing(cluster, kubectl);
}

/// A command that goes on until it is dropped.
struct Follow {
    child: Child,
    lines: std::sync::mpsc::Receiver<String>,
}

impl Follow {
    fn new(cluster: &Cluster, words: &str) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_skiff"));
        command.args(["-p", "e2enetpol"]).args(words.split(' ')).env("KUBECONFIG", cluster.kubeconfig());
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let (tx, lines) = std::sync::mpsc::channel();
        let out = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || out.lines().map_while(Result::ok).all(|line| tx.send(line).is_ok()));
        Self { child, lines }
    }

    /// The next line with these words in it, while something makes connections.
    fn line(&self, words: &str, mut connect: impl FnMut()) -> String {
        eventually(words, SOON, || {
            connect();
            self.lines.try_iter().find(|line| line.contains(words))
        })
    }
}

impl Drop for Follow {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn live_flows(cluster: &Cluster, kubectl: &Kubectl) {
    let all = Follow::new(cluster, "flows -f --pod busybox");
    let denied = Follow::new(cluster, "flows -f --denied");
    let line = all.line("default/busybox -> default/nginx 80/tcp", || reaches(kubectl, "busybox", "nginx"));
    assert!(line.contains("allowed") && line.contains("(Service default/nginx)"), "{line}");
    assert!(line.contains("NetworkPolicy default/access-nginx ingress[0].from[0]"), "{line}");
    kubectl.out("label pod busybox access-");
    let line =
        denied.line("default/busybox -> default/nginx 80/tcp", || is_refused(kubectl, "busybox", "nginx"));
    assert!(line.contains("denied") && line.contains("NetworkPolicy default/access-nginx ingress"), "{line}");
    kubectl.out("label pod busybox access=true");
    reaches(kubectl, "busybox", "nginx");
    assert!(denied.lines.try_iter().all(|line| !line.contains("allowed")), "only denied ones were asked for");
}

fn the_policy_says_that_it_is_enforced(kubectl: &Kubectl) {
    eventually("access-nginx says since when it is enforced", SOON, || {
        let events =
            kubectl.json("get events --field-selector involvedObject.name=access-nginx,reason=Enforced");
        let messages = events["items"].as_array()?.iter().filter_map(|event| event["message"].as_str());
        messages
            .into_iter()
            .find(|text| text.contains("selects 1 Pod, 1 on node e2enetpol; in force there since"))
            .map(|_| ())
    });
}

const DENY: &str = "apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: deny}
spec: {podSelector: {matchLabels: {app: sleepy}}, policyTypes: [Egress]}
";

fn a_check_says_what_would_change_and_changes_nothing(cluster: &Cluster, kubectl: &Kubectl) {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), DENY).unwrap();
    let said = cluster.skiff(&format!("policy check -f {}", file.path().display())).out();
    assert!(
        said.contains("NetworkPolicy default/deny is new. It selects 1 Pod for egress: busybox"),
        "{said}"
    );
    assert!(said.contains("connections that are allowed now:\nFROM"), "{said}");
    let cut = ["default/busybox", "default/nginx", "80", "NetworkPolicy", "default/deny"];
    assert!(said.lines().any(|line| line.split_whitespace().eq(cut)), "{said}");
    assert!(said.contains("It would open nothing."), "{said}");
    assert!(!kubectl.run("get networkpolicy deny").ok, "a check stores nothing");
    reaches(kubectl, "busybox", "nginx");
    std::fs::write(file.path(), DENY.replace("[Egress]", "[Sideways]")).unwrap();
    let refused = cluster.skiff(&format!("policy check -f {}", file.path().display())).err();
    assert!(refused.contains("Unsupported value: \"Sideways\""), "{refused}");
}

fn an_audited_policy_tells_and_drops_nothing(cluster: &Cluster, kubectl: &Kubectl) {
    kubectl.apply(&DENY.replace("{name: deny}", "{name: deny, annotations: {skiff.dev/audit: 'true'}}"));
    let denied = Follow::new(cluster, "flows -f --denied");
    let line = denied.line("NetworkPolicy default/deny egress", || reaches(kubectl, "busybox", "nginx"));
    assert!(line.contains("audited") && line.contains("default/busybox ->"), "{line}");
    let said = explain(cluster, "--from busybox --to nginx --port 80");
    assert_eq!(said.code, Some(0));
    assert!(
        said.stdout.contains("NetworkPolicy default/deny would refuse it, but is only audited"),
        "{}",
        said.stdout
    );
    kubectl.out("annotate networkpolicy deny skiff.dev/audit-");
    is_refused(kubectl, "busybox", "nginx");
    kubectl.out("delete networkpolicy deny");
    reaches(kubectl, "busybox", "nginx");
}
