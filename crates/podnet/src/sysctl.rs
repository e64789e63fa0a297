//! Kernel settings of the calling thread's network namespace, by their path under `/proc/sys/net`.

use std::fs;
use std::io;

use crate::error::{Error, Result};

fn path(name: &str) -> String {
    format!("/proc/sys/net/{name}")
}

/// The setting's value.
pub(crate) fn get(name: &str) -> Result<String> {
    let value =
        fs::read_to_string(path(name)).map_err(|e| Error::system(format!("read sysctl net/{name}"), e))?;
    Ok(value.trim().to_owned())
}

/// Sets it, if it is not so already: some settings have effects on others each time they are written.
pub(crate) fn set(name: &str, value: &str) -> Result<()> {
    if get(name)? == value {
        return Ok(());
    }
    fs::write(path(name), value).map_err(|e| Error::system(format!("set sysctl net/{name} to {value}"), e))
}

/// Whether the calling thread's network namespace has IPv6 at all: the kernel was built and started with it.
pub fn has_ipv6() -> bool {
    fs::exists("/proc/thread-self/net/if_inet6").unwrap_or(false)
}

/// Sets it where the kernel has it: IPv6 or connection tracking may be absent. Gives whether it has.
pub(crate) fn set_if_there(name: &str, value: &str) -> Result<bool> {
    match set(name, value) {
        Err(Error::System { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(false),
        result => result.map(|()| true),
    }
}
