//! This machine: what the test needs of it, and how it is left as it was.

use std::collections::BTreeSet;
use std::env;
use std::fs::{self, File};
use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::common::containerd::Programs;
use crate::common::daemon::signal;
use crate::common::system::{is_root, on_path, try_output};
use crate::common::wait::holds_within;

/// The kubelet's folder for device plugins, which no flag of it moves.
pub const DEVICE_PLUGINS: &str = "/var/lib/kubelet/device-plugins";

/// Begins the name of each temporary folder.
pub const PREFIX: &str = "gpu-device-plugin-e2e-";

/// The kubelet binary to test against and the runtime's, or what is missing.
pub fn programs() -> Result<(PathBuf, Programs), String> {
    let kubelet = env::var_os("KUBELET").ok_or("KUBELET is not set")?;
    let kubelet = PathBuf::from(kubelet);
    if !kubelet.is_file() {
        return Err(format!("{} is no file", kubelet.display()));
    }
    if !is_root() {
        return Err("not root".into());
    }
    let runtime = Programs::find().ok_or("no containerd, by CONTAINERD_ROOT or on PATH")?;
    on_path("runc").ok_or("no runc on PATH")?;
    Ok((kubelet, runtime))
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

/// What a kubelet and a container runtime change outside their own folders.
#[derive(Debug)]
pub struct Before {
    settings: Vec<(&'static str, String)>,
    folders: BTreeSet<PathBuf>,
}

/// What a kubelet sets of the kernel (pkg/kubelet/cm/container_manager_linux.go).
const SETTINGS: [&str; 6] = [
    "/proc/sys/vm/overcommit_memory",
    "/proc/sys/vm/panic_on_oom",
    "/proc/sys/kernel/panic",
    "/proc/sys/kernel/panic_on_oops",
    "/proc/sys/kernel/keys/root_maxkeys",
    "/proc/sys/kernel/keys/root_maxbytes",
];

/// Folders that they make, the inner ones first.
const FOLDERS: [&str; 8] = [
    DEVICE_PLUGINS,
    "/var/lib/kubelet",
    "/var/log/containers",
    "/run/containerd/runc/k8s.io",
    "/run/containerd/runc",
    "/run/containerd/s",
    "/run/containerd/fifo",
    "/run/containerd",
];

impl Before {
    /// Looks.
    pub fn look() -> Self {
        let settings = SETTINGS.into_iter().filter_map(|file| {
            let value = fs::read_to_string(file).ok()?;
            Some((file, value))
        });
        let folders = FOLDERS.iter().map(PathBuf::from).chain(pod_cgroups());
        Self {
            settings: settings.collect(),
            folders: folders.filter(|folder| folder.exists()).collect(),
        }
    }

    /// Puts things back, as far as they can be.
    pub fn restore(&self) {
        for (file, value) in &self.settings {
            if fs::read_to_string(file).is_ok_and(|now| now != *value) {
                tell(fs::write(file, value), file);
            }
        }
        forget_plugins();
        for cgroup in pod_cgroups() {
            if !self.folders.contains(&cgroup) {
                remove_cgroup(&cgroup);
            }
        }
        for folder in FOLDERS {
            if !self.folders.contains(Path::new(folder)) {
                // One that is not empty is somebody's by now.
                drop(fs::remove_dir(folder));
            }
        }
    }
}

/// Two kubelets cannot share the folder of device plugins.
fn refuse_second_kubelet() {
    let socket = Path::new(DEVICE_PLUGINS).join("kubelet.sock");
    assert!(
        UnixStream::connect(&socket).is_err(),
        "a kubelet runs on this machine already: {} accepts",
        socket.display()
    );
}

/// Removes what a kubelet remembers of device plugins, and the sockets of both.
fn forget_plugins() {
    for file in fs::read_dir(DEVICE_PLUGINS).into_iter().flatten().flatten() {
        let name = file.file_name();
        let name = name.to_string_lossy();
        if name.starts_with("kubelet") || name.starts_with("gpu-device-plugin") {
            drop(fs::remove_file(file.path()));
        }
    }
}

fn tell(result: io::Result<()>, what: &str) {
    if let Err(error) = result {
        println!("cannot restore {what}: {error}");
    }
}

/// The pods' control groups, in every hierarchy.
fn pod_cgroups() -> Vec<PathBuf> {
    let hierarchies = fs::read_dir("/sys/fs/cgroup").into_iter().flatten();
    let hierarchies = hierarchies.flatten().map(|entry| entry.path());
    [PathBuf::from("/sys/fs/cgroup")]
        .into_iter()
        .chain(hierarchies)
        .map(|hierarchy| hierarchy.join("kubepods"))
        .filter(|cgroup| cgroup.is_dir())
        .collect()
}

fn remove_cgroup(cgroup: &Path) {
    for entry in fs::read_dir(cgroup).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            remove_cgroup(&entry.path());
        }
    }
    drop(fs::remove_dir(cgroup));
}

