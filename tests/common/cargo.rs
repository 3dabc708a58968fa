//! What Cargo builds, as it says itself where it lies: never stale.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

/// Builds these targets of this package in the caller's own profile, with
/// Cargo's progress and errors on standard error. Cargo's messages.
pub fn build(targets: &[&str]) -> io::Result<Vec<Value>> {
    run(cargo_build().args(targets))
}

/// Builds the plugin as it is shipped, and says where it is. What Cargo builds for
/// tests and benchmarks has what they alone need of the dependencies.
pub fn plugin() -> io::Result<PathBuf> {
    built(&build(&["--bin", env!("CARGO_PKG_NAME")])?)
}

/// The program among Cargo's messages.
fn built(messages: &[Value]) -> io::Result<PathBuf> {
    let mut built = messages.iter();
    let built = built.find_map(|message| message["executable"].as_str());
    built
        .map(PathBuf::from)
        .ok_or_else(|| io::Error::other("no program among Cargo's messages"))
}

/// The plugin in another folder of Cargo's, with a variable in the environment.
pub fn plugin_in(target: &str, (name, value): (&str, &Path)) -> io::Result<PathBuf> {
    let plugin = ["--bin", env!("CARGO_PKG_NAME"), "--target-dir", target];
    built(&run(cargo_build().args(plugin).env(name, value))?)
}

fn cargo_build() -> Command {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
    let mut cargo = Command::new(cargo);
    cargo
        .args(["build", "--manifest-path", manifest])
        .args(["--message-format", "json-render-diagnostics"])
        .stderr(Stdio::inherit());
    if !cfg!(debug_assertions) {
        cargo.arg("--release");
    }
    cargo
}

fn run(cargo: &mut Command) -> io::Result<Vec<Value>> {
    let output = cargo.output()?;
    if !output.status.success() {
        return Err(io::Error::other(format!("{cargo:?} fails")));
    }
    let messages = String::from_utf8_lossy(&output.stdout);
    Ok(messages
        .lines()
        .filter_map(|message| serde_json::from_str(message).ok())
        .collect())
}
