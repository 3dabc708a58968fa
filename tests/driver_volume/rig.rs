//! Mounts that go with the test, drivers of some size, and what is in the folder
//! of volumes.

use std::ffi::OsStr;
use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use gpu_device_plugin::api::v1beta1::{AllocateResponse, Mount};
use gpu_device_plugin::config::HostFolder;
use gpu_device_plugin::driver::volume::Volumes;
use tempfile::TempDir;

use crate::common::nvml::{DRIVER_LIBRARIES, SimulatedNode};
use crate::common::plugin::PluginProcess;
use crate::common::running::{LONG, Running, http_address, options, spawn};
use crate::common::system::{is_root, output, skip, try_output};

/// What the simulated node begins with.
pub const VERSION: &str = "580.159.04";
pub const NEWER: &str = "590.44.01";

/// Has the plugin look for something to collect at each poll, and say what it
/// keeps.
pub const EAGER: [&str; 4] = ["--driver-volume-grace", "100ms", "--log-level", "debug"];

/// Whether the test may mount something.
pub fn may_mount(test: &str) -> bool {
    if !is_root() {
        skip(test, "not root, who alone mounts file systems");
        return false;
    }
    let folder = folder();
    let mut mount = Command::new("mount");
    mount.args(["-t", "tmpfs", "tmpfs"]).arg(folder.path());
    if let Err(error) = try_output(&mut mount) {
        skip(test, &format!("nothing can be mounted: {error}"));
        return false;
    }
    output(Command::new("umount").arg(folder.path()));
    true
}

pub fn folder() -> TempDir {
    let folder = tempfile::Builder::new().prefix("volumes-").tempdir();
    folder.expect("create a folder")
}

/// Something that is mounted on a folder of its own until this is dropped.
#[derive(Debug)]
pub struct Mounted(TempDir);

impl Mounted {
    pub fn tmpfs(options: &str) -> Self {
        Self::new(["-t", "tmpfs", "-o", options, "tmpfs"])
    }

    /// By mount's arguments but for the folder.
    pub fn new<A: AsRef<OsStr>>(arguments: impl IntoIterator<Item = A>) -> Self {
        match Self::try_new(arguments) {
            Ok(mounted) => mounted,
            Err(error) => panic!("{error}"),
        }
    }

    pub fn try_new<A: AsRef<OsStr>>(
        arguments: impl IntoIterator<Item = A>,
    ) -> Result<Self, String> {
        let mut mount = Command::new("mount");
        mount.args(arguments);
        Self::by(mount)
    }

    /// By a command that lacks only the folder.
    pub fn by(mut mount: Command) -> Result<Self, String> {
        let folder = folder();
        try_output(mount.arg(folder.path()))?;
        Ok(Self(folder))
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    pub fn text(&self) -> &str {
        text(self.path())
    }

    /// Mounts it again with other options.
    pub fn remount(&self, options: &str) {
        let options = format!("remount,{options}");
        let mut mount = Command::new("mount");
        output(mount.args(["-o", &options]).arg(self.path()));
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let mut umount = Command::new("umount");
        if try_output(umount.arg(self.path())).is_err() {
            // A plugin that runs has it open. It goes when that ends.
            let mut umount = Command::new("umount");
            drop(try_output(umount.arg("--lazy").arg(self.path())));
        }
    }
}

pub fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

/// Two GPUs, and a driver whose libraries have so many bytes more, each of its
/// own: ELF does not mind what follows.
pub fn node_of_size(more: usize) -> SimulatedNode {
    let node = SimulatedNode::new(2);
    for (library, byte) in DRIVER_LIBRARIES.iter().zip(1..) {
        let path = node.driver_library_dir().join(library.file_name(VERSION));
        let mut file = OpenOptions::new().append(true).open(path).unwrap();
        file.write_all(&vec![byte; more]).unwrap();
    }
    node
}

/// The plugin beside a kubelet, once that has a list.
pub async fn running(node: SimulatedNode, state: &Path, extra: &[&str]) -> Running {
    let flags = [&["--state-dir", text(state)], extra].concat();
    Running::on(node, options(), &flags).await
}

/// The plugin anew, after its end.
pub async fn start_again(running: &mut Running, extra: &[&str]) {
    running.plugin = spawn(&running.node, extra);
    running.http = http_address(&running.plugin).await;
}

/// Waits until containers get the driver from a volume.
pub async fn volume_made(running: &Running) {
    running
        .eventually("a volume", || async {
            (running.metric("driver_volume").await == Some(1.0)).then_some(())
        })
        .await;
}

pub fn look_again(running: &Running) {
    running.plugin.signal(libc::SIGHUP).unwrap();
}

/// What is in the state folder's folder of volumes, sorted.
pub fn names(state: &Path) -> Vec<String> {
    let entries = fs::read_dir(state.join("driver")).into_iter().flatten();
    let mut names: Vec<_> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort_unstable();
    names
}

/// The only thing in the folder of volumes.
pub fn only(state: &Path) -> PathBuf {
    let names = names(state);
    assert_eq!(names.len(), 1, "{names:?}");
    state.join("driver").join(&names[0])
}

pub fn volumes(state: &Path) -> Volumes {
    let folder = state.join("driver");
    Volumes::new(HostFolder {
        host: folder.clone(),
        here: folder,
    })
}

/// How the files of the only volume came there, of which each has the content
/// that the driver's file of that name has.
pub fn ways(node: &SimulatedNode, state: &Path) -> Vec<String> {
    let volume = volumes(state).of_version(&node.state().driver_version);
    let volume = volume.expect("a whole volume");
    assert!(volume.manifest.files.len() > 8, "{:?}", volume.manifest);
    let files = volume.manifest.files.iter().map(|file| {
        let name = file.path.file_name().unwrap();
        let places = [
            node.driver_library_dir(),
            node.driver_root().join("usr/bin"),
        ];
        let place = places.iter().map(|place| place.join(name));
        let driver = place.into_iter().find(|path| path.exists()).unwrap();
        let inside = volume.folder.here.join(&file.path);
        let same = fs::read(&driver).unwrap() == fs::read(&inside).unwrap();
        assert!(same, "{} is another", inside.display());
        format!("{:?}", file.by)
    });
    let mut ways: Vec<_> = files.collect();
    ways.sort_unstable();
    ways.dedup();
    ways
}

/// What the first container gets mounted.
pub fn mounts(answer: &AllocateResponse) -> &[Mount] {
    &answer.container_responses[0].mounts
}

/// Every file and folder that the answer names is there, below this one.
#[track_caller]
pub fn assert_all_below(mounts: &[Mount], folder: &Path) {
    assert!(mounts.len() > 8, "{mounts:?}");
    for mount in mounts {
        let path = Path::new(&mount.host_path);
        assert!(path.starts_with(folder), "{} is elsewhere", path.display());
        assert!(path.exists(), "{} is not there", path.display());
    }
}

/// Waits for the plugin to say at debug that it keeps the volume, for this reason,
/// from now on.
pub async fn kept(plugin: &PluginProcess, volume: &Path, why: &str) {
    let name = volume.file_name().expect("a volume").to_string_lossy();
    let line = format!("{name} why={why}");
    let said = plugin.lines().len();
    let kept = plugin.wait_for_line_after(said, &line, LONG).await;
    kept.unwrap();
}
