//! Containers by runc alone, from an answer of Allocate: what the kubelet and a
//! runtime make of it, and nothing else.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use gpu_device_plugin::api::v1beta1::ContainerAllocateResponse;
use serde_json::{Value, json};

use crate::common::probe::{Findings, PROBE};
use crate::common::system::try_output;
use crate::image::Image;

/// Where a container has the nodes of all GPUs, as from somebody who gave it too
/// much; it still may use its own alone.
pub const EVERY_GPU: &str = "/dev/every";

/// Seconds that a container may take; one that hangs is a failure.
const LIMIT: &str = "60";

/// What containerd leaves to a container's root, but for `CAP_MKNOD`
/// (`defaultUnixCaps` of its package oci).
const CAPABILITIES: [&str; 13] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

/// Who the container's program is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum User {
    /// Root that cannot make device nodes. With `CAP_MKNOD` the driver's
    /// libraries would try, and answer for that.
    Root,
    /// Root as containerd has it.
    RootWithNodes,
    /// Anybody, with no capability.
    Other,
}

/// Who the container's program is, and what it may write.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    pub user: User,
    /// Whether the root file system is read-only.
    pub read_only: bool,
}

impl From<User> for Setting {
    fn from(user: User) -> Self {
        Self {
            user,
            read_only: true,
        }
    }
}

impl User {
    pub fn id(self) -> u32 {
        if self == Self::Other { 1000 } else { 0 }
    }

    /// What a pod has to name for that, of what containerd gives by itself.
    pub fn dropped(self) -> Option<&'static str> {
        match self {
            Self::Root => Some("MKNOD"),
            Self::RootWithNodes => None,
            Self::Other => Some("ALL"),
        }
    }

    fn capabilities(self) -> Vec<&'static str> {
        match self {
            Self::Root => CAPABILITIES.to_vec(),
            Self::RootWithNodes => [&CAPABILITIES[..], &["CAP_MKNOD"]].concat(),
            Self::Other => Vec::new(),
        }
    }
}

/// Why this machine's runc can run no container at all, if it cannot: in a
/// container without privileges for example.
pub fn unable() -> Option<&'static str> {
    static TRIED: OnceLock<Result<(), String>> = OnceLock::new();
    let tried = TRIED.get_or_init(|| {
        let nothing = ContainerAllocateResponse::default();
        let image = Image::of_this_machine();
        let root = User::Root.into();
        let done = try_run(&nothing, &image, Path::new("/nowhere"), root, &[]);
        done.map(drop)
    });
    tried.as_ref().err().map(String::as_str)
}

/// Runs the probe in a container of that image with what Allocate answered.
/// `dev` holds the nodes of all GPUs, `questions` are for the probe.
pub fn run(
    answer: &ContainerAllocateResponse,
    image: &Image,
    dev: &Path,
    setting: Setting,
    questions: &[String],
) -> Findings {
    match try_run(answer, image, dev, setting, questions) {
        Ok(findings) => findings,
        Err(error) => panic!("{error}"),
    }
}

fn try_run(
    answer: &ContainerAllocateResponse,
    image: &Image,
    dev: &Path,
    setting: Setting,
    questions: &[String],
) -> Result<Findings, String> {
    let bundle = tempfile::Builder::new().prefix("gpu-container-").tempdir();
    let bundle = bundle.expect("create a bundle's folder");
    let wrapper = image.unpack(bundle.path());
    let questions = questions.iter().map(String::as_str);
    let arguments = [PROBE, image.library_folder()].into_iter();
    let arguments: Vec<_> = arguments.chain(questions).chain(["end"]).collect();
    let config = config(answer, image, &arguments, dev, setting);
    fs::write(bundle.path().join("config.json"), config.to_string()).expect("write its config");
    let container = Container::new(bundle.path());
    let mut command = Command::new("timeout");
    command.args(["--kill-after=5", LIMIT]).args(wrapper);
    command.args(["runc", "--root"]);
    command.arg(bundle.path().join("state"));
    command.args(["run", "--bundle"]).arg(bundle.path());
    let said = try_output(command.arg(&container.id))?;
    Findings::parse(said.lines()).ok_or_else(|| format!("the probe said only:\n{said}"))
}

