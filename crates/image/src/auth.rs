//! Credentials for registries: imagePullSecrets (`.dockerconfigjson`, `.dockercfg`) and the host's Docker configuration.
//!
//! Which entry serves which image follows the kubelet's keyring: keys are globs of host labels with an optional port and
//! path prefix, the longest key is tried first, and `index.docker.io/v1/` is the old name of `docker.io`.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use oci_client::Reference;
use oci_client::secrets::RegistryAuth;
use serde::Deserialize;

use crate::error::{Error, Result};

/// A user at a registry. The secret parts never show in logs.
#[derive(Clone, PartialEq, Eq)]
pub struct Auth {
    /// The key it was filed under: `docker.io`, `*.example.com:5000/team`, `https://index.docker.io/v1/`.
    pub registry: String,
    /// User name.
    pub username: String,
    /// Password or access token.
    pub password: String,
    /// A bearer token to send as it is; wins over the user name.
    pub token: Option<String>,
}

impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Auth({} at {})", self.username, self.registry)
    }
}

/// One entry of a Docker configuration.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Entry {
    auth: String,
    username: String,
    password: String,
    registrytoken: String,
}

/// `~/.docker/config.json`, `.dockerconfigjson`.
#[derive(Deserialize, Default)]
#[serde(default)]
struct DockerConfig {
    auths: BTreeMap<String, Entry>,
    #[serde(rename = "credsStore")]
    creds_store: String,
    #[serde(rename = "credHelpers")]
    cred_helpers: BTreeMap<String, String>,
}

impl Auth {
    /// Reads the data of a Secret of type `kubernetes.io/dockerconfigjson` (key `.dockerconfigjson`).
    pub fn from_dockerconfigjson(json: &[u8]) -> Result<Vec<Self>> {
        let config: DockerConfig =
            serde_json::from_slice(json).map_err(|e| Error::invalid(".dockerconfigjson", e))?;
        entries(config.auths)
    }

    /// Reads the data of a Secret of type `kubernetes.io/dockercfg` (key `.dockercfg`): the `auths` map without its name.
    pub fn from_dockercfg(json: &[u8]) -> Result<Vec<Self>> {
        entries(serde_json::from_slice(json).map_err(|e| Error::invalid(".dockercfg", e))?)
    }

    pub(crate) fn to_registry_auth(&self) -> RegistryAuth {
        match &self.token {
            Some(token) => RegistryAuth::Bearer(token.clone()),
            None => RegistryAuth::Basic(self.username.clone(), self.password.clone()),
        }
    }
}

fn entries(map: BTreeMap<String, Entry>) -> Result<Vec<Auth>> {
    let mut auths = Vec::new();
    for (registry, entry) in map {
        let (mut username, mut password) = (entry.username, entry.password);
        if !entry.auth.is_empty() {
            (username, password) = decode(&entry.auth).ok_or_else(|| {
                Error::invalid(format!("credentials of {registry}"), "auth is not base64 of user:password")
            })?;
        }
        let token = Some(entry.registrytoken).filter(|token| !token.is_empty());
        if username.is_empty() && token.is_none() {
            continue; // Docker leaves an empty entry where a credential store holds the secret.
        }
        auths.push(Auth { registry, username, password, token });
    }
    Ok(auths)
}

fn decode(auth: &str) -> Option<(String, String)> {
    let text = String::from_utf8(STANDARD.decode(auth.trim()).ok()?).ok()?;
    let (user, password) = text.split_once(':')?;
    Some((user.to_owned(), password.trim_end_matches('\0').to_owned()))
}

/// The host user's Docker configuration file: `$DOCKER_CONFIG`, else the home of whoever called sudo, else `$HOME`.
pub fn host_docker_config() -> Option<PathBuf> {
    if let Some(dir) = std::env::var_os("DOCKER_CONFIG") {
        return Some(Path::new(&dir).join("config.json"));
    }
    let sudo_home = std::env::var("SUDO_USER")
        .ok()
        .and_then(|user| nix::unistd::User::from_name(&user).ok().flatten())
        .map(|user| user.dir);
    let home = std::env::var_os("HOME").map(PathBuf::from);
    sudo_home.into_iter().chain(home).map(|h| h.join(".docker/config.json")).find(|p| p.is_file())
}

/// Credentials for `registry` in a Docker configuration file, asking its credential helper if it names one. Blocking.
/// A missing file means none; a broken one is reported and means none, since an anonymous pull may well do.
pub(crate) fn from_host(file: &Path, registry: &str) -> Vec<Auth> {
    let Ok(bytes) = std::fs::read(file) else { return Vec::new() };
    let config: DockerConfig = match serde_json::from_slice(&bytes) {
        Ok(config) => config,
        Err(error) => {
            tracing::warn!("ignoring {}: {error}", file.display());
            return Vec::new();
        }
    };
    let key = if registry == "docker.io" { "https://index.docker.io/v1/" } else { registry };
    let helper = config.cred_helpers.get(registry).or_else(|| config.cred_helpers.get(key));
    let helper = helper.or(Some(&config.creds_store)).filter(|name| is_helper_name(name));
    let mut auths: Vec<Auth> = helper.and_then(|name| ask_helper(name, key)).into_iter().collect();
    match entries(config.auths) {
        Ok(found) => auths.extend(found),
        Err(error) => tracing::warn!("ignoring {}: {error}", file.display()),
    }
    auths
}

fn is_helper_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

