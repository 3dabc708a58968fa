//! Files that were seen to exist, and a cheap way to know that they still do.
//!
//! An answer names some twenty files, and each has to exist when it is given. To
//! look at each takes longer than the rest of the answer. But no file goes from
//! a folder without a change of the folder's ctime, which nobody can set back,
//! and nothing takes a folder's place without another inode or device. So as
//! long as the folders are as they were, so are the names in them.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A folder that changed less than this before it was looked at may change again
/// within the same tick of the file system's clock (10 ms at most on Linux), and
/// show nothing of it.
const SETTLED: Duration = Duration::from_millis(100);
/// The same where the file system counts whole seconds.
const SETTLED_COARSE: Duration = Duration::from_secs(3);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    changed: (i64, i64),
}

impl Stamp {
    fn of(folder: &Path) -> Option<Self> {
        let metadata = folder.metadata().ok()?;
        Some(Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        })
    }

    fn is_settled(&self, now: SystemTime) -> bool {
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        let (seconds, nanoseconds) = self.changed;
        let settled = if nanoseconds == 0 {
            SETTLED_COARSE
        } else {
            SETTLED
        };
        match (u64::try_from(seconds), u32::try_from(nanoseconds)) {
            (Ok(seconds), Ok(nanoseconds)) => now
                .checked_sub(Duration::new(seconds, nanoseconds))
                .is_some_and(|age| age >= settled),
            // Before 1970: long settled.
            _ => true,
        }
    }
}

/// A set of files at the moment of one look.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Their folders; none where not every file was there, or a folder had only
    /// just changed: then each file has to be looked at again.
    folders: Option<Vec<(PathBuf, Stamp)>>,
}

impl Seen {
    /// Looks at `files`.
    pub fn look<'a>(files: impl IntoIterator<Item = &'a Path>) -> Self {
        Self::look_at(SystemTime::now(), files)
    }

    fn look_at<'a>(now: SystemTime, files: impl IntoIterator<Item = &'a Path>) -> Self {
        let mut names = BTreeMap::<&Path, BTreeSet<&Path>>::new();
        for file in files {
            let folder = file.parent().unwrap_or(file);
            names.entry(folder).or_default().insert(file);
        }
        let stamps = names.into_iter().map(|(folder, files)| {
            // The stamp first: what goes after it shows in the next.
            let stamp = Stamp::of(folder).filter(|stamp| stamp.is_settled(now))?;
            let all = files.into_iter().all(Path::exists);
            all.then(|| (folder.to_owned(), stamp))
        });
        Self {
            folders: stamps.collect(),
        }
    }

    /// Whether all of them existed for certain.
    pub fn all_there(&self) -> bool {
        self.folders.is_some()
    }

    /// Whether all of them still exist for certain. False says nothing: look.
    pub fn still_there(&self) -> bool {
        self.folders.as_ref().is_some_and(|folders| {
            folders
                .iter()
                .all(|(folder, stamp)| Stamp::of(folder) == Some(*stamp))
        })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// Two files in one folder and one in another, looked at once all is settled.
    fn seen() -> (tempfile::TempDir, Vec<PathBuf>, Seen) {
        let root = tempfile::tempdir().unwrap();
        let files: Vec<_> = ["a/1", "a/2", "b/1"]
            .iter()
            .map(|name| root.path().join(name))
            .collect();
        for file in &files {
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, "").unwrap();
        }
        let later = SystemTime::now() + SETTLED_COARSE;
        let seen = Seen::look_at(later, files.iter().map(PathBuf::as_path));
        (root, files, seen)
    }

    #[test]
    fn files_in_folders_that_did_not_change_are_still_there() {
        let (_root, _files, seen) = seen();
        assert!(seen.still_there());
    }

    #[test]
    fn a_file_that_is_removed_renamed_or_replaced_by_a_folder_shows() {
        for harm in [
            (|file| fs::remove_file(file).unwrap()) as fn(&Path),
            |file| fs::rename(file, file.with_extension("old")).unwrap(),
        ] {
            let (_root, files, seen) = seen();
            harm(&files[1]);
            assert!(!seen.still_there());
        }
    }

    #[test]
    fn a_folder_that_is_removed_or_replaced_shows() {
        let (root, _files, seen) = seen();
        let folder = root.path().join("b");
        fs::rename(&folder, root.path().join("c")).unwrap();
        assert!(!seen.still_there());
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("1"), "").unwrap();
        assert!(!seen.still_there(), "another folder of the same name");
    }

    #[test]
    fn what_was_not_all_there_or_only_just_changed_is_never_certain() {
        let (root, files, _) = seen();
        let with_missing = [files[0].as_path(), &root.path().join("a/3")];
        let later = SystemTime::now() + SETTLED_COARSE;
        assert!(!Seen::look_at(later, with_missing).still_there());
        assert!(!Seen::look([files[0].as_path()]).still_there());
        assert!(!Seen::default().still_there());
    }
}
