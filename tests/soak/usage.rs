//! What a process uses, as the kernel counts it.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    /// Open files, but for watches of folders and of mounts.
    pub(crate) files: usize,
    /// But for the simulated driver's, which keeps one for each call that ever hung at
    /// the same time as others.
    pub(crate) watches: usize,
    pub(crate) mounts: usize,
    pub(crate) threads: usize,
    /// Resident memory that is of no file, in KiB.
    pub(crate) memory: u64,
}

impl Usage {
    /// None where the process has ended, reaped or not. `driver` is the folder of the
    /// simulated driver's state.
    pub(crate) fn of(pid: u32, driver: &Path) -> Option<Self> {
        let process = PathBuf::from(format!("/proc/{pid}"));
        let status = fs::read_to_string(process.join("status")).ok()?;
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.split_whitespace().next()
        };
        if matches!(field("State:")?, "Z" | "X") {
            return None;
        }
        let driver = fs::metadata(driver).ok()?.ino();
        let (mut files, mut watches, mut mounts) = (0, 0, 0);
        for (file, info) in open_files(&process) {
            if file == "anon_inode:inotify" {
                watches += usize::from(!watches_alone(&info, driver));
            } else if file.ends_with("/mountinfo") {
                mounts += 1;
            } else {
                files += 1;
            }
        }
        Some(Self {
            files,
            watches,
            mounts,
            threads: field("Threads:")?.parse().ok()?,
            memory: field("RssAnon:")?.parse().ok()?,
        })
    }
}

/// What a process has open, and what proc_pid_fdinfo(5) says of it. One that is closed
/// meanwhile is left out.
fn open_files(process: &Path) -> impl Iterator<Item = (String, String)> {
    let (links, infos) = (process.join("fd"), process.join("fdinfo"));
    let links = fs::read_dir(links).into_iter().flatten().flatten();
    links.filter_map(move |link| {
        let info = fs::read_to_string(infos.join(link.file_name())).ok()?;
        Some((fs::read_link(link.path()).ok()?.display().to_string(), info))
    })
}

/// Whether it is the folder with this inode that is watched, and nothing else.
fn watches_alone(info: &str, folder: u64) -> bool {
    let folder = format!("ino:{folder:x}");
    let mut watched = info.lines().filter(|line| line.starts_with("inotify "));
    let first = watched.next();
    let is_it = |line: &str| line.split(' ').any(|word| word == folder);
    first.is_some_and(is_it) && watched.next().is_none()
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
