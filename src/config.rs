//! The effective configuration.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::driver::DriverRoot;
use crate::driver::nodes::DevRoot;

/// Everything that decides what the process does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where things are on this node.
    pub paths: HostPaths,
    /// The resource that whole GPUs are advertised as.
    pub resource_name: String,
    /// Where `/livez`, `/readyz` and `/metrics` are served.
    pub http_listen: SocketAddr,
    /// Time between two polls of the GPUs.
    pub poll_interval: Duration,
}

/// Where things are on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPaths {
    /// The folder of `kubelet.sock` and of the plugins' sockets.
    pub device_plugin_dir: PathBuf,
    /// NVML's library, where it was named.
    pub nvml_library: Option<PathBuf>,
    /// The root that the driver is installed in.
    pub driver_root: DriverRoot,
    /// The folder that holds `dev`.
    pub dev_root: DevRoot,
    /// Where sysfs is mounted.
    pub sysfs: PathBuf,
    /// Where procfs is mounted.
    pub procfs: PathBuf,
}
