//! The file of our CDI spec: whole or not there, and never half of it.
//!
//! A runtime reads every `.json` and `.yaml` in the folder whenever that changes.
//! So the text is written beside, under a name that it passes over, and renamed.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::FILE;

/// All may read it, and runtimes run as root.
const MODE: u32 = 0o644;

/// What a file that is being written ends with.
const UNFINISHED: &str = ".tmp";

/// An unfinished file that is older was left behind by a process that died.
const LEFT_BEHIND: Duration = Duration::from_secs(60);

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
        replace(path, text)?;
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
    for unfinished in unfinished(folder) {
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

fn replace(path: &Path, text: &str) -> io::Result<()> {
    let folder = path.parent().unwrap_or(path);
    fs::create_dir_all(folder)?;
    for unfinished in unfinished(folder).filter(|file| is_left_behind(file)) {
        // Another process may be as tidy.
        drop(fs::remove_file(unfinished));
    }
    let beside = beside(folder);
    let result = fill(&beside, text).and_then(|()| fs::rename(&beside, path));
    if result.is_err() {
        drop(fs::remove_file(&beside));
    }
    result
}

fn fill(path: &Path, text: &str) -> io::Result<()> {
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(MODE).open(path)?;
    file.write_all(text.as_bytes())?;
    // Whatever the umask is.
    file.set_permissions(Permissions::from_mode(MODE))?;
    File::sync_all(&file)
}

/// A name of one's own: two plugins may write at once while one takes the
/// other's place.
fn beside(folder: &Path) -> PathBuf {
    let number = fastrand::u32(..);
    folder.join(format!(".{FILE}.{number:08x}{UNFINISHED}"))
}

fn unfinished(folder: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let ours = entries.filter(|entry| {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        name.starts_with(&format!(".{FILE}.")) && name.ends_with(UNFINISHED)
    });
    ours.map(|entry| entry.path())
}

fn is_left_behind(file: &Path) -> bool {
    let modified = file.metadata().and_then(|metadata| metadata.modified());
    let age = modified.map(|at| SystemTime::now().duration_since(at).unwrap_or_default());
    age.is_ok_and(|age| age >= LEFT_BEHIND)
}

#[cfg(test)]
mod tests {
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
    fn what_a_dead_process_left_is_cleared_away_and_what_a_live_one_writes_is_not() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join(FILE);
        let (dead, live) = (beside(root.path()), beside(root.path()));
        for file in [&dead, &live] {
            fs::write(file, "half").unwrap();
        }
        let long_ago = SystemTime::now() - LEFT_BEHIND;
        File::open(&dead).unwrap().set_modified(long_ago).unwrap();
        write(&path, "one").unwrap();
        assert!(!dead.exists() && live.exists());
        assert!(remove(root.path()).unwrap());
        assert!(names(root.path()).is_empty());
        assert!(!remove(root.path()).unwrap(), "there was none");
        assert!(!remove(&root.path().join("gone")).unwrap());
    }

    #[test]
    fn a_runtime_passes_over_what_is_being_written() {
        let name = beside(Path::new("/"));
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
