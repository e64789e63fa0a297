//! Network configurations: which plugins make a network, in which order, and what each of them is told.
//!
//! Section 1 of the specification, and the derivation of a plugin's own configuration in section 3.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use serde_json::{Map, Value};

use super::Error;

/// The versions of the specification that this runtime speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum SpecVersion {
    /// 0.3.0: results as they still are.
    V0_3_0,
    /// 0.3.1.
    V0_3_1,
    /// 0.4.0: CHECK, and the previous result with DEL.
    V0_4_0,
    /// 1.0.0.
    V1_0_0,
    /// 1.1.0: GC and STATUS.
    V1_1_0,
}

impl SpecVersion {
    /// All, the oldest first.
    pub const ALL: [Self; 5] = [Self::V0_3_0, Self::V0_3_1, Self::V0_4_0, Self::V1_0_0, Self::V1_1_0];

    /// As configurations have it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V0_3_0 => "0.3.0",
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }

    /// The version of that name, if this runtime speaks it.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|version| version.as_str() == text)
    }
}

impl fmt::Display for SpecVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One plugin of a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Plugin {
    /// The name of its executable.
    pub kind: String,
    /// What of the runtime's knowledge it asks for.
    capabilities: BTreeSet<String>,
    /// All that was written about it.
    written: Map<String, Value>,
}

/// A network: its plugins in the order in which they connect a Pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkConfig {
    pub(super) name: String,
    /// The versions that it may be used with and that we speak; never empty.
    pub(super) versions: BTreeSet<SpecVersion>,
    pub(super) disable_check: bool,
    pub(super) disable_gc: bool,
    /// Never empty.
    pub(super) plugins: Vec<Plugin>,
}

impl NetworkConfig {
    /// The network of a file, or of the first file of a directory that describes one: `*.conflist`, `*.conf` and
    /// `*.json` in the order of their names.
    ///
    /// # Errors
    /// When nothing there describes a network, with the reason for each file.
    pub fn load(path: &Path) -> Result<Self, Error> {
        if !path.is_dir() {
            return Self::read(path);
        }
        let mut refused = Vec::new();
        for file in files(path, &["conf", "conflist", "json"])? {
            match Self::read(&file) {
                Ok(config) => return Ok(config),
                Err(error) => refused.push(error.to_string()),
            }
        }
        let reason = match refused.is_empty() {
            true => "there is no *.conflist, *.conf or *.json file; put one there".to_owned(),
            false => refused.join("; "),
        };
        Err(config_error(path, reason))
    }

    fn read(file: &Path) -> Result<Self, Error> {
        let text = std::fs::read(file).map_err(|e| config_error(file, e))?;
        let mut config = Self::parse(&text).map_err(|reason| config_error(file, reason.clone()))?;
        let inlined: Value = serde_json::from_slice(&text).unwrap_or_default();
        if inlined.get("plugins").is_some() && !flag(&inlined, "loadOnlyInlinedPlugins").unwrap_or(false) {
            let further = file.parent().unwrap_or(Path::new("/")).join(&config.name);
            for file in files(&further, &["conf"]).unwrap_or_default() {
                let text = std::fs::read(&file).map_err(|e| config_error(&file, e))?;
                let value = serde_json::from_slice(&text).map_err(|e| config_error(&file, e))?;
                config.plugins.push(Plugin::of(value).map_err(|reason| config_error(&file, reason))?);
            }
        }
        if config.plugins.is_empty() {
            return Err(config_error(file, "it names no plugins"));
        }
        Ok(config)
    }

