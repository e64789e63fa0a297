//! What plugins answer: the result of ADD, the versions of VERSION, and errors.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::Deserialize;
use serde_json::Value;

use super::config::SpecVersion;

/// The result of an ADD, as it is passed on and kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// The whole answer.
    pub value: Value,
    /// The addresses of the Pod's own interface, at most one of a family.
    pub addresses: Vec<IpAddr>,
}

#[derive(Deserialize)]
struct Interface {
    name: String,
    #[serde(default)]
    sandbox: String,
}

#[derive(Deserialize)]
struct Ip {
    address: String,
    #[serde(default)]
    interface: Option<i64>,
}

impl Outcome {
    /// Reads the answer to an ADD of that version; the Pod's addresses are those of its interface of that name.
    ///
    /// # Errors
    /// What is wrong with the answer.
    pub fn parse(answer: &[u8], version: SpecVersion, ifname: &str) -> Result<Self, String> {
        let value: Value = serde_json::from_slice(answer).map_err(|e| format!("it is not JSON: {e}"))?;
        Self::of(value, version, ifname)
    }

    /// The same of an answer that was kept.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn of(mut value: Value, version: SpecVersion, ifname: &str) -> Result<Self, String> {
        let Some(result) = value.as_object_mut() else { return Err("it is not an object".to_owned()) };
        match result.get("cniVersion") {
            None => drop(result.insert("cniVersion".to_owned(), version.as_str().into())),
            Some(said) if said == version.as_str() => {}
            Some(said) => return Err(format!("it is of version {said} where {version} was asked for")),
        }
        let interfaces: Vec<Interface> = list(&value, "interfaces")?;
        let ips: Vec<Ip> = list(&value, "ips")?;
        let is_pods = |interface: &Interface| !interface.sandbox.is_empty() && interface.name == ifname;
        let named = interfaces.iter().any(is_pods);
        let mut addresses: Vec<IpAddr> = Vec::new();
        for ip in ips {
            let net: IpNet = ip
                .address
                .parse()
                .map_err(|_| format!("address {:?} is not an address with a prefix length", ip.address))?;
            let its_own = match ip.interface {
                None => true,
                Some(index) => {
                    let interface = usize::try_from(index).ok().and_then(|index| interfaces.get(index));
                    let interface = interface.ok_or_else(|| {
                        format!("address {net} is of interface {index}, which is not there")
                    })?;
                    if named { is_pods(interface) } else { !interface.sandbox.is_empty() }
                }
            };
            if its_own && addresses.iter().all(|known| known.is_ipv4() != net.addr().is_ipv4()) {
                addresses.push(net.addr());
            }
        }
        Ok(Self { value, addresses })
    }
}

fn list<T: serde::de::DeserializeOwned>(value: &Value, key: &str) -> Result<Vec<T>, String> {
    match value.get(key) {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(list) => Vec::deserialize(list).map_err(|e| format!("{key}: {e}")),
    }
}

/// The versions of an answer to VERSION that we speak.
///
/// # Errors
/// What is wrong with the answer.
pub fn versions(answer: &[u8]) -> Result<Vec<SpecVersion>, String> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Versions {
        supported_versions: Vec<String>,
    }
    let versions: Versions = serde_json::from_slice(answer).map_err(|e| e.to_string())?;
    Ok(versions.supported_versions.iter().filter_map(|text| SpecVersion::parse(text)).collect())
}

/// What a plugin that failed has to say.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Refusal {
    /// The specification's up to 99, the plugin's own above.
    pub code: u64,
    /// What went wrong.
    #[serde(default)]
    pub msg: String,
    /// More of it.
    #[serde(default)]
    pub details: String,
}

