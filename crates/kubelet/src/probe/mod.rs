//! Probes: one task per probe of a running container, thresholds in a small state machine, results to the worker.
//!
//! A readiness probe that has not passed yet is also tried between its periods (after 50 ms, 100 ms, ...): such extra
//! tries count only when they pass. A service is ready when it answers, not up to ten seconds later; failures and
//! thresholds are those of the period, as upstream.

pub mod grpc;
pub mod http;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, Probe};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::config::Agent;
use crate::process;

/// A task that ends with its holder.
#[derive(Debug)]
pub struct AbortOnDrop(pub tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Which probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Holds the others back until it passes.
    Startup,
    /// Decides whether Services send traffic.
    Readiness,
    /// Decides whether the container must be restarted.
    Liveness,
}

impl Kind {
    /// As events write it.
    pub fn title(self) -> &'static str {
        match self {
            Self::Startup => "Startup",
            Self::Readiness => "Readiness",
            Self::Liveness => "Liveness",
        }
    }
}

/// What a probe task tells the worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Report {
    /// One try failed (for the event).
    Failure(Kind, String),
    /// The threshold was passed: the probe now says this.
    Result(Kind, bool),
}

/// Counts tries against thresholds; pure.
#[derive(Debug)]
struct Counter {
    success_threshold: u32,
    failure_threshold: u32,
    last: Option<bool>,
    run: u32,
}

impl Counter {
    fn new(probe: &Probe) -> Self {
        let at_least_one = |n: Option<i32>, default| {
            n.and_then(|n| u32::try_from(n).ok()).filter(|n| *n > 0).unwrap_or(default)
        };
        Self {
            success_threshold: at_least_one(probe.success_threshold, 1),
            failure_threshold: at_least_one(probe.failure_threshold, 3),
            last: None,
            run: 0,
        }
    }

    /// The result once its threshold is reached; `None` while it is not.
    fn count(&mut self, passed: bool) -> Option<bool> {
        self.run = if self.last == Some(passed) { self.run + 1 } else { 1 };
        self.last = Some(passed);
        let threshold = if passed { self.success_threshold } else { self.failure_threshold };
        (self.run >= threshold).then_some(passed)
    }
}

/// What is probed.
#[derive(Debug, Clone)]
pub struct Target {
    /// The container of the Pod's spec.
    pub container: Container,
    /// The runtime's id.
    pub id: String,
    /// The Pod's address (the node's for hostNetwork).
    pub ip: Option<IpAddr>,
}

/// The probe of that kind, if the container has one.
pub fn of(container: &Container, kind: Kind) -> Option<&Probe> {
    match kind {
        Kind::Startup => container.startup_probe.as_ref(),
        Kind::Readiness => container.readiness_probe.as_ref(),
        Kind::Liveness => container.liveness_probe.as_ref(),
    }
}

/// Starts the probes of a container; `report` is called from their tasks, which end when the result is dropped.
pub fn start(
    agent: &Arc<Agent>,
    target: &Target,
    started: watch::Receiver<bool>,
    report: impl Fn(Report) + Clone + Send + Sync + 'static,
) -> Vec<AbortOnDrop> {
    let kinds = [Kind::Startup, Kind::Readiness, Kind::Liveness];
    let probes = kinds.into_iter().filter_map(|kind| of(&target.container, kind).map(|p| (kind, p.clone())));
    let spawn = |(kind, probe): (Kind, Probe)| {
        let (agent, target, report, started) =
            (agent.clone(), target.clone(), report.clone(), started.clone());
        AbortOnDrop(tokio::spawn(async move {
            let attempt = || attempt(&agent, &target, &probe);
            watch_over(kind, &probe, started, attempt, report).await;
        }))
    };
    probes.map(spawn).collect()
}

