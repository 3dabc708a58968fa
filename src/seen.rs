//! Files that were seen to exist, and a cheap way to know that they still do.
//!
//! An answer to the kubelet names some forty files, and each has to exist when it is
//! given. To look at each, or only at each of their folders, takes longer than the rest
//! of the answer. So the kernel is asked to say when something goes: from a folder that has one of
//! them (inotify(7)), a folder above by another name, or a mount (proc_pid_mountinfo(5)).
//! It says so before the call returns that did it. As long as it has nothing to say, all
//! is where it was.

use std::collections::BTreeSet;
use std::fs::File;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{CreateFlags, Reader, WatchFlags, add_watch, init};
use rustix::io;

/// Changes with each mount and unmount that this process could see.
const MOUNTS: &str = "/proc/self/mountinfo";
/// So many reports are put aside at once. Whoever makes more of them meanwhile has each
/// file looked at again.
const REPORTS: usize = 4096;

/// What takes a folder from its place.
const ITSELF: WatchFlags = WatchFlags::DELETE_SELF.union(WatchFlags::MOVE_SELF);
/// What takes a name from a folder.
const NAMES: WatchFlags = WatchFlags::DELETE.union(WatchFlags::MOVED_FROM);

/// Reports of what went.
#[derive(Debug)]
struct Reports {
    names: OwnedFd,
    mounts: File,
}

impl Reports {
    /// An error where the system has no more to give, or no procfs.
    fn new() -> io::Result<Self> {
        let names = init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
        let mounts = File::open(MOUNTS)
            .map_err(|error| io::Errno::from_io_error(&error).unwrap_or(io::Errno::NOTSUP))?;
        Ok(Self { names, mounts })
    }

    /// Whether there is none. That there was one of a mount is forgotten by this.
    fn is_none(&self) -> bool {
        let mut sources = [
            PollFd::new(&self.names, PollFlags::IN),
            PollFd::new(&self.mounts, PollFlags::PRI),
        ];
        let at_once = Timespec::default();
        poll(&mut sources, Some(&at_once)) == Ok(0)
    }

    /// Puts aside those that there are.
    fn forget(&self) {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut names = Reader::new(&self.names, &mut buffer);
        for _ in 0..REPORTS {
            if names.next().is_err() {
                break;
            }
        }
        self.is_none();
    }

    /// Has the going of a name from `folder` reported, and of the folder from its place.
    fn watch(&self, folder: &Path) -> io::Result<()> {
        add_watch(&self.names, folder, NAMES | ITSELF | WatchFlags::MASK_ADD)?;
        for above in folder.ancestors().skip(1) {
            add_watch(&self.names, above, ITSELF | WatchFlags::MASK_ADD)?;
        }
        Ok(())
    }
}

/// A set of files since one look.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// Kept from look to look: to end one takes long.
    reports: Option<Reports>,
    /// Every file was there, and it would be reported if one went.
    certain: bool,
}

impl Seen {
    /// Whether all of them still exist for certain. False says nothing: look.
    pub(crate) fn still_there(&self) -> bool {
        let reports = self.reports.as_ref().filter(|_| self.certain);
        reports.is_some_and(Reports::is_none)
    }

    /// Looks at `files`, which are absolute, in place of those before. Whether all
    /// exist for certain; false says nothing.
    pub(crate) fn look<'a>(&mut self, files: impl IntoIterator<Item = &'a Path>) -> bool {
        let files: BTreeSet<_> = files.into_iter().collect();
        let reports = self.reports.take().or_else(|| Reports::new().ok());
        self.certain = reports
            .as_ref()
            .is_some_and(|reports| certain(reports, &files));
        self.reports = reports;
        self.certain
    }
}

/// Whether all exist, and their going will be reported.
fn certain(reports: &Reports, files: &BTreeSet<&Path>) -> bool {
    reports.forget();
    let folders: BTreeSet<_> = files.iter().filter_map(|file| file.parent()).collect();
    // Looked at once they are watched: what goes later is reported.
    folders
        .into_iter()
        .all(|folder| reports.watch(folder).is_ok() && !is_behind_link(folder))
        && files.iter().all(|file| is_there(file))
}

