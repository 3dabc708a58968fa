//! The `driver` command: the driver's files, and whether they would do.

use std::fmt;
use std::fs;
use std::path::Path;

use serde::Serialize;

use super::write_rows;
use crate::cli::Output;
use crate::config::Config;
use crate::driver::capabilities::{Capabilities, Capability};
use crate::driver::supply::Supplier;
use crate::driver::{DriverError, DriverFiles, DriverRoot, kernel_module_version};

/// Looks at the node and prints what there is of a driver on standard output.
/// Asks no GPU: it tells as much of a node where NVML fails. Answers whether a
/// container would compute.
///
/// # Errors
///
/// The report could not be written as JSON.
#[expect(clippy::print_stdout, reason = "it is what the command is for")]
pub fn print(config: &Config, output: Output) -> anyhow::Result<bool> {
    let report = Report::of(config);
    let text = match output {
        Output::Json => serde_json::to_string_pretty(&report)? + "\n",
        Output::Table => report.to_string(),
    };
    print!("{text}");
    Ok(report.works)
}

#[derive(Debug, Serialize)]
struct Report {
    /// Whether a container would compute.
    works: bool,
    /// Why it would not.
    problems: Vec<String>,
    /// The loaded kernel module's version.
    kernel_module: Option<String>,
    /// The version of the files below: the module's, else the newest there.
    driver_version: Option<String>,
    driver_root: String,
    layout: &'static str,
    /// Where containers get the files from.
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<String>,
    capabilities: String,
    /// Bytes of all files.
    size: u64,
    files: Vec<File>,
    left_out: Vec<LeftOut>,
    missing: Vec<Missing>,
    from_image: Vec<FromImage>,
}

#[derive(Debug, Serialize)]
struct File {
    name: String,
    capability: Capability,
    size: u64,
    host_path: String,
}

#[derive(Debug, Serialize)]
struct LeftOut {
    host_path: String,
    reason: String,
}

#[derive(Debug, Serialize)]
struct Missing {
    name: String,
    capability: Capability,
    cost: String,
}

#[derive(Debug, Serialize)]
struct FromImage {
    name: String,
    needed_by: Vec<String>,
}

impl Report {
    fn of(config: &Config) -> Self {
        let (paths, capabilities) = (&config.paths, &config.driver.capabilities);
        let kernel_module = kernel_module_version(&paths.procfs, &paths.sysfs);
        let mut problems = Vec::new();
        if kernel_module.is_none() {
            problems.push("no kernel module is loaded; load it with modprobe nvidia".into());
        }
        let looked = look(&paths.driver_root, kernel_module.as_deref(), capabilities);
        let files = match looked {
            Ok(files) => files,
            Err(error) => {
                problems.push(told(&error));
                None
            }
        };
        if let Some(Err(error)) = files.clone().map(DriverFiles::complete) {
            problems.push(error.to_string());
        }
        problems.extend(nodes(config));
        let supplier = Supplier::new(config);
        let supply = files.as_ref().map(|files| supplier.preview(&files.version));
        Self {
            works: problems.is_empty(),
            problems,
            kernel_module,
            driver_version: files.as_ref().map(|files| files.version.clone()),
            driver_root: paths.driver_root.host().display().to_string(),
            layout: files.as_ref().map_or("none", DriverFiles::layout),
            from: supply.and_then(|supply| Some(supply.ok()?.from.to_string())),
            capabilities: capabilities.to_string(),
            size: files.as_ref().map_or(0, DriverFiles::size),
            files: files.iter().flat_map(listed).collect(),
            left_out: files.iter().flat_map(left_out).collect(),
            missing: files.iter().flat_map(missing).collect(),
            from_image: files.iter().flat_map(from_image).collect(),
        }
    }
}

/// The files of the module's driver, or of the newest there. None: no driver of
/// any version.
fn look(
    root: &DriverRoot,
    module: Option<&str>,
    capabilities: &Capabilities,
) -> Result<Option<DriverFiles>, DriverError> {
    let version = match module {
        Some(version) => Some(version.to_owned()),
        None => DriverFiles::versions(root)?.pop(),
    };
    version
        .map(|version| DriverFiles::look(root, &version, capabilities))
        .transpose()
}

/// An error with what the system said.
fn told(error: &DriverError) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

