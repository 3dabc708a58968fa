//! A program in the background, with its output in a file.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::system::try_output;
use super::wait::holds_within;

/// Lines of a log that a failing test shows.
const TAIL: usize = 25;

/// Ended by SIGKILL if nobody ended it before.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    name: &'static str,
    log: PathBuf,
}

impl Daemon {
    /// Starts it; the output is added to the file NAME.log in `folder`.
    pub fn start(name: &'static str, command: &mut Command, folder: &Path) -> Self {
        let log = folder.join(format!("{name}.log"));
        let file = File::options().append(true).create(true).open(&log);
        let file = file.expect("open a log");
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone().expect("share a log"))
            .stderr(file)
            .spawn();
        let child = child.unwrap_or_else(|error| panic!("{command:?}: {error}"));
        Self { child, name, log }
    }

    /// Panics with the end of its log where it does not run any more.
    pub fn assert_running(&mut self) {
        if let Ok(Some(status)) = self.child.try_wait() {
            panic!("{} ended, {status}:\n{}", self.name, self.tail());
        }
    }

    /// Asks it to end, and sees to it.
    pub fn end(mut self, limit: Duration) {
        signal(self.child.id(), "TERM");
        let ended = || matches!(self.child.try_wait(), Ok(Some(_)));
        if !holds_within(limit, ended) {
            println!("{} did not end on SIGTERM:\n{}", self.name, self.tail());
        }
    }

    /// The last lines of its log.
    pub fn tail(&self) -> String {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let mut lines: Vec<_> = log.lines().rev().take(TAIL).collect();
        lines.reverse();
        lines.join("\n")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Sends a signal by its name to a process that this test owns.
pub fn signal(pid: u32, signal: &str) {
    // A process that has just ended is as good as one that is told to.
    drop(try_output(Command::new("kill").args([
        "-s",
        signal,
        &pid.to_string(),
    ])));
}
