//! Files that are there whole or not at all: written beside, and renamed.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// What a file that is being written ends with.
const UNFINISHED: &str = ".tmp";

/// An unfinished file that is older was left behind by a process that died.
const LEFT_BEHIND: Duration = Duration::from_secs(60);

/// Puts `content` in the place of the file at `path`, on the disk when it
/// returns, in a folder that is made where it is missing. `mode` is the file's,
/// whatever the umask is. Blocks.
///
/// # Errors
///
/// What the system says of the first thing that it refuses; the old file is
/// still there then.
pub(crate) fn replace(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let folder = path.parent().unwrap_or(path);
    fs::create_dir_all(folder)?;
    for unfinished in unfinished(path).filter(|file| is_left_behind(file)) {
        // Another process may be as tidy.
        drop(fs::remove_file(unfinished));
    }
    let beside = beside(path);
    let result = fill(&beside, content, mode).and_then(|()| fs::rename(&beside, path));
    if result.is_err() {
        drop(fs::remove_file(&beside));
    }
    result
}

/// What was left of writing the file at `path`.
pub(crate) fn unfinished(path: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = path.parent().and_then(|folder| fs::read_dir(folder).ok());
    let prefix = prefix(path);
    let ours = entries
        .into_iter()
        .flatten()
        .flatten()
        .filter(move |entry| {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            name.starts_with(&prefix) && name.ends_with(UNFINISHED)
        });
    ours.map(|entry| entry.path())
}

fn fill(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(mode).open(path)?;
    file.write_all(content)?;
    file.set_permissions(Permissions::from_mode(mode))?;
    File::sync_all(&file)
}

/// A name of one's own: two processes may write at once while one takes the
/// other's place.
pub(crate) fn beside(path: &Path) -> PathBuf {
    let number = fastrand::u32(..);
    path.with_file_name(format!("{}{number:08x}{UNFINISHED}", prefix(path)))
}

fn prefix(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default();
    format!(".{}.", name.to_string_lossy())
}

fn is_left_behind(file: &Path) -> bool {
    let modified = file.metadata().and_then(|metadata| metadata.modified());
    let age = modified.map(|at| SystemTime::now().duration_since(at).unwrap_or_default());
    age.is_ok_and(|age| age >= LEFT_BEHIND)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_dead_process_left_is_cleared_away_and_what_a_live_one_writes_is_not() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("file");
        let (dead, live) = (beside(&path), beside(&path));
        for file in [&dead, &live] {
            fs::write(file, "half").unwrap();
        }
        let long_ago = SystemTime::now() - LEFT_BEHIND;
        File::open(&dead).unwrap().set_modified(long_ago).unwrap();
        replace(&path, b"one", 0o600).unwrap();
        assert!(!dead.exists() && live.exists());
        assert_eq!(unfinished(&path).collect::<Vec<_>>(), [live]);
    }
}
