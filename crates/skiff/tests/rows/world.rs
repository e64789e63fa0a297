//! Two nodes with servers and clients on each, and the questions that tests ask of them.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::Value;
use testkit::cluster::Cluster;
use testkit::command::program;
use testkit::kubectl::Kubectl;
use testkit::{eventually, images};

pub const SOON: Duration = Duration::from_secs(30);

/// Who answered, and whom the answer was for as the server saw it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub by: String,
    pub client: String,
}

impl Answer {
    fn parse(text: &str) -> Option<Self> {
        let field = |name: &str| Some(text.lines().find_map(|l| l.strip_prefix(name))?.trim().to_owned());
        let client = field("Client:")?;
        Some(Self { by: field("Hostname:")?, client: client.rsplit_once(':')?.0.to_owned() })
    }
}

/// A cluster of two nodes. Servers `s1` and `s2` are on the first, `s3` on the second; `near` and `far` ask.
pub struct World {
    pub cluster: Cluster,
    pub kubectl: Kubectl,
    /// Names and addresses of the nodes.
    pub nodes: [(String, String); 2],
}

impl World {
    pub fn start(profile: &str) -> Self {
        let cluster = Cluster::start_with(env!("CARGO_BIN_EXE_skiff"), profile, "--nodes 2");
        let kubectl = cluster.kubectl();
        cluster.skiff(&format!("image load {}", images::tar("busybox").display())).out();
        let nodes = kubectl.json("get nodes");
        let node = |i: usize| {
            let node = &nodes["items"][i];
            let addresses = node["status"]["addresses"].as_array().unwrap();
            let address = addresses.iter().find(|a| a["type"] == "InternalIP").unwrap();
            (text(&node["metadata"]["name"]), text(&address["address"]))
        };
        let world = Self { nodes: [node(0), node(1)], cluster, kubectl };
        let pods: String =
            [("s1", 0), ("s2", 0), ("s3", 1)].map(|(name, at)| world.server(name, at, "")).concat();
        let clients = [("near", 0), ("far", 1)].map(|(name, at)| {
            format!(
                "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  nodeName: {}\n  \
                 terminationGracePeriodSeconds: 0\n  containers:\n  - {{name: c, image: busybox, \
                 imagePullPolicy: IfNotPresent, command: [sleep, \"3600\"]}}\n---\n",
                world.nodes[at].0
            )
        });
        world.kubectl.apply(&(pods + &clients.concat()));
        world.kubectl.out("wait --for=condition=Ready pod/s1 pod/s2 pod/s3 pod/near pod/far --timeout=60s");
        world
    }

