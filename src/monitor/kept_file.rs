//! Keeps the file in which health outlives the process ([`kept`]).
//!
//! A file system may hang as a driver may: writing is a call on another thread,
//! and the monitor never waits for it.

use std::convert::Infallible;
use std::path::PathBuf;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};
use tracing::warn;

use crate::config::HostPaths;
use crate::gpu::calls::{Calls, Outcome};
use crate::health::kept::{self, File};
use crate::readiness::Readiness;

/// The part of [`Readiness`] that has a note where health cannot be kept.
const KEPT_HEALTH: &str = "kept health";

/// A few kilobytes that take longer are a reason to say so.
const DEADLINE: Duration = Duration::from_secs(10);
/// Between two writes: a flapping GPU has something new to keep all the time. The
/// kernel log tells the next process of what happened in this time.
const PAUSE: Duration = Duration::from_millis(100);
/// What failed is tried again after this.
const RETRY: Duration = Duration::from_secs(5);

type Written = (File, Result<(), String>);

pub(super) struct KeptFile {
    folder: PathBuf,
    /// Absent where it is not known which boot this is: then nothing is kept.
    boot_id: Option<String>,
    readiness: Readiness,
    writing: Calls<(), Written>,
    wanted: Option<File>,
    on_disk: Option<File>,
    not_before: Instant,
}

impl KeptFile {
    /// The file of this boot, and what an earlier process left in it. Blocks for
    /// as long as it takes to read a small file.
    pub(super) fn open(paths: &HostPaths, readiness: Readiness) -> (Self, File) {
        let folder = paths.state_dir.here.clone();
        let boot_id = kept::boot_id(&paths.procfs).map_err(|error| {
            let procfs = paths.procfs.display();
            warn!(%procfs, %error, "no boot ID: health is not kept over a restart");
        });
        let boot_id = boot_id.ok();
        let file = File::new(boot_id.as_deref().unwrap_or_default());
        let left = match boot_id
            .as_deref()
            .map(|boot_id| File::read(&folder, boot_id))
        {
            Some(Ok(left)) => left,
            Some(Err(error)) => {
                let path = folder.join(kept::FILE);
                warn!(path = %path.display(), %error, "health of an earlier run is lost");
                file
            }
            None => file,
        };
        let kept_file = Self {
            folder,
            boot_id,
            readiness,
            writing: Calls::new(DEADLINE),
            wanted: None,
            on_disk: Some(left.clone()),
            not_before: Instant::now(),
        };
        (kept_file, left)
    }

    /// Has this kept. `fill` is asked only where anything is kept at all.
    pub(super) fn keep(&mut self, fill: impl FnOnce(&mut File)) {
        let Some(boot_id) = &self.boot_id else { return };
        let mut file = File::new(boot_id);
        fill(&mut file);
        let news = self.on_disk.as_ref() != Some(&file);
        self.wanted = news.then_some(file);
    }

    /// Does what is to be done about the file, for ever. Cancel safe.
    pub(super) async fn run(&mut self) -> Infallible {
        loop {
            let idle = !self.writing.any_in_time(|()| true);
            let due = idle && self.wanted.is_some();
            let not_before = self.not_before;
            tokio::select! {
                outcome = self.writing.next() => self.came_back(outcome),
                () = sleep_until(not_before), if due => self.write(),
            }
        }
    }

    fn write(&mut self) {
        let Some(file) = self.wanted.take() else {
            return;
        };
        let folder = self.folder.clone();
        // From now on it may be either.
        self.on_disk = None;
        self.not_before = Instant::now() + PAUSE;
        self.writing.start((), move || {
            let written = file.write(&folder).map_err(|error| error.to_string());
            (file, written)
        });
    }

    fn came_back(&mut self, outcome: Outcome<(), Written>) {
        let failed = match outcome {
            Outcome::Returned((), (file, Ok(()))) => {
                if self.wanted.as_ref() == Some(&file) {
                    self.wanted = None;
                }
                self.on_disk = Some(file);
                self.readiness.note(KEPT_HEALTH, None);
                return;
            }
            Outcome::Returned((), (file, Err(error))) => {
                self.wanted.get_or_insert(file);
                self.not_before = Instant::now() + RETRY;
                error
            }
            Outcome::Overdue(()) => format!("not written within {DEADLINE:?}"),
            Outcome::Panicked(()) => "the write panicked".into(),
        };
        let path = self.folder.join(kept::FILE);
        let what = format!(
            "{}: {failed}; a restart would forget who is sick",
            path.display()
        );
        if self.readiness.note(KEPT_HEALTH, Some(&what)) {
            warn!(path = %path.display(), error = failed, "health cannot be kept");
        }
    }
}
