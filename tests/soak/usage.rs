//! What a process uses, as the kernel counts it.

use std::fs;
use std::path::PathBuf;

use crate::common::system::open_files;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    /// Open files, but for watches of folders and of mounts.
    pub(crate) files: usize,
    pub(crate) watches: usize,
    pub(crate) mounts: usize,
    pub(crate) threads: usize,
    /// Resident memory that is of no file, in KiB.
    pub(crate) memory: u64,
}

impl Usage {
    /// None where the process has ended, reaped or not.
    pub(crate) fn of(pid: u32) -> Option<Self> {
        let process = PathBuf::from(format!("/proc/{pid}"));
        let status = fs::read_to_string(process.join("status")).ok()?;
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.split_whitespace().next()
        };
        if matches!(field("State:")?, "Z" | "X") {
            return None;
        }
        let files = open_files(pid);
        let is_watch = |file: &&String| *file == "anon_inode:inotify";
        let watches = files.iter().filter(is_watch).count();
        let is_mounts = |file: &&String| file.ends_with("/mountinfo");
        let mounts = files.iter().filter(is_mounts).count();
        Some(Self {
            files: files.len() - watches - mounts,
            watches,
            mounts,
            threads: field("Threads:")?.parse().ok()?,
            memory: field("RssAnon:")?.parse().ok()?,
        })
    }
}

/// The number in the middle.
pub(crate) fn median(numbers: &[u64]) -> u64 {
    let mut sorted = numbers.to_vec();
    sorted.sort_unstable();
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_open_file_and_a_thread_are_counted() {
        let pid = std::process::id();
        let opened: Vec<_> = (0..200)
            .map(|_| std::fs::File::open("/dev/null").unwrap())
            .collect();
        let before = Usage::of(pid).unwrap();
        drop(opened);
        let now = Usage::of(pid).unwrap();
        // Other tests of this process open and close theirs, and fewer.
        assert!(
            before.files >= 200 && before.files > now.files,
            "{before:?} {now:?}"
        );
        assert!(now.threads > 0 && now.memory > 0);
    }

    #[test]
    fn the_median_is_the_one_in_the_middle() {
        assert_eq!(median(&[3, 1, 2]), 2);
        assert_eq!(median(&[]), 0);
    }
}
