//! The commands that print: here `devices`, what would be advertised and answered.

pub mod driver;
pub mod topology;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use anyhow::{Context, bail};
use prost::Message;
use serde::Serialize;

use crate::allocate::response;
use crate::allocate::ways::Prepared;
use crate::api::v1beta1::{AllocateRequest, ContainerAllocateRequest, ContainerAllocateResponse};
use crate::cli::Output;
use crate::config::Config;
use crate::device::{Device, DeviceSnapshot, UnhealthyReason};
use crate::driver::nodes::Keeper;
use crate::driver::supply::Supplier;
use crate::gpu::calls;
use crate::gpu::{Gpu, GpuLibrary, GpuUuid, MigDevice, Reading};
use crate::health::kept::{self, since_boot};
use crate::health::reducer::{Kept, Signal};
use crate::health::signals::Kind;
use crate::inventory::{Inventory, Node, Rules};
use crate::monitor::nvml_opener;

/// Reads the node once and prints it on standard output.
///
/// # Errors
///
/// There is no driver to ask, or it does not answer.
#[expect(clippy::print_stdout, reason = "it is what the command is for")]
pub fn print(config: &Config, output: Output) -> anyhow::Result<()> {
    let report = within(calls::DEADLINE, config, read)?;
    let text = match output {
        Output::Json => serde_json::to_string_pretty(&report)? + "\n",
        Output::Table => table(&report),
    };
    print!("{text}");
    Ok(())
}

/// Runs `read` on a thread of its own: a driver that hangs is reported too.
fn within<T: Send + 'static>(
    deadline: Duration,
    config: &Config,
    read: fn(&Config) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let (sender, answer) = mpsc::channel();
    let config = config.clone();
    thread::spawn(move || sender.send(read(&config)));
    match answer.recv_timeout(deadline) {
        Ok(answer) => answer,
        Err(_) => bail!("the driver hangs: NVML did not answer within {deadline:?}"),
    }
}

#[derive(Debug, Serialize)]
struct Report {
    resources: Vec<String>,
    driver_version: String,
    driver_root: String,
    /// What could not be listed or found.
    problems: Vec<String>,
    devices: Vec<DeviceReport>,
}

#[derive(Debug, Serialize)]
struct DeviceReport {
    resource: String,
    id: String,
    health: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// What ends it, where the GPU is sick: `reset`, `reboot` or `replace`.
    #[serde(skip_serializing_if = "Option::is_none")]
    class: Option<&'static str>,
    /// What an operator does about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    remedy: Option<&'static str>,
    /// What is reported and keeps nobody from using it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    notes: Vec<NoteReport>,
    #[serde(skip_serializing_if = "Option::is_none")]
    gpu: Option<Gpu>,
    /// The part of the GPU that it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    mig: Option<MigDevice>,
    #[serde(skip_serializing_if = "Option::is_none")]
    replica: Option<u32>,
    /// Absent for a device that would be refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    allocate: Option<AllocateReport>,
}

#[derive(Debug, Serialize)]
struct NoteReport {
    reason: &'static str,
    remedy: &'static str,
}

#[derive(Debug, Serialize, PartialEq, Eq)]
struct AllocateReport {
    devices: Vec<PathReport>,
    mounts: Vec<PathReport>,
    environment: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
    cdi_devices: Vec<String>,
}

#[derive(Clone, Debug, Serialize, PartialEq, Eq)]
struct PathReport {
    host_path: String,
    container_path: String,
    permissions: String,
}

fn read(config: &Config) -> anyhow::Result<Report> {
    let library = nvml_opener(config)()?;
    let driver_version = library.driver_version()?;
    let count = library.count().context("the GPUs cannot be enumerated")?;
    let readings: Vec<_> = (0..count).map(|index| library.read(index)).collect();
    let mut problems: Vec<_> = readings
        .iter()
        .filter_map(|reading| match reading {
            Reading::Unidentified { index, error } => Some(format!(
                "GPU at index {index} cannot be identified: {error}"
            )),
            _ => None,
        })
        .collect();
    let rules = Rules::new(config);
    let mut inventory = Inventory::new(rules, config.health.clone(), kept(config));
    inventory.scanned(since_boot(), &readings, &[], calls::DEADLINE);
    probe(library.as_ref(), &mut inventory);
    problems.extend(inventory.refused().map(str::to_owned));
    problems.extend(inventory.left_out());
    let supply = Supplier::new(config).preview(&driver_version);
    if let Err(error) = &supply {
        problems.push(error.to_string());
    }
    let supply = supply
        .map(Arc::new)
        .map_err(|error| UnhealthyReason::NoDriverFiles(error.to_string()));
    // Serving writes the spec; this only looks.
    let mut node = Node::new(config, supply).without_cdi_spec();
    let report = Keeper::new(config).look(&inventory.needed());
    node.set_device_nodes(report.faults, report.mig_minors);
    let snapshots = inventory.devices(&node, &inventory.look(&node));
    let devices = snapshots.iter().flat_map(|(resource, snapshot)| {
        let devices = snapshot.devices.iter();
        let inventory = &inventory;
        devices.map(move |device| {
            let notes = device.uuid.iter().flat_map(|uuid| inventory.notes(uuid));
            device_report(resource, snapshot, device, notes)
        })
    });
    Ok(Report {
        resources: snapshots.keys().cloned().collect(),
        driver_version,
        driver_root: config.paths.driver_root.host().display().to_string(),
        problems,
        devices: devices.collect(),
    })
}

