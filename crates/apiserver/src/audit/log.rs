//! The file of the audit log: a bounded queue, one thread that writes, and files that are set aside when they are large.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use jiff::Timestamp;

use super::Counters;
use super::event::Source;

/// Events that may wait.
const QUEUE: usize = 10_000;
/// Bytes that may wait with them.
const HELD: usize = 64 << 20;
/// Lines are written together up to about so many bytes.
const CHUNK: usize = 64 << 10;

/// The queue and its thread, which ends when the log is dropped and everything is written.
pub struct Log {
    sender: Option<SyncSender<Source>>,
    thread: Option<JoinHandle<()>>,
    held: Arc<AtomicUsize>,
    counters: Arc<Counters>,
}

impl Log {
    /// Starts the thread.
    ///
    /// # Errors
    /// No more threads.
    pub fn start(file: File, counters: Arc<Counters>) -> std::io::Result<Self> {
        let (sender, receiver) = sync_channel(QUEUE);
        let held = Arc::new(AtomicUsize::new(0));
        let writer = Writer { file, held: held.clone(), counters: counters.clone() };
        let thread = std::thread::Builder::new().name("audit".into()).spawn(move || writer.run(&receiver))?;
        Ok(Log { sender: Some(sender), thread: Some(thread), held, counters })
    }

    /// Queues an event, or loses and counts it: requests do not wait for the disk.
    pub fn send(&self, source: Source) {
        self.counters.events.fetch_add(1, Ordering::Relaxed);
        let size = source.held();
        let before = self.held.fetch_add(size, Ordering::Relaxed);
        let fits = before + size <= HELD;
        let sent = fits && self.sender.as_ref().is_some_and(|sender| sender.try_send(source).is_ok());
        if !sent {
            self.held.fetch_sub(size, Ordering::Relaxed);
            self.counters.errors.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.sender = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Writer {
    file: File,
    held: Arc<AtomicUsize>,
    counters: Arc<Counters>,
}

impl Writer {
    fn run(mut self, queue: &Receiver<Source>) {
        let (mut lines, mut count) = (Vec::new(), 0);
        while let Ok(first) = queue.recv() {
            let mut next = Some(first);
            while let Some(source) = next {
                self.held.fetch_sub(source.held(), Ordering::Relaxed);
                lines.extend_from_slice(source.event().to_string().as_bytes());
                lines.push(b'\n');
                count += 1;
                next = if lines.len() < CHUNK { queue.try_recv().ok() } else { None };
            }
            if let Err(error) = self.file.append(&lines) {
                self.counters.errors.fetch_add(count, Ordering::Relaxed);
                tracing::warn!(%error, path = %self.file.path.display(), "writing the audit log");
            }
            lines.clear();
            count = 0;
        }
    }
}

/// A file that is set aside when it is full.
pub struct File {
    path: PathBuf,
    max_size: u64,
    max_backups: usize,
    file: std::fs::File,
    size: u64,
}

fn open(path: &Path) -> std::io::Result<std::fs::File> {
    let file = OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
    file.set_permissions(std::fs::Permissions::from_mode(0o600))?;
    Ok(file)
}

impl File {
    /// Goes on with the file that is there.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn open(path: &Path, max_size: u64, max_backups: usize) -> std::io::Result<Self> {
        let file = open(path)?;
        let size = file.metadata()?.len();
        Ok(File { path: path.to_owned(), max_size, max_backups, file, size })
    }

    /// Appends whole lines; none of them when that fails.
    fn append(&mut self, lines: &[u8]) -> std::io::Result<()> {
        let more = lines.len() as u64;
        if self.size > 0 && self.size + more > self.max_size {
            self.set_aside()?;
        }
        if let Err(error) = self.file.write_all(lines) {
            let _ = self.file.set_len(self.size);
            return Err(error);
        }
        self.size += more;
        Ok(())
    }

    /// Renames the file after the time, begins a new one, and forgets the oldest.
    fn set_aside(&mut self) -> std::io::Result<()> {
        let stamp = Timestamp::now().strftime("%Y-%m-%dT%H-%M-%S%.6f");
        std::fs::rename(&self.path, self.path.with_file_name(format!("{}{stamp}.log", self.prefix())))?;
        self.file = open(&self.path)?;
        self.size = 0;
        let mut old = self.backups()?;
        old.sort();
        let surplus = old.len().saturating_sub(self.max_backups);
        old.iter().take(surplus).try_for_each(std::fs::remove_file)
    }

    /// `audit-`, of `audit.log`.
    fn prefix(&self) -> String {
        format!("{}-", self.path.file_stem().unwrap_or_default().to_string_lossy())
    }

    fn backups(&self) -> std::io::Result<Vec<PathBuf>> {
        let prefix = self.prefix();
        let entries = std::fs::read_dir(self.path.parent().unwrap_or(Path::new(".")))?;
        let ours = |name: &str| {
            // The time begins with a digit: nobody else's file is meant.
            let stamp = name.strip_prefix(&prefix).and_then(|rest| rest.strip_suffix(".log"));
            stamp.is_some_and(|stamp| stamp.starts_with(|c: char| c.is_ascii_digit()))
        };
        let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
        Ok(paths.filter(|p| p.file_name().and_then(|n| n.to_str()).is_some_and(ours)).collect())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn files_are_set_aside_and_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.log");
        std::fs::write(dir.path().join("audit-policy.log"), "not ours").unwrap();
        std::fs::write(&path, "old\n").unwrap();
        let mut file = File::open(&path, 20, 2).unwrap();
        for i in 0..10 {
            file.append(format!("line {i:04}\n").as_bytes()).unwrap();
        }
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let mut all = file.backups().unwrap();
        all.sort();
        assert_eq!(all.len(), 2);
        let text: String = all.iter().chain([&path]).map(|p| std::fs::read_to_string(p).unwrap()).collect();
        assert_eq!(
            text,
            "line 0005\nline 0006\nline 0007\nline 0008\nline 0009\n"[10 * (5 - text.lines().count())..]
        );
        assert!(std::fs::metadata(&path).unwrap().len() <= 20);
        assert_eq!(std::fs::read_to_string(dir.path().join("audit-policy.log")).unwrap(), "not ours");
    }

    #[test]
    fn what_cannot_be_written_is_counted() {
        let counters = Arc::new(Counters::default());
        // Every write to it fails, as on a full disk.
        let path = Path::new("/dev/full");
        let file = OpenOptions::new().write(true).open(path).unwrap();
        let file = File { path: path.to_owned(), max_size: u64::MAX, max_backups: 0, file, size: 0 };
        let log = Log::start(file, counters.clone()).unwrap();
        for _ in 0..3 {
            log.send(Source::sample());
        }
        drop(log);
        assert_eq!(
            (counters.events.load(Ordering::Relaxed), counters.errors.load(Ordering::Relaxed)),
            (3, 3)
        );
    }

    #[test]
    fn nobody_waits_for_a_full_queue() {
        let counters = Arc::new(Counters::default());
        let (sender, queue) = sync_channel(2);
        let log =
            Log { sender: Some(sender), thread: None, held: Arc::default(), counters: counters.clone() };
        for _ in 0..5 {
            log.send(Source::sample());
        }
        assert_eq!(counters.errors.load(Ordering::Relaxed), 3);
        drop(log);
        assert_eq!(queue.iter().count(), 2);
    }
}
