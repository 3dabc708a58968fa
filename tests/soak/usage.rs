//! What a process uses, as the kernel counts it.

use std::fs;
use std::path::Path;

use crate::common::open_files::open_files;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    /// Open files, but for watches of folders and of mounts.
    pub(crate) files: usize,
    /// Of folders, but for the simulated driver's.
    pub(crate) watches: usize,
    /// The simulated driver's: while it is in use it keeps some for calls that will wait.
    pub(crate) drivers_watches: usize,
    pub(crate) mounts: usize,
    pub(crate) threads: usize,
    /// Resident memory that is of no file, in KiB.
    pub(crate) memory: u64,
}

impl Usage {
    /// None where the process has ended, reaped or not. `driver` is the folder of the
    /// simulated driver's state.
    pub(crate) fn of(pid: u32, driver: &Path) -> Option<Self> {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.split_whitespace().next()
        };
        if matches!(field("State:")?, "Z" | "X") {
            return None;
        }
        let mut usage = Self {
            threads: field("Threads:")?.parse().ok()?,
            memory: field("RssAnon:")?.parse().ok()?,
            ..Self::default()
        };
        for file in open_files(pid) {
            *if file.watches_alone(driver) {
                &mut usage.drivers_watches
            } else if file.is_watch() {
                &mut usage.watches
            } else if file.path.ends_with("/mountinfo") {
                &mut usage.mounts
            } else {
                &mut usage.files
            } += 1;
        }
        Some(usage)
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
    use crate::common::open_files::OpenFile;

    #[test]
    fn an_open_file_and_a_thread_are_counted() {
        let pid = std::process::id();
        let opened: Vec<_> = (0..200)
            .map(|_| std::fs::File::open("/dev/null").unwrap())
            .collect();
        let elsewhere = Path::new("/");
        let before = Usage::of(pid, elsewhere).unwrap();
        drop(opened);
        let now = Usage::of(pid, elsewhere).unwrap();
        // Other tests of this process open and close theirs, and fewer.
        assert!(
            before.files >= 200 && before.files > now.files,
            "{before:?} {now:?}"
        );
        assert!(now.threads > 0 && now.memory > 0);
    }

    #[test]
    fn the_drivers_own_watches_are_told_from_others() {
        let one = "pos:\t0\nino:\t1038\ninotify wd:1 ino:3c4a7 sdev:fe00000 mask:2 \n";
        let two = format!("{one}inotify wd:2 ino:3c4a8 sdev:fe00000 mask:2 \n");
        let watches_alone = |info: &str, inode| {
            let (path, info) = ("anon_inode:inotify".to_owned(), info.to_owned());
            OpenFile { path, info }.watches_inode_alone(inode)
        };
        assert!(watches_alone(one, 0x3c4a7));
        assert!(!watches_alone(one, 0x3c4a8));
        assert!(!watches_alone(&two, 0x3c4a7));
        assert!(!watches_alone("pos:\t0\nino:\t1038\n", 0x1038));
    }

    #[test]
    fn the_median_is_the_one_in_the_middle() {
        assert_eq!(median(&[3, 1, 2]), 2);
        assert_eq!(median(&[]), 0);
    }
}
