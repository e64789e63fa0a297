//! The person at the keyboard: under sudo it is the one who called sudo, whose files we read and write.

use std::path::PathBuf;

/// User and group of a file.
pub type Owner = (u32, u32);

/// Whose home is meant by "the user's".
#[derive(Debug, Clone)]
pub struct Caller {
    /// The home directory.
    pub home: PathBuf,
    /// Whom files there must belong to; `None` when that is ourselves.
    pub owner: Option<Owner>,
}

impl Caller {
    /// `SUDO_USER` under sudo, else who we are.
    pub fn now() -> Self {
        let user = std::env::var("SUDO_USER").ok().filter(|u| u != "root");
        let account = user.and_then(|name| nix::unistd::User::from_name(&name).ok().flatten());
        let owner = account.as_ref().map(|a| (a.uid.as_raw(), a.gid.as_raw()));
        let home = account.map(|a| a.dir).or_else(|| std::env::var_os("HOME").map(PathBuf::from));
        Self { home: home.unwrap_or_else(|| "/root".into()), owner }
    }
}