/// What a plugin that runs, or ran, on this node knows of its GPUs' health.
fn kept(config: &Config) -> BTreeMap<GpuUuid, Kept> {
    let boot_id = kept::boot_id(&config.paths.procfs);
    let path = config.paths.state_dir.here.join(kept::FILE);
    let text = std::fs::read(path);
    let file = boot_id.and_then(|boot_id| Ok((boot_id, text?)));
    let file = file.map(|(boot_id, text)| kept::File::parse(&text, &boot_id));
    file.ok().and_then(Result::ok).unwrap_or_default().gpus
}

fn probe(library: &dyn GpuLibrary, inventory: &mut Inventory) {
    let uuids: Vec<_> = inventory.uuids().cloned().collect();
    for uuid in uuids {
        let asked = since_boot();
        let answer = library.probe(&uuid);
        inventory.signal(since_boot(), &uuid, &Signal::Probed { asked, answer });
    }
}

fn device_report(
    resource: &str,
    snapshot: &DeviceSnapshot,
    device: &Device,
    notes: impl Iterator<Item = Kind>,
) -> DeviceReport {
    let request = ContainerAllocateRequest {
        devices_ids: vec![device.id.to_string()],
    };
    let request = AllocateRequest {
        container_requests: vec![request],
    };
    let answer = response::allocate(snapshot, &Prepared::of(&snapshot.common), &request, false);
    let refused = answer.as_ref().err().map(ToString::to_string);
    let reason = device.health.reason().map(ToString::to_string);
    let sickness = match device.health.reason() {
        Some(UnhealthyReason::Sick(sickness)) => Some(sickness),
        _ => None,
    };
    let note = |kind: Kind| NoteReport {
        reason: kind.signal().reason,
        remedy: kind.signal().remedy,
    };
    DeviceReport {
        resource: resource.into(),
        id: device.id.to_string(),
        health: device.health.as_str(),
        reason: reason.or(refused),
        class: sickness.map(|sickness| sickness.class.name()),
        remedy: sickness.map(|sickness| sickness.cause.remedy()),
        notes: notes.map(note).collect(),
        gpu: device.gpu.clone(),
        mig: device.mig.clone(),
        replica: device.replica(),
        allocate: answer
            .ok()
            .and_then(|answer| answer.container_responses.into_iter().next())
            .and_then(|answer| ContainerAllocateResponse::decode(&*answer).ok())
            .map(allocate_report),
    }
}

fn allocate_report(answer: ContainerAllocateResponse) -> AllocateReport {
    let devices = answer.devices.into_iter().map(|spec| PathReport {
        host_path: spec.host_path,
        container_path: spec.container_path,
        permissions: spec.permissions,
    });
    let mounts = answer.mounts.into_iter().map(|mount| PathReport {
        host_path: mount.host_path,
        container_path: mount.container_path,
        permissions: if mount.read_only {
            "ro".into()
        } else {
            "rw".into()
        },
    });
    AllocateReport {
        devices: devices.collect(),
        mounts: mounts.collect(),
        environment: answer.envs,
        annotations: answer.annotations,
        cdi_devices: answer.cdi_devices.into_iter().map(|d| d.name).collect(),
    }
}

fn table(report: &Report) -> String {
    let mut text = String::new();
    write_table(&mut text, report).unwrap_or_default(); // A string takes all.
    text
}

fn write_table(text: &mut String, report: &Report) -> std::fmt::Result {
    let Report {
        resources,
        driver_version,
        driver_root,
        problems,
        devices,
    } = report;
    for resource in resources {
        let own = || devices.iter().filter(|device| device.resource == *resource);
        let healthy = own().filter(|device| device.reason.is_none()).count();
        let all = own().count();
        writeln!(text, "{resource}: {all} devices, {healthy} healthy")?;
    }
    writeln!(text, "driver {driver_version} under {driver_root}")?;
    for problem in problems {
        writeln!(text, "problem: {problem}")?;
    }
    let mut rows = vec![
        [
            "INDEX",
            "ID",
            "HEALTH",
            "PRODUCT",
            "MEMORY",
            "CC",
            "PCI BUS ID",
            "NUMA",
        ]
        .map(str::to_owned),
    ];
    rows.extend(devices.iter().map(row));
    writeln!(text)?;
    write_rows(text, &rows)?;
    for device in devices {
        if let Some(reason) = &device.reason {
            writeln!(text, "\n{}: {reason}", device.id)?;
        }
        if let (Some(class), Some(remedy)) = (device.class, device.remedy) {
            writeln!(text, "  {class}: {remedy}")?;
        }
        for NoteReport { reason, remedy } in &device.notes {
            writeln!(text, "\n{}: note: {reason}: {remedy}", device.id)?;
        }
    }
    write_answers(text, devices)
}

