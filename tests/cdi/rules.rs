//! What a runtime's CDI library asks of a spec before it takes it, restated from
//! CDI's SPEC.md, its JSON schema and its checks of names: version 1.1.0.

#![allow(clippy::panic, reason = "a test's helper ends the test")]

use std::collections::BTreeSet;

use serde::Deserialize;

/// A spec. A field that CDI does not know is refused, as its library does.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Spec {
    pub cdi_version: String,
    pub kind: String,
    pub devices: Vec<Device>,
    #[serde(default)]
    pub container_edits: Edits,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Device {
    pub name: String,
    pub container_edits: Edits,
}

/// Of what there can be, what ours have.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Edits {
    #[serde(default)]
    pub device_nodes: Vec<DeviceNode>,
    #[serde(default)]
    pub mounts: Vec<Mount>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct DeviceNode {
    pub path: String,
    pub host_path: Option<String>,
    pub r#type: String,
    pub permissions: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Mount {
    pub host_path: String,
    pub container_path: String,
    pub options: Vec<String>,
}

impl Spec {
    /// What is done for this device.
    pub(crate) fn device(&self, name: &str) -> &Edits {
        let device = self.devices.iter().find(|device| device.name == name);
        let names: Vec<_> = self.devices.iter().map(|d| &d.name).collect();
        &device
            .unwrap_or_else(|| panic!("no {name} among {names:?}"))
            .container_edits
    }
}

/// The spec in `text`, if a runtime would take it.
pub(crate) fn valid(text: &str) -> Result<Spec, String> {
    let spec: Spec = serde_json::from_str(text).map_err(|error| error.to_string())?;
    check_kind(&spec.kind)?;
    if spec.devices.is_empty() {
        return Err("no devices".into());
    }
    let mut names = BTreeSet::new();
    for device in &spec.devices {
        check_device(device)?;
        if !names.insert(&device.name) {
            return Err(format!("{:?} is there twice", device.name));
        }
    }
    check_edits(&spec.container_edits)?;
    check_version(&spec)?;
    Ok(spec)
}

/// A DNS name, a slash, and a name of 63 letters at most.
fn check_kind(kind: &str) -> Result<(), String> {
    let fault = || format!("kind {kind:?}");
    let (vendor, class) = kind.split_once('/').ok_or_else(fault)?;
    let label = |label: &str| is_name(label, b"-") && label.len() <= 63;
    let letter = |name: &str| name.starts_with(|l: char| l.is_ascii_alphabetic());
    // Dots in a class came with 0.6.0.
    let good = vendor.split('.').all(label)
        && vendor.len() <= 253
        && is_name(class, b"-_")
        && class.len() <= 63
        && letter(vendor)
        && letter(class);
    good.then_some(()).ok_or_else(fault)
}

fn check_device(device: &Device) -> Result<(), String> {
    if !is_name(&device.name, b"-_.:") {
        return Err(format!("name {:?}", device.name));
    }
    let Edits {
        device_nodes,
        mounts,
    } = &device.container_edits;
    if device_nodes.is_empty() && mounts.is_empty() {
        return Err(format!("{:?} has no edits", device.name));
    }
    check_edits(&device.container_edits)
}

fn check_edits(edits: &Edits) -> Result<(), String> {
    let mut inside = BTreeSet::new();
    for node in &edits.device_nodes {
        let absolute = |path: &String| path.starts_with('/');
        let good = absolute(&node.path)
            && node.host_path.as_ref().is_none_or(absolute)
            && node.host_path.as_ref() != Some(&node.path)
            && node.r#type == "c"
            && node.permissions == "rw"
            && inside.insert(&node.path);
        good.then_some(()).ok_or_else(|| format!("{node:?}"))?;
    }
    for mount in &edits.mounts {
        // Programs among them have to run: no noexec.
        let good = mount.host_path.starts_with('/')
            && mount.container_path.starts_with('/')
            && mount.options == ["ro", "nosuid", "nodev", "rbind", "rprivate"]
            && inside.insert(&mount.container_path);
        good.then_some(()).ok_or_else(|| format!("{mount:?}"))?;
    }
    Ok(())
}

/// The lowest that has all that is used, from 0.5.0 on.
fn check_version(spec: &Spec) -> Result<(), String> {
    // Names that begin with a digit and host paths came with 0.5.0; what came
    // later is not among the fields above.
    match spec.cdi_version.as_str() {
        "0.5.0" => Ok(()),
        other => Err(format!("version {other:?}")),
    }
}

/// Letters and digits, and of the others not first and not last.
fn is_name(name: &str, others: &[u8]) -> bool {
    let plain = |letter: &u8| letter.is_ascii_alphanumeric();
    let bytes = name.as_bytes();
    bytes.first().is_some_and(plain)
        && bytes.last().is_some_and(plain)
        && bytes.iter().all(|l| plain(l) || others.contains(l))
}
