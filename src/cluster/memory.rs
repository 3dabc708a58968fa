//! Since when the condition's status holds, kept over restarts.
//!
//! The API server knows it too, and asking would cost every start of every
//! plugin a request.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::condition::Status;
use super::time::{parse, rfc3339};

/// The file's name in the state folder.
pub const FILE: &str = "gpu-healthy";

/// A status, and since when it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Since {
    pub(super) status: Status,
    pub(super) at: SystemTime,
}

impl Since {
    /// One line: the status and the time.
    fn line(&self) -> String {
        format!("{} {}\n", self.status.name(), rfc3339(self.at))
    }

    /// Nothing where the line is not one that was written here.
    fn parse(line: &str) -> Option<Self> {
        let (status, at) = line.trim_end().split_once(' ')?;
        let mut all = Status::ALL.into_iter();
        let status = all.find(|one| one.name() == status)?;
        let at = parse(at)?;
        Some(Self { status, at })
    }
}

/// The file that it is kept in, if any is.
#[derive(Debug)]
pub(super) struct Memory {
    file: Option<PathBuf>,
}

impl Memory {
    /// In this folder, or nowhere.
    pub(super) fn new(state_dir: Option<&Path>) -> Self {
        Self {
            file: state_dir.map(|folder| folder.join(FILE)),
        }
    }

    /// What was kept. A file that cannot be read costs a time that is too late.
    pub(super) fn recall(&self) -> Option<Since> {
        let text = fs::read_to_string(self.file.as_ref()?).ok()?;
        Since::parse(&text)
    }

    /// Keeps it: beside, and renamed, so that it is whole or not there.
    pub(super) fn keep(&self, since: &Since) -> io::Result<()> {
        let Some(file) = &self.file else {
            return Ok(());
        };
        if let Some(folder) = file.parent() {
            fs::create_dir_all(folder)?;
        }
        let beside = file.with_extension("new");
        fs::write(&beside, since.line())?;
        fs::rename(&beside, file)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_is_kept_is_recalled() {
        let folder = tempfile::tempdir().unwrap();
        let memory = Memory::new(Some(&folder.path().join("state")));
        assert_eq!(memory.recall(), None);
        for status in Status::ALL {
            let at = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
            let since = Since { status, at };
            memory.keep(&since).unwrap();
            assert_eq!(memory.recall(), Some(since));
        }
        let text = fs::read_to_string(folder.path().join("state").join(FILE)).unwrap();
        assert_eq!(text, "Unknown 2027-01-15T08:00:00Z\n");
    }

    #[test]
    fn without_a_folder_nothing_is_kept() {
        let memory = Memory::new(None);
        let at = SystemTime::now();
        let status = Status::True;
        memory.keep(&Since { status, at }).unwrap();
        assert_eq!(memory.recall(), None);
    }

    #[test]
    fn anything_else_in_the_file_is_nothing() {
        for text in [
            "",
            "True",
            "true 2027-01-15T08:00:00Z",
            "True yesterday",
            "\0",
            "True  1",
        ] {
            assert_eq!(Since::parse(text), None, "{text:?}");
        }
    }
}
