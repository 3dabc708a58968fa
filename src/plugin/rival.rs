//! Other plugins for the same resource on this node.
//!
//! The kubelet gives a resource to whoever registered last, and tells nobody.
//! What can be seen is the other's socket in the kubelet's folder: a second
//! copy of this program by the prefix of its socket's name, NVIDIA's and GKE's
//! plugins by theirs.

use std::path::{Path, PathBuf};

use super::listener::socket_prefix;
use crate::kubelet::socket::{SocketId, is_live};

/// A live socket of another plugin for the same resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rival {
    /// The socket's file name.
    pub name: String,
    /// The socket.
    pub id: SocketId,
}

/// What there is beside the plugin for a resource.
#[derive(Debug, Default)]
pub struct Found {
    /// Sorted by name.
    pub rivals: Vec<Rival>,
    /// There is a socket at which nobody listens: what was left behind, or one that
    /// will be listened at without another change of the folder.
    pub any_silent: bool,
}

/// The rivals of the plugin for `resource` with the socket `own`.
pub fn find(folder: &Path, resource: &str, own: &str) -> Found {
    let candidates = candidates(folder, resource, own).into_iter();
    let (live, silent): (Vec<_>, Vec<_>) = candidates.partition(|path| is_live(path));
    let rivals = live.into_iter().filter_map(|path| {
        let name = path.file_name()?.to_string_lossy().into_owned();
        Some(Rival {
            name,
            id: SocketId::at(&path)?,
        })
    });
    let mut rivals: Vec<_> = rivals.collect();
    rivals.sort_by(|a, b| a.name.cmp(&b.name));
    Found {
        rivals,
        any_silent: !silent.is_empty(),
    }
}

/// Removes what copies of this program that were killed left behind.
pub fn remove_stale(folder: &Path, resource: &str, own: &str) {
    let prefix = socket_prefix(resource);
    for path in candidates(folder, resource, own) {
        let ours = path
            .file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with(&prefix));
        if ours && !is_live(&path) {
            // Whoever was faster has done the same.
            drop(std::fs::remove_file(&path));
        }
    }
}

fn candidates(folder: &Path, resource: &str, own: &str) -> Vec<PathBuf> {
    let Ok(entries) = folder.read_dir() else {
        return Vec::new();
    };
    let prefix = socket_prefix(resource);
    entries
        .filter_map(Result::ok)
        .filter(|entry| {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            // The rest of a name that is ours has no dash: nvidia.com/gpu-a is
            // another resource than nvidia.com/gpu.
            let rest = name.strip_prefix(&prefix);
            let same = rest.is_some_and(|rest| !rest.contains('-'));
            name != own && (same || is_foreign(&name, resource))
        })
        .map(|entry| entry.path())
        .filter(|path| SocketId::at(path).is_some())
        .collect()
}

/// NVIDIA's plugin serves `nvidia.com/NAME` on `nvidia-NAME.sock`, GKE's serves
/// `nvidia.com/gpu` on `nvidiaGPU-SECONDS.sock`.
fn is_foreign(socket: &str, resource: &str) -> bool {
    let Some(name) = resource.strip_prefix("nvidia.com/") else {
        return false;
    };
    socket == format!("nvidia-{name}.sock")
        || (name == "gpu" && socket.starts_with("nvidiaGPU-") && socket.ends_with(".sock"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn live_sockets_of_the_same_resource_are_rivals_and_stale_ones_are_removed() {
        let folder = tempfile::tempdir().unwrap();
        let bind = |name: &str| UnixListener::bind(folder.path().join(name)).unwrap();
        let prefix = socket_prefix("nvidia.com/gpu");
        let own = format!("{prefix}1.sock");
        let _live = [
            bind(&own),
            bind(&format!("{prefix}2.sock")),
            bind("nvidia-gpu.sock"),
            bind("nvidia-mig-1g.10gb.sock"),
            bind(&format!("{prefix}a-1.sock")),
            bind("kubelet.sock"),
        ];
        drop(bind(&format!("{prefix}3.sock")));
        drop(bind("nvidiaGPU-17.sock"));
        let found = || find(folder.path(), "nvidia.com/gpu", &own);
        let names = || -> Vec<_> { found().rivals.into_iter().map(|r| r.name).collect() };
        assert!(found().any_silent);
        assert_eq!(
            names(),
            [format!("{prefix}2.sock"), "nvidia-gpu.sock".into()]
        );
        remove_stale(folder.path(), "nvidia.com/gpu", &own);
        assert!(!folder.path().join(format!("{prefix}3.sock")).exists());
        assert!(
            folder.path().join("nvidiaGPU-17.sock").exists(),
            "not ours to remove"
        );
        assert_eq!(names().len(), 2);
        std::fs::remove_file(folder.path().join("nvidiaGPU-17.sock")).unwrap();
        assert!(!found().any_silent);
    }
}
