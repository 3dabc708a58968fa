//! A containerd in a temporary folder, for one test at a time, and its end.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use gpu_device_plugin::api::v1beta1::ContainerAllocateResponse;
use tempfile::TempDir;

use crate::archive;
use crate::common::containerd::{Programs, configuration, socket};
use crate::common::daemon::Daemon;
use crate::common::probe::{Findings, LIBRARY_FOLDER, PROBE};
use crate::common::system::{output, skip, try_output};
use crate::common::wait::{LONG, eventually, holds_within};
use crate::cri::{self, Runtime};
use crate::host;
use crate::runtime::Setting;

/// Begins the name of each temporary folder.
const PREFIX: &str = "gpu-device-plugin-cri-";

/// Folders that it makes whatever its configuration says, the inner ones first.
fn machine_folders() -> impl Iterator<Item = PathBuf> {
    let folders = ["runc/k8s.io", "runc", "s", "fifo", ""].into_iter();
    folders.map(|folder| Path::new("/run/containerd").join(folder))
}

/// Dropped, it ends all that runs in it.
pub struct Containerd {
    daemon: Option<Daemon>,
    programs: Programs,
    pub runtime: Option<Runtime>,
    pods: usize,
    /// Folders that were not there.
    made: Vec<PathBuf>,
    folder: TempDir,
    /// Held while anything of the above exists.
    _turn: File,
}

impl Containerd {
    /// One with the image of the probe; none where this machine lacks it, which is
    /// said.
    pub async fn start(test: &str) -> Option<Self> {
        let Some(programs) = Programs::find() else {
            skip(test, "needs CONTAINERD_ROOT, or containerd and ctr on PATH");
            return None;
        };
        // As tests/e2e takes turns.
        let turn = File::open("/var/lib").expect("open the folder of the kubelet's");
        turn.lock().expect("wait for other runs to end");
        sweep_old();
        let folder = tempfile::Builder::new().prefix(PREFIX).tempdir();
        let folder = folder.expect("create a temporary folder");
        let mut containerd = Self {
            daemon: None,
            programs,
            runtime: None,
            pods: 0,
            made: machine_folders().filter(|path| !path.exists()).collect(),
            folder,
            _turn: turn,
        };
        containerd.serve().await;
        Some(containerd)
    }

    async fn serve(&mut self) {
        let folder = self.folder.path();
        let version = output(self.programs.command("containerd").arg("--version"));
        println!("{version}");
        let config = folder.join("containerd.toml");
        fs::write(
            &config,
            configuration(folder, &version, archive::NAME, "cdi"),
        )
        .expect("configure containerd");
        fs::create_dir(self.cdi_folder()).expect("create the folder of CDI specs");
        let mut command = self.programs.command("containerd");
        command.arg("--config").arg(config);
        self.daemon = Some(Daemon::start("containerd", &mut command, folder));
        let accepts = || try_output(self.ctr().arg("version")).is_ok();
        assert!(holds_within(LONG, accepts), "{}", self.log());
        let image = archive::archive(folder);
        output(self.ctr().args(["images", "import"]).arg(image));
        let mut runtime = Runtime::connect(socket(folder)).await;
        eventually("containerd serves kubelets", async || {
            runtime.version().await
        })
        .await;
        self.runtime = Some(runtime);
    }

    fn ctr(&self) -> Command {
        let mut ctr = self.programs.command("ctr");
        ctr.args(["--namespace", "k8s.io", "--address"]);
        ctr.arg(socket(self.folder.path()));
        ctr
    }

    /// Where it looks for CDI specs.
    pub fn cdi_folder(&self) -> PathBuf {
        self.folder.path().join("cdi")
    }

    fn log(&self) -> String {
        let tail = self.daemon.as_ref().map(Daemon::tail);
        tail.unwrap_or_default()
    }

    /// What the probe finds in a pod's container with what Allocate answered, or
    /// why there was none.
    pub async fn run(
        &mut self,
        answer: &ContainerAllocateResponse,
        setting: Setting,
        questions: &[String],
    ) -> Result<Findings, String> {
        self.pods += 1;
        let name = format!("pod-{}", self.pods);
        let logs = self.folder.path().join(&name);
        let runtime = self.runtime.as_mut().expect("a runtime that runs");
        let pod = runtime.run_pod(&name, &logs).await;
        let command = [PROBE, LIBRARY_FOLDER].map(str::to_owned).into_iter();
        let command = command.chain(questions.iter().cloned());
        let command = command.chain(["end".to_owned()]).collect();
        let config = cri::container(answer, archive::NAME, command, setting);
        let found = match runtime.create(&pod, config).await {
            Ok(id) => started(runtime, &id, &pod.log()).await,
            Err(status) => Err(status.message().to_owned()),
        };
        runtime.remove_pod(pod).await;
        found
    }
}

async fn started(runtime: &mut Runtime, id: &str, log: &Path) -> Result<Findings, String> {
    let started = runtime.start(id).await;
    started.map_err(|status| status.message().to_owned())?;
    eventually("the container has ended", async || runtime.ended(id).await).await;
    let findings = eventually("its log is written", async || {
        let log = fs::read_to_string(log).unwrap_or_default();
        // TIME STREAM TAG LINE.
        let lines = log.lines().filter_map(|line| line.split_once(" stdout F "));
        Findings::parse(lines.map(|(_time, line)| line)).ok_or(log)
    });
    Ok(findings.await)
}

impl Drop for Containerd {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("containerd's log:\n{}", self.log());
        }
        if let Some(daemon) = self.daemon.take() {
            daemon.end(LONG);
        }
        for left in host::sweep(self.folder.path()) {
            println!("had to be removed: {left}");
        }
        for folder in &self.made {
            // One that is not empty is somebody's by now.
            drop(fs::remove_dir(folder));
        }
    }
}

/// What runs left that were killed. In one's turn, so that none of them lives.
fn sweep_old() {
    for entry in fs::read_dir(env::temp_dir())
        .into_iter()
        .flatten()
        .flatten()
    {
        let folder = entry.path();
        if entry.file_name().to_string_lossy().starts_with(PREFIX) && folder.is_dir() {
            println!("a run was killed and left {}", folder.display());
            drop(host::sweep(&folder));
            drop(fs::remove_dir_all(folder));
        }
    }
}
