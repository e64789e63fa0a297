//! Container logs in the CRI format, with rotation.
//!
//! ```text
//! 2025-07-20T10:00:00.123456789Z stdout F a whole line
//! 2025-07-20T10:00:00.123456789Z stderr P the first 16 KiB of a longer one
//! ```
//! (`k8s.io/cri-api`, `docs/cri-container-stats`' neighbour "kubelet-cri-logging" design.) Rotated files are named
//! `<path>.20060102-150405`, as the kubelet's own rotation names them, and are never rewritten.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use jiff::{Timestamp, ToSpan, tz::TimeZone};

/// Longest content of one log line; what is longer is split into `P` lines and an `F` line.
const LINE_MAX: usize = 16 * 1024;

/// Which stream a line came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// Cuts a byte stream into CRI lines; keeps what has no newline yet.
#[derive(Debug, Default)]
pub struct Splitter {
    rest: Vec<u8>,
}

impl Splitter {
    /// Appends the lines that `data` completes to `out`.
    pub fn push(&mut self, now: &str, stream: Stream, mut data: &[u8], out: &mut Vec<u8>) {
        while let Some(end) = data.iter().position(|&byte| byte == b'\n') {
            self.take(now, stream, &data[..end], out);
            let rest = std::mem::take(&mut self.rest);
            line(now, stream, b'F', &rest, out);
            self.rest = rest;
            self.rest.clear();
            data = &data[end + 1..];
        }
        self.take(now, stream, data, out);
    }

    /// Adds to the open line, writing `P` lines while it is too long.
    fn take(&mut self, now: &str, stream: Stream, mut data: &[u8], out: &mut Vec<u8>) {
        while self.rest.len() + data.len() > LINE_MAX {
            let (now_part, later) = data.split_at(LINE_MAX - self.rest.len());
            self.rest.extend_from_slice(now_part);
            line(now, stream, b'P', &self.rest, out);
            self.rest.clear();
            data = later;
        }
        self.rest.extend_from_slice(data);
    }

    /// The end of the stream: an open line is written as partial, for no newline ended it.
    pub fn finish(&mut self, now: &str, stream: Stream, out: &mut Vec<u8>) {
        if !self.rest.is_empty() {
            line(now, stream, b'P', &self.rest, out);
            self.rest.clear();
        }
    }
}

fn line(now: &str, stream: Stream, tag: u8, content: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(now.as_bytes());
    out.push(b' ');
    out.extend_from_slice(stream.name().as_bytes());
    out.extend_from_slice(&[b' ', tag, b' ']);
    out.extend_from_slice(content);
    out.push(b'\n');
}

/// When a log file is put aside and how many files are kept.
#[derive(Debug, Clone, Copy)]
pub struct Rotation {
    /// Bytes of a file at which it is put aside.
    pub max_size: u64,
    /// Files kept, the current one included.
    pub max_files: usize,
}

impl Default for Rotation {
    /// The kubelet's `containerLogMaxSize` and `containerLogMaxFiles`.
    fn default() -> Self {
        Self { max_size: 10 << 20, max_files: 5 }
    }
}

/// The log file of one container.
#[derive(Debug)]
pub struct Log {
    path: PathBuf,
    file: Option<File>,
    size: u64,
    rotation: Rotation,
    splitters: [Splitter; 2],
    buffer: Vec<u8>,
    /// The last write failed, and it has been said.
    failing: bool,
}

impl Log {
    /// Opens (and creates, with its folder) the log at `path`.
    pub fn open(path: &Path, rotation: Rotation) -> io::Result<Self> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        let file = append(path)?;
        let size = file.metadata()?.len();
        Ok(Self {
            path: path.to_owned(),
            file: Some(file),
            size,
            rotation,
            splitters: Default::default(),
            buffer: Vec::new(),
            failing: false,
        })
    }

    /// Logs output of `stream`.
    pub fn write(&mut self, stream: Stream, data: &[u8]) {
        let now = timestamp();
        self.splitters[stream as usize].push(&now, stream, data, &mut self.buffer);
        self.flush();
    }

    /// Ends both streams.
    pub fn finish(&mut self) {
        let now = timestamp();
        for stream in [Stream::Stdout, Stream::Stderr] {
            self.splitters[stream as usize].finish(&now, stream, &mut self.buffer);
        }
        self.flush();
        self.file = None;
    }

    /// Writes what is buffered. A full disk loses lines rather than stopping the container; the shim's own log says so.
    fn flush(&mut self) {
        if self.buffer.is_empty() {
            return;
        }
        let Some(file) = &mut self.file else {
            self.buffer.clear();
            return;
        };
        match file.write_all(&self.buffer) {
            Ok(()) => {
                self.size += self.buffer.len() as u64;
                self.failing = false;
            }
            Err(error) if !self.failing => {
                self.failing = true;
                super::report(&format!("write log {}: {error}; lines are lost", self.path.display()));
            }
            Err(_) => {}
        }
        self.buffer.clear();
        if self.buffer.capacity() > 1 << 20 {
            self.buffer = Vec::new();
        }
        if self.size >= self.rotation.max_size
            && let Err(error) = self.rotate()
        {
            super::report(&format!("rotate log {}: {error}", self.path.display()));
        }
    }

    fn rotate(&mut self) -> io::Result<()> {
        let mut old = rotated(&self.path)?;
        let aside = next_name(&self.path, old.last().map(PathBuf::as_path), Timestamp::now());
        fs::rename(&self.path, &aside)?;
        old.push(aside);
        self.file = Some(append(&self.path)?);
        self.size = 0;
        let keep = self.rotation.max_files.saturating_sub(1);
        for stale in old.iter().take(old.len().saturating_sub(keep)) {
            fs::remove_file(stale)?;
        }
        Ok(())
    }
}

