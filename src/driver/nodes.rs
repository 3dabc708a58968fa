//! The driver's device nodes.

use std::path::{Path, PathBuf};

use crate::device::DeviceNode;

/// Without these no container can use a GPU: the driver's control node, and
/// unified memory, which every CUDA program opens.
const REQUIRED: [&str; 2] = ["nvidiactl", "nvidia-uvm"];

/// Given where they exist: tools (profilers), and modesetting (graphics).
const OPTIONAL: [&str; 2] = ["nvidia-uvm-tools", "nvidia-modeset"];

/// The folder that holds `dev`, on the host and where this process sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DevRoot {
    host: PathBuf,
    here: PathBuf,
}

impl DevRoot {
    /// `host` as the host names it, `here` as this process sees it.
    pub fn new(host: impl Into<PathBuf>, here: impl Into<PathBuf>) -> Self {
        Self {
            host: host.into(),
            here: here.into(),
        }
    }

    /// As the host names it.
    pub fn host(&self) -> &Path {
        &self.host
    }

    /// The node of the GPU with this minor number.
    pub fn gpu(&self, minor_number: u32) -> DeviceNode {
        self.node(&format!("nvidia{minor_number}"))
    }

    /// The nodes that every container gets: the required ones, there or not,
    /// and the optional ones that are there.
    pub fn common(&self) -> Vec<DeviceNode> {
        let required = REQUIRED.iter().map(|name| self.node(name));
        let optional = OPTIONAL
            .iter()
            .map(|name| self.node(name))
            .filter(|node| node.here.exists());
        required.chain(optional).collect()
    }

    /// The node of this name in `dev`, there or not.
    pub(super) fn node(&self, name: &str) -> DeviceNode {
        let path = Path::new("dev").join(name);
        DeviceNode {
            host: self.host.join(&path),
            here: self.here.join(&path),
            container: Path::new("/").join(&path),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_containers_path_is_free_of_the_dev_root() {
        let root = DevRoot::new("/run/nvidia/driver", "/driver-root");
        let node = root.gpu(3);
        assert_eq!(node.host, Path::new("/run/nvidia/driver/dev/nvidia3"));
        assert_eq!(node.here, Path::new("/driver-root/dev/nvidia3"));
        assert_eq!(node.container, Path::new("/dev/nvidia3"));
    }

    #[test]
    fn optional_nodes_are_given_where_they_exist() {
        let root = tempfile::tempdir().unwrap();
        let dev = DevRoot::new(root.path(), root.path());
        let names = |dev: &DevRoot| -> Vec<_> {
            dev.common()
                .iter()
                .map(|node| node.container.to_string_lossy().into_owned())
                .collect()
        };
        assert_eq!(names(&dev), ["/dev/nvidiactl", "/dev/nvidia-uvm"]);
        std::fs::create_dir(root.path().join("dev")).unwrap();
        std::fs::write(root.path().join("dev/nvidia-modeset"), "").unwrap();
        assert_eq!(
            names(&dev),
            ["/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-modeset"]
        );
    }
}
