//! The plugin, as Cargo builds it now.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};
use serde_json::Value;

const NAME: &str = "gpu-device-plugin";

/// Builds the plugin, and the simulated NVML with it, in this program's own
/// profile, with Cargo's progress on standard error. An example among what is
/// built makes Cargo take the dependencies as it built them for this program,
/// which halves the time.
pub(crate) fn plugin() -> anyhow::Result<PathBuf> {
    eprintln!("building {NAME}");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    let mut build = Command::new(&cargo);
    build
        .args(["build", "--bin", NAME, "--example", "simulated_nvml"])
        .args(["--message-format", "json-render-diagnostics"])
        .args([
            "--manifest-path",
            concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"),
        ])
        .stderr(Stdio::inherit());
    if !cfg!(debug_assertions) {
        build.arg("--release");
    }
    let output = build
        .output()
        .with_context(|| format!("cannot start {}", cargo.display()))?;
    ensure!(output.status.success(), "{NAME} does not build");
    let messages = String::from_utf8_lossy(&output.stdout);
    messages
        .lines()
        .find_map(executable)
        .context("Cargo does not say where the program is")
}

fn executable(message: &str) -> Option<PathBuf> {
    let message: Value = serde_json::from_str(message).ok()?;
    let ours = message["target"]["name"] == NAME;
    let file = message["executable"].as_str().filter(|_| ours)?;
    Some(file.into())
}
