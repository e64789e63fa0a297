//! The command line as a user meets it: minikube's words under minikube's name, two clusters side by side, and what goes
//! wrong at the keyboard.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::os::unix::fs::PermissionsExt;
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
fn a_reader_that_has_enough_ends_it_quietly() {
    for line in ["completion bash", "version -o json", "reference"] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = std::process::Command::new(SKIFF);
        let ended = command
            .args(line.split(' '))
            .stdout(writer)
            .stderr(std::process::Stdio::piped())
            .output()
            .unwrap();
        assert_eq!(ended.status.code(), Some(141), "{line}: {ended:?}");
        assert!(ended.stderr.is_empty(), "{line}: {ended:?}");
    }
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
        an_image_is_built_and_loaded_by_the_machines_builder(&user);
        scripts_of_minikube_find_its_words(&user);
        an_addon_is_found(&user);
        what_the_documents_show_runs(&user);
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

/// The builder is one of a few lines: what is asked of it is what docker, podman and buildah are asked.
fn an_image_is_built_and_loaded_by_the_machines_builder(user: &User) {
    let bin = user.path("bin");
    std::fs::create_dir(&bin).unwrap();
    let busybox = testkit::images::tar("busybox");
    let script = format!(
        "#!/bin/sh\necho \"$@\" >>$HOME/asked\ncase $1 in save) cp {} \"$3\" ;; image) [ \"$3\" = mine:1 ] ;; esac\n",
        busybox.display()
    );
    std::fs::write(bin.join("docker"), script).unwrap();
    std::fs::set_permissions(bin.join("docker"), std::fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    let skiff = |line: &str| run(user.command(SKIFF, line).env("PATH", &path));
    let built = skiff("-p cli-a image build -t mine:1 -f Other.Dockerfile .").out();
    assert_eq!(built, "docker.io/library/busybox:latest\n");
    assert_eq!(skiff("-p cli-a image load mine:1").out(), built);
    assert!(skiff("-p cli-a image load yours:1").err().contains("neither Docker nor Podman"));
    let asked = std::fs::read_to_string(user.path("asked")).unwrap();
    assert!(
        asked.starts_with("build -t mine:1 -f Other.Dockerfile .\nsave -o /var/lib/skiff/cli-a/import."),
        "{asked}"
    );
    let nobody =
        run(user.command(SKIFF, "-p cli-a image build -t mine:1 .").env("PATH", user.path("nothing")));
    assert!(nobody.err().contains("building needs docker, podman or buildah on the PATH"));
    user.skiff("-p cli-a image tag busybox mine:2").out();
    let listed = user.minikube("-p cli-a image ls").out();
    assert!(listed.lines().any(|line| line == "docker.io/library/mine:2"), "{listed}");
    assert!(user.skiff("-p cli-a image tag busybx mine:3").err().contains("did you mean"));
}

fn scripts_of_minikube_find_its_words(user: &User) {
    let json = |line: &str| -> Value {
        serde_json::from_str(&user.minikube(&format!("-p cli-a {line} -o json")).out()).unwrap()
    };
    assert_eq!(json("status")["APIServer"], "Running");
    let text = user.minikube("-p cli-a status").out();
    assert!(text.starts_with("cli-a\ntype: Control Plane\nhost: Running\nkubelet: Running\n"), "{text}");
    assert_eq!(user.minikube("-p cli-a status --format={{.Host}}").out(), "Running\n");
    let valid = json("profile list")["valid"].clone();
    assert!(
        valid.as_array().unwrap().iter().any(|p| p["Name"] == "cli-a" && p["Status"] == "Running"),
        "{valid}"
    );
    assert_eq!(json("addons list")["ingress"]["Status"], "disabled");
    let ip = user.skiff("-p cli-a ip").out();
    assert_eq!(user.minikube("-p cli-a node list").out(), format!("cli-a\t{ip}"));
    assert_eq!(user.skiff("-p cli-a ip --node cli-a").out(), ip);
    assert!(user.skiff("-p cli-a ssh --node m07 -- true").err().contains("m07"));
}

fn an_addon_is_found(user: &User) {
    let ip = user.skiff("-p cli-a ip").out();
    let said = user.skiff("-p cli-a addons open ingress").err();
    assert!(said.contains("not enabled; do so: sudo skiff addons enable ingress -p cli-a"), "{said}");
    assert!(user.skiff("-p cli-a addons open ingres").err().contains("did you mean \"ingress\"?"));
    let again = user.skiff("-p cli-a start --addons ingress").out();
    assert!(again.contains("runs already") && again.contains("'ingress' addon is enabled"), "{again}");
    let urls = user.skiff("-p cli-a addons open ingress").out();
    assert!(
        urls.lines().all(|url| url.starts_with(&format!("http://{}:3", ip.trim()))) && !urls.is_empty(),
        "{urls}"
    );
    user.skiff("-p cli-a addons disable ingress").out();
}

/// The commands in the documents' sessions that only look; those that make and take away have tests of their own.
fn what_the_documents_show_runs(user: &User) {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let docs = std::fs::read_dir(root.join("docs")).unwrap().map(|entry| entry.unwrap().path());
    let pages =
        docs.chain([root.join("README.md")]).filter(|path| path.extension().is_some_and(|e| e == "md"));
    let text: String = pages.map(|page| std::fs::read_to_string(page).unwrap()).collect();
    let mut shown: Vec<&str> = text
        .lines()
        .filter_map(|line| {
            let line = line.trim().trim_start_matches("$ ").trim_start_matches("sudo ");
            Some(line.strip_prefix("skiff ")?.split(['#', '|', '>', '&']).next()?.trim())
        })
        .filter(|line| {
            ["ip", "status", "tunnel", "version", "dashboard", "doctor"]
                .contains(&line.split(' ').next().unwrap())
                || ["service list", "node list", "image ls", "addons list", "profile list", "config view"]
                    .iter()
                    .any(|l| line.starts_with(l))
        })
        .filter(|line| !line.contains("-p ") && !line.contains("--node"))
        .collect();
    shown.sort_unstable();
    shown.dedup();
    assert!(shown.len() > 7, "{shown:?}");
    for line in shown {
        let ran = user.skiff(&format!("-p cli-a {line}"));
        assert!(ran.ok && !ran.stdout.is_empty() && !ran.stdout.contains('\x1b'), "{line}: {ran:?}");
    }
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
