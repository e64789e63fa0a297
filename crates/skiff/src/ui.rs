//! What a waiting user sees: a step with a spinner and its time, or plain lines where nobody watches a terminal.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use anstyle::{AnsiColor, Style};
use indicatif::{ProgressBar, ProgressStyle};

use crate::control::Reply;

const GREEN: Style = AnsiColor::Green.on_default();
const RED: Style = AnsiColor::Red.on_default();
const DIM: Style = Style::new().dimmed();

/// Steps of one command, shown one below the other on standard error.
#[derive(Debug)]
pub struct Steps {
    current: Option<(String, Instant, Option<ProgressBar>)>,
}

impl Steps {
    /// No step yet.
    pub fn new() -> Self {
        Self { current: None }
    }

    /// Ends the step before as done and begins another.
    pub fn begin(&mut self, text: &str) {
        self.done();
        let bar = std::io::stderr().is_terminal().then(|| spinner(text));
        self.current = Some((text.to_owned(), Instant::now(), bar));
    }

    /// Adds to the running step, such as how much of an image has arrived.
    pub fn detail(&mut self, detail: &str) {
        if let Some((text, _, Some(bar))) = &self.current {
            bar.set_message(format!("{text} {DIM}{detail}{DIM:#}"));
        }
    }

    /// Shows what a daemon says of the step that the command line is at.
    pub fn news(&mut self, news: &Reply) {
        if let Reply::Step(text) | Reply::Detail(text) = news {
            self.detail(text);
        }
    }

    /// Ends the running step as done.
    pub fn done(&mut self) {
        if let Some((text, since, bar)) = self.current.take() {
            clear(bar);
            anstream::eprintln!("{GREEN}✔{GREEN:#} {text} {DIM}{}{DIM:#}", seconds(since.elapsed()));
        }
    }

    /// Ends the running step as failed; the error itself is the caller's to print.
    pub fn failed(&mut self) {
        if let Some((text, _, bar)) = self.current.take() {
            clear(bar);
            anstream::eprintln!("{RED}✘{RED:#} {text}");
        }
    }
}

fn spinner(text: &str) -> ProgressBar {
    let bar = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template("{spinner:.cyan} {msg}") {
        bar.set_style(style.tick_chars("⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏ "));
    }
    bar.set_message(text.to_owned());
    bar.enable_steady_tick(Duration::from_millis(80));
    bar
}

fn clear(bar: Option<ProgressBar>) {
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
}

fn seconds(time: Duration) -> String {
    if time < Duration::from_secs(1) {
        format!("{} ms", time.as_millis())
    } else {
        format!("{:.1} s", time.as_secs_f64())
    }
}

/// Prints rows below headings, columns aligned, three spaces apart as kubectl does.
pub fn table(headings: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain([headings[column].chars().count()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..headings.len()).map(width).collect();
    let line = |cells: &[&str]| {
        let padded: Vec<String> =
            cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        padded.join("   ").trim_end().to_owned() + "\n"
    };
    let mut text = line(headings);
    for row in rows {
        text += &line(&row.iter().map(String::as_str).collect::<Vec<_>>());
    }
    text
}

/// `1.4 MB`, as image lists show sizes.
pub fn size(bytes: u64) -> String {
    let mut value = bytes as f64;
    let mut unit = "B";
    for larger in ["kB", "MB", "GB"] {
        if value < 1000.0 {
            break;
        }
        value /= 1000.0;
        unit = larger;
    }
    if unit == "B" { format!("{bytes} B") } else { format!("{value:.1} {unit}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let rows = [vec!["a".to_owned(), "bb".into()], vec!["long".into(), String::new()]];
        assert_eq!(table(&["NAME", "X"], &rows), "NAME   X\na      bb\nlong\n");
    }

    #[test]
    fn sizes() {
        assert_eq!([size(12), size(1_449_999), size(2_000_000_000)], ["12 B", "1.4 MB", "2.0 GB"]);
    }
}