    /// Reads a network configuration, or that of a single plugin, which means a network of it alone.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &[u8]) -> Result<Self, String> {
        let value: Value = serde_json::from_slice(text).map_err(|e| format!("it is not JSON: {e}"))?;
        let name = value["name"].as_str().unwrap_or_default().to_owned();
        if !is_name(&name) {
            return Err(format!(
                "name {name:?} must be letters, digits, '_', '.' or '-', and begin with one of the first two"
            ));
        }
        let plugins = match value.get("plugins") {
            Some(Value::Array(list)) => {
                list.iter().cloned().map(Plugin::of).collect::<Result<Vec<_>, _>>()?
            }
            Some(_) => return Err("plugins is not a list".to_owned()),
            None => vec![Plugin::of(value.clone())?],
        };
        Ok(Self {
            versions: versions(&value)?,
            disable_check: flag(&value, "disableCheck")?,
            disable_gc: flag(&value, "disableGC")?,
            name,
            plugins,
        })
    }

    /// The configuration as it was written, as far as it matters: what [`Self::parse`] reads back.
    pub(super) fn to_value(&self) -> Value {
        let versions: Vec<&str> = self.versions.iter().map(|version| version.as_str()).collect();
        let plugins: Vec<&Map<String, Value>> = self.plugins.iter().map(|plugin| &plugin.written).collect();
        serde_json::json!({
            "cniVersion": versions.last(), "cniVersions": versions, "name": self.name,
            "disableCheck": self.disable_check, "disableGC": self.disable_gc, "plugins": plugins,
        })
    }

    /// Whether some plugin asks for such knowledge, for example `portMappings`.
    pub fn asks_for(&self, capability: &str) -> bool {
        self.plugins.iter().any(|plugin| plugin.capabilities.contains(capability))
    }

    /// The plugin that makes the Pods' links.
    pub fn main_plugin(&self) -> &str {
        self.plugins.first().map_or("", |plugin| &plugin.kind)
    }

    /// The names of all plugins, those that give addresses included.
    pub(super) fn executables(&self) -> impl Iterator<Item = &str> {
        self.plugins.iter().flat_map(|plugin| {
            let ipam = plugin.written.get("ipam").and_then(|ipam| ipam.get("type")?.as_str());
            std::iter::once(plugin.kind.as_str()).chain(ipam.filter(|name| !name.is_empty()))
        })
    }

    /// The networks of which Pods get addresses, as far as the configuration says so itself.
    pub fn subnets(&self) -> Vec<IpNet> {
        let mut found = Vec::new();
        let parts = self.plugins.iter().filter_map(|plugin| plugin.written.get("ipam"));
        parts.for_each(|ipam| collect_subnets(ipam, &mut found));
        found
    }

    /// Makes host-local keep its record of addresses below a directory of ours unless it was told another: several nodes
    /// on one machine are several hosts.
    pub(super) fn keep_addresses_below(&mut self, dir: &Path) {
        for plugin in &mut self.plugins {
            if let Some(Value::Object(ipam)) = plugin.written.get_mut("ipam")
                && ipam.get("type").and_then(Value::as_str) == Some("host-local")
                && !ipam.contains_key("dataDir")
            {
                ipam.insert("dataDir".to_owned(), dir.display().to_string().into());
            }
        }
    }

    /// What a plugin is told: its own part with the network's name, the version, the knowledge that it asks for and the
    /// result so far.
    pub(super) fn request(
        &self,
        plugin: &Plugin,
        version: SpecVersion,
        known: &Map<String, Value>,
        previous: Option<&Value>,
    ) -> Map<String, Value> {
        let mut request = plugin.written.clone();
        request.remove("capabilities");
        request.insert("name".to_owned(), self.name.clone().into());
        request.insert("cniVersion".to_owned(), version.as_str().into());
        let asked: Map<String, Value> =
            known.iter().filter(|(name, _)| plugin.capabilities.contains(*name)).map(owned).collect();
        if !asked.is_empty() {
            request.insert("runtimeConfig".to_owned(), asked.into());
        }
        if let Some(previous) = previous {
            request.insert("prevResult".to_owned(), previous.clone());
        }
        request
    }
}

fn owned((name, value): (&String, &Value)) -> (String, Value) {
    (name.clone(), value.clone())
}

