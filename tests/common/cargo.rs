//! What Cargo builds, as it says itself where it lies: never stale.

use std::ffi::OsString;
use std::io;
use std::process::{Command, Stdio};

use serde_json::Value;

/// Builds these targets of this package in the caller's own profile, with
/// Cargo's progress and errors on standard error. Cargo's messages.
pub fn build(targets: &[&str]) -> io::Result<Vec<Value>> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
    let mut build = Command::new(cargo);
    build
        .args(["build", "--manifest-path", manifest])
        .args(["--message-format", "json-render-diagnostics"])
        .args(targets)
        .stderr(Stdio::inherit());
    if !cfg!(debug_assertions) {
        build.arg("--release");
    }
    let output = build.output()?;
    if !output.status.success() {
        return Err(io::Error::other(format!("{targets:?} do not build")));
    }
    let messages = String::from_utf8_lossy(&output.stdout);
    Ok(messages
        .lines()
        .filter_map(|message| serde_json::from_str(message).ok())
        .collect())
}
