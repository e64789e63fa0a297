//! Stopping one container: hook, signal, patience, SIGKILL; and the hooks themselves.

use std::net::IpAddr;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, LifecycleHandler, Pod};
use tokio::time::Instant;

use crate::config::Agent;
use crate::pod;
use crate::probe::http;
use crate::process;

/// At least this long between the signal and SIGKILL when a hook has eaten the grace period.
const MIN_GRACE: Duration = Duration::from_secs(2);

/// What is to be stopped, and how.
#[derive(Debug, Clone)]
pub struct Kill {
    /// The container.
    pub container: Container,
    /// The runtime's id.
    pub id: String,
    /// The Pod's address, for hooks.
    pub ip: Option<IpAddr>,
    /// The signal that asks.
    pub signal: i32,
    /// Seconds until SIGKILL.
    pub grace: i64,
    /// The Event's message.
    pub message: String,
    /// Send SIGKILL at once, without hook and signal.
    pub now: bool,
}

/// Stops it. Ends when the last signal is sent; whoever sees the container end may drop it before.
pub async fn kill(agent: &Agent, pod: &Pod, kill: &Kill) {
    agent.normal(pod, "Killing", kill.message.clone());
    let begin = Instant::now();
    let grace = Duration::from_secs(u64::try_from(kill.grace).unwrap_or(0));
    if !kill.now && !grace.is_zero() {
        let pre_stop = kill.container.lifecycle.as_ref().and_then(|l| l.pre_stop.as_ref());
        if let Some(handler) = pre_stop {
            match tokio::time::timeout(grace, hook(agent, handler, &kill.container, &kill.id, kill.ip)).await
            {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    agent.warning(pod, "FailedPreStopHook", format!("PreStopHook failed: {error}"))
                }
                Err(_) => tracing::info!(pod = pod::full_name(pod), "preStop hook did not end in time"),
            }
        }
        signal(agent, &kill.id, kill.signal).await;
        let left = grace.saturating_sub(begin.elapsed());
        tokio::time::sleep(if pre_stop.is_some() { left.max(MIN_GRACE) } else { left }).await;
    }
    // A process in uninterruptible sleep may outlive the first one.
    loop {
        signal(agent, &kill.id, libc::SIGKILL).await;
        tokio::time::sleep(Duration::from_secs(5)).await;
    }
}

async fn signal(agent: &Agent, id: &str, signal: i32) {
    if let Err(error) = agent.containers.kill(id, signal).await {
        tracing::debug!(id, signal, %error, "signalling a container");
    }
}

/// Runs a life-cycle hook.
///
/// # Errors
/// When it fails, with upstream's words.
pub async fn hook(
    agent: &Agent,
    handler: &LifecycleHandler,
    container: &Container,
    id: &str,
    ip: Option<IpAddr>,
) -> Result<(), String> {
    if let Some(exec) = &handler.exec {
        let command = exec.command.clone().unwrap_or_default();
        return match process::run(&*agent.containers, id, &command, None).await {
            Ok(process::Outcome::Exited { code: 0, .. }) => Ok(()),
            Ok(process::Outcome::Exited { code, output }) => {
                let command = command.join(" ");
                Err(format!("command '{command}' exited with {code}: {output}"))
            }
            Ok(process::Outcome::TimedOut) => Err("command timed out".into()),
            Err(error) => Err(error.to_string()),
        };
    }
    if let Some(sleep) = &handler.sleep {
        tokio::time::sleep(Duration::from_secs(u64::try_from(sleep.seconds).unwrap_or(0))).await;
        return Ok(());
    }
    if let Some(action) = &handler.http_get {
        let ip = ip.ok_or("the Pod has no address")?;
        let url = http::url(action, container, ip)?;
        let answer = http::get(action, url, Duration::from_secs(60)).await?;
        return if (200..400).contains(&answer.status) {
            Ok(())
        } else {
            Err(format!("HTTP hook failed with statuscode: {}", answer.status))
        };
    }
    Err("invalid handler: the hook names no action that this node has".into())
}