impl Plugin {
    fn of(value: Value) -> Result<Self, String> {
        let Value::Object(written) = value else { return Err("a plugin's part is not an object".to_owned()) };
        let kind = written.get("type").and_then(Value::as_str).unwrap_or_default().to_owned();
        if kind.is_empty() || kind.contains('/') || kind.starts_with('.') {
            return Err(format!("type {kind:?} is not the name of a plugin"));
        }
        let capabilities = written.get("capabilities").and_then(Value::as_object).into_iter().flatten();
        let capabilities =
            capabilities.filter(|(_, wanted)| wanted.as_bool() == Some(true)).map(|(name, _)| name.clone());
        Ok(Self { kind, capabilities: capabilities.collect(), written })
    }
}

/// Files of a directory with one of these endings, by name.
fn files(dir: &Path, endings: &[&str]) -> Result<Vec<PathBuf>, Error> {
    let entries = std::fs::read_dir(dir).map_err(|e| config_error(dir, e))?;
    let is_one = |path: &PathBuf| {
        path.extension().and_then(|e| e.to_str()).is_some_and(|e| endings.contains(&e)) && path.is_file()
    };
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).filter(is_one).collect();
    files.sort();
    Ok(files)
}

fn config_error(path: &Path, reason: impl fmt::Display) -> Error {
    Error::Config { path: path.to_owned(), reason: reason.to_string() }
}

fn is_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c))
}

/// A switch; upstream's library also takes the words.
fn flag(value: &Value, key: &str) -> Result<bool, String> {
    match value.get(key) {
        None | Some(Value::Null) => Ok(false),
        Some(Value::Bool(on)) => Ok(*on),
        Some(Value::String(word)) if ["true", "false"].contains(&word.to_lowercase().as_str()) => {
            Ok(word.eq_ignore_ascii_case("true"))
        }
        Some(other) => Err(format!("{key} is {other}; it must be true or false")),
    }
}

/// Those that it names and we speak.
fn versions(value: &Value) -> Result<BTreeSet<SpecVersion>, String> {
    let list = value["cniVersions"].as_array().into_iter().flatten();
    let named: Vec<&str> = list.chain(value.get("cniVersion")).filter_map(Value::as_str).collect();
    let spoken: BTreeSet<SpecVersion> = named.iter().copied().filter_map(SpecVersion::parse).collect();
    if spoken.is_empty() {
        let (first, last) = (SpecVersion::ALL[0], SpecVersion::V1_1_0);
        let named = if named.is_empty() { "none".to_owned() } else { named.join(", ") };
        return Err(format!("cniVersion is {named}; give one from {first} to {last}"));
    }
    Ok(spoken)
}