/// How long runc takes to make and start a container that does nothing, with what
/// Allocate answered.
pub fn time_to_start(answer: &ContainerAllocateResponse, image: &Image) -> Duration {
    let bundle = tempfile::Builder::new().prefix("gpu-container-").tempdir();
    let bundle = bundle.expect("create a bundle's folder");
    image.unpack(bundle.path());
    let nowhere = Path::new("/nowhere");
    let config = config(answer, image, &[PROBE], nowhere, User::Root.into());
    fs::write(bundle.path().join("config.json"), config.to_string()).expect("write its config");
    let container = Container::new(bundle.path());
    let runc = |command: &str, options: &[&OsStr]| {
        let mut runc = Command::new("runc");
        runc.arg("--root").arg(bundle.path().join("state"));
        runc.arg(command).args(options).arg(&container.id);
        // The container has them as well, and would keep a pipe open.
        runc.stdin(Stdio::null()).stdout(Stdio::null());
        let status = runc.stderr(Stdio::null()).status();
        assert!(status.is_ok_and(|status| status.success()), "{runc:?}");
    };
    let began = Instant::now();
    runc("create", &["--bundle".as_ref(), bundle.path().as_os_str()]);
    runc("start", &[]);
    began.elapsed()
}

/// A container's state, which goes with it, whatever became of it.
struct Container<'b> {
    bundle: &'b Path,
    id: String,
}

impl<'b> Container<'b> {
    fn new(bundle: &'b Path) -> Self {
        let id = bundle.file_name().expect("a folder with a name");
        let id = id.to_string_lossy().into_owned();
        Self { bundle, id }
    }
}

impl Drop for Container<'_> {
    fn drop(&mut self) {
        let mut delete = Command::new("runc");
        delete.arg("--root").arg(self.bundle.join("state"));
        // Nothing is left of one that ended by itself.
        drop(try_output(delete.args(["delete", "--force", &self.id])));
    }
}

/// The runtime's configuration. Everything is denied that is not allowed.
fn config(
    answer: &ContainerAllocateResponse,
    image: &Image,
    arguments: &[&str],
    dev: &Path,
    Setting { user, read_only }: Setting,
) -> Value {
    let mut mounts = vec![
        json!({"destination": "/proc", "type": "proc", "source": "proc"}),
        json!({"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
               "options": ["nosuid", "strictatime", "mode=755"]}),
    ];
    mounts.extend(answer.mounts.iter().map(|mount| {
        let access = if mount.read_only { "ro" } else { "rw" };
        json!({"destination": mount.container_path, "source": mount.host_path,
               "type": "bind", "options": ["rbind", "rprivate", access]})
    }));
    let mut nodes = Vec::new();
    let mut rules = vec![json!({"allow": false, "access": "rwm"})];
    for device in &answer.devices {
        let (major, minor) = numbers(Path::new(&device.host_path));
        nodes.push(node(&device.container_path, (major, minor)));
        rules.push(
            json!({"allow": true, "type": "c", "major": major, "minor": minor,
                          "access": &device.permissions}),
        );
    }
    for entry in fs::read_dir(dev).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let place = format!("{EVERY_GPU}/{}", name.to_string_lossy());
        nodes.push(node(&place, numbers(&entry.path())));
    }
    let variables = answer.envs.iter();
    let variables = variables.map(|(name, value)| format!("{name}={value}"));
    let own = image.environment().iter().cloned();
    let environment: Vec<_> = own.chain(variables).collect();
    let capabilities = user.capabilities();
    let namespaces = ["pid", "ipc", "uts", "mount", "network"].map(|kind| json!({"type": kind}));
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false,
            "cwd": "/",
            "args": arguments,
            "env": environment,
            "user": {"uid": user.id(), "gid": user.id()},
            "noNewPrivileges": true,
            "capabilities": {"bounding": capabilities, "effective": capabilities,
                             "permitted": capabilities},
        },
        "root": {"path": "rootfs", "readonly": read_only},
        "mounts": mounts,
        "linux": {
            "namespaces": namespaces,
            "devices": nodes,
            "resources": {"devices": rules},
        },
    })
}

fn node(path: &str, (major, minor): (u32, u32)) -> Value {
    json!({"path": path, "type": "c", "major": major, "minor": minor,
           "fileMode": 0o666, "uid": 0, "gid": 0})
}

/// The numbers of a device node.
fn numbers(path: &Path) -> (u32, u32) {
    let device = fs::metadata(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let device = device.rdev();
    (libc::major(device), libc::minor(device))
}