/// What of the device nodes is missing that every container takes.
fn nodes(config: &Config) -> Vec<String> {
    let dev_root = &config.paths.dev_root;
    let required = dev_root.required().into_iter();
    let missing = required.filter(|node| !node.here.exists());
    let mut problems: Vec<_> = missing
        .map(|node| format!("{} does not exist", node.host.display()))
        .collect();
    if !any_gpu(&dev_root.here().join("dev")) {
        let dev = dev_root.host().join("dev");
        problems.push(format!("no GPU's node is in {}", dev.display()));
    }
    problems
}

fn any_gpu(dev: &Path) -> bool {
    let entries = fs::read_dir(dev).into_iter().flatten().flatten();
    let mut names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names.any(|name| {
        let number = name.strip_prefix("nvidia");
        number.is_some_and(|number| number.parse::<u32>().is_ok())
    })
}

fn listed(files: &DriverFiles) -> Vec<File> {
    let files = files.files.iter().map(|file| File {
        name: file.name.clone(),
        capability: file.capability,
        size: file.size,
        host_path: file.host.display().to_string(),
    });
    files.collect()
}

fn left_out(files: &DriverFiles) -> Vec<LeftOut> {
    let left_out = files.left_out.iter().map(|left| LeftOut {
        host_path: left.host.display().to_string(),
        reason: left.reason.to_string(),
    });
    left_out.collect()
}

fn missing(files: &DriverFiles) -> Vec<Missing> {
    let missing = files.missing.iter().map(|missing| Missing {
        name: missing.name.clone(),
        capability: missing.capability,
        cost: missing.cost.clone(),
    });
    missing.collect()
}

fn from_image(files: &DriverFiles) -> Vec<FromImage> {
    let from_image = files.from_image.iter().map(|library| FromImage {
        name: library.name.clone(),
        needed_by: library.needed_by.clone(),
    });
    from_image.collect()
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = if self.works {
            "would compute"
        } else {
            "would not compute"
        };
        writeln!(f, "a container {verdict}")?;
        for problem in &self.problems {
            writeln!(f, "problem: {problem}")?;
        }
        let version = self.driver_version.as_deref().unwrap_or("none");
        let module = self.kernel_module.as_deref().unwrap_or("not loaded");
        writeln!(f, "driver: {version} (kernel module: {module})")?;
        writeln!(f, "root: {} (layout: {})", self.driver_root, self.layout)?;
        if let Some(from) = &self.from {
            writeln!(f, "for containers: {from}")?;
        }
        let (count, size) = (self.files.len(), size(self.size));
        writeln!(f, "files for {}: {count}, {size}", self.capabilities)?;
        self.tables(f)
    }
}

impl Report {
    fn tables(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let files = self.files.iter().map(|file| {
            let capability = file.capability.to_string();
            [
                capability,
                file.name.clone(),
                size(file.size),
                file.host_path.clone(),
            ]
        });
        table(f, ["CAPABILITY", "FILE", "SIZE", "ON THE HOST"], files)?;
        let missing = self.missing.iter().map(|missing| {
            let capability = missing.capability.to_string();
            [capability, missing.name.clone(), missing.cost.clone()]
        });
        table(f, ["CAPABILITY", "MISSING", "WHAT IT COSTS"], missing)?;
        let left_out = self.left_out.iter();
        let left_out = left_out.map(|left| [left.host_path.clone(), left.reason.clone()]);
        table(f, ["LEFT OUT", "WHY"], left_out)?;
        let from_image = self.from_image.iter();
        let from_image = from_image.map(|it| [it.name.clone(), it.needed_by.join(", ")]);
        table(f, ["THE IMAGE BRINGS", "FOR"], from_image)
    }
}

/// A table, where there is anything in it.
fn table<const N: usize>(
    f: &mut fmt::Formatter<'_>,
    head: [&str; N],
    rows: impl Iterator<Item = [String; N]>,
) -> fmt::Result {
    let mut all = vec![head.map(str::to_owned)];
    all.extend(rows);
    if all.len() == 1 {
        return Ok(());
    }
    let mut text = String::new();
    write_rows(&mut text, &all)?;
    write!(f, "\n{text}")
}

fn size(bytes: u64) -> String {
    const MEBIBYTE: u64 = 1 << 20;
    if bytes < MEBIBYTE {
        return format!("{} KiB", bytes.div_ceil(1024));
    }
    let tenths = bytes.saturating_mul(10) / MEBIBYTE;
    format!("{}.{} MiB", tenths / 10, tenths % 10)
}
