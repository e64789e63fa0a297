//! Who may do what, as the real kubectl sees it: certificates, tokens, roles, impersonation, reviews.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::process::Command;
use std::time::{Duration, Instant};

use common::Fixture;
use serde_json::json;

/// No credentials that this server knows; kubectl asks at the terminal when there are none at all.
const STRANGER: [&str; 2] = ["--username=x", "--password=y"];

/// Output (stdout, stderr) of kubectl as somebody; `who` are options such as `--token=…`.
fn kubectl(f: &Fixture, who: &[&str], args: &str) -> (bool, String) {
    let mut command = Command::new("kubectl");
    command.env("KUBECONFIG", f.kubeconfig()).env("HOME", f.dir.path());
    if who.iter().any(|w| w.starts_with("--token") || w.starts_with("--username")) {
        // Not the admin's certificate, which would win over the token.
        let config = std::fs::read_to_string(f.kubeconfig()).unwrap();
        let bare: String =
            config.lines().filter(|l| !l.starts_with("users:")).map(|l| format!("{l}\n")).collect();
        let path = f.dir.path().join("bare");
        std::fs::write(&path, bare.replace("user: t", "user: nobody")).unwrap();
        command.env("KUBECONFIG", path);
    }
    let out = command.args(who).args(args.split_whitespace()).output().unwrap();
    let text = |b: &[u8]| String::from_utf8_lossy(b).trim().to_owned();
    (out.status.success(), format!("{}{}", text(&out.stdout), text(&out.stderr)))
}

fn ok(f: &Fixture, who: &[&str], args: &str) -> String {
    let (fine, text) = kubectl(f, who, args);
    assert!(fine, "kubectl {args}: {text}");
    text
}

fn refused(f: &Fixture, who: &[&str], args: &str) -> String {
    let (fine, text) = kubectl(f, who, args);
    assert!(!fine, "kubectl {args}: {text}");
    text
}