/// Of a link only itself is watched, not what it leads to.
fn is_there(file: &Path) -> bool {
    let metadata = file.symlink_metadata();
    metadata.is_ok_and(|metadata| !metadata.is_symlink())
}

/// Another could take the place of a link, or of what it leads to, and no folder that
/// is watched would change.
fn is_behind_link(folder: &Path) -> bool {
    folder.canonicalize().ok().as_deref() != Some(folder)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::PathBuf;

    use super::*;

    /// Two files in one folder and one in another, looked at.
    struct Looked {
        root: tempfile::TempDir,
        files: Vec<PathBuf>,
        seen: Seen,
    }

    impl Looked {
        fn at(names: &[&str]) -> Self {
            let root = tempfile::tempdir().unwrap();
            let top = root.path().canonicalize().unwrap();
            let files: Vec<_> = names.iter().map(|name| top.join(name)).collect();
            for file in &files {
                fs::create_dir_all(file.parent().unwrap()).unwrap();
                fs::write(file, "").unwrap();
            }
            let seen = Seen::default();
            let mut looked = Self { root, files, seen };
            assert!(looked.look());
            looked
        }

        fn new() -> Self {
            Self::at(&["over/a/1", "over/a/2", "over/b/1"])
        }

        fn look(&mut self) -> bool {
            self.seen.look(self.files.iter().map(PathBuf::as_path))
        }

        fn over(&self) -> PathBuf {
            self.root.path().canonicalize().unwrap().join("over")
        }
    }

    #[test]
    fn files_of_which_nothing_goes_are_still_there() {
        let looked = Looked::new();
        assert!(looked.seen.still_there());
        fs::write(looked.over().join("a/3"), "").unwrap();
        fs::write(&looked.files[0], "longer").unwrap();
        assert!(looked.seen.still_there());
    }

    #[test]
    fn a_file_that_is_removed_or_renamed_shows() {
        for harm in [
            (|file| fs::remove_file(file).unwrap()) as fn(&Path),
            |file| fs::rename(file, file.with_extension("old")).unwrap(),
        ] {
            let mut looked = Looked::new();
            harm(&looked.files[1]);
            assert!(!looked.seen.still_there());
            assert!(!looked.look());
            fs::write(&looked.files[1], "").unwrap();
            assert!(!looked.seen.still_there(), "only a look finds it again");
            assert!(looked.look());
            assert!(looked.seen.still_there());
        }
    }

    #[test]
    fn a_folder_that_is_removed_or_replaced_shows() {
        let mut looked = Looked::new();
        let folder = looked.over().join("b");
        fs::rename(&folder, looked.over().join("c")).unwrap();
        assert!(!looked.seen.still_there());
        assert!(!looked.look());
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("1"), "").unwrap();
        assert!(looked.look());
        fs::remove_dir_all(&folder).unwrap();
        assert!(!looked.seen.still_there(), "the folder that was there last");
    }

    #[test]
    fn a_folder_above_that_goes_shows() {
        let mut looked = Looked::new();
        fs::rename(looked.over(), looked.over().with_extension("old")).unwrap();
        assert!(!looked.seen.still_there());
        assert!(!looked.look());
    }

    #[test]
    fn what_went_is_told_of_each_look_anew() {
        let mut looked = Looked::new();
        for _ in 0..3 {
            for file in &looked.files {
                fs::remove_file(file).unwrap();
                fs::write(file, "").unwrap();
            }
            assert!(!looked.seen.still_there());
            assert!(looked.look());
            assert!(looked.seen.still_there());
        }
    }

    #[test]
    fn nothing_is_certain_behind_a_link_nor_of_a_link() {
        let looked = Looked::new();
        let link = looked.over().join("link");
        symlink("a", &link).unwrap();
        let mut seen = Seen::default();
        assert!(!seen.look([link.join("1").as_path()]));
        assert!(!seen.still_there());
        assert!(!seen.look([link.as_path()]));
        assert!(seen.look([looked.files[0].as_path()]));
    }

    #[test]
    fn nothing_is_certain_of_what_was_not_all_there_or_not_looked_at() {
        let looked = Looked::new();
        let mut seen = Seen::default();
        assert!(!seen.still_there());
        assert!(!seen.look([looked.files[0].as_path(), &looked.over().join("a/3")]));
        assert!(!seen.still_there());
    }
}