    /// The manifest of a server with the labels `app: web` and `pod: NAME`; its port 8080 is also called `at-NAME`.
    pub fn server(&self, name: &str, node: usize, more: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{app: web, pod: {name}}}}}\nspec:\n  \
             nodeName: {}\n  terminationGracePeriodSeconds: 60\n  containers:\n  - name: c\n    image: localhost/skiff:latest\n    \
             command: [serve, --tcp, \"9000\", --udp, \"9000\"]\n    ports: [{{name: at-{name}, containerPort: 8080}}]\n    {more}\n---\n",
            self.nodes[node].0
        )
    }

    /// A Service of a selector and a port 80, with more in its spec.
    pub fn service(&self, name: &str, selector: &str, more: &str) {
        self.kubectl.apply(&format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec:\n  selector: {{{selector}}}\n  \
             {}\n  {more}\n",
            if more.contains("ports:") { "" } else { "ports: [{port: 80, targetPort: 8080}]" },
        ));
    }

    pub fn get(&self, name: &str) -> Value {
        self.kubectl.json(&format!("get service {name}"))
    }

    pub fn patch(&self, name: &str, change: &str) {
        self.kubectl.args(&["patch", "service", name, "--type=merge", "-p", change]).out();
    }

    pub fn refused(&self, manifest: &str) -> String {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), manifest).unwrap();
        self.kubectl.args(&["create", "-f", &file.path().display().to_string()]).err()
    }

    pub fn delete(&self, names: &str) {
        self.kubectl.out(&format!("delete service {names}"));
    }

    pub fn cluster_ip(&self, name: &str) -> String {
        text(&self.get(name)["spec"]["clusterIP"])
    }

    pub fn node_port(&self, name: &str) -> String {
        self.get(name)["spec"]["ports"][0]["nodePort"].to_string()
    }

    /// The address of a Service's load balancer, as soon as it has one.
    pub fn external(&self, name: &str) -> String {
        eventually(&format!("{name} has an address"), SOON, || {
            let ip = &self.get(name)["status"]["loadBalancer"]["ingress"][0]["ip"];
            ip.as_str().map(str::to_owned)
        })
    }

    pub fn pod_ip(&self, pod: &str) -> String {
        text(&self.kubectl.json(&format!("get pod {pod}"))["status"]["podIP"])
    }

    /// One try to fetch an address from a Pod.
    pub fn fetch(&self, pod: &str, to: &str) -> Result<Answer, String> {
        let url = format!("http://{to}/");
        let ran = self.kubectl.args(&["exec", pod, "--", "timeout", "2", "wget", "-qO-", &url]);
        Answer::parse(&ran.stdout).ok_or(ran.stderr)
    }

    /// An answer to a Pod, as soon as there is one.
    pub fn fetches(&self, pod: &str, to: &str) -> Answer {
        eventually(&format!("{pod} fetches {to}"), SOON, || self.fetch(pod, to).ok())
    }

    /// An answer to a Pod by name.
    pub fn fetches_by_name(&self, pod: &str, name: &str) -> Answer {
        let url = format!("http://{name}/");
        eventually(&format!("{pod} fetches {name}"), SOON, || {
            Answer::parse(&self.kubectl.args(&["exec", pod, "--", "wget", "-qO-", &url]).stdout)
        })
    }

    /// Waits until a Pod is refused by an address, at once and not by a time-out.
    pub fn is_refused(&self, pod: &str, to: &str) {
        eventually(&format!("{pod} is refused by {to}"), SOON, || {
            self.fetch(pod, to).err().filter(|said| said.contains("refused"))
        });
    }

    /// Waits until an address is silent to a Pod.
    pub fn is_silent(&self, pod: &str, to: &str) {
        eventually(&format!("{pod} hears nothing from {to}"), SOON, || {
            // What the shell's `timeout` ends has this code.
            self.fetch(pod, to).err().filter(|said| said.contains("exit code 143"))
        });
    }

    /// Who answers a Pod's requests, one after the other.
    pub fn who(&self, pod: &str, to: &str, times: u32) -> BTreeSet<String> {
        let script = format!("for i in $(seq {times}); do timeout 2 wget -qO- http://{to}/ | head -1; done");
        let out = self.kubectl.args(&["exec", pod, "--", "sh", "-c", &script]).stdout;
        out.lines().filter_map(|l| l.strip_prefix("Hostname: ")).map(str::to_owned).collect()
    }

    /// Waits until exactly these answer a Pod.
    pub fn answered_by(&self, pod: &str, to: &str, wanted: &[&str]) {
        let wanted: BTreeSet<String> = wanted.iter().map(|w| (*w).to_owned()).collect();
        eventually(&format!("{pod} is answered at {to} by {wanted:?}"), SOON, || {
            (self.who(pod, to, 12) == wanted).then_some(())
        });
    }

    /// One try from this machine.
    pub fn host_fetch(&self, to: &str) -> Option<Answer> {
        let ran = program("curl", &["-s", "--noproxy", "*", "--max-time", "2", &format!("http://{to}/")]);
        Answer::parse(&ran.stdout)
    }

    /// An answer to this machine, as soon as there is one.
    pub fn answers_host(&self, to: &str) -> Answer {
        eventually(&format!("this machine fetches {to}"), SOON, || self.host_fetch(to))
    }

    /// The status code of an address, seen from this machine.
    pub fn code(&self, to: &str) -> String {
        let url = format!("http://{to}/");
        let args = ["-so", "/dev/null", "--noproxy", "*", "--max-time", "2", "-w", "%{http_code}", &url];
        program("curl", &args).stdout
    }

    pub fn has_code(&self, to: &str, wanted: &str) {
        eventually(&format!("{to} says {wanted}"), SOON, || (self.code(to) == wanted).then_some(()));
    }
}

pub fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("{value} is no text")).to_owned()
}
