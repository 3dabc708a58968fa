//! The effective configuration.

use std::fmt;
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

/// On one line, as flags: what would make the same of another process.
impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let HostPaths {
            device_plugin_dir,
            nvml_library,
            driver_root,
            dev_root,
            ..
        } = &self.paths;
        write!(
            f,
            "--device-plugin-dir={} --driver-root={} --driver-root-ctr-path={} --dev-root={} ",
            device_plugin_dir.display(),
            driver_root.host().display(),
            driver_root.here().display(),
            dev_root.host().display(),
        )?;
        if let Some(library) = nvml_library {
            write!(f, "--nvml-library={} ", library.display())?;
        }
        write!(
            f,
            "--resource-name={} --http-listen={} --health-poll-interval={}ms",
            self.resource_name,
            self.http_listen,
            self.poll_interval.as_millis(),
        )
    }
}