/// Runs `docker-credential-<name> get` (the credential helper protocol: server on stdin, JSON on stdout).
fn ask_helper(name: &str, server: &str) -> Option<Auth> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Answer {
        username: String,
        secret: String,
    }
    let mut child = Command::new(format!("docker-credential-{name}"))
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    // A helper that ends without reading is seen by its exit status.
    let _ = child.stdin.take().map(|mut stdin| std::io::Write::write_all(&mut stdin, server.as_bytes()));
    let output = child.wait_with_output().ok().filter(|output| output.status.success())?;
    let answer: Answer = serde_json::from_slice(&output.stdout).ok()?;
    let registry = server.to_owned();
    // The protocol marks an identity token by this user name; a registry takes it as a password just as well.
    let username = if answer.username == "<token>" { "token".into() } else { answer.username };
    Some(Auth { registry, username, password: answer.secret, token: None })
}

/// The credentials of `auths` that serve `reference`, most specific first.
pub(crate) fn matching<'a>(auths: &'a [Auth], reference: &Reference) -> Vec<&'a Auth> {
    let mut found: Vec<_> = auths
        .iter()
        .map(|auth| (normal_key(&auth.registry), auth))
        .filter(|(key, _)| key_matches(key, reference.registry(), reference.repository()))
        .collect();
    found.sort_by(|(a, _), (b, _)| b.cmp(a));
    found.into_iter().map(|(_, auth)| auth).collect()
}

/// `https://index.docker.io/v1/` and `docker.io` become `docker.io`; scheme, trailing slash and API version go.
fn normal_key(key: &str) -> String {
    let key = key.trim();
    let key = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    let (host, path) = key.split_once('/').unwrap_or((key, ""));
    let host = match host {
        "index.docker.io" | "registry-1.docker.io" => "docker.io",
        other => other,
    };
    let path = path.trim_matches('/');
    let path = if path == "v1" || path == "v2" {
        ""
    } else {
        path.strip_prefix("v1/").or_else(|| path.strip_prefix("v2/")).unwrap_or(path)
    };
    if path.is_empty() { host.to_owned() } else { format!("{host}/{path}") }
}

fn key_matches(key: &str, registry: &str, repository: &str) -> bool {
    let (host, path) = key.split_once('/').unwrap_or((key, ""));
    let split = |host: &str| match host.rsplit_once(':') {
        Some((name, port)) => (name.to_owned(), port.to_owned()),
        None => (host.to_owned(), String::new()),
    };
    let ((key_name, key_port), (name, port)) = (split(host), split(registry));
    let (globs, labels): (Vec<_>, Vec<_>) = (key_name.split('.').collect(), name.split('.').collect());
    key_port == port
        && globs.len() == labels.len()
        && globs.iter().zip(&labels).all(|(glob, label)| glob_matches(glob.as_bytes(), label.as_bytes()))
        && repository.starts_with(path)
}

/// `*` stands for any run of characters within a label, `?` for one.
fn glob_matches(glob: &[u8], text: &[u8]) -> bool {
    match (glob.split_first(), text.split_first()) {
        (None, None) => true,
        (Some((b'*', rest)), _) => (0..=text.len()).any(|n| glob_matches(rest, &text[n..])),
        (Some((b'?', rest)), Some((_, tail))) => glob_matches(rest, tail),
        (Some((a, rest)), Some((b, tail))) => a == b && glob_matches(rest, tail),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn both_secret_formats_are_read() {
        let encoded = STANDARD.encode("user:pa:ss");
        let inner = format!(
            r#"{{"r.example:5000":{{"auth":"{encoded}","email":"x"}},"b":{{"username":"u","password":"p"}},"c":{{}}}}"#
        );
        let flat = Auth::from_dockercfg(inner.as_bytes()).unwrap();
        let wrapped = Auth::from_dockerconfigjson(format!(r#"{{"auths":{inner}}}"#).as_bytes()).unwrap();
        assert_eq!(flat, wrapped);
        assert_eq!(flat.len(), 2);
        assert_eq!((flat[1].username.as_str(), flat[1].password.as_str()), ("user", "pa:ss"));
        assert!(!format!("{flat:?}").contains("pa:ss"));
        assert!(Auth::from_dockercfg(br#"{"a":{"auth":"!!"}}"#).is_err());
        assert!(Auth::from_dockerconfigjson(b"nonsense").is_err());
    }

    #[test]
    fn keys_match_as_in_the_kubelet() {
        let reference = |name: &str| crate::reference::parse(name).unwrap();
        for (key, image, expected) in [
            ("https://index.docker.io/v1/", "nginx", true),
            ("docker.io", "nginx", true),
            ("index.docker.io", "me/app", true),
            ("docker.io", "quay.io/a/b", false),
            ("*.example.com", "r.example.com/a", true),
            ("*.example.com", "a.b.example.com/a", false),
            ("r.example.com:5000", "r.example.com/a", false),
            ("r.example.com:5000", "r.example.com:5000/a", true),
            ("r.example.com/team", "r.example.com/team/app", true),
            ("r.example.com/team", "r.example.com/other/app", false),
            ("http://r.example.com/v2/team/", "r.example.com/team/app", true),
        ] {
            let auth = Auth { registry: key.into(), username: "u".into(), password: "p".into(), token: None };
            assert_eq!(!matching(&[auth], &reference(image)).is_empty(), expected, "{key} for {image}");
        }
    }

    #[test]
    fn the_longest_key_comes_first() {
        let auth = |registry: &str| Auth {
            registry: registry.into(),
            username: registry.into(),
            password: String::new(),
            token: None,
        };
        let auths = [auth("r.io"), auth("r.io/team/app"), auth("r.io/team")];
        let found = matching(&auths, &crate::reference::parse("r.io/team/app:1").unwrap());
        let keys: Vec<_> = found.iter().map(|a| a.registry.as_str()).collect();
        assert_eq!(keys, ["r.io/team/app", "r.io/team", "r.io"]);
    }
}