/// The policy index follows the store within moments; a second is already far too much.
fn soon(f: &Fixture, who: &[&str], args: &str) {
    let until = Instant::now() + Duration::from_secs(5);
    while !kubectl(f, who, args).0 {
        assert!(Instant::now() < until, "kubectl {args}: still refused");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_account_may_what_its_roles_say() {
    let mut f = common::start().await;
    f.serve(0).await;
    ok(&f, &[], "create serviceaccount robot");
    let token = ok(&f, &[], "create token robot --duration=1h");
    let robot = format!("--token={token}");
    let robot = [robot.as_str()];

    let me = ok(&f, &robot, "auth whoami -o jsonpath={.status.userInfo.username}{.status.userInfo.groups}");
    assert_eq!(
        me,
        r#"system:serviceaccount:default:robot["system:serviceaccounts","system:serviceaccounts:default","system:authenticated"]"#
    );
    assert_eq!(
        refused(&f, &robot, "get pods"),
        r#"Error from server (Forbidden): pods is forbidden: User "system:serviceaccount:default:robot" cannot list resource "pods" in API group "" in the namespace "default""#
    );
    assert_eq!(refused(&f, &robot, "auth can-i create deployments"), "no");

    ok(&f, &[], "create rolebinding robot --clusterrole=edit --serviceaccount=default:robot");
    soon(&f, &robot, "get pods");
    assert_eq!(ok(&f, &robot, "auth can-i create deployments"), "yes");
    let listed = ok(&f, &robot, "auth can-i --list");
    assert!(listed.contains("deployments.apps") && listed.contains("/healthz"), "{listed}");
    assert!(refused(&f, &robot, "get pods -A").contains("at the cluster scope"));
    assert!(
        refused(&f, &robot, "create role x --verb=get --resource=pods")
            .contains("cannot create resource \"roles\"")
    );

    // admin of a namespace may write roles, but none that says more than it holds itself.
    ok(&f, &[], "create rolebinding boss --clusterrole=admin --serviceaccount=default:robot");
    soon(&f, &robot, "create role fine --verb=get --resource=pods");
    let escalated = refused(&f, &robot, "create role more --verb=get --resource=nodes");
    assert!(escalated.contains("is attempting to grant RBAC permissions not currently held"), "{escalated}");
    assert!(escalated.contains(r#"{APIGroups:[""], Resources:["nodes"], Verbs:["get"]}"#), "{escalated}");

    ok(&f, &[], "delete serviceaccount robot");
    assert!(refused(&f, &robot, "get pods").contains("Unauthorized"), "the token outlived its account");
    assert!(refused(&f, &["--token=nonsense"], "get pods").contains("Unauthorized"));
}

#[tokio::test(flavor = "multi_thread")]
async fn impersonation_and_strangers() {
    let mut f = common::start().await;
    f.serve(0).await;
    assert!(
        refused(&f, &["--as=jane"], "get secrets").contains(r#"User "jane" cannot list resource "secrets""#)
    );
    ok(&f, &["--as=jane", "--as-group=system:masters"], "get secrets");
    ok(&f, &[], "create clusterrolebinding jane --clusterrole=view --user=jane");
    soon(&f, &["--as=jane"], "get pods -A");
    // Who is not allowed to be somebody else is told so.
    let token = {
        ok(&f, &[], "create serviceaccount robot");
        ok(&f, &[], "create token robot")
    };
    let robot = format!("--token={token}");
    assert!(
        refused(&f, &[&robot, "--as=jane"], "get pods")
            .contains(r#"users "jane" is forbidden: User "system:serviceaccount:default:robot" cannot impersonate resource "users" in API group "" at the cluster scope"#)
    );
    assert!(ok(&f, &STRANGER, "get --raw /version").contains("gitVersion"));
    assert_eq!(ok(&f, &STRANGER, "get --raw /healthz"), "ok");
    assert!(
        refused(&f, &STRANGER, "get --raw /metrics")
            .contains(r#"forbidden: User "system:anonymous" cannot get path "/metrics""#)
    );
}

#[tokio::test]
async fn reviews_and_tokens_answer_as_documented() {
    let f = common::start().await;
    let accounts = "/api/v1/namespaces/default/serviceaccounts";
    f.post(accounts, &json!({"metadata": {"name": "robot"}})).await;
    let short = f.post(&format!("{accounts}/robot/token"), &json!({"spec": {"expirationSeconds": 10}})).await;
    assert_eq!(
        short.status(),
        (422, "TokenRequest.authentication.k8s.io \"robot\" is invalid: spec.expirationSeconds: Invalid value: 10: may not specify a duration less than 10 minutes".into())
    );
    let made = f.post(&format!("{accounts}/robot/token"), &json!({"spec": {"audiences": ["vault"]}})).await;
    assert_eq!(made.code, 201, "{:?}", made.bytes);
    let token = made.json()["status"]["token"].as_str().unwrap().to_owned();
    let reviews = "/apis/authentication.k8s.io/v1/tokenreviews";
    let review = |audience: &str| json!({"spec": {"token": token, "audiences": [audience]}});
    let good = f.post(reviews, &review("vault")).await.json();
    assert_eq!(good["status"]["authenticated"], true, "{good}");
    assert_eq!(good["status"]["user"]["username"], "system:serviceaccount:default:robot");
    let bad = f.post(reviews, &review("other")).await.json();
    assert!(bad["status"]["authenticated"].is_null() && bad["status"]["error"].is_string(), "{bad}");

    let missing = f.post(&format!("{accounts}/nobody/token"), &json!({"spec": {}})).await;
    assert_eq!(missing.status(), (404, "serviceaccounts \"nobody\" not found".into()));

    let access = json!({"spec": {"user": "x", "groups": ["system:masters"],
        "resourceAttributes": {"verb": "delete", "resource": "nodes"}}});
    let answer = f.post("/apis/authorization.k8s.io/v1/subjectaccessreviews", &access).await.json();
    assert_eq!(answer["status"]["allowed"], true);
}

#[tokio::test]
async fn a_new_cluster_has_what_every_cluster_has() {
    let started = Instant::now();
    let f = common::start().await;
    println!("API server ready after {:?}", started.elapsed());
    for uri in [
        "/api/v1/namespaces/kube-node-lease",
        "/apis/rbac.authorization.k8s.io/v1/clusterroles/system:node",
        "/apis/scheduling.k8s.io/v1/priorityclasses/system-node-critical",
        "/apis/networking.k8s.io/v1/servicecidrs/kubernetes",
        "/apis/networking.k8s.io/v1/ipaddresses/10.96.0.1",
    ] {
        assert_eq!(f.get(uri).await.code, 200, "{uri}");
    }
    let service = f.get("/api/v1/namespaces/default/services/kubernetes").await.json();
    assert_eq!(service["spec"]["clusterIP"], "10.96.0.1");
    // Aggregated roles show the rules they stand for.
    let until = Instant::now() + Duration::from_secs(5);
    loop {
        let view = f.get("/apis/rbac.authorization.k8s.io/v1/clusterroles/view").await.json();
        if view["rules"].as_array().is_some_and(|r| r.len() > 5) {
            break;
        }
        assert!(Instant::now() < until, "{view}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn objects_grow_and_are_refused() {
    let f = common::start().await;
    let pods = "/api/v1/namespaces/default/pods";
    let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "nginx"}]}});
    assert_eq!(
        f.post(pods, &pod).await.status(),
        (403, "pods \"p\" is forbidden: error looking up service account default/default: serviceaccount \"default\" not found".into())
    );
    f.post("/api/v1/namespaces/default/serviceaccounts", &json!({"metadata": {"name": "default"}})).await;
    let made = f.post(pods, &pod).await.json();
    assert_eq!(made["status"], json!({"phase": "Pending", "qosClass": "BestEffort"}));
    assert_eq!(made["spec"]["restartPolicy"], "Always");
    assert!(made["spec"]["volumes"][0]["name"].as_str().unwrap().starts_with("kube-api-access-"));

    let services = "/api/v1/namespaces/default/services";
    let service = |name: &str, ip: &str| json!({"metadata": {"name": name}, "spec": {"ports": [{"port": 80}], "clusterIP": ip}});
    assert_eq!(f.post(services, &service("dns", "10.96.0.10")).await.code, 201);
    let taken = f.post(services, &service("b", "10.96.0.10")).await;
    assert_eq!(taken.code, 422);
    assert!(taken.status().1.ends_with("failed to allocate IP 10.96.0.10: provided IP is already allocated"));
    assert_eq!(f.delete(&format!("{services}/dns"), None).await.code, 200);
    assert_eq!(f.post(services, &service("b", "10.96.0.10")).await.code, 201);
    assert_eq!(f.post(services, &service("1b", "")).await.code, 422);

    let deployments = "/apis/apps/v1/namespaces/default/deployments";
    let deployment = json!({"metadata": {"name": "web"}, "spec": {"selector": {"matchLabels": {"app": "web"}},
        "template": {"metadata": {"labels": {"app": "other"}}, "spec": {"containers": [{"name": "c", "image": "nginx"}]}}}});
    let refused = f.post(deployments, &deployment).await.json();
    assert_eq!(refused["details"]["causes"][0]["field"], "spec.template.metadata.labels");
    assert_eq!(refused["details"]["causes"][0]["reason"], "FieldValueInvalid");
}
