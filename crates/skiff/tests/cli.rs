//! The command line as a user meets it: minikube's words under minikube's name, two clusters side by side, and what goes
//! wrong at the keyboard.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::Duration;

use serde_json::Value;
use testkit::command::{program, run};
use testkit::eventually;
use testkit::machine::Machine;
use testkit::user::User;

const SKIFF: &str = env!("CARGO_BIN_EXE_skiff");
const SOON: Duration = Duration::from_secs(60);
const PROFILES: [&str; 2] = ["cli-a", "cli-b"];

#[test]
fn the_name_decides_who_answers() {
    let user = User::new(SKIFF);
    assert!(user.minikube("version").out().starts_with("minikube version: skiff "));
    assert!(user.skiff("version").out().starts_with("skiff "));
    assert!(user.json("version")["kubernetes"].as_str().unwrap().starts_with("v1."));
    assert_eq!(user.minikube("profile").out(), "minikube\n");
    assert_eq!(user.skiff("profile").out(), "skiff\n");
    assert!(user.minikube("completion bash").out().contains("complete -F _minikube"));
    assert!(user.skiff("completion fish").out().contains("complete -c skiff"));
    assert!(user.minikube("--help").out().contains("Usage: minikube"));
}

#[test]
fn what_is_misspelt_gets_the_nearest_name() {
    let user = User::new(SKIFF);
    for (line, part) in [
        ("strat", "'start'"),
        ("image lod x", "'load'"),
        ("status --ouput json", "'--output'"),
        ("config set profil x", "did you mean \"profile\"?"),
    ] {
        let said = user.skiff(line).err();
        assert!(said.contains(part), "{line}: {said}");
    }
    assert_eq!(user.skiff("config get profile").err(), "error: \"profile\" is not set\n");
    assert!(user.minikube("config set driver docker").stderr.contains("no use for \"driver\""));
    assert_eq!(user.json("config view"), serde_json::json!({}));
}

#[test]
fn two_clusters_side_by_side() {
    assert!(nix::unistd::geteuid().is_root(), "end-to-end tests need root: sudo make test");
    let before = Machine::now();
    let user = User::new(SKIFF);
    {
        let _clusters = user.clusters(&PROFILES);
        let started = user.minikube("-p cli-a start --cni=calico --driver=docker --memory 2200");
        let said = started.stderr.clone();
        started.out();
        assert!(said.contains("note: --cni=calico") && said.contains("note: --driver=docker"), "{said}");
        user.skiff("-p cli-b start").out();
        both_are_known_and_apart(&user);
        each_serves_its_own_application(&user);
        the_node_can_be_entered(&user);
        an_image_goes_from_one_to_the_other(&user);
        the_chosen_profile_is_meant(&user);
        a_broken_kubeconfig_is_left_alone(&user);
        one_goes_and_the_other_stays(&user);
    }
    before.is_again(SOON);
}

fn both_are_known_and_apart(user: &User) {
    let list = user.json("profile list");
    let ours: Vec<&Value> = list
        .as_array()
        .unwrap()
        .iter()
        .filter(|line| PROFILES.contains(&line["name"].as_str().unwrap()))
        .collect();
    assert_eq!(ours.len(), 2, "{list}");
    assert!(ours.iter().all(|line| line["status"] == "Running"), "{list}");
    assert_ne!(ours[0]["address"], ours[1]["address"]);
    for profile in PROFILES {
        let nodes = user.skiff(&format!("-p {profile} kubectl -- get nodes -o name")).out();
        assert_eq!(nodes, format!("node/{profile}\n"));
        assert_eq!(user.json(&format!("-p {profile} status"))["node"], "Ready");
    }
    let said = user.skiff("-p cli-x ip").err();
    assert!(said.contains("did you mean \"cli-"), "{said}");
}

/// Same names, same node port: nothing of the one is seen by the other.
fn each_serves_its_own_application(user: &User) {
    for profile in PROFILES {
        user.kubectl(profile, "create deploy web --image=localhost/skiff:latest -- skiff serve --http 8080");
        user.kubectl(profile, "create service nodeport web --tcp=80:8080 --node-port=32000");
        user.kubectl(profile, "rollout status deploy/web --timeout=60s");
    }
    let answers = PROFILES.map(|profile| {
        let ip = user.skiff(&format!("-p {profile} ip")).out();
        let url = user.minikube(&format!("-p {profile} service web --url")).out();
        assert_eq!(url, format!("http://{}:32000\n", ip.trim()));
        let tunnel = user.skiff(&format!("-p {profile} tunnel")).out();
        assert!(tunnel.starts_with("No tunnel is needed") && tunnel.contains(url.trim()), "{tunnel}");
        eventually("the node port answers", SOON, || {
            let answer = program("curl", &["-s", "--max-time", "2", url.trim()]);
            answer.ok.then_some(answer.stdout)
        })
    });
    assert!(answers.iter().all(|answer| answer.contains("Hostname: web-")), "{answers:?}");
    assert_ne!(answers[0], answers[1]);
    let said = user.skiff("-p cli-a service wbe").err();
    assert!(said.contains("no Service \"wbe\"") && said.contains("did you mean \"web\"?"), "{said}");
    let said = user.skiff("-p cli-a service kubernetes").err();
    assert!(said.contains("no address outside of the cluster"), "{said}");
    let list = user.json("-p cli-a service list");
    let dns = list.as_array().unwrap().iter().find(|line| line["name"] == "kube-dns").unwrap();
    assert_eq!(dns["urls"], serde_json::json!([]), "{list}");
}

