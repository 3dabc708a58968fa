//! Processes with mounts of their own, as containers are, which the plugin sees
//! by a real procfs: that of a PID namespace, where nobody else is. A whole
//! machine's has processes that even root may not look at, in a sandbox.

use std::fs;
use std::io::{BufRead, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};

use gpu_device_plugin::api::v1beta1::Mount;
use serde_json::json;
use tempfile::TempDir;

use crate::common::probe;
use crate::common::system::{on_path, skip};
use crate::rig::{Mounted, folder, may_mount, text};

const READY: &str = "ready\n";

/// A program that says a line when it is ready, and ends when its input does.
struct Held {
    child: Child,
    input: Option<ChildStdin>,
}

impl Held {
    fn start(mut command: Command) -> Result<Self, String> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let child = command.spawn();
        let mut child = child.map_err(|error| format!("{command:?}: {error}"))?;
        let mut input = child.stdin.take().expect("its input");
        let output = child.stdout.take().expect("its output");
        let mut held = Self { child, input: None };
        let mut said = String::new();
        // `cat` gives it back, which is how it says that it is ready.
        let asked = input.write_all(READY.as_bytes());
        held.input = Some(input);
        let read = BufReader::new(output).read_line(&mut said);
        match (asked, read) {
            (Ok(()), Ok(_)) if said == READY => Ok(held),
            _ => Err(format!("{command:?} did not start: {said}")),
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.input = None;
        // Whoever holds on to it is another's problem.
        drop(self.child.wait());
    }
}

/// A PID namespace and its procfs.
pub struct Machine {
    proc: Mounted,
    // After the procfs, which does not work without it.
    first: Held,
}

impl Machine {
    /// None where that cannot be had, which is told.
    pub fn start(test: &str) -> Option<Self> {
        if !may_mount(test) {
            return None;
        }
        for program in ["unshare", "nsenter"] {
            if on_path(program).is_none() {
                skip(test, &format!("no {program}"));
                return None;
            }
        }
        let mut first = Command::new("unshare");
        first.args(["--pid", "--fork", "--kill-child", "cat"]);
        let first = match Held::start(first) {
            Ok(first) => first,
            Err(error) => {
                skip(test, &error);
                return None;
            }
        };
        let namespace = namespace(&first);
        let mut mount = Command::new("nsenter");
        mount.arg(format!("--pid={namespace}"));
        mount.args(["mount", "-t", "proc", "proc"]);
        let proc = Mounted::by(mount).unwrap();
        Some(Self { proc, first })
    }

    pub fn proc(&self) -> &str {
        self.proc.text()
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--pid={}", namespace(&self.first)));
        command.arg(program);
        command
    }

    /// A process that has bound this in a mount namespace of its own.
    pub fn container(&self, bound: &Path) -> Container {
        let place = folder();
        let mut at = place.path().to_owned();
        if bound.is_file() {
            at.push("file");
            fs::write(&at, "").unwrap();
        }
        let mut command = self.command("unshare");
        let script = r#"mount --bind "$1" "$2" && exec cat"#;
        command.args(["--mount", "sh", "-c", script, "sh"]);
        command.arg(bound).arg(at);
        Container {
            _held: Held::start(command).unwrap(),
            _files: place,
        }
    }

    /// A container by runc with these mounts, whose program is `cat`. None where
    /// runc cannot run any, which is told.
    pub fn runc(&self, test: &str, mounts: &[Mount]) -> Option<Container> {
        let (Some(_), Some(cat)) = (on_path("runc"), on_path("cat")) else {
            skip(test, "no runc");
            return None;
        };
        let bundle = folder();
        probe::root(&bundle.path().join("rootfs"), &cat);
        let config = config(mounts).to_string();
        fs::write(bundle.path().join("config.json"), config).unwrap();
        let mut command = self.command("unshare");
        // Or it would look for its own processes among the machine's.
        command.args(["--mount", "--mount-proc", "runc"]);
        command.arg("--root").arg(bundle.path().join("state"));
        command.args(["run", "--bundle", text(bundle.path())]);
        command.arg(bundle.path().file_name().unwrap());
        let held = Held::start(command).map_err(|error| skip(test, &error));
        Some(Container {
            _held: held.ok()?,
            _files: bundle,
        })
    }
}

/// The PID namespace of what `unshare` started.
fn namespace(unshare: &Held) -> String {
    format!("/proc/{}/ns/pid_for_children", unshare.child.id())
}

/// It ends when this is dropped.
pub struct Container {
    // Ends before its files go.
    _held: Held,
    _files: TempDir,
}

/// The least that runc takes, and the mounts as the kubelet and containerd have
/// them.
fn config(mounts: &[Mount]) -> serde_json::Value {
    let proc = json!({"destination": "/proc", "type": "proc", "source": "proc"});
    let bound = mounts.iter().map(|mount| {
        json!({"destination": mount.container_path, "source": mount.host_path,
               "type": "bind", "options": ["rbind", "rprivate", "ro"]})
    });
    let mounts: Vec<_> = std::iter::once(proc).chain(bound).collect();
    json!({
        "ociVersion": "1.0.2",
        "process": {"terminal": false, "cwd": "/", "args": [probe::PROBE],
                    "env": ["PATH=/usr/bin"], "user": {"uid": 0, "gid": 0}},
        "root": {"path": "rootfs", "readonly": false},
        "mounts": mounts,
        "linux": {"namespaces": [{"type": "pid"}, {"type": "mount"}]},
    })
}
