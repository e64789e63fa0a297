//! What the tests of families ask: addresses of objects, and answers from Pods and from the host.

use std::net::{IpAddr, UdpSocket};
use std::time::Duration;

use serde_json::Value;
use testkit::command::program;
use testkit::eventually;
use testkit::kubectl::Kubectl;

use crate::SOON;

/// The strings of a list.
pub fn texts(list: &Value) -> Vec<&str> {
    list.as_array().map_or(&[][..], Vec::as_slice).iter().filter_map(Value::as_str).collect()
}

/// The addresses `[{"ip": ...}]` of a list.
pub fn ips(list: &Value) -> Vec<String> {
    let all = list.as_array().map_or(&[][..], Vec::as_slice).iter();
    all.filter_map(|row| row["ip"].as_str().map(str::to_owned)).collect()
}

pub fn internal(node: &Value) -> Vec<String> {
    let rows = node["status"]["addresses"].as_array().unwrap().iter();
    let own = rows.filter(|row| row["type"] == "InternalIP");
    own.map(|row| row["address"].as_str().unwrap().to_owned()).collect()
}

/// `4`, `6`, or `46` for one of each in that order.
pub fn families<S: AsRef<str>>(addresses: &[S]) -> String {
    let parsed =
        addresses.iter().map(|a| a.as_ref().parse::<IpAddr>().unwrap_or_else(|_| panic!("{}", a.as_ref())));
    parsed.map(|a| if a.is_ipv4() { '4' } else { '6' }).collect()
}

pub fn bracketed(address: &str) -> String {
    if address.contains(':') { format!("[{address}]") } else { address.to_owned() }
}

pub fn pod_ips(kubectl: &Kubectl, pod: &str) -> Vec<String> {
    ips(&kubectl.json(&format!("get pod {pod}"))["status"]["podIPs"])
}

/// What a Pod gets from a URL within two seconds, or what it says instead.
pub fn fetch(kubectl: &Kubectl, pod: &str, url: &str) -> String {
    let ran = kubectl.run(&format!("exec {pod} -- wget -q -O - -T 2 {url}"));
    format!("{}{}", ran.stdout, ran.stderr)
}

/// The same from several URLs at once.
pub fn fetch_all(kubectl: &Kubectl, pod: &str, urls: &[String]) -> Vec<String> {
    std::thread::scope(|scope| {
        let asked: Vec<_> = urls.iter().map(|url| scope.spawn(move || fetch(kubectl, pod, url))).collect();
        asked.into_iter().map(|one| one.join().unwrap()).collect()
    })
}

#[track_caller]
pub fn shows(kubectl: &Kubectl, pod: &str, url: &str, part: &str) {
    let mut last = String::new();
    let began = std::time::Instant::now();
    while began.elapsed() < SOON {
        last = fetch(kubectl, pod, url);
        if last.contains(part) {
            return;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    panic!("{pod} does not get {part:?} from {url}: {last}");
}

pub fn curl(address: &str) -> String {
    let ran =
        program("curl", &["-sS", "-g", "--noproxy", "*", "--max-time", "3", &format!("http://{address}")]);
    format!("{}{}", ran.stdout, ran.stderr)
}

#[track_caller]
pub fn host_gets(address: &str, part: &str) {
    eventually(&format!("{address} shows {part}"), SOON, || curl(address).contains(part).then_some(()));
}

/// An answer to a datagram from the host.
pub fn echoed(address: &str, port: u16) -> Option<String> {
    let socket = UdpSocket::bind("[::]:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    socket.send_to(b"ping", (address, port)).ok()?;
    let mut buffer = [0; 16];
    let read = socket.recv(&mut buffer).ok()?;
    Some(String::from_utf8_lossy(&buffer[..read]).into_owned())
}
