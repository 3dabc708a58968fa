//! The state file: which one it is, and what it last said.

use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::state::State;
use crate::watch::FolderWatch;

/// Names the state file.
const STATE_VARIABLE: &str = "SIMULATED_NVML_STATE";
/// The state file's name beside the library.
const STATE_FILE: &str = "simulated_nvml.json";
/// So many watches are kept for waits to come.
const IDLE_WATCHES: usize = 8;

/// The state file, parsed anew when it has changed.
#[derive(Debug)]
pub(crate) struct Store {
    path: PathBuf,
    read: Mutex<LastRead>,
    /// Watches between two waits: to close one takes the kernel 10 ms and more.
    idle_watches: Mutex<Vec<FolderWatch>>,
}

#[derive(Debug, Default)]
struct LastRead {
    /// Of the file that was last looked at, good or bad: each complaint is
    /// made once.
    stamp: Option<Stamp>,
    good: Option<Arc<State>>,
    /// Whether there was a file.
    there: bool,
    /// Since before that look: a look for each call would take longer than most calls
    /// of a real driver's library.
    watch: Option<FolderWatch>,
}

/// A file replaced by rename differs in one of these.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

impl From<&Metadata> for Stamp {
    fn from(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        }
    }
}

impl Store {
    /// The store of a library that was loaded from `library`.
    pub(crate) fn of_library(library: Option<PathBuf>) -> Self {
        let named = std::env::var_os(STATE_VARIABLE).map(PathBuf::from);
        let beside = || library?.parent().map(|folder| folder.join(STATE_FILE));
        let path = named.or_else(beside).unwrap_or_default();
        Self {
            // The working directory may change, the node does not.
            path: std::path::absolute(&path).unwrap_or(path),
            read: Mutex::default(),
            idle_watches: Mutex::default(),
        }
    }

    /// What the file says, or said when it could last be read. `None` is a
    /// machine without a driver.
    pub(crate) fn current(&self) -> Option<Arc<State>> {
        let mut read = lock(&self.read);
        if !read.watch.as_ref().is_some_and(FolderWatch::is_quiet) {
            self.look(&mut read);
        }
        read.good.clone().filter(|_| read.there)
    }

    fn look(&self, read: &mut LastRead) {
        if read.watch.is_none() {
            read.watch = FolderWatch::new(self.folder()).ok();
        }
        let metadata = fs::metadata(&self.path);
        read.there = metadata.is_ok();
        if let Ok(metadata) = metadata {
            let stamp = Some(Stamp::from(&metadata));
            if read.stamp != stamp {
                read.stamp = stamp;
                self.refresh(read);
            }
        }
    }

    fn folder(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new("/"))
    }

    /// The last good state, also when the file is gone: a driver cannot be
    /// unloaded under a library that uses it.
    pub(crate) fn last_good(&self) -> Option<Arc<State>> {
        self.current().or_else(|| lock(&self.read).good.clone())
    }

    /// Blocks until `check` has an answer, asking it now and after each change
    /// of the file; or until the deadline, and answers `None`. `check` gets
    /// `None` once the file is gone, with its node.
    pub(crate) fn wait<T>(
        &self,
        deadline: Option<Instant>,
        mut check: impl FnMut(Option<Arc<State>>) -> Option<T>,
    ) -> io::Result<Option<T>> {
        if let Some(answer) = check(self.current()) {
            return Ok(Some(answer));
        }
        let watch = self.watch()?;
        // Whatever happened before the watch began is seen by the first check.
        let answer = loop {
            if let Some(answer) = check(self.current()) {
                break Some(answer);
            }
            if !watch.changed(deadline)? {
                break None;
            }
        };
        let mut idle = lock(&self.idle_watches);
        if idle.len() < IDLE_WATCHES {
            idle.push(watch);
        }
        Ok(answer)
    }

    /// A watch for one waiter: two on one would swallow each other's changes.
    fn watch(&self) -> io::Result<FolderWatch> {
        let idle = lock(&self.idle_watches).pop();
        idle.map_or_else(|| FolderWatch::new(self.folder()), Ok)
    }

    /// Closes what no wait uses, and will look anew.
    pub(crate) fn forget(&self) {
        *lock(&self.idle_watches) = Vec::new();
        *lock(&self.read) = LastRead::default();
    }

    fn refresh(&self, read: &mut LastRead) {
        match self.load(&mut read.stamp) {
            Ok(state) => read.good = Some(Arc::new(state)),
            Err(error) => eprintln!("simulated NVML: {}: {error}", self.path.display()),
        }
    }

    /// The stamp is that of the open file: the path may lead to a newer one
    /// before the last byte is read.
    fn load(&self, stamp: &mut Option<Stamp>) -> Result<State, String> {
        let mut file = File::open(&self.path).map_err(|error| error.to_string())?;
        let metadata = file.metadata().map_err(|error| error.to_string())?;
        *stamp = Some(Stamp::from(&metadata));
        let mut json = Vec::new();
        file.read_to_end(&mut json)
            .map_err(|error| error.to_string())?;
        let mut state: State = serde_json::from_slice(&json).map_err(|error| error.to_string())?;
        state.sort_events();
        state.validate().map(|()| state)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
