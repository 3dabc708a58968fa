//! How a containerd of the tests is configured.

use std::path::{Path, PathBuf};

/// Where it listens.
pub fn socket(folder: &Path) -> PathBuf {
    folder.join("containerd.sock")
}

/// The least that works, in either generation's words: no network plugins, since
/// pods have the host's network, and no more power over the OOM killer than root
/// has here. An overlay takes no place on another one: there the layers are copied.
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
sandbox = "{image}""#
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
conf_dir = "{folder}/no-network"
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
