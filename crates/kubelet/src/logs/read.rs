//! Streams a container's log: selected lines of all its files, then what is written from now on.

use std::fs::File;
use std::io::{BufRead, BufReader, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use jiff::Timestamp;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, watch};

use super::{files, parse, tail_start, time_of};

/// What to read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    /// Go on with what is written later.
    pub follow: bool,
    /// Only the last lines.
    pub tail: Option<u64>,
    /// Only lines of this time or later.
    pub since: Option<Timestamp>,
    /// Put the time in front of each line.
    pub timestamps: bool,
    /// Stop after so many bytes.
    pub limit: Option<u64>,
}

/// The reader of a log is gone.
struct ReaderGone;

/// Sends the log to `out` until its end (or, following, until `alive` says that nothing more will come and all is
/// read). `ends` wakes the reader when some container has ended.
pub async fn stream(
    path: PathBuf,
    options: Options,
    out: mpsc::Sender<Bytes>,
    alive: impl Fn() -> bool,
    mut ends: watch::Receiver<u64>,
) {
    let mut printer = Printer { options: options.clone(), left: options.limit, middle: false };
    // Watch before reading: what is written between is then seen.
    let mut changes = if options.follow { path.parent().and_then(watch_dir) } else { None };
    let mut sources = open(&path, options.tail).unwrap_or_default();
    let mut current = sources.pop();
    for source in sources {
        if pump(&mut Some(source), &mut printer, &out).await.is_err() {
            return;
        }
    }
    loop {
        // Asked before reading: what is written before the end is read after it.
        let live = alive();
        if pump(&mut current, &mut printer, &out).await.is_err() {
            return;
        }
        if !options.follow {
            return;
        }
        if rotated(&path, current.as_ref()) {
            let _ = pump(&mut current, &mut printer, &out).await;
            current = File::open(&path).ok().map(BufReader::new);
            continue;
        }
        if !live {
            return;
        }
        tokio::select! {
            () = changed(&mut changes) => {}
            result = ends.changed() => if result.is_err() { return },
            () = out.closed() => return,
        }
    }
}

/// The files with the cursor where reading begins; the newest last.
fn open(path: &Path, tail: Option<u64>) -> std::io::Result<Vec<BufReader<File>>> {
    let mut opened = Vec::new();
    let mut left = tail;
    for path in files(path).into_iter().rev() {
        let Ok(mut file) = File::open(path) else { continue };
        if let Some(lines) = left {
            let (start, found) = tail_start(&mut file, lines)?;
            file.seek(SeekFrom::Start(start))?;
            left = Some(lines - found.min(lines));
        }
        opened.push(BufReader::new(file));
        if left == Some(0) {
            break;
        }
    }
    opened.reverse();
    Ok(opened)
}

fn rotated(path: &Path, current: Option<&BufReader<File>>) -> bool {
    let Ok(there) = std::fs::metadata(path) else { return false };
    let here = current.and_then(|c| c.get_ref().metadata().ok());
    here.is_none_or(|here| here.ino() != there.ino())
}

struct Printer {
    options: Options,
    left: Option<u64>,
    /// In the middle of a line that came in parts.
    middle: bool,
}

impl Printer {
    /// What to show of a raw line.
    fn show(&mut self, raw: &[u8]) -> Option<Vec<u8>> {
        let line = parse(raw)?;
        let wanted = match self.options.since {
            Some(since) => time_of(line.time).is_some_and(|t| t >= since),
            None => true,
        };
        let first = !std::mem::replace(&mut self.middle, !line.full);
        if !wanted {
            return None;
        }
        let mut shown = Vec::with_capacity(raw.len() + 1);
        if self.options.timestamps && first {
            shown.extend_from_slice(line.time.as_bytes());
            shown.push(b' ');
        }
        shown.extend_from_slice(line.text);
        if line.full {
            shown.push(b'\n');
        }
        if let Some(left) = &mut self.left {
            shown.truncate(usize::try_from(*left).unwrap_or(usize::MAX));
            *left -= shown.len() as u64;
        }
        Some(shown)
    }
}

/// Reads whole lines up to the present end of the file.
async fn pump(
    source: &mut Option<BufReader<File>>,
    printer: &mut Printer,
    out: &mpsc::Sender<Bytes>,
) -> Result<(), ReaderGone> {
    const BATCH: usize = 32 * 1024;
    let Some(reader) = source else { return Ok(()) };
    let mut batch = Vec::new();
    let mut raw = Vec::new();
    loop {
        raw.clear();
        let read = reader.read_until(b'\n', &mut raw).unwrap_or(0);
        let whole = raw.last() == Some(&b'\n');
        if whole {
            raw.pop();
            batch.extend(printer.show(&raw).unwrap_or_default());
        } else if read > 0 {
            // The writer is in the middle of a line: read it again when it is whole.
            let back = i64::try_from(read).unwrap_or(0);
            let _ = reader.seek_relative(-back);
        }
        let spent = printer.left == Some(0);
        if (!whole || spent || batch.len() >= BATCH) && !batch.is_empty() {
            out.send(Bytes::from(std::mem::take(&mut batch))).await.map_err(|_| ReaderGone)?;
        }
        if spent {
            return Err(ReaderGone);
        }
        if !whole {
            return Ok(());
        }
    }
}