/// What stands as `subnet` or as a static `address` anywhere in an ipam part.
fn collect_subnets(value: &Value, found: &mut Vec<IpNet>) {
    match value {
        Value::Object(map) => {
            for (key, inner) in map {
                match inner.as_str().and_then(|text| text.parse::<IpNet>().ok()) {
                    Some(net) if ["subnet", "address"].contains(&key.as_str()) => found.push(net.trunc()),
                    _ => collect_subnets(inner, found),
                }
            }
        }
        Value::Array(list) => list.iter().for_each(|inner| collect_subnets(inner, found)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use serde_json::json;

    use super::*;

    fn parse(value: Value) -> Result<NetworkConfig, String> {
        NetworkConfig::parse(value.to_string().as_bytes())
    }

    fn chain() -> Value {
        json!({"cniVersion": "1.0.0", "name": "pods", "plugins": [
            {"type": "bridge", "bridge": "cni0", "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.22.0.0/16"}]]}},
            {"type": "portmap", "capabilities": {"portMappings": true, "bandwidth": false}},
        ]})
    }

    #[test]
    fn a_plugin_is_told_its_part_and_what_it_asks_for() {
        let config = parse(chain()).unwrap();
        assert!(config.asks_for("portMappings") && !config.asks_for("bandwidth"));
        assert_eq!(
            (config.main_plugin(), config.subnets()),
            ("bridge", vec!["10.22.0.0/16".parse().unwrap()])
        );
        let known = json!({"portMappings": [{"hostPort": 80}], "ipRanges": []});
        let (known, previous) = (known.as_object().unwrap(), json!({"ips": []}));
        let told = |plugin: usize, previous: Option<&Value>| {
            Value::from(config.request(&config.plugins[plugin], SpecVersion::V1_0_0, known, previous))
        };
        let expected = json!({"type": "bridge", "bridge": "cni0", "name": "pods", "cniVersion": "1.0.0",
            "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.22.0.0/16"}]]}});
        assert_eq!(told(0, None), expected);
        let expected = json!({"type": "portmap", "name": "pods", "cniVersion": "1.0.0",
            "runtimeConfig": {"portMappings": [{"hostPort": 80}]}, "prevResult": {"ips": []}});
        assert_eq!(told(1, Some(&previous)), expected);
        assert_eq!(parse(config.to_value()).unwrap(), config);
    }

    #[test]
    fn a_record_of_addresses_is_the_nodes_own_unless_it_was_placed() {
        let mut config = parse(chain()).unwrap();
        config.keep_addresses_below(Path::new("/x"));
        assert_eq!(config.plugins[0].written["ipam"]["dataDir"], "/x");
        config.keep_addresses_below(Path::new("/y"));
        assert_eq!(config.plugins[0].written["ipam"]["dataDir"], "/x");
    }

    #[test]
    fn versions_and_switches_are_read_and_mistakes_are_said() {
        let with = |key: &str, value: Value| {
            let mut config = chain();
            config[key] = value;
            parse(config)
        };
        let both = with("cniVersions", json!(["0.4.0", "1.1.0", "2.0.0"])).unwrap();
        assert_eq!(both.versions.last(), Some(&SpecVersion::V1_1_0));
        assert_eq!(both.versions.len(), 3);
        assert!(with("disableCheck", json!("True")).unwrap().disable_check);
        assert!(with("disableGC", json!(true)).unwrap().disable_gc);
        for (key, value, said) in [
            ("cniVersion", json!("2.0.0"), "cniVersion is 2.0.0; give one from 0.3.0 to 1.1.0"),
            ("cniVersion", Value::Null, "cniVersion is none"),
            ("name", json!("a b"), "name \"a b\" must be letters"),
            ("name", Value::Null, "name \"\" must be"),
            ("plugins", json!({}), "plugins is not a list"),
            ("plugins", json!([{"type": "../sh"}]), "type \"../sh\" is not the name of a plugin"),
            ("plugins", json!([1]), "not an object"),
            ("disableGC", json!("perhaps"), "disableGC is \"perhaps\""),
        ] {
            let error = with(key, value).unwrap_err();
            assert!(error.contains(said), "{error}");
        }
        assert!(NetworkConfig::parse(b"{").unwrap_err().contains("not JSON"));
    }

    #[test]
    fn the_first_file_of_a_directory_that_describes_a_network_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        let said = NetworkConfig::load(dir.path()).unwrap_err().to_string();
        assert!(said.contains("put one there"), "{said}");
        write("05-broken.conflist", "{");
        write("01-readme.txt", "{}");
        let said = NetworkConfig::load(dir.path()).unwrap_err().to_string();
        assert!(said.contains("05-broken.conflist") && said.contains("not JSON"), "{said}");
        write("20-second.conflist", &chain().to_string());
        write("10-first.conf", r#"{"cniVersion": "0.4.0", "name": "single", "type": "ptp"}"#);
        assert_eq!(NetworkConfig::load(dir.path()).unwrap().main_plugin(), "ptp");
        // Of a network's own directory come further plugins, unless it says that it has all.
        std::fs::create_dir(dir.path().join("pods")).unwrap();
        write("pods/50-tuning.conf", r#"{"type": "tuning"}"#);
        let second = dir.path().join("20-second.conflist");
        assert_eq!(NetworkConfig::load(&second).unwrap().plugins[2].kind, "tuning");
        let mut closed = chain();
        closed["loadOnlyInlinedPlugins"] = true.into();
        write("20-second.conflist", &closed.to_string());
        assert_eq!(NetworkConfig::load(&second).unwrap().plugins.len(), 2);
        assert!(NetworkConfig::load(&dir.path().join("none")).unwrap_err().to_string().contains("none"));
    }
}
