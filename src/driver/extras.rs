//! What some nodes have beside the GPUs, and containers want with them:
//! GPUDirect Storage, GDRCopy, InfiniBand's verbs, an IMEX channel.

use std::fs;
use std::path::{Path, PathBuf};

use super::DriverMount;
use super::nodes::DevRoot;
use crate::config::{AllocationOptions, Extra, HostFolder, ImexChannel};
use crate::device::DeviceNode;

/// The one IMEX channel that can be asked for.
pub const IMEX_CHANNEL: u32 = 0;

/// What GPUDirect Storage reads beside its nodes: the properties of disks, and
/// its own configuration.
const GDS_FILES: [&str; 2] = ["/run/udev", "/etc/cufile.json"];

/// What a node has of what was asked for. What it has not is left out, as
/// NVIDIA's container toolkit does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Extras {
    /// Device nodes: of storage, of GDRCopy, of InfiniBand, each by number.
    pub nodes: Vec<DeviceNode>,
    /// Files and folders of the host, read-only.
    pub mounts: Vec<DriverMount>,
    /// The node of the IMEX channel.
    pub imex: Option<DeviceNode>,
}

impl Extras {
    /// Looks for what `options` ask for and containers get from us.
    ///
    /// `host_root` is where this process sees the host's `/`.
    #[must_use]
    pub fn find(options: &AllocationOptions, dev_root: &DevRoot, host_root: &Path) -> Self {
        let mut found = Self::default();
        if options.imex != ImexChannel::Off {
            let channel = imex_node(dev_root);
            found.imex = channel.here.exists().then_some(channel);
        }
        if !options.gives_driver() {
            // NVIDIA's container runtime finds the rest by itself.
            return found;
        }
        for extra in &options.extras {
            match extra {
                Extra::Gds => found.storage(dev_root, host_root),
                Extra::Gdrcopy => found.nodes.extend(existing(dev_root, "gdrdrv")),
                Extra::Mofed => {
                    let verbs = numbered(dev_root, "infiniband", "uverbs");
                    found.nodes.extend(verbs);
                    let manager = existing(dev_root, "infiniband/rdma_cm");
                    found.nodes.extend(manager);
                }
            }
        }
        found
    }

    /// The files are of no use without the driver's nodes.
    fn storage(&mut self, dev_root: &DevRoot, host_root: &Path) {
        let nodes = numbered(dev_root, "", "nvidia-fs");
        if nodes.is_empty() {
            return;
        }
        self.nodes.extend(nodes);
        let files = GDS_FILES.map(|path| HostFolder::below(host_root, path));
        let files = files.into_iter().filter(|file| file.here.exists());
        self.mounts.extend(files.map(|file| DriverMount {
            container: file.host.clone(),
            host: file.host,
            here: file.here,
        }));
    }
}

/// The IMEX channel's node, as the host names it.
#[must_use]
pub fn imex_channel(dev_root: &DevRoot) -> PathBuf {
    imex_node(dev_root).host
}

fn imex_node(dev_root: &DevRoot) -> DeviceNode {
    dev_root.node(&format!("nvidia-caps-imex-channels/channel{IMEX_CHANNEL}"))
}

fn existing(dev_root: &DevRoot, name: &str) -> Option<DeviceNode> {
    let node = dev_root.node(name);
    node.here.exists().then_some(node)
}

/// The nodes in a folder of `dev` whose names begin so, 2 before 10.
fn numbered(dev_root: &DevRoot, folder: &str, prefix: &str) -> Vec<DeviceNode> {
    let inside = Path::new(folder);
    let names = fs::read_dir(dev_root.node(folder).here);
    let names = names.into_iter().flatten().flatten();
    let mut names: Vec<_> = names
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.starts_with(prefix))
        .collect();
    names.sort_unstable_by_key(|name| (name.len(), name.clone()));
    names
        .iter()
        .map(|name| dev_root.node(&inside.join(name).to_string_lossy()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::DeviceListStrategy;

    /// A host with everything; the folder of its `/`.
    fn host() -> tempfile::TempDir {
        let host = tempfile::tempdir().unwrap();
        for file in [
            "dev/nvidia-fs10",
            "dev/nvidia-fs2",
            "dev/nvidia0",
            "dev/gdrdrv",
            "dev/infiniband/uverbs1",
            "dev/infiniband/uverbs0",
            "dev/infiniband/umad0",
            "dev/infiniband/rdma_cm",
            "dev/nvidia-caps-imex-channels/channel0",
            "dev/nvidia-caps-imex-channels/channel1",
            "run/udev/data/b8:0",
            "etc/cufile.json",
        ] {
            let file = host.path().join(file);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, "").unwrap();
        }
        host
    }

    fn everything(strategy: DeviceListStrategy) -> AllocationOptions {
        AllocationOptions {
            strategies: [strategy].into(),
            extras: [Extra::Gds, Extra::Gdrcopy, Extra::Mofed].into(),
            imex: ImexChannel::Optional,
            ..AllocationOptions::default()
        }
    }

    fn find(options: &AllocationOptions, host: &Path) -> Extras {
        Extras::find(options, &DevRoot::new("/", host), host)
    }

    fn names<'a>(nodes: impl Iterator<Item = &'a DeviceNode>) -> Vec<String> {
        nodes
            .map(|node| node.host.to_string_lossy().into_owned())
            .collect()
    }

    #[test]
    fn all_that_was_asked_for_and_is_there_in_the_order_of_its_numbers() {
        let host = host();
        let extras = find(&everything(DeviceListStrategy::Mounts), host.path());
        let expected = [
            "/dev/nvidia-fs2",
            "/dev/nvidia-fs10",
            "/dev/gdrdrv",
            "/dev/infiniband/uverbs0",
            "/dev/infiniband/uverbs1",
            "/dev/infiniband/rdma_cm",
            "/dev/nvidia-caps-imex-channels/channel0",
        ];
        let nodes = extras.nodes.iter().chain(&extras.imex);
        assert_eq!(names(nodes), expected);
        let mounts: Vec<_> = extras.mounts.iter().map(|m| m.host.clone()).collect();
        assert_eq!(mounts, GDS_FILES.map(PathBuf::from));
        assert!(extras.mounts.iter().all(|mount| mount.here.exists()));
    }

    #[test]
    fn nothing_that_is_not_there_or_was_not_asked_for() {
        let host = host();
        let options = AllocationOptions::default();
        assert_eq!(find(&options, host.path()), Extras::default());
        let bare = tempfile::tempdir().unwrap();
        let all = everything(DeviceListStrategy::CdiCri);
        assert_eq!(find(&all, bare.path()), Extras::default());
    }

    #[test]
    fn files_of_storage_only_with_its_nodes() {
        let host = host();
        for node in ["dev/nvidia-fs2", "dev/nvidia-fs10"] {
            fs::remove_file(host.path().join(node)).unwrap();
        }
        let options = everything(DeviceListStrategy::Mounts);
        assert_eq!(find(&options, host.path()).mounts, []);
    }

    #[test]
    fn for_nvidias_runtime_the_channel_alone() {
        let host = host();
        let extras = find(&everything(DeviceListStrategy::Envvar), host.path());
        assert!(extras.imex.is_some());
        assert_eq!(extras.nodes, []);
        assert_eq!(extras.mounts, []);
    }
}
