//! Which containerd the tests run, and how it is configured.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::system::on_path;

/// The programs, and the PATH that they find each other by.
#[derive(Clone, Debug)]
pub struct Programs {
    path: OsString,
}

impl Programs {
    /// Those of `CONTAINERD_ROOT`, or the machine's own.
    pub fn find() -> Option<Self> {
        let path = env::var_os("PATH").unwrap_or_default();
        let Some(root) = env::var_os("CONTAINERD_ROOT") else {
            on_path("containerd").and(on_path("ctr"))?;
            return Some(Self { path });
        };
        let own = PathBuf::from(root).join("usr/bin");
        let all = [own].into_iter().chain(env::split_paths(&path));
        let path = env::join_paths(all).expect("a PATH");
        Some(Self { path })
    }

    /// One of them, which finds the others and runc.
    pub fn command(&self, program: &str) -> Command {
        let mut places = env::split_paths(&self.path).map(|folder| folder.join(program));
        let place = places.find(|place| place.is_file());
        let mut command = Command::new(place.expect("a program of containerd's"));
        command.env("PATH", &self.path);
        command
    }
}

/// Where it listens.
pub fn socket(folder: &Path) -> PathBuf {
    folder.join("containerd.sock")
}

/// The least that works, in either generation's words: no network plugins, since
/// pods have the host's network, no sockets elsewhere, and no more power over the OOM
/// killer than root has here. An overlay takes no place on another one: there the layers are copied.
///
/// `version` is what `containerd --version` says, `image` that of the sandboxes,
/// `cdi` the folder of CDI specs below `folder`.
pub fn configuration(folder: &Path, version: &str, image: &str, cdi: &str) -> String {
    let snapshotter = if is_overlay(folder) {
        "native"
    } else {
        "overlayfs"
    };
    let (socket, folder) = (socket(folder), folder.display());
    let socket = socket.display();
    let (version, cri, images) = if version.contains(" v1.") || version.contains(" 1.") {
        let cri = "io.containerd.grpc.v1.cri";
        let images = format!(
            r#"sandbox_image = "{image}"
[plugins."{cri}".containerd]
snapshotter = "{snapshotter}""#
        );
        (2, cri, images)
    } else {
        let images = format!(
            r#"[plugins."io.containerd.cri.v1.images"]
snapshotter = "{snapshotter}"
[plugins."io.containerd.cri.v1.images".pinned_images]
sandbox = "{image}"
[plugins."io.containerd.nri.v1.nri"]
disable = true"#
        );
        (3, "io.containerd.cri.v1.runtime", images)
    };
    format!(
        r#"version = {version}
root = "{folder}/root"
state = "{folder}/state"
[grpc]
address = "{socket}"
[plugins."io.containerd.internal.v1.opt"]
path = "{folder}/opt"
[plugins."{cri}".cni]
conf_dir = "{folder}/networks"
[plugins."{cri}"]
restrict_oom_score_adj = true
enable_cdi = true
cdi_spec_dirs = ["{folder}/{cdi}"]
{images}
"#
    )
}

/// By the number of linux/magic.h.
fn is_overlay(folder: &Path) -> bool {
    let kind = rustix::fs::statfs(folder).expect("the folder's file system");
    kind.f_type == 0x794c_7630
}
