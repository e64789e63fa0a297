//! Memory that a component needed once, given back to the system.
//!
//! Two things make a process that is at rest larger than what it keeps. The allocator holds on to what a first list or a
//! great transaction freed. And every page of the binary that ran once stays mapped, though most of it only starts
//! things. Neither is needed while nothing happens, so components call [`give_back`] when they have caught up, and now and
//! then where bursts come.

use std::ops::Range;

/// Freed memory goes back as it is freed, and all threads share one heap: for a component that is one Pod and allocates
/// little while it serves. Must be called before there are threads.
pub fn be_sparing() {
    #[cfg(target_env = "gnu")]
    for (setting, value) in
        [(libc::M_ARENA_MAX, 1), (libc::M_MMAP_THRESHOLD, 128 << 10), (libc::M_TRIM_THRESHOLD, 128 << 10)]
    {
        // SAFETY: takes numbers only; the allocator refuses those it does not like, and then goes on as before.
        unsafe { libc::mallopt(setting, value) };
    }
}

/// Gives back what is free, and pages of the binary, which come back from the page cache as they are needed again.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes no pointer; it locks the allocator's arenas itself and may be called at any time by any thread.
    unsafe {
        libc::malloc_trim(0);
    }
    let Ok(maps) = std::fs::read_to_string("/proc/self/smaps") else { return };
    for range in clean(&maps) {
        // SAFETY: the kernel says that the range is mapped from a file, cannot be written to, and holds no page of this
        // process's own. So whatever is read there next is what was there before. The binary stays mapped for ever.
        unsafe { libc::madvise(range.start as *mut libc::c_void, range.len(), libc::MADV_DONTNEED) };
    }
}

/// The ranges of `smaps` (proc_pid_smaps(5)) that are the binary's and as they are in the file.
fn clean(smaps: &str) -> Vec<Range<usize>> {
    let own = std::env::current_exe().unwrap_or_default();
    let mut ranges: Vec<Range<usize>> = Vec::new();
    let mut is_ours = false;
    for line in smaps.lines() {
        if let Some((range, path)) = header(line) {
            is_ours = range.is_some() && std::path::Path::new(path) == own;
            ranges.extend(range.filter(|_| is_ours));
        } else if is_ours
            && let Some(size) = line.strip_prefix("Anonymous:")
            && size.trim() != "0 kB"
        {
            ranges.pop();
        }
    }
    ranges
}

/// A mapping's range, if it is private and cannot be written to, and its path: `7f00-7f10 r-xp 00000000 fe:00 12 /bin/x`.
fn header(line: &str) -> Option<(Option<Range<usize>>, &str)> {
    let mut words = line.splitn(6, ' ');
    let (from, to) = words.next()?.split_once('-')?;
    let number = |text| usize::from_str_radix(text, 16).ok();
    let (range, rights) = (number(from)?..number(to)?, words.next()?);
    let path = words.nth(3).unwrap_or_default().trim_start();
    Some((Some(range).filter(|_| matches!(rights, "r--p" | "r-xp")), path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_as_in_the_file_is_dropped() {
        let own = std::env::current_exe().unwrap_or_default();
        let entry = |range: &str, rights: &str, path: &str, anonymous: u32| {
            format!(
                "{range} {rights} 00001000 fe:00 12   {path}\nRss: 8 kB\nAnonymous:   {anonymous} kB\nVmFlags: rd\n"
            )
        };
        let own = own.display().to_string();
        let text = [
            entry("1000-2000", "r--p", &own, 0),
            entry("2000-3000", "r-xp", &own, 0),
            // Relocated at start, then protected.
            entry("3000-4000", "r--p", &own, 4),
            entry("4000-5000", "rw-p", &own, 0),
            entry("5000-6000", "r--p", "/usr/lib/locale/locale-archive", 0),
            entry("6000-7000", "rw-p", "[heap]", 0),
            "7000-8000 r-xp 00000000 00:00 0\nAnonymous: 0 kB\n".to_owned(),
        ];
        assert_eq!(clean(&text.concat()), [0x1000..0x2000, 0x2000..0x3000]);
    }

    #[test]
    fn the_process_goes_on_smaller() {
        let resident = || {
            let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
            let line = text.lines().find_map(|line| line.strip_prefix("RssFile:")).unwrap_or_default();
            line.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or_default()
        };
        let before = resident();
        give_back();
        assert!(resident() < before, "{} kB of files before, {} after", before, resident());
    }
}
