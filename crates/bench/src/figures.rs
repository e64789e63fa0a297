//! A table of figures, each with what was asked for and what a peer does.

use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use serde::Serialize;

/// One line of the table.
#[derive(Debug, Serialize)]
pub struct Figure {
    what: String,
    unit: &'static str,
    ours: f64,
    peer: Option<f64>,
    peer_name: Option<&'static str>,
    target: Option<String>,
}

/// The figures of one run.
#[derive(Debug, Default, Serialize)]
pub struct Figures(Vec<Figure>);

impl Figures {
    /// Adds a figure; `target` is what the issue asks for.
    pub fn add(&mut self, what: &str, unit: &'static str, ours: f64, target: Option<&str>) {
        let target = target.map(str::to_owned);
        self.0.push(Figure { what: what.into(), unit, ours, peer: None, peer_name: None, target });
    }

    /// Gives the newest figure a peer.
    pub fn beside(&mut self, name: &'static str, value: f64) {
        if let Some(figure) = self.0.last_mut() {
            (figure.peer, figure.peer_name) = (Some(value), Some(name));
        }
    }

    /// Prints the table and writes `OUT/NAME.json`.
    pub fn report(&self, out: &Path, name: &str) -> anyhow::Result<()> {
        println!("{:44} {:>10} {:>10} {:>7}  {:8} target", name, "skiff", "peer", "ratio", "unit");
        for f in &self.0 {
            let peer = f.peer.map_or(String::new(), |p| format!("{p:.1}"));
            let ratio = f.peer.map_or(String::new(), |p| format!("{:.2}", f.ours / p));
            let target = f.target.as_deref().unwrap_or_default();
            let by = f.peer_name.map_or(String::new(), |n| format!(" (peer: {n})"));
            println!("{:44} {:>10.1} {peer:>10} {ratio:>7}  {:8} {target}{by}", f.what, f.ours, f.unit);
        }
        std::fs::create_dir_all(out).with_context(|| format!("create {}", out.display()))?;
        let path = out.join(format!("{name}.json"));
        let text = serde_json::to_string_pretty(self)? + "\n";
        std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))
    }
}

/// The value below which the given share (0 to 1) of the times lies, in milliseconds.
pub fn percentile(times: &mut [Duration], share: f64) -> f64 {
    times.sort_unstable();
    let at = ((times.len() as f64 * share).ceil() as usize).clamp(1, times.len().max(1)) - 1;
    times.get(at).map_or(f64::NAN, |t| t.as_secs_f64() * 1000.0)
}