/// The life of one probe: wait for its turn, try, count, tell.
async fn watch_over<F, Fut>(
    kind: Kind,
    probe: &Probe,
    mut started: watch::Receiver<bool>,
    attempt: F,
    report: impl Fn(Report),
) where
    F: Fn() -> Fut,
    Fut: Future<Output = Result<(), String>>,
{
    let seconds = |n: Option<i32>, default| {
        Duration::from_secs(n.and_then(|n| u64::try_from(n).ok()).unwrap_or(default))
    };
    let period = seconds(probe.period_seconds, 10).max(Duration::from_secs(1));
    let begin = Instant::now() + seconds(probe.initial_delay_seconds, 0);
    // The other probes wait for the startup probe (or for a postStart hook).
    if kind != Kind::Startup && started.wait_for(|s| *s).await.is_err() {
        return;
    }
    tokio::time::sleep_until(begin).await;
    let mut counter = Counter::new(probe);
    let mut told = None;
    let mut next = Instant::now();
    let mut extra = Duration::from_millis(50);
    loop {
        let regular = Instant::now() >= next;
        let result = attempt().await;
        if regular {
            next += period;
        }
        // Extra tries of a probe that has not passed yet count only when they pass.
        if regular || result.is_ok() {
            let verdict = counter.count(result.is_ok());
            if let Err(error) = result {
                report(Report::Failure(kind, error));
            }
            if let Some(passed) = verdict {
                if told != Some(passed) || (!passed && kind != Kind::Readiness) {
                    told = Some(passed);
                    report(Report::Result(kind, passed));
                }
                // A startup probe has done its work; a failed liveness or startup probe means a restart.
                if kind == Kind::Startup || (kind == Kind::Liveness && !passed) {
                    return;
                }
            }
        }
        let hurry = kind != Kind::Liveness && told != Some(true) && counter.success_threshold == 1;
        let now = Instant::now();
        next = next.max(now);
        let wake = if hurry { next.min(now + extra) } else { next };
        // A probe may go on for years.
        extra = (extra * 2).min(period);
        tokio::time::sleep_until(wake).await;
    }
}

async fn attempt(agent: &Agent, target: &Target, probe: &Probe) -> Result<(), String> {
    let timeout = Duration::from_secs(
        probe.timeout_seconds.and_then(|n| u64::try_from(n).ok()).filter(|n| *n > 0).unwrap_or(1),
    );
    let ip = || target.ip.ok_or_else(|| "the Pod has no address".to_string());
    if let Some(action) = &probe.exec {
        let command = action.command.clone().unwrap_or_default();
        return match process::run(&*agent.containers, &target.id, &command, Some(timeout)).await {
            Ok(process::Outcome::Exited { code: 0, .. }) => Ok(()),
            Ok(process::Outcome::Exited { output, .. }) => Err(output),
            Ok(process::Outcome::TimedOut) => Err(format!(
                "command timed out: \"{}\" timed out after {}s",
                command.join(" "),
                timeout.as_secs()
            )),
            Err(error) => Err(error.to_string()),
        };
    }
    if let Some(action) = &probe.http_get {
        let url = http::url(action, &target.container, ip()?)?;
        let answer = http::get(action, url, timeout).await?;
        return match answer.status {
            200..=399 => Ok(()),
            status => Err(format!("HTTP probe failed with statuscode: {status}")),
        };
    }
    if let Some(action) = &probe.tcp_socket {
        let port = http::port(&action.port, &target.container)?;
        let host = match action.host.as_deref().filter(|h| !h.is_empty()) {
            Some(host) => host.to_string(),
            None => ip()?.to_string(),
        };
        return match tokio::time::timeout(timeout, http::connect(&host, port)).await {
            Ok(result) => result.map(drop),
            Err(_) => Err(format!("dial tcp {host}:{port}: i/o timeout")),
        };
    }
    if let Some(action) = &probe.grpc {
        let port = u16::try_from(action.port).map_err(|_| format!("invalid port number: {}", action.port))?;
        return grpc::check(ip()?, port, action.service.as_deref().unwrap_or_default(), timeout).await;
    }
    Err("the probe has no handler".into())
}

#[cfg(test)]
mod tests;