fn the_node_can_be_entered(user: &User) {
    let ip = user.skiff("-p cli-a ip").out();
    let address = user.skiff("-p cli-a ssh -- ip -br address show eth0").out();
    assert!(address.contains(ip.trim()), "{address}");
    let mut line = user.command(SKIFF, "-p cli-a ssh");
    let counted = run(line.arg("ip -o link | grep -c veth")).out();
    assert!(counted.trim().parse::<u32>().unwrap() >= 2, "one link a Pod: {counted}");
    assert_eq!(user.skiff("-p cli-a ssh -- false").code, Some(1));
    assert_eq!(user.skiff("-p cli-a logs -n 2").out().lines().count(), 2);
}

fn an_image_goes_from_one_to_the_other(user: &User) {
    let busybox = testkit::images::tar("busybox");
    user.skiff(&format!("-p cli-a image load {}", busybox.display())).out();
    let tar = user.path("saved.tar");
    user.skiff(&format!("-p cli-a image save busybox {}", tar.display())).out();
    let loaded = user.skiff(&format!("-p cli-b image load {}", tar.display())).out();
    assert_eq!(loaded, "docker.io/library/busybox:latest\n");
    let id = |profile: &str| {
        let list = user.json(&format!("-p {profile} image ls"));
        let list = list.as_array().unwrap().clone();
        let found = list.into_iter().find(|line| line["reference"] == "docker.io/library/busybox:latest");
        found.unwrap()["id"].clone()
    };
    assert_eq!(id("cli-a"), id("cli-b"));
    let said = user.skiff("-p cli-b image rm busybx").err();
    assert!(said.contains("did you mean \"docker.io/library/busybox:latest\"?"), "{said}");
    assert_eq!(user.skiff("-p cli-b image rm busybox").out(), "removed busybox\n");
    let said = user.skiff("-p cli-b image save busybox").err();
    assert!(said.contains("busybox"), "{said}");
    assert!(user.skiff("-p cli-a image load /nowhere.tar").err().contains("no file \"/nowhere.tar\""));
}

fn the_chosen_profile_is_meant(user: &User) {
    let ip = user.skiff("-p cli-a ip").out();
    user.skiff("profile cli-a").out();
    assert_eq!(user.skiff("profile").out(), "cli-a\n");
    assert_eq!(user.minikube("ip").out(), ip);
    assert_eq!(user.json("config view")["profile"], "cli-a");
    let context = run(&mut user.command("kubectl", "config current-context")).out();
    assert_eq!(context, "cli-a\n");
    assert_eq!(user.skiff("-p cli-b profile").out(), "cli-b\n");
    assert!(user.skiff("profile cli-z").err().contains("there is no cluster \"cli-z\""));
    user.minikube("profile default").out();
    assert_eq!(user.minikube("profile").out(), "minikube\n");
}

fn a_broken_kubeconfig_is_left_alone(user: &User) {
    let path = user.kubeconfig();
    let whole = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, "clusters: [").unwrap();
    for line in ["update-context", "start", "kubectl get nodes", "service list"] {
        let said = user.skiff(&format!("-p cli-a {line}")).err();
        assert!(line.starts_with("kubectl") || said.contains(path.to_str().unwrap()), "{line}: {said}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "clusters: [", "{line}");
    }
    std::fs::write(&path, whole.replace("cli-a", "elsewhere")).unwrap();
    user.skiff("-p cli-a update-context").out();
    let contexts = run(&mut user.command("kubectl", "config get-contexts -o name")).out();
    assert_eq!(contexts.split_whitespace().collect::<Vec<_>>(), ["cli-a", "cli-b", "elsewhere"]);
}

fn one_goes_and_the_other_stays(user: &User) {
    user.skiff("-p cli-b delete").out();
    assert!(user.skiff("-p cli-b status").err().contains("there is no cluster \"cli-b\""));
    let url = user.skiff("-p cli-a service web --url").out();
    let answer = program("curl", &["-s", "--max-time", "5", url.trim()]).out();
    assert!(answer.contains("Hostname: web-"), "{answer}");
}
