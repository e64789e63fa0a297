//! Container logs: the CRI line format, reading across rotated files, following.
//!
//! ```text
//! 2024-05-01T12:00:00.123456789Z stdout F a whole line
//! 2024-05-01T12:00:00.123456789Z stderr P the first part of a long line
//! ```

pub mod read;

use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Container;

/// One parsed line of a log file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Line<'a> {
    /// As written.
    pub time: &'a str,
    /// `stdout` or `stderr`.
    pub stream: &'a str,
    /// False for a part of a line that goes on.
    pub full: bool,
    /// The text, without the newline.
    pub text: &'a [u8],
}

/// Parses one line (without its newline); `None` when it is not of the format.
pub fn parse(line: &[u8]) -> Option<Line<'_>> {
    let mut parts = line.splitn(4, |b| *b == b' ');
    let (time, stream, tags, text) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let utf8 = |bytes| std::str::from_utf8(bytes).ok();
    // Tags may be several, separated by colons; the first says full or partial.
    let full = match utf8(tags)?.split(':').next()? {
        "F" => true,
        "P" => false,
        _ => return None,
    };
    let stream = utf8(stream).filter(|s| matches!(*s, "stdout" | "stderr"))?;
    Some(Line { time: utf8(time)?, stream, full, text })
}

/// The files of a log, oldest first: `path.<time>` as rotation left them, then `path` itself.
pub fn files(path: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    if let (Some(dir), Some(name)) = (path.parent(), path.file_name().and_then(|n| n.to_str())) {
        let prefix = format!("{name}.");
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        let rotated = entries.filter(|e| {
            let name = e.file_name();
            let name = name.to_string_lossy();
            name.starts_with(&prefix) && !name.ends_with(".gz") && !name.ends_with(".tmp")
        });
        files.extend(rotated.map(|e| e.path()));
        files.sort();
    }
    files.push(path.to_path_buf());
    files
}

/// Where the last `lines` lines begin.
pub fn tail_start(file: &mut (impl Read + Seek), lines: u64) -> std::io::Result<(u64, u64)> {
    const CHUNK: u64 = 8192;
    let end = file.seek(SeekFrom::End(0))?;
    let (mut position, mut seen) = (end, 0u64);
    let mut buffer = vec![0u8; CHUNK as usize];
    while position > 0 {
        let size = CHUNK.min(position);
        position -= size;
        file.seek(SeekFrom::Start(position))?;
        let chunk = &mut buffer[..size as usize];
        file.read_exact(chunk)?;
        for (i, byte) in chunk.iter().enumerate().rev() {
            let at = position + i as u64;
            if *byte == b'\n' && at + 1 != end {
                seen += 1;
                if seen == lines {
                    return Ok((at + 1, seen));
                }
            }
        }
    }
    // The first line has no newline before it.
    Ok((if lines == 0 { end } else { 0 }, seen + u64::from(end > 0)))
}

const MESSAGE_BYTES: usize = 4096;
const FALLBACK_BYTES: usize = 2048;
const FALLBACK_LINES: u64 = 80;

/// The container's last words: its termination log, or the end of its log when the policy says so and it failed.
pub fn termination_message(container: &Container, file: &Path, log: &Path, code: i32) -> Option<String> {
    let mut words = Vec::new();
    if let Ok(file) = std::fs::File::open(file) {
        // A message that cannot be read is no message.
        let _ = file.take(MESSAGE_BYTES as u64).read_to_end(&mut words);
    }
    let fallback = container.termination_message_policy.as_deref() == Some("FallbackToLogsOnError");
    if words.is_empty() && fallback && code != 0 {
        words = last_of(log).unwrap_or_default();
    }
    (!words.is_empty()).then(|| String::from_utf8_lossy(&words).into_owned())
}

fn last_of(log: &Path) -> std::io::Result<Vec<u8>> {
    let mut file = std::fs::File::open(log)?;
    let (start, _) = tail_start(&mut file, FALLBACK_LINES)?;
    file.seek(SeekFrom::Start(start))?;
    let mut raw = Vec::new();
    file.read_to_end(&mut raw)?;
    let mut text = Vec::new();
    for line in raw.split(|b| *b == b'\n').filter_map(parse) {
        text.extend_from_slice(line.text);
        if line.full {
            text.push(b'\n');
        }
    }
    let cut = text.len().saturating_sub(FALLBACK_BYTES);
    Ok(text.split_off(cut))
}

/// Reads a time as log files write it.
pub fn time_of(text: &str) -> Option<Timestamp> {
    text.parse().ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn lines() {
        let line = parse(b"2024-05-01T12:00:00.123456789Z stdout F hello  world").unwrap();
        assert_eq!((line.stream, line.full, line.text), ("stdout", true, &b"hello  world"[..]));
        assert_eq!(parse(b"2024-05-01T12:00:00Z stderr P:x ").unwrap().text, b"");
        for bad in ["", "x", "t stdout X y", "t other F y", "t stdout F"] {
            assert_eq!(parse(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn the_start_of_the_tail() {
        for (text, lines, start) in [
            ("a\nb\nc\n", 1, 4),
            ("a\nb\nc\n", 2, 2),
            ("a\nb\nc", 1, 4),
            ("a\nb\n", 9, 0),
            ("a\n", 0, 2),
            ("", 3, 0),
        ] {
            let mut file = std::io::Cursor::new(text.as_bytes());
            assert_eq!(tail_start(&mut file, lines).unwrap().0, start, "{text:?} {lines}");
        }
    }

    #[test]
    fn last_words() {
        let dir = tempfile::tempdir().unwrap();
        let (file, log) = (dir.path().join("t"), dir.path().join("0.log"));
        std::fs::write(&log, "2024-05-01T12:00:00Z stdout F one\n2024-05-01T12:00:00Z stderr F two\n")
            .unwrap();
        let mut container = Container::default();
        assert_eq!(termination_message(&container, &file, &log, 1), None);
        container.termination_message_policy = Some("FallbackToLogsOnError".into());
        assert_eq!(termination_message(&container, &file, &log, 0), None);
        assert_eq!(termination_message(&container, &file, &log, 1).as_deref(), Some("one\ntwo\n"));
        std::fs::write(&file, "x".repeat(5000)).unwrap();
        assert_eq!(termination_message(&container, &file, &log, 1).unwrap().len(), 4096);
    }

    proptest::proptest! {
        #[test]
        fn the_tail_has_as_many_lines_as_asked(text in "[ab\n]{0,200}", lines in 0u64..20) {
            let mut file = std::io::Cursor::new(text.as_bytes());
            let (start, _) = tail_start(&mut file, lines).unwrap();
            let tail: Vec<&str> = text[start as usize..].lines().collect();
            let all: Vec<&str> = text.lines().collect();
            let expected = &all[all.len().saturating_sub(lines as usize)..];
            proptest::prop_assert_eq!(tail, expected.to_vec());
        }
    }
}
