//! The driver's device nodes, and their links in `/dev/char`.
//!
//! The kernel does not make them: NVIDIA's modules have no devices in sysfs. Its
//! libraries and nvidia-modprobe make what they need when they need it, in the
//! `/dev` that they see, which in a container is not the host's. So [`Keeper`]
//! makes them on the host, the same way.

mod access;
mod caps;
mod faults;
mod keeper;
mod links;
mod made;
mod majors;
mod make;
mod plan;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

pub use self::caps::{Instance, MigMinors};
pub use self::faults::{Faults, Hindrance, NodeFault};
pub use self::keeper::{Keeper, Report};
pub use self::made::{Removal, remove_made};
pub use self::majors::{DeviceNumber, Module};

use crate::config::HostFolder;
use crate::device::DeviceNode;

/// Without these no container can use a GPU: the driver's control node, and
/// unified memory, which every CUDA program opens.
const REQUIRED: [&str; 2] = ["nvidiactl", "nvidia-uvm"];

/// Given where they exist: tools (profilers), and modesetting (graphics).
const OPTIONAL: [&str; 2] = ["nvidia-uvm-tools", "nvidia-modeset"];

/// The folder of the links, below the dev root.
const CHAR: &str = "dev/char";

/// What there have to be device nodes for, beside the driver itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Needed {
    /// Minor numbers of GPUs.
    pub gpus: BTreeSet<u32>,
    /// GPU instances and compute instances of MIG devices.
    pub instances: BTreeSet<Instance>,
}

impl<const N: usize> From<[u32; N]> for Needed {
    fn from(gpus: [u32; N]) -> Self {
        Self {
            gpus: gpus.into(),
            ..Self::default()
        }
    }
}

/// The folder that holds `dev`, on the host and where this process sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DevRoot {
    host: PathBuf,
    here: PathBuf,
    links: HostFolder,
}

impl DevRoot {
    /// `host` as the host names it, `here` as this process sees it. The links are
    /// in `dev/char`.
    pub fn new(host: impl Into<PathBuf>, here: impl Into<PathBuf>) -> Self {
        let (host, here) = (host.into(), here.into());
        let links = HostFolder {
            host: host.join(CHAR),
            here: here.join(CHAR),
        };
        Self { host, here, links }
    }

    /// The same with the links elsewhere: those that count are in the host's own
    /// `/dev/char`, wherever the nodes are.
    #[must_use]
    pub fn with_links(self, links: HostFolder) -> Self {
        Self { links, ..self }
    }

    /// As the host names it.
    pub fn host(&self) -> &Path {
        &self.host
    }

    /// As this process sees it.
    pub fn here(&self) -> &Path {
        &self.here
    }

    /// The node of the GPU with this minor number.
    pub fn gpu(&self, minor_number: u32) -> DeviceNode {
        self.node(&format!("nvidia{minor_number}"))
    }

    /// The node of the capability with this minor number.
    pub fn capability(&self, minor: u32) -> DeviceNode {
        self.node(&caps::node_name(minor))
    }

    /// The nodes without which no container can use a GPU, there or not.
    pub fn required(&self) -> [DeviceNode; REQUIRED.len()] {
        REQUIRED.map(|name| self.node(name))
    }

    /// Those that every container gets where they are there: those that are.
    pub fn optional(&self) -> impl Iterator<Item = DeviceNode> {
        let nodes = OPTIONAL.iter().map(|name| self.node(name));
        nodes.filter(|node| node.here.exists())
    }

    /// The folder of the links.
    fn links(&self) -> &HostFolder {
        &self.links
    }

    /// Where a link is to lead. Relative where nodes and links are of one `/dev`,
    /// as udev's are, so that it holds wherever that is mounted.
    fn link_target(&self, name: &str) -> PathBuf {
        if self.links.here == self.here.join(CHAR) {
            Path::new("..").join(name)
        } else {
            self.host.join("dev").join(name)
        }
    }

    /// Where a link of the host's leads, as this process sees that.
    fn seen_from_links(&self, target: &Path) -> PathBuf {
        if target.is_relative() {
            return self.links.here.join(target);
        }
        if let Ok(rest) = target.strip_prefix(&self.host) {
            return self.here.join(rest);
        }
        let root = self.links.here.ancestors().nth(2);
        let rest = target.strip_prefix("/").unwrap_or(target);
        root.unwrap_or(Path::new("/")).join(rest)
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
            dev.optional()
                .map(|node| node.container.to_string_lossy().into_owned())
                .collect()
        };
        assert_eq!(names(&dev), [""; 0]);
        std::fs::create_dir(root.path().join("dev")).unwrap();
        std::fs::write(root.path().join("dev/nvidia-modeset"), "").unwrap();
        assert_eq!(names(&dev), ["/dev/nvidia-modeset"]);
    }
}