/// Removes all that runs, is mounted or lies about because of the temporary
/// folder, and tells what of it nobody should have left.
pub fn sweep(folder: &Path) -> Vec<String> {
    let mut left = Vec::new();
    for (pid, command) in processes_of(folder) {
        signal(pid, "KILL");
        left.push(format!("process {pid}: {command}"));
    }
    let gone = holds_within(Duration::from_secs(10), || processes_of(folder).is_empty());
    if !gone {
        left.push("and some of them would not end".into());
    }
    left.extend(left_by_pods(folder));
    for container in containers_of(folder) {
        let id = container.file_name().unwrap_or_default();
        if let Some(socket) = shim_socket(&container) {
            drop(fs::remove_file(socket));
        }
        let state = Path::new("/run/containerd/runc/k8s.io").join(id);
        drop(fs::remove_dir_all(state));
    }
    for mount in mounts_below(folder) {
        drop(try_output(Command::new("umount").arg("--lazy").arg(mount)));
    }
    // Links to the logs of containers, which the kubelet removes in its time.
    for link in fs::read_dir("/var/log/containers").into_iter().flatten() {
        let Ok(link) = link.map(|entry| entry.path()) else {
            continue;
        };
        if fs::read_link(&link).is_ok_and(|target| target.starts_with(folder)) {
            drop(fs::remove_file(link));
        }
    }
    left
}

/// What there is of pods in the temporary folder.
pub fn left_by_pods(folder: &Path) -> Vec<String> {
    let containers = containers_of(folder)
        .into_iter()
        .map(|container| format!("container {}", container.display()));
    // The kubelet binds its root folder to itself and leaves it so.
    let mounts = mounts_below(folder)
        .into_iter()
        .filter(|mount| *mount != folder.join("kubelet"))
        .map(|mount| format!("mount {}", mount.display()));
    containers.chain(mounts).collect()
}

/// Makes sure that this is the only kubelet, after sweeping up what runs left
/// that were killed. Only in one's turn, or it could be a run that lives.
pub fn prepare() {
    let mut swept = false;
    for entry in fs::read_dir(env::temp_dir())
        .into_iter()
        .flatten()
        .flatten()
    {
        let folder = entry.path();
        if !entry.file_name().to_string_lossy().starts_with(PREFIX) || !folder.is_dir() {
            continue;
        }
        let left = sweep(&folder).join("\n  ");
        println!("a run was killed and left {}\n  {left}", folder.display());
        tell(fs::remove_dir_all(&folder), "the temporary folder");
        swept = true;
    }
    refuse_second_kubelet();
    if swept {
        for cgroup in pod_cgroups() {
            remove_cgroup(&cgroup);
        }
    }
    forget_plugins();
}

/// The programs that were started for the folder, by an argument that names a
/// path in it, and all that they started.
fn processes_of(folder: &Path) -> Vec<(u32, String)> {
    let all: Vec<_> = processes().collect();
    let folder = folder.to_string_lossy();
    let programs = ["containerd", "etcd", "gpu-device-plugin", "kube"];
    let own = all.iter().filter(|process| {
        let program = Path::new(process.arguments.first().map_or("", String::as_str));
        let program = program.file_name().unwrap_or_default().to_string_lossy();
        let mut arguments = process.arguments.iter();
        programs.iter().any(|name| program.starts_with(name))
            && arguments.any(|argument| argument.contains(&*folder))
    });
    let mut found: Vec<_> = own.collect();
    let mut next = 0;
    while let Some(parent) = found.get(next).map(|process| process.pid) {
        let children = all.iter().filter(|process| process.parent == parent);
        for child in children {
            if !found.iter().any(|process| process.pid == child.pid) {
                found.push(child);
            }
        }
        next += 1;
    }
    let found = found.iter().rev();
    found
        .map(|process| (process.pid, process.arguments.join(" ")))
        .collect()
}

struct Process {
    pid: u32,
    parent: u32,
    arguments: Vec<String>,
}

/// Every process that has arguments: kernel threads and zombies have none.
fn processes() -> impl Iterator<Item = Process> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let arguments = fs::read_to_string(entry.path().join("cmdline")).ok()?;
            let status = fs::read_to_string(entry.path().join("status")).ok()?;
            let parent = status
                .lines()
                .find_map(|line| line.strip_prefix("PPid:"))?
                .trim()
                .parse()
                .ok()?;
            let arguments = arguments.split_terminator('\0').map(str::to_owned);
            Some(Process {
                pid,
                parent,
                arguments: arguments.collect(),
            })
        })
        .filter(|process: &Process| !process.arguments.is_empty())
}

/// Folders of the runtime's containers that were not deleted.
fn containers_of(folder: &Path) -> Vec<PathBuf> {
    let tasks = folder.join("state/io.containerd.runtime.v2.task/k8s.io");
    let entries = fs::read_dir(tasks).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}

/// The socket of a container's shim, outside the temporary folder: containerd 2
/// notes it in the one file, containerd 1 in the other.
fn shim_socket(container: &Path) -> Option<PathBuf> {
    let files = ["bootstrap.json", "address"].map(|file| container.join(file));
    let note = files
        .iter()
        .find_map(|file| fs::read_to_string(file).ok())?;
    let socket = note.split("unix://").nth(1)?.split(['"', '\n']).next()?;
    Some(socket.into())
}

/// Mounts below the folder, the inner ones first.
fn mounts_below(folder: &Path) -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(1));
    let mut below: Vec<_> = points
        .map(PathBuf::from)
        .filter(|point| point.starts_with(folder))
        .collect();
    below.sort();
    below.reverse();
    below
}
