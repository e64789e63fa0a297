//! How much memory a process has, as the kernel counts it.

use anyhow::Context;

/// Resident memory of a process in MB (a million bytes).
///
/// # Errors
/// When there is no such process.
pub fn resident(pid: u32) -> anyhow::Result<f64> {
    let path = format!("/proc/{pid}/status");
    let text = std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.with_context(|| format!("no VmRSS in {path}"))?.trim().trim_end_matches(" kB");
    Ok(number.parse::<f64>().with_context(|| format!("VmRSS in {path}"))? * 1024.0 / 1e6)
}

/// Resident memory of this process in MB.
///
/// # Errors
/// When /proc cannot be read.
pub fn own() -> anyhow::Result<f64> {
    resident(std::process::id())
}