fn append(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    OpenOptions::new().create(true).append(true).mode(0o640).open(path)
}

/// The rotated files of a log, oldest first (their names sort by time).
pub fn rotated(path: &Path) -> io::Result<Vec<PathBuf>> {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name().and_then(|name| name.to_str())) else {
        return Ok(Vec::new());
    };
    let mut found: Vec<PathBuf> = fs::read_dir(folder)?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| {
            let rest =
                path.file_name().and_then(|file| file.to_str()).and_then(|file| file.strip_prefix(name));
            rest.and_then(|rest| rest.strip_prefix('.')).is_some_and(is_stamp)
        })
        .collect();
    found.sort();
    Ok(found)
}

/// `20060102-150405`
fn is_stamp(text: &str) -> bool {
    text.len() == 15
        && text
            .bytes()
            .enumerate()
            .all(|(at, byte)| if at == 8 { byte == b'-' } else { byte.is_ascii_digit() })
}

/// The name for the file to put aside: the second it happens, or the second after the last one where that is taken.
fn next_name(path: &Path, last: Option<&Path>, now: Timestamp) -> PathBuf {
    let name = |time: Timestamp| {
        let stamp = time.to_zoned(TimeZone::UTC).strftime("%Y%m%d-%H%M%S").to_string();
        let mut name = path.as_os_str().to_owned();
        name.push(".");
        name.push(stamp);
        PathBuf::from(name)
    };
    let mut time = now;
    while last.is_some_and(|last| name(time).as_path() <= last) {
        match time.checked_add(1.second()) {
            Ok(later) => time = later,
            Err(_) => break,
        }
    }
    name(time)
}

/// Now, in RFC 3339 with nine digits of nanoseconds.
fn timestamp() -> String {
    format!("{:.9}", Timestamp::now())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use proptest::prelude::*;

    use super::*;

    fn split(chunks: &[Vec<u8>]) -> Vec<u8> {
        let (mut splitter, mut out) = (Splitter::default(), Vec::new());
        for chunk in chunks {
            splitter.push("T", Stream::Stdout, chunk, &mut out);
        }
        splitter.finish("T", Stream::Stdout, &mut out);
        out
    }

    /// What a reader of the log prints: content, and a newline after every `F`.
    fn join(log: &[u8]) -> Vec<u8> {
        let mut text = Vec::new();
        for line in log.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()) {
            let line = line.strip_prefix(b"T stdout ".as_slice()).expect("prefix");
            assert!(line.len() - 2 <= LINE_MAX);
            text.extend_from_slice(&line[2..]);
            if line[0] == b'F' {
                text.push(b'\n');
            }
        }
        text
    }

    proptest! {
        #[test]
        fn reading_the_log_gives_the_output_back(
            chunks in proptest::collection::vec(proptest::collection::vec(
                prop_oneof![4 => Just(b'a'), 1 => Just(b'\n'), 1 => any::<u8>()], 0..200), 0..20),
        ) {
            prop_assert_eq!(join(&split(&chunks)), chunks.concat());
        }

        #[test]
        fn long_lines_are_cut_and_come_back(sizes in proptest::collection::vec(0usize..40_000, 1..6)) {
            let chunks: Vec<Vec<u8>> =
                sizes.iter().map(|&size| { let mut chunk = vec![b'x'; size]; chunk.push(b'\n'); chunk }).collect();
            prop_assert_eq!(join(&split(&chunks)), chunks.concat());
        }
    }

    #[test]
    fn lines_look_as_the_cri_says() {
        let out = split(&[b"one\ntw".to_vec(), b"o\nrest".to_vec()]);
        assert_eq!(String::from_utf8(out).unwrap(), "T stdout F one\nT stdout F two\nT stdout P rest\n");
        let exact = split(&[vec![b'x'; LINE_MAX], b"\n".to_vec()]);
        assert_eq!(&exact[..11], b"T stdout F ");
        let longer = split(&[vec![b'x'; LINE_MAX + 1], b"\n".to_vec()]);
        assert!(longer.ends_with(b"T stdout F x\n"));
    }

    #[test]
    fn a_full_log_is_put_aside_and_old_ones_go() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let mut log = Log::open(&path, Rotation { max_size: 1000, max_files: 3 }).unwrap();
        for round in 0..8 {
            log.write(Stream::Stdout, format!("{round} {}\n", "x".repeat(1000)).as_bytes());
        }
        log.write(Stream::Stderr, b"last\n");
        log.finish();
        let old = rotated(&path).unwrap();
        assert_eq!(old.len(), 2);
        assert!(fs::read_to_string(&path).unwrap().ends_with(" stderr F last\n"));
        assert!(fs::read_to_string(&old[1]).unwrap().contains("stdout F 7 "));
        assert!(fs::read_to_string(&old[0]).unwrap().contains("stdout F 6 "));
    }

    #[test]
    fn an_agent_restart_appends() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pod/0.log");
        for _ in 0..2 {
            let mut log = Log::open(&path, Rotation::default()).unwrap();
            log.write(Stream::Stdout, b"hi\n");
            log.finish();
        }
        assert_eq!(fs::read_to_string(&path).unwrap().lines().count(), 2);
        let stamp = fs::read_to_string(&path).unwrap();
        assert!(stamp.split(' ').next().unwrap().parse::<Timestamp>().is_ok());
        assert_eq!(stamp.find(' '), Some("2025-07-20T10:00:00.123456789Z".len()));
    }
}
