//! The plugin, as Cargo builds it now.

use std::path::PathBuf;

use anyhow::Context;
use serde_json::Value;

use crate::common::cargo;

const NAME: &str = "gpu-device-plugin";

/// Builds the plugin, and the simulated NVML with it, with Cargo's progress on
/// standard error. An example among what is built makes Cargo take the
/// dependencies as it built them for this program, which halves the time.
pub(crate) fn plugin() -> anyhow::Result<PathBuf> {
    eprintln!("building {NAME}");
    let messages = cargo::build(&["--bin", NAME, "--example", "simulated_nvml"])?;
    let program = messages.iter().find_map(executable);
    program.context("Cargo does not say where the program is")
}

fn executable(message: &Value) -> Option<PathBuf> {
    let ours = message["target"]["name"] == NAME;
    let file = message["executable"].as_str().filter(|_| ours)?;
    Some(file.into())
}
