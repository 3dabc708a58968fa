//! A container runtime and a kubelet in a temporary folder, for one test at a
//! time, and their end.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use tempfile::TempDir;

use super::host::{self, Before};
use super::image;
use super::kubelet::Kubelet;
use crate::common::containerd::{configuration, socket};
use crate::common::daemon::Daemon;
use crate::common::system;
use crate::common::wait::{LONG, holds_within};

/// Where this runtime looks for CDI specs, below the machine's folder.
pub const CDI_FOLDER: &str = "cdi";

/// Dropped, it ends all pods, the kubelet and the runtime, and leaves the
/// machine as it was. What nobody should have left fails the test.
#[derive(Debug)]
pub struct Machine {
    pub kubelet: Kubelet,
    containerd: Option<Daemon>,
    before: Before,
    folder: TempDir,
    /// Held while anything of the above exists.
    _turn: Turn,
}

impl Machine {
    /// A runtime with the image, and a kubelet that is not started yet.
    pub fn new(kubelet: PathBuf, turn: Turn) -> Self {
        host::prepare();
        let folder = tempfile::Builder::new().prefix(host::PREFIX).tempdir();
        let folder = folder.expect("create a temporary folder");
        let before = Before::look();
        let mut machine = Self {
            kubelet: Kubelet::new(kubelet, folder.path()),
            containerd: None,
            before,
            folder,
            _turn: turn,
        };
        machine.start_containerd();
        machine
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    fn start_containerd(&mut self) {
        let folder = self.folder.path();
        let config = folder.join("containerd.toml");
        fs::write(&config, containerd_config(folder)).expect("configure containerd");
        let mut command = Command::new("containerd");
        command.arg("--config").arg(config);
        self.containerd = Some(Daemon::start("containerd", &mut command, folder));
        let accepts = || system::try_output(self.ctr().arg("version")).is_ok();
        if !holds_within(LONG, accepts) {
            panic!("containerd does not answer:\n{}", self.logs());
        }
        let mut import = self.ctr();
        import
            .args(["images", "import"])
            .arg(image::archive(folder));
        system::output(&mut import);
    }

    /// containerd's own client.
    pub fn ctr(&self) -> Command {
        let mut ctr = Command::new("ctr");
        ctr.args(["--namespace", "k8s.io", "--address"]);
        ctr.arg(socket(self.folder.path()));
        ctr
    }

    /// The IDs of containers, sandboxes too, that have a process.
    pub fn running(&self) -> Result<String, String> {
        system::try_output(self.ctr().args(["tasks", "list", "--quiet"]))
    }

    /// Kills the processes of a container, given by its ID.
    pub fn kill_container(&self, id: &str) {
        let mut kill = self.ctr();
        system::output(kill.args(["tasks", "kill", "--signal", "SIGKILL", id]));
    }

    /// The ends of the logs.
    pub fn logs(&self) -> String {
        let containerd = self.containerd.as_ref().map(Daemon::tail);
        let kubelet = self.kubelet.daemon().map(Daemon::tail);
        format!(
            "containerd:\n{}\nkubelet:\n{}",
            containerd.unwrap_or_default(),
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
        if let Some(containerd) = self.containerd.take() {
            containerd.end(LONG);
        }
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

/// The right to be the only one: there is one folder of device plugins on a
/// machine. It is a lock that goes with the process that holds it, however that
/// ends, and leaves no file.
#[derive(Debug)]
pub struct Turn {
    _lock: File,
}

impl Turn {
    /// Waits for other tests and runs to end.
    pub fn wait() -> Self {
        let folder = File::open("/var/lib").expect("open the folder of the kubelet's");
        folder.lock().expect("wait for other runs to end");
        Self { _lock: folder }
    }
}

fn containerd_config(folder: &Path) -> String {
    let version = system::output(Command::new("containerd").arg("--version"));
    configuration(folder, &version, image::NAME, CDI_FOLDER)
}
