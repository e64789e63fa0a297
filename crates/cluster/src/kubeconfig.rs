//! The user's kubeconfig: one cluster, user and context of ours go in and out; everything else stays as it is.
//!
//! The file is the first of `$KUBECONFIG`, else `~/.kube/config` of the user who called (of `SUDO_USER` under sudo). A
//! file that does not parse is never written. Comments do not survive, as with kubectl's own `config` commands.

use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use crate::pki::Identity;
use crate::{Caller, Error, Result, files};

/// Where the kubeconfig is and whose it should be.
#[derive(Debug, Clone)]
pub struct Kubeconfig {
    path: PathBuf,
    owner: Option<crate::Owner>,
}

impl Kubeconfig {
    /// The file that kubectl of the calling user would change.
    pub fn of_user() -> Self {
        let Caller { home, owner } = Caller::now();
        let listed = std::env::var_os("KUBECONFIG");
        let first = listed.and_then(|l| std::env::split_paths(&l).find(|p| !p.as_os_str().is_empty()));
        let path = first.unwrap_or_else(|| home.join(".kube/config"));
        Self { path, owner }
    }

    /// A given file.
    pub fn at(path: PathBuf) -> Self {
        Self { path, owner: None }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the file can be changed, which is better known before a cluster is started than after.
    ///
    /// # Errors
    /// When it does not parse.
    pub fn check(&self) -> Result<()> {
        self.read().map(drop)
    }

    /// Writes cluster, user and context `name` and makes the context current.
    ///
    /// # Errors
    /// When the file does not parse (it is then left alone) or cannot be written.
    pub fn set(&self, name: &str, server: &str, ca_pem: &str, identity: &Identity) -> Result<()> {
        let mut config = self.read()?.unwrap_or_else(|| json!({"apiVersion": "v1", "kind": "Config"}));
        let b64 = |pem: &str| STANDARD.encode(pem);
        let cluster = json!({"server": server, "certificate-authority-data": b64(ca_pem)});
        let user = json!({
            "client-certificate-data": b64(&identity.certificate_pem),
            "client-key-data": b64(&identity.key_pem),
        });
        let context = json!({"cluster": name, "user": name, "namespace": "default"});
        for (list, key, value) in
            [("clusters", "cluster", cluster), ("users", "user", user), ("contexts", "context", context)]
        {
            put(self.entries(&mut config, list)?, name, key, value);
        }
        config["current-context"] = json!(name);
        self.write(&config)
    }

    /// Removes cluster, user and context `name`; a current context of that name becomes none. Says whether anything
    /// of ours was there.
    ///
    /// # Errors
    /// As [`Kubeconfig::set`].
    pub fn remove(&self, name: &str) -> Result<bool> {
        let Some(mut config) = self.read()? else { return Ok(false) };
        let mut found = false;
        for list in ["clusters", "users", "contexts"] {
            let entries = self.entries(&mut config, list)?;
            let before = entries.len();
            entries.retain(|e| e["name"] != name);
            found |= entries.len() != before;
        }
        if config["current-context"] == name {
            config["current-context"] = json!("");
        }
        if found {
            self.write(&config)?;
        }
        Ok(found)
    }

    /// Makes the context `name` current, if it is there; says whether it is.
    ///
    /// # Errors
    /// As [`Kubeconfig::set`].
    pub fn switch_to(&self, name: &str) -> Result<bool> {
        let Some(mut config) = self.read()? else { return Ok(false) };
        if !self.entries(&mut config, "contexts")?.iter().any(|context| context["name"] == name) {
            return Ok(false);
        }
        config["current-context"] = json!(name);
        self.write(&config).map(|()| true)
    }

    /// Whether the current context is `name`.
    pub fn is_current(&self, name: &str) -> bool {
        self.read().ok().flatten().is_some_and(|c| c["current-context"] == name)
    }

    fn malformed(&self, reason: impl Into<String>) -> Error {
        Error::Malformed { path: self.path.clone(), reason: reason.into() }
    }

    fn read(&self) -> Result<Option<Value>> {
        let Some(bytes) = files::read_if_there(&self.path)? else { return Ok(None) };
        let text = String::from_utf8(bytes).map_err(|e| self.malformed(e.to_string()))?;
        if text.trim().is_empty() {
            return Ok(None);
        }
        let value: Value = serde_saphyr::from_str(&text).map_err(|e| self.malformed(e.to_string()))?;
        match value {
            Value::Object(_) => Ok(Some(value)),
            _ => Err(self.malformed("not a mapping")),
        }
    }

    fn entries<'a>(&self, config: &'a mut Value, list: &str) -> Result<&'a mut Vec<Value>> {
        let object: &mut Map<String, Value> =
            config.as_object_mut().ok_or_else(|| self.malformed("not a mapping"))?;
        let entry = object.entry(list).or_insert_with(|| json!([]));
        if entry.is_null() {
            *entry = json!([]);
        }
        entry.as_array_mut().ok_or_else(|| self.malformed(format!("{list} is not a list")))
    }

    fn write(&self, config: &Value) -> Result<()> {
        let text = serde_saphyr::to_string(config).map_err(|e| self.malformed(e.to_string()))?;
        files::write_owned(&self.path, text.as_bytes(), 0o600, self.owner)
    }
}

