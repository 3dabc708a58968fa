//! A container runtime and a kubelet in a temporary folder, for one test at a
//! time, and their end.

use std::path::{Path, PathBuf};
use std::time::Instant;

use tempfile::TempDir;

use super::host::{self, Before, Turn};
use super::kubelet::Kubelet;
use super::runtime::Runtime;
use crate::common::containerd::Programs;
use crate::common::daemon::Daemon;
use crate::common::wait::{LONG, holds_within};

/// Dropped, it ends all pods, the kubelet and the runtime, and leaves the
/// machine as it was. What nobody should have left fails the test.
#[derive(Debug)]
pub struct Machine {
    pub kubelet: Kubelet,
    pub runtime: Runtime,
    before: Before,
    folder: TempDir,
    /// Held while anything of the above exists.
    _turn: Turn,
}

impl Machine {
    /// A runtime with the image, and a kubelet that is not started yet.
    pub fn new((kubelet, programs): (PathBuf, Programs), turn: Turn) -> Self {
        host::prepare();
        let folder = tempfile::Builder::new().prefix(host::PREFIX).tempdir();
        let folder = folder.expect("create a temporary folder");
        let before = Before::look();
        let mut machine = Self {
            kubelet: Kubelet::new(kubelet, folder.path()),
            runtime: Runtime::new(programs, folder.path()),
            before,
            folder,
            _turn: turn,
        };
        machine.runtime.start();
        machine
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The ends of the logs.
    pub fn logs(&self) -> String {
        let kubelet = self.kubelet.daemon().map(Daemon::tail);
        format!(
            "containerd:\n{}\nkubelet:\n{}",
            self.runtime.log(),
            kubelet.unwrap_or_default()
        )
    }

    /// Has the kubelet end its pods, then ends all. Says what was left.
    fn tear_down(&mut self) -> Vec<String> {
        let mut left = Vec::new();
        self.kubelet.forget_pods();
        if self.kubelet.daemon().is_some() {
            let none = || host::left_by_pods(self.folder.path()).is_empty();
            if !holds_within(LONG, none) {
                left.push("pods that the kubelet did not end".to_owned());
            }
        }
        self.kubelet.stop();
        self.runtime.end();
        left.extend(host::sweep(self.folder.path()));
        self.before.restore();
        left
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let failing = std::thread::panicking();
        if failing {
            println!("{}", self.logs());
        }
        let began = Instant::now();
        let left = self.tear_down();
        println!("cleaned up within {} ms", began.elapsed().as_millis());
        if left.is_empty() {
            return;
        }
        let left = left.join("\n  ");
        println!("had to be removed:\n  {left}");
        assert!(failing, "the test left something behind:\n  {left}");
    }
}
