//! Where the walk takes place: a simulated node, or this machine.

use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::Context;
use tempfile::TempDir;

use super::common::nvml::SimulatedNode;

/// The node under the plugin.
pub(crate) enum Stage {
    /// All of it in a temporary folder.
    Simulated(Box<SimulatedNode>),
    /// This machine, but for the kubelet's folder.
    Real(TempDir),
}

impl Stage {
    pub(crate) fn simulated(gpus: usize) -> Self {
        Self::Simulated(Box::new(SimulatedNode::new(gpus)))
    }

    pub(crate) fn real() -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("node-").tempdir();
        Ok(Self::Real(folder.context("cannot make a folder")?))
    }

    pub(crate) fn describe(&self) -> String {
        let Self::Simulated(node) = self else {
            return "This machine's GPUs, and a kubelet in a temporary folder".to_owned();
        };
        let state = node.state();
        let numa: std::collections::BTreeSet<_> =
            state.gpus.iter().map(|gpu| gpu.numa_node).collect();
        format!(
            "A simulated node: {} GPUs ({}) on {} NUMA nodes, driver {}",
            state.gpus.len(),
            state.gpus[0].name,
            numa.len(),
            state.driver_version
        )
    }

    /// How many GPUs must be listed, where that is known.
    pub(crate) fn gpus(&self) -> Option<usize> {
        match self {
            Self::Simulated(node) => Some(node.state().gpus.len()),
            Self::Real(_) => None,
        }
    }

    /// The folder of the kubelet's socket.
    pub(crate) fn device_plugin_dir(&self) -> PathBuf {
        match self {
            Self::Simulated(node) => node.device_plugin_dir(),
            Self::Real(folder) => folder.path().into(),
        }
    }

    pub(crate) fn plugin_arguments(&self) -> Vec<OsString> {
        match self {
            Self::Simulated(node) => node.plugin_arguments(),
            Self::Real(folder) => vec![
                "--device-plugin-dir".into(),
                folder.path().into(),
                "--http-listen".into(),
                "127.0.0.1:0".into(),
                // A show leaves nothing on the machine.
                "--driver-volume=never".into(),
                "--make-device-nodes=false".into(),
            ],
        }
    }
}