fn put(entries: &mut Vec<Value>, name: &str, key: &str, value: Value) {
    let entry = json!({"name": name, key: value});
    match entries.iter_mut().find(|e| e["name"] == name) {
        Some(old) => *old = entry,
        None => entries.push(entry),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use crate::pki::{Authority, Subject};

    const OTHER: &str = "apiVersion: v1\nkind: Config\npreferences: {colors: true}\nclusters:\n- name: other\n  cluster: {server: https://other}\ncontexts:\n- name: other\n  context: {cluster: other, user: other}\nusers: null\ncurrent-context: other\n";

    fn identity(dir: &Path) -> Identity {
        Authority::open(dir).unwrap().client(Subject { user: "admin", groups: &[] }).unwrap()
    }

    #[test]
    fn ours_goes_in_and_out_and_the_rest_stays() {
        let dir = tempfile::tempdir().unwrap();
        let config = Kubeconfig::at(dir.path().join("kube/config"));
        std::fs::create_dir(dir.path().join("kube")).unwrap();
        std::fs::write(config.path(), OTHER).unwrap();
        config.set("skiff", "https://192.168.49.2:8443", "CA", &identity(dir.path())).unwrap();
        config.set("skiff", "https://192.168.49.2:8443", "CA", &identity(dir.path())).unwrap();
        let value = config.read().unwrap().unwrap();
        assert_eq!(value["clusters"].as_array().unwrap().len(), 2);
        assert_eq!(value["preferences"]["colors"], true);
        assert!(config.is_current("skiff"));

        assert!(config.switch_to("other").unwrap() && config.is_current("other"));
        assert!(!config.switch_to("nowhere").unwrap() && config.is_current("other"));
        assert!(config.switch_to("skiff").unwrap());
        assert!(config.remove("skiff").unwrap());
        assert!(!config.remove("skiff").unwrap());
        let value = config.read().unwrap().unwrap();
        assert_eq!(value["clusters"][0]["cluster"]["server"], "https://other");
        assert_eq!(value["clusters"].as_array().unwrap().len(), 1);
        assert_eq!(value["current-context"], "");
    }

    #[test]
    fn a_broken_file_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let config = Kubeconfig::at(dir.path().join("config"));
        for broken in ["clusters: [", "just text", "clusters: 7\n"] {
            std::fs::write(config.path(), broken).unwrap();
            let error = config.set("skiff", "https://x", "CA", &identity(dir.path())).unwrap_err();
            assert!(matches!(error, Error::Malformed { .. }), "{error}");
            assert_eq!(std::fs::read_to_string(config.path()).unwrap(), broken);
        }
        assert!(!Kubeconfig::at(dir.path().join("none")).remove("skiff").unwrap());
    }
}