fn watch_dir(dir: &Path) -> Option<AsyncFd<OwnedFd>> {
    let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC).ok()?;
    let events = AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO;
    inotify.add_watch(dir, events).ok()?;
    // SAFETY: the AsyncFd owns the descriptor, so it stays open and the same until it is dropped.
    unsafe { AsyncFd::register(OwnedFd::from(inotify)) }.ok()
}

/// Waits for a change in the directory; without a watch looks again twice a second.
async fn changed(watch: &mut Option<AsyncFd<OwnedFd>>) {
    let Some(fd) = watch else {
        tokio::time::sleep(std::time::Duration::from_millis(500)).await;
        return;
    };
    if let Ok(mut ready) = fd.readable().await {
        // What changed is of no interest, only that something did.
        let mut events = [0u8; 4096];
        while nix::unistd::read(fd.get_ref(), &mut events).is_ok_and(|n| n > 0) {}
        ready.clear_ready();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use std::io::Write;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    fn line(second: u32, text: &str) -> String {
        format!("2024-05-01T12:00:{second:02}.5Z stdout F {text}\n")
    }

    async fn read(path: &Path, options: Options) -> String {
        let (tx, mut rx) = mpsc::channel(4);
        let (_keep, ends) = watch::channel(0);
        let task = tokio::spawn(stream(path.to_path_buf(), options, tx, || false, ends));
        let mut all = Vec::new();
        while let Some(bytes) = rx.recv().await {
            all.extend_from_slice(&bytes);
        }
        task.await.unwrap();
        String::from_utf8(all).unwrap()
    }

    #[tokio::test]
    async fn options_select_across_rotated_files() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        std::fs::write(dir.path().join("0.log.20240501-120001"), line(1, "one") + &line(2, "two")).unwrap();
        std::fs::write(
            &path,
            line(3, "three") + "2024-05-01T12:00:04Z stderr P fo\n" + "2024-05-01T12:00:04Z stderr F ur\n",
        )
        .unwrap();
        let of = |options| read(&path, options);
        assert_eq!(of(Options::default()).await, "one\ntwo\nthree\nfour\n");
        assert_eq!(of(Options { tail: Some(4), ..Options::default() }).await, "two\nthree\nfour\n");
        assert_eq!(of(Options { tail: Some(0), ..Options::default() }).await, "");
        assert_eq!(of(Options { limit: Some(6), ..Options::default() }).await, "one\ntw");
        let since = "2024-05-01T12:00:03Z".parse().ok();
        assert_eq!(of(Options { since, ..Options::default() }).await, "three\nfour\n");
        let stamped = of(Options { timestamps: true, tail: Some(2), ..Options::default() }).await;
        assert_eq!(stamped, "2024-05-01T12:00:04Z four\n");
        assert_eq!(read(&dir.path().join("none.log"), Options::default()).await, "");
    }

    #[tokio::test]
    async fn following_survives_rotation_and_ends_with_the_container() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        std::fs::write(&path, line(1, "a")).unwrap();
        let alive = Arc::new(AtomicBool::new(true));
        let (ended, ends) = watch::channel(0);
        let (tx, mut rx) = mpsc::channel(4);
        let asked = alive.clone();
        let options = Options { follow: true, ..Options::default() };
        let task =
            tokio::spawn(stream(path.clone(), options, tx, move || asked.load(Ordering::SeqCst), ends));
        let mut next = async || String::from_utf8(rx.recv().await.unwrap().to_vec()).unwrap();
        assert_eq!(next().await, "a\n");
        let append = |path: &Path, text: &str| {
            let mut file = std::fs::OpenOptions::new().create(true).append(true).open(path).unwrap();
            file.write_all(text.as_bytes()).unwrap();
        };
        append(&path, &line(2, "b"));
        assert_eq!(next().await, "b\n");
        append(&path, "2024-05-01T12:00:03Z stdout F half");
        append(&path, " line\n");
        assert_eq!(next().await, "half line\n");
        std::fs::rename(&path, dir.path().join("0.log.20240501-120003")).unwrap();
        append(&path, &line(4, "c"));
        assert_eq!(next().await, "c\n");
        append(&path, &line(5, "last"));
        alive.store(false, Ordering::SeqCst);
        ended.send_replace(1);
        assert_eq!(next().await, "last\n");
        assert!(rx.recv().await.is_none());
        task.await.unwrap();
    }
}