impl Refusal {
    /// Of the output of a plugin that failed; none when it is not the specification's.
    pub fn parse(answer: &[u8]) -> Option<Self> {
        serde_json::from_slice(answer).ok()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn parse(value: &Value) -> Result<Vec<String>, String> {
        let outcome = Outcome::parse(value.to_string().as_bytes(), SpecVersion::V1_0_0, "eth0")?;
        Ok(outcome.addresses.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn the_pods_addresses_are_those_of_its_interface() {
        let interfaces = json!([{"name": "cni0", "mac": "0a:58:00:00:00:01"}, {"name": "veth1"},
            {"name": "eth0", "sandbox": "/proc/1/fd/3"}, {"name": "net1", "sandbox": "/proc/1/fd/3"}]);
        let result = |ips: Value| json!({"cniVersion": "1.0.0", "interfaces": interfaces, "ips": ips});
        let ips = json!([{"address": "10.9.0.1/24", "interface": 3}, {"address": "10.1.0.5/16", "gateway": "10.1.0.1", "interface": 2},
            {"address": "10.1.0.6/16", "interface": 2}, {"address": "fd00::5/64", "interface": 2}, {"address": "10.1.0.1/16", "interface": 0}]);
        assert_eq!(parse(&result(ips)).unwrap(), ["10.1.0.5", "fd00::5"]);
        // Plugins that assign no interfaces, and IPAM's own results.
        assert_eq!(
            parse(&result(json!([{"address": "10.1.0.5/16", "version": "4"}]))).unwrap(),
            ["10.1.0.5"]
        );
        let other = json!({"interfaces": [{"name": "x", "sandbox": "s"}], "ips": [{"address": "10.1.0.5/16", "interface": 0}]});
        assert_eq!(parse(&other).unwrap(), ["10.1.0.5"]);
        assert!(parse(&json!({"ips": null})).unwrap().is_empty());
        for (ips, said) in [
            (json!([{"address": "10.1.0.5"}]), "not an address with a prefix length"),
            (json!([{"address": "10.1.0.5/16", "interface": 4}]), "interface 4, which is not there"),
            (json!([{"address": "10.1.0.5/16", "interface": -1}]), "interface -1"),
            (json!([{}]), "ips: missing field"),
            (json!("x"), "ips: invalid type"),
        ] {
            let error = parse(&result(ips)).unwrap_err();
            assert!(error.contains(said), "{error}");
        }
        assert!(parse(&json!({"cniVersion": "0.4.0"})).unwrap_err().contains("1.0.0 was asked for"));
        assert!(parse(&json!([])).unwrap_err().contains("not an object"));
    }

    #[test]
    fn versions_and_refusals_are_read() {
        let answer = br#"{"cniVersion": "1.0.0", "supportedVersions": ["0.1.0", "0.4.0", "1.0.0", "9.9.9"]}"#;
        assert_eq!(versions(answer).unwrap(), [SpecVersion::V0_4_0, SpecVersion::V1_0_0]);
        assert!(versions(b"{}").is_err());
        let refusal = Refusal::parse(br#"{"cniVersion": "1.0.0", "code": 11, "msg": "later"}"#).unwrap();
        assert_eq!((refusal.code, refusal.msg.as_str(), refusal.details.as_str()), (11, "later", ""));
        assert_eq!(Refusal::parse(b"Segmentation fault"), None);
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            prop_oneof![Just("10.0.0.1/8"), Just("eth0"), Just(""), Just("::/0"), Just("1.0.0")]
                .prop_map(Value::from),
            ".{0,8}".prop_map(Value::from),
        ];
        let keys = || {
            prop_oneof![
                Just("ips"),
                Just("interfaces"),
                Just("address"),
                Just("interface"),
                Just("name"),
                Just("sandbox")
            ]
        };
        leaf.prop_recursive(5, 60, 5, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                prop::collection::vec((keys(), inner), 0..5).prop_map(|fields| {
                    Value::Object(fields.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
                }),
            ]
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// What is accepted is accepted again when it comes back from the record, with the same addresses.
        #[test]
        fn no_answer_confuses_us(value in any_json()) {
            if let Ok(outcome) = Outcome::parse(value.to_string().as_bytes(), SpecVersion::V1_1_0, "eth0") {
                prop_assert!(outcome.addresses.len() <= 2);
                let again = Outcome::of(outcome.value.clone(), SpecVersion::V1_1_0, "eth0");
                prop_assert_eq!(again, Ok(outcome));
            }
        }

        /// The address that a well-formed answer gives the Pod's interface is found among those of others.
        #[test]
        fn the_pods_own_address_is_found(before in 0usize..4, own in any::<u32>(), after in 0usize..4) {
            let names: Vec<String> = (0..before).map(|i| format!("b{i}")).chain(["eth0".to_owned()])
                .chain((0..after).map(|i| format!("a{i}"))).collect();
            let interfaces: Vec<Value> = names.iter().map(|name| json!({"name": name, "sandbox": "ns"})).collect();
            let address = |i: usize| if i == before { own } else { i as u32 };
            let ips: Vec<Value> = (0..names.len()).rev()
                .map(|i| json!({"address": format!("{}/16", std::net::Ipv4Addr::from(address(i))), "interface": i}))
                .collect();
            let found = parse(&json!({"interfaces": interfaces, "ips": ips})).unwrap();
            prop_assert_eq!(found, [std::net::Ipv4Addr::from(own).to_string()]);
        }
    }
}
