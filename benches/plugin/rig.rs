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
use super::common::kubelet::{Event, KubeletPeer, Options, Record};
use super::common::nvml::SimulatedNode;
use super::common::plugin::PluginProcess;

/// Where every kubelet has its plugins' sockets.
const DEVICE_PLUGIN_DIR: &str = "/var/lib/kubelet/device-plugins";
const START_LIMIT: Duration = Duration::from_secs(30);
const END_LIMIT: Duration = Duration::from_secs(5);

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
    pub(crate) async fn start(subject: &Subject, settings: &Settings) -> anyhow::Result<Self> {
        let node = SimulatedNode::new(settings.gpus);
        let kubelet = KubeletPeer::new(node.device_plugin_dir(), Options::default());
        kubelet.start().await.context("start the kubelet")?;
        let mut command = subject.command(&node);
        if settings.bind_device_plugin_dir {
            bind_in_own_namespace(&mut command, kubelet.folder())?;
        }
        let begin = Instant::now();
        let process = PluginProcess::start(command).context("start the plugin")?;
        let first = kubelet.wait_event("its first list", 0, START_LIMIT, is_list);
        let first = match first.await {
            Ok(first) => first,
            Err(error) => anyhow::bail!("{error}\nthe plugin's log:\n{}", process.log()),
        };
        let Event::ListReceived { resource, .. } = first.event else {
            anyhow::bail!("no list");
        };
        Ok(Self {
            pid: process.pid().context("the plugin has ended")?,
            process,
            kubelet,
            node,
            resource,
            registered_after: first.at.duration_since(begin),
        })
    }

    /// The next list since `mark` that is as wanted.
    pub(crate) async fn next_list(
        &self,
        mark: usize,
        within: Duration,
        wanted: impl Fn(&[Device]) -> bool,
    ) -> Option<Record> {
        let list = self
            .kubelet
            .wait_event("a list", mark, within, |event| match event {
                Event::ListReceived { devices, .. } => wanted(devices),
                _ => false,
            });
        list.await.ok()
    }

    /// Ends the plugin, by force if it must be.
    pub(crate) async fn end(mut self) {
        let asked = self.process.terminate();
        if asked.is_err() || self.process.wait(END_LIMIT).await.is_err() {
            eprintln!("the plugin has not ended by itself");
        }
    }
}

fn is_list(event: &Event) -> bool {
    matches!(event, Event::ListReceived { .. })
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
