//! What a process has open.

use std::fmt::{self, Debug, Formatter};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// One file that a process has open.
pub struct OpenFile {
    /// Its path, or the kind of what has none.
    pub path: String,
    /// What proc_pid_fdinfo(5) says of it.
    pub info: String,
}

impl OpenFile {
    /// Whether it watches files and folders, by inotify(7).
    pub fn is_watch(&self) -> bool {
        self.path == "anon_inode:inotify"
    }

    /// Whether it watches the folder, and nothing else.
    pub fn watches_alone(&self, folder: &Path) -> bool {
        let inode = fs::metadata(folder).map(|folder| folder.ino());
        self.is_watch() && inode.is_ok_and(|inode| self.watches_inode_alone(inode))
    }

    /// Whether it watches what has this inode, and nothing else.
    pub fn watches_inode_alone(&self, inode: u64) -> bool {
        let inode = format!("ino:{inode:x}");
        let mut watched = self
            .info
            .lines()
            .filter(|line| line.starts_with("inotify "));
        let first = watched.next();
        let is_it = |line: &str| line.split(' ').any(|word| word == inode);
        first.is_some_and(is_it) && watched.next().is_none()
    }
}

impl Debug for OpenFile {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.path)
    }
}

/// What a process has open, by path. One that is closed meanwhile is left out.
pub fn open_files(pid: u32) -> Vec<OpenFile> {
    let process = PathBuf::from(format!("/proc/{pid}"));
    let infos = process.join("fdinfo");
    let links = fs::read_dir(process.join("fd"));
    let opened = links.into_iter().flatten().flatten().filter_map(|link| {
        Some(OpenFile {
            info: fs::read_to_string(infos.join(link.file_name())).ok()?,
            path: fs::read_link(link.path()).ok()?.display().to_string(),
        })
    });
    let mut opened: Vec<_> = opened.collect();
    opened.sort_unstable_by(|a, b| a.path.cmp(&b.path));
    opened
}
