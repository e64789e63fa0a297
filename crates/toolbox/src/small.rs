//! Programs of a few lines.

use std::io::Write;
use std::time::Duration;

use crate::{Error, Result};

/// `sleep 3600`, `sleep 1m`, `sleep infinity`: waits, ends at once on TERM although it is process 1.
pub fn sleep(args: &[String]) -> Result<()> {
    let usage = || Error::Usage("usage: sleep SECONDS[s|m|h|d] | infinity".into());
    let text = args.first().ok_or_else(usage)?;
    let time = if text == "infinity" {
        Duration::from_secs(u64::from(u32::MAX))
    } else {
        let digits = text.trim_end_matches(['s', 'm', 'h', 'd']);
        let factor = match &text[digits.len()..] {
            "" | "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            "d" => 86400.0,
            _ => return Err(usage()),
        };
        let seconds: f64 = digits.parse().map_err(|_| usage())?;
        Duration::try_from_secs_f64(seconds * factor).map_err(|_| usage())?
    };
    crate::block_on(async {
        tokio::select! {
            () = tokio::time::sleep(time) => Ok(()),
            () = terminated() => std::process::exit(143),
        }
    })
}

/// Resolves on SIGTERM or SIGINT. Process 1 of a container ignores both unless it asks for them.
pub async fn terminated() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut term), Ok(mut int)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        return std::future::pending().await;
    };
    tokio::select! { _ = term.recv() => {}, _ = int.recv() => {} }
}

/// `pause`: the first process of a Pod whose containers share a pid namespace. Waits for TERM and reaps what others
/// leave behind.
pub fn pause() -> Result<()> {
    crate::block_on(async {
        use tokio::signal::unix::{SignalKind, signal};
        let mut ended = signal(SignalKind::child()).map_err(|e| Error::io("listen for SIGCHLD", e))?;
        let reap = async {
            loop {
                use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
                while !matches!(
                    waitpid(None, Some(WaitPidFlag::WNOHANG)),
                    Ok(WaitStatus::StillAlive) | Err(_)
                ) {}
                if ended.recv().await.is_none() {
                    return;
                }
            }
        };
        tokio::select! { () = reap => {}, () = terminated() => {} }
        Ok(())
    })
}

/// `cat FILE...`.
pub fn cat(args: &[String]) -> Result<()> {
    let mut out = std::io::stdout().lock();
    if args.is_empty() {
        std::io::copy(&mut std::io::stdin().lock(), &mut out).map_err(|e| Error::io("stdin", e))?;
    }
    for path in args {
        let mut file = std::fs::File::open(path).map_err(|e| Error::io(format!("can't open '{path}'"), e))?;
        std::io::copy(&mut file, &mut out).map_err(|e| Error::io(path, e))?;
    }
    out.flush().map_err(|e| Error::io("stdout", e))
}

/// `hostname`.
pub fn hostname() -> Result<()> {
    println!("{}", own_name());
    Ok(())
}

/// The host name, which is the Pod's name.
pub fn own_name() -> String {
    nix::unistd::gethostname().ok().and_then(|n| n.into_string().ok()).unwrap_or_default()
}

/// `env`.
pub fn env() -> Result<()> {
    for (name, value) in std::env::vars_os() {
        println!("{}={}", name.display(), value.display());
    }
    Ok(())
}
