//! One run of one plugin: a node, a kubelet, a process.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use gpu_device_plugin::api::v1beta1::Device;
use tokio::process::Command;

use super::arguments::Settings;
use super::command::Subject;
use super::common::kubelet::{Event, KubeletPeer, Options};
use super::common::nvml::SimulatedNode;
use super::common::plugin::PluginProcess;
use super::process::Memory;
use super::raw::Caller;

/// Where every kubelet has its plugins' sockets.
const DEVICE_PLUGIN_DIR: &str = "/var/lib/kubelet/device-plugins";
const START_LIMIT: Duration = Duration::from_secs(30);
const END_LIMIT: Duration = Duration::from_secs(5);
/// Nobody outside sees when a plugin listens to its events, or what it has still
/// to do after its first list.
const SETTLE: Duration = Duration::from_secs(1);

/// What a node advertises.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) gpus: usize,
    /// Of each GPU; 1 is one that is not shared.
    pub(crate) replicas: usize,
}

impl Shape {
    pub(crate) fn whole(gpus: usize) -> Self {
        Self { gpus, replicas: 1 }
    }

    pub(crate) fn devices(self) -> usize {
        self.gpus * self.replicas
    }

    /// In the format that NVIDIA's plugin reads too.
    fn config(self) -> Option<String> {
        (self.replicas > 1).then(|| {
            format!(
                "version: v1\nsharing:\n  timeSlicing:\n    resources:\n    \
                 - name: nvidia.com/gpu\n      replicas: {}\n",
                self.replicas
            )
        })
    }
}

/// A registered plugin.
pub(crate) struct Rig {
    pub(crate) process: PluginProcess,
    pub(crate) kubelet: KubeletPeer,
    /// Under both: its folder goes last.
    pub(crate) node: SimulatedNode,
    pub(crate) pid: u32,
    /// What it registered for.
    pub(crate) resource: String,
    pub(crate) registered_after: Duration,
}

impl Rig {
    /// Lays out a node, starts the plugin on it, and waits for its first list.
    pub(crate) async fn start(
        subject: &Subject,
        settings: &Settings,
        shape: Shape,
    ) -> anyhow::Result<Self> {
        let node = SimulatedNode::new(shape.gpus);
        let kubelet = KubeletPeer::new(node.device_plugin_dir(), Options::default());
        kubelet.start().await.context("start the kubelet")?;
        let mut command = command(subject, &node, shape)?;
        if settings.bind_device_plugin_dir {
            bind_in_own_namespace(&mut command, kubelet.folder())?;
        }
        let begin = Instant::now();
        let process = PluginProcess::start(command).context("start the plugin")?;
        let first = next_list(&kubelet, 0, START_LIMIT, |_, devices| {
            devices.len() == shape.devices()
        });
        let Some((at, resource)) = first.await else {
            let (devices, log) = (shape.devices(), process.log());
            anyhow::bail!("no list of {devices} devices in {START_LIMIT:?}\nits log:\n{log}");
        };
        Ok(Self {
            pid: process.pid().context("the plugin has ended")?,
            process,
            kubelet,
            node,
            resource,
            registered_after: at.duration_since(begin),
        })
    }

    /// The same, and what a plugin does right after its first list is done.
    pub(crate) async fn settled(
        subject: &Subject,
        settings: &Settings,
        shape: Shape,
    ) -> anyhow::Result<Self> {
        let rig = Self::start(subject, settings, shape).await?;
        tokio::time::sleep(SETTLE).await;
        Ok(rig)
    }

    /// When the next list since `mark` came that is as wanted.
    pub(crate) async fn next_list(
        &self,
        mark: usize,
        within: Duration,
        wanted: impl Fn(&[Device]) -> bool,
    ) -> Option<Instant> {
        let wanted = |_: &str, devices: &[Device]| wanted(devices);
        let list = next_list(&self.kubelet, mark, within, wanted);
        list.await.map(|(at, _)| at)
    }

    /// A connection of its own.
    pub(crate) async fn caller(&self) -> anyhow::Result<Caller> {
        Ok(Caller::new(self.kubelet.channel(&self.resource).await?))
    }

    /// What the kubelet knows, sorted.
    pub(crate) fn ids(&self) -> Vec<String> {
        let devices = self.kubelet.devices(&self.resource).into_iter();
        devices.map(|device| device.id).collect()
    }

    pub(crate) fn memory(&self) -> io::Result<Memory> {
        Memory::of(self.pid)
    }

    /// Ends the plugin, by force if it must be.
    pub(crate) async fn end(mut self) {
        let asked = self.process.terminate();
        if asked.is_err() || self.process.wait(END_LIMIT).await.is_err() {
            eprintln!("the plugin has not ended by itself");
        }
    }
}

fn command(subject: &Subject, node: &SimulatedNode, shape: Shape) -> anyhow::Result<Command> {
    let Some(text) = shape.config() else {
        return Ok(subject.command(node, None));
    };
    anyhow::ensure!(
        subject.takes_config(),
        "its command line has no {{config}}, which says how GPUs are shared"
    );
    let config = node.root().join("config.yaml");
    std::fs::write(&config, text)?;
    Ok(subject.command(node, Some(&config)))
}

/// Each list is looked at once: there may be thousands, of thousands of devices.
async fn next_list(
    kubelet: &KubeletPeer,
    mark: usize,
    within: Duration,
    wanted: impl Fn(&str, &[Device]) -> bool,
) -> Option<(Instant, String)> {
    let mut seen = mark;
    let list = kubelet.wait_for("a list", within * 2, |kubelet| {
        let (new, found) = kubelet.look(seen, |records| {
            let found = records.iter().find_map(|record| match &record.event {
                Event::ListReceived {
                    resource, devices, ..
                } if wanted(resource, devices) => Some((record.at, resource.clone())),
                _ => None,
            });
            (records.len(), found)
        });
        seen += new;
        found
    });
    // By a limit of our own: the kubelet's error is all that it saw, as text.
    tokio::time::timeout(within, list).await.ok()?.ok()
}

/// Has the command see `folder` where the kubelet's is, and nobody else.
#[allow(unsafe_code)]
fn bind_in_own_namespace(command: &mut Command, folder: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(DEVICE_PLUGIN_DIR)?;
    let folder = CString::new(folder.as_os_str().as_bytes())?;
    let target = CString::new(DEVICE_PLUGIN_DIR)?;
    let enter = move || {
        // SAFETY: an integer; no memory is touched.
        check(unsafe { libc::unshare(libc::CLONE_NEWNS) })?;
        mount(None, c"/", libc::MS_REC | libc::MS_PRIVATE)?;
        mount(Some(&folder), &target, libc::MS_BIND)
    };
    // SAFETY: between fork and exec only system calls are made, with strings
    // that were allocated before.
    unsafe { command.pre_exec(enter) };
    Ok(())
}

#[allow(unsafe_code)]
fn mount(
    source: Option<&std::ffi::CStr>,
    target: &std::ffi::CStr,
    flags: libc::c_ulong,
) -> io::Result<()> {
    let source = source.map_or(std::ptr::null(), std::ffi::CStr::as_ptr);
    // SAFETY: C strings that outlive the call, or nothing where the kernel
    // looks at nothing.
    check(unsafe {
        libc::mount(
            source,
            target.as_ptr(),
            std::ptr::null(),
            flags,
            std::ptr::null(),
        )
    })
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
