//! `skiff logs`: what the daemon has to say.

use std::fs::File;
use std::io::{Read, Write};
use std::time::Duration;

use anyhow::Context;
use clap::Args;

use super::existing;

/// Options of `logs`.
#[derive(Debug, Args)]
pub struct Options {
    /// Go on as the log grows.
    #[arg(short, long)]
    follow: bool,
    /// Only so many lines from its end.
    #[arg(short = 'n', long, visible_alias = "length")]
    lines: Option<usize>,
}

/// Prints the log, or its last lines, and follows it if asked.
pub fn run(name: &str, &Options { follow, lines }: &Options) -> anyhow::Result<()> {
    let path = existing(name)?.control_plane().log();
    let read = || format!("read {}", path.display());
    let mut file = File::open(&path).with_context(read)?;
    let mut text = Vec::new();
    file.read_to_end(&mut text).with_context(read)?;
    let mut out = std::io::stdout().lock();
    out.write_all(last_lines(&text, lines))?;
    if !follow {
        return Ok(());
    }
    loop {
        out.flush()?;
        std::thread::sleep(Duration::from_millis(200));
        text.clear();
        file.read_to_end(&mut text).with_context(read)?;
        out.write_all(&text)?;
    }
}

fn last_lines(text: &[u8], lines: Option<usize>) -> &[u8] {
    let Some(lines) = lines else { return text };
    let body = text.strip_suffix(b"\n").unwrap_or(text);
    let breaks = body.iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at + 1);
    let starts: Vec<usize> = std::iter::once(0).chain(breaks).collect();
    let first = starts.len().saturating_sub(lines);
    starts.get(first).map_or(&[], |at| &text[*at..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines() {
        let text = b"a\nb\nc\n";
        assert_eq!(last_lines(text, None), text);
        assert_eq!(last_lines(text, Some(0)), b"");
        assert_eq!(last_lines(text, Some(1)), b"c\n");
        assert_eq!(last_lines(text, Some(2)), b"b\nc\n");
        assert_eq!(last_lines(text, Some(3)), text);
        assert_eq!(last_lines(text, Some(9)), text);
        assert_eq!(last_lines(b"no end", Some(1)), b"no end");
    }
}