fn row(device: &DeviceReport) -> [String; 8] {
    let gpu = device.gpu.as_ref();
    let mig = device.mig.as_ref();
    let show = |value: Option<String>| value.unwrap_or_else(|| "-".into());
    let memory = match mig {
        Some(mig) => Some(mig.memory_bytes),
        None => gpu.and_then(|gpu| gpu.memory_bytes),
    };
    [
        show(gpu.map(|gpu| index(gpu, mig))),
        device.id.clone(),
        device.health.into(),
        show(gpu.map(|gpu| product(gpu, mig))),
        show(memory.map(|bytes| format!("{} MiB", bytes >> 20))),
        show(gpu.and_then(|gpu| Some(gpu.compute_capability?.to_string()))),
        show(gpu.map(|gpu| gpu.pci_bus_id.clone())),
        show(gpu.and_then(|gpu| Some(gpu.numa_node?.to_string()))),
    ]
}

fn index(gpu: &Gpu, mig: Option<&MigDevice>) -> String {
    match mig {
        Some(mig) => format!("{}:{}", gpu.index, mig.index),
        None => gpu.index.to_string(),
    }
}

fn product(gpu: &Gpu, mig: Option<&MigDevice>) -> String {
    match mig {
        Some(mig) => format!("{} MIG {}", gpu.product_name, mig.profile),
        None => gpu.product_name.clone(),
    }
}

fn write_rows<Row: AsRef<[String]>>(text: &mut String, rows: &[Row]) -> std::fmt::Result {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.as_ref().get(column));
        cells.map(String::len).max().unwrap_or(0)
    };
    for row in rows {
        let mut line = String::new();
        for (column, cell) in row.as_ref().iter().enumerate() {
            write!(line, "{cell:<width$}  ", width = width(column))?;
        }
        writeln!(text, "{}", line.trim_end())?;
    }
    Ok(())
}

/// What differs by device stands with the device: of the mounts, those that
/// name it. The others are the same for all.
fn write_answers(text: &mut String, devices: &[DeviceReport]) -> std::fmt::Result {
    let answers = || {
        devices
            .iter()
            .filter_map(|device| Some((&device.id, device.allocate.as_ref()?)))
    };
    let Some((_, first)) = answers().next() else {
        return Ok(());
    };
    let mut shared = first.mounts.clone();
    shared.retain(|mount| answers().all(|(_, answer)| answer.mounts.contains(mount)));
    for (id, answer) in answers() {
        write_answer(text, id, answer, &shared)?;
    }
    write_section(text, "any of them", "mounts", &shared)
}

fn write_answer(
    text: &mut String,
    id: &str,
    answer: &AllocateReport,
    shared: &[PathReport],
) -> std::fmt::Result {
    let mut own = answer.mounts.clone();
    own.retain(|mount| !shared.contains(mount));
    write_section(text, id, "device nodes", &answer.devices)?;
    write_section(text, id, "mounts", &own)?;
    for (what, values) in [
        ("environment", &answer.environment),
        ("annotations", &answer.annotations),
    ] {
        if !values.is_empty() {
            writeln!(text, "\nAllocate {id}: {what}")?;
        }
        for (name, value) in values {
            writeln!(text, "  {name}={value}")?;
        }
    }
    if !answer.cdi_devices.is_empty() {
        let names = answer.cdi_devices.join("\n  ");
        writeln!(text, "\nAllocate {id}: CDI devices\n  {names}")?;
    }
    Ok(())
}

fn write_section(
    text: &mut String,
    id: &str,
    what: &str,
    paths: &[PathReport],
) -> std::fmt::Result {
    if paths.is_empty() {
        return Ok(());
    }
    writeln!(text, "\nAllocate {id}: {what}")?;
    write_paths(text, paths)
}

fn write_paths(text: &mut String, paths: &[PathReport]) -> std::fmt::Result {
    let rows: Vec<_> = paths
        .iter()
        .map(|path| {
            let PathReport {
                host_path,
                container_path,
                permissions,
            } = path;
            [
                format!("  {container_path}"),
                permissions.clone(),
                host_path.clone(),
            ]
        })
        .collect();
    write_rows(text, &rows)
}
