//! A container runtime in a temporary folder, with the pods' image.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::image;
use crate::common::containerd::{Programs, configuration, socket};
use crate::common::daemon::Daemon;
use crate::common::system;
use crate::common::wait::{LONG, holds_within};

/// Where this runtime looks for CDI specs, below its folder.
pub const CDI_FOLDER: &str = "cdi";

/// A containerd.
#[derive(Debug)]
pub struct Runtime {
    programs: Programs,
    folder: PathBuf,
    daemon: Option<Daemon>,
}

impl Runtime {
    /// One that is not started yet.
    pub fn new(programs: Programs, folder: &Path) -> Self {
        Self {
            programs,
            folder: folder.into(),
            daemon: None,
        }
    }

    /// Starts it and gives it the image.
    pub fn start(&mut self) {
        let folder = &self.folder;
        let version = system::output(self.programs.command("containerd").arg("--version"));
        let config = folder.join("containerd.toml");
        let text = configuration(folder, &version, image::NAME, CDI_FOLDER);
        fs::write(&config, text).expect("configure containerd");
        let mut command = self.programs.command("containerd");
        command.arg("--config").arg(config);
        self.daemon = Some(Daemon::start("containerd", &mut command, folder));
        let accepts = || system::try_output(self.ctr().arg("version")).is_ok();
        if !holds_within(LONG, accepts) {
            panic!("containerd does not answer:\n{}", self.log());
        }
        let mut import = self.ctr();
        import
            .args(["images", "import"])
            .arg(image::archive(folder));
        system::output(&mut import);
    }

    /// containerd's own client.
    pub fn ctr(&self) -> Command {
        let mut ctr = self.programs.command("ctr");
        ctr.args(["--namespace", "k8s.io", "--address"]);
        ctr.arg(socket(&self.folder));
        ctr
    }

    /// The IDs of containers, sandboxes too, that have a process.
    pub fn running(&self) -> Result<String, String> {
        system::try_output(self.ctr().args(["tasks", "list", "--quiet"]))
    }

    /// The processors that a container may run on, as the kernel lists them.
    pub fn cpus_of(&self, id: &str) -> String {
        let tasks = system::output(self.ctr().args(["tasks", "list"]));
        let mut tasks = tasks.lines().map(str::split_whitespace);
        let pid = tasks.find_map(|mut task| (task.next()? == id).then(|| task.next())?);
        let status = format!("/proc/{}/status", pid.expect("a container that runs"));
        let status = fs::read_to_string(status).expect("a process that runs");
        let mut fields = status.lines();
        let cpus = fields.find_map(|field| field.strip_prefix("Cpus_allowed_list:"));
        cpus.expect("its processors").trim().to_owned()
    }

    /// Kills the processes of a container, given by its ID.
    pub fn kill_container(&self, id: &str) {
        let mut kill = self.ctr();
        system::output(kill.args(["tasks", "kill", "--signal", "SIGKILL", id]));
    }

    /// The end of its log.
    pub fn log(&self) -> String {
        let log = self.daemon.as_ref().map(Daemon::tail);
        log.unwrap_or_default()
    }

    /// Ends it; containers that run go on.
    pub fn end(&mut self) {
        if let Some(daemon) = self.daemon.take() {
            daemon.end(LONG);
        }
    }
}
