//! The file of our CDI spec: whole or not there, and never half of it.
//!
//! A runtime reads every `.json` and `.yaml` in the folder whenever that changes,
//! and passes over the name under which `files` writes it first.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use super::FILE;
use crate::files;

/// All may read it, and runtimes run as root.
const MODE: u32 = 0o644;

/// Tells the file that was written from one that took its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

impl Identity {
    /// Of the file at `path`; `None` where there is none.
    #[must_use]
    pub fn at(path: &Path) -> Option<Self> {
        let metadata = path.symlink_metadata().ok()?;
        metadata.is_file().then(|| Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        })
    }
}

/// The spec's file as it is now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// Which file it is.
    pub identity: Identity,
    /// Whether it had to be written: it had another text, or was not there.
    pub changed: bool,
}

/// Gives the file at `path` this text, unless it has it. Blocks.
///
/// # Errors
///
/// What the system says of the first thing that it refuses.
pub fn write(path: &Path, text: &str) -> io::Result<Written> {
    let same = has(path, text);
    if !same {
        files::replace(path, text.as_bytes(), MODE)?;
    }
    let identity = Identity::at(path).ok_or(io::ErrorKind::NotFound)?;
    Ok(Written {
        identity,
        changed: !same,
    })
}

/// Removes our spec from `folder`, and what was left of writing it. Whether
/// there was one.
///
/// # Errors
///
/// What the system says, but of a file that is not there.
pub fn remove(folder: &Path) -> io::Result<bool> {
    for unfinished in files::unfinished(&folder.join(FILE)) {
        fs::remove_file(unfinished)?;
    }
    match fs::remove_file(folder.join(FILE)) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

fn has(path: &Path, text: &str) -> bool {
    let metadata = path.symlink_metadata();
    let usual = metadata.is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o777 == MODE);
    usual && fs::read(path).is_ok_and(|bytes| bytes == text.as_bytes())
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;

    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap().flatten();
        let names = entries.map(|e| e.file_name().into_string().unwrap());
        names.collect()
    }

    #[test]
    fn written_once_readable_by_all_in_a_folder_that_is_made() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("run/cdi").join(FILE);
        let first = write(&path, "one").unwrap();
        assert!(first.changed);
        assert_eq!(fs::read_to_string(&path).unwrap(), "one");
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, MODE);
        let again = write(&path, "one").unwrap();
        assert!(!again.changed);
        assert_eq!(again.identity, first.identity);
        let other = write(&path, "two").unwrap();
        assert!(other.changed);
        assert_ne!(other.identity, first.identity);
        assert_eq!(names(path.parent().unwrap()), [FILE], "nothing beside it");
    }

    #[test]
    fn a_file_that_others_cannot_read_is_written_anew() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join(FILE);
        write(&path, "one").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        assert!(write(&path, "one").unwrap().changed);
    }

    #[test]
    fn what_is_removed_is_gone_with_what_was_left_of_writing_it() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join(FILE);
        write(&path, "one").unwrap();
        fs::write(files::beside(&path), "half").unwrap();
        assert!(remove(root.path()).unwrap());
        assert!(names(root.path()).is_empty());
        assert!(!remove(root.path()).unwrap(), "there was none");
        assert!(!remove(&root.path().join("gone")).unwrap());
    }

    #[test]
    fn a_runtime_passes_over_what_is_being_written() {
        let name = files::beside(&Path::new("/").join(FILE));
        let ending = name.extension().unwrap();
        assert!(ending != "json" && ending != "yaml", "{}", name.display());
    }

    #[test]
    fn what_cannot_be_written_leaves_nothing_behind() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join(FILE);
        fs::create_dir(&path).unwrap();
        assert!(write(&path, "one").is_err());
        assert_eq!(names(root.path()), [FILE]);
        let no_folder = root.path().join(FILE).join("file");
        fs::remove_dir(&path).unwrap();
        fs::write(&path, "").unwrap();
        assert!(write(&no_folder, "one").is_err());
    }
}
