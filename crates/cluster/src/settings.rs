//! What the user has set once for all commands: names and texts in one small JSON file.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::{Caller, Error, Owner, Result, files};

/// The user's settings, read from `~/.config/skiff/config.json` (or below `$XDG_CONFIG_HOME`).
#[derive(Debug, Clone)]
pub struct Settings {
    path: PathBuf,
    owner: Option<Owner>,
    values: BTreeMap<String, String>,
}

impl Settings {
    /// Those of the calling user.
    ///
    /// # Errors
    /// When the file is there and cannot be read.
    pub fn of_user() -> Result<Self> {
        let Caller { home, owner } = Caller::now();
        let config = std::env::var_os("XDG_CONFIG_HOME").filter(|dir| !dir.is_empty()).map(PathBuf::from);
        Self::at(config.unwrap_or_else(|| home.join(".config")).join("skiff/config.json"), owner)
    }

    fn at(path: PathBuf, owner: Option<Owner>) -> Result<Self> {
        let values = match files::read_if_there(&path)? {
            None => BTreeMap::new(),
            Some(bytes) => serde_json::from_slice(&bytes)
                .map_err(|e| Error::Malformed { path: path.clone(), reason: e.to_string() })?,
        };
        Ok(Self { path, owner, values })
    }

    /// All that is set, by name.
    pub fn values(&self) -> &BTreeMap<String, String> {
        &self.values
    }

    /// What `name` is set to.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.values.get(name).map(String::as_str)
    }

    /// Sets `name`, or forgets it, and writes the file.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn set(&mut self, name: &str, value: Option<&str>) -> Result<()> {
        match value {
            Some(value) => self.values.insert(name.to_owned(), value.to_owned()),
            None => self.values.remove(name),
        };
        let text = serde_json::to_string_pretty(&self.values).unwrap_or_default() + "\n";
        files::write_owned(&self.path, text.as_bytes(), 0o600, self.owner)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn what_is_set_is_there_the_next_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("skiff/config.json");
        let mut settings = Settings::at(path.clone(), None).unwrap();
        assert_eq!(settings.get("profile"), None);
        settings.set("profile", Some("dev")).unwrap();
        let mut again = Settings::at(path.clone(), None).unwrap();
        assert_eq!(again.get("profile"), Some("dev"));
        again.set("profile", None).unwrap();
        assert!(Settings::at(path.clone(), None).unwrap().values().is_empty());

        std::fs::write(&path, "not json").unwrap();
        let error = Settings::at(path, None).unwrap_err();
        assert!(matches!(error, Error::Malformed { .. }), "{error}");
    }
}
