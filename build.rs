//! Generates the kubelet's gRPC interfaces from `proto/`, without protoc, and tells the
//! linker which functions run.

use std::env;
use std::error::Error;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

/// The functions that run, for the linker to lay side by side: half as much code is
/// resident. See benches/plugin/executed.rs.
const EXECUTED: &str = "link/executed.ld";
/// Names a file for the linker's map. The program is then as the linker likes, with
/// the names of functions: what the list is made of.
const LINK_MAP: &str = "LINK_MAP";
/// Linkers that do not read such a file.
const OTHER_LINKERS: [&str; 3] = ["gold", "mold", "wild"];

const DEVICE_PLUGIN: &str = "proto/deviceplugin.proto";
const PROTOS: [&str; 2] = [DEVICE_PLUGIN, "proto/podresources.proto"];

fn main() -> Result<(), Box<dyn Error>> {
    for proto in PROTOS {
        println!("cargo:rerun-if-changed={proto}");
    }
    let descriptors = protox::compile(PROTOS, ["proto"])?;
    // The same answer is the same bytes: a hash map would be written in any order.
    let configured = tonic_prost_build::configure().btree_map(".v1beta1");
    configured.compile_fds(descriptors)?;
    served()?;
    if env::var("PROFILE")? == "release" {
        link_for_release()?;
    }
    Ok(())
}

/// The device plugin's server once more, with an answer to Allocate that is encoded
/// already. See src/api.rs.
fn served() -> Result<(), Box<dyn Error>> {
    let folder = PathBuf::from(env::var("OUT_DIR")?).join("served");
    fs::create_dir_all(&folder)?;
    let configured = tonic_prost_build::configure().build_client(false);
    let encoded = "crate::api::EncodedAllocateResponse";
    configured
        .out_dir(folder)
        .extern_path(".v1beta1", "crate::api::v1beta1")
        .extern_path(".v1beta1.AllocateResponse", encoded)
        .compile_fds(protox::compile([DEVICE_PLUGIN], ["proto"])?)?;
    Ok(())
}

/// All by arguments of the linker, so that the compiler makes the same functions with
/// names and without.
fn link_for_release() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed={EXECUTED}");
    println!("cargo:rerun-if-env-changed={LINK_MAP}");
    if let Ok(map) = env::var(LINK_MAP) {
        println!("cargo:rustc-link-arg-bins=-Wl,-Map={map}");
        return Ok(());
    }
    println!("cargo:rustc-link-arg-bins=-Wl,--strip-all");
    if libc_takes_relr()? {
        println!("cargo:rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
    if reads_executed() {
        let folder = env::var("CARGO_MANIFEST_DIR")?;
        println!("cargo:rustc-link-arg-bins=-Wl,-T,{folder}/{EXECUTED}");
    }
    Ok(())
}

/// Whether the C library that is linked, and so any that the program runs with,
/// relocates by the short list of DT_RELR (glibc since 2.36): a page in place of 60 that
/// are read at the start and stay resident.
fn libc_takes_relr() -> Result<bool, Box<dyn Error>> {
    let is_native = env::var("HOST")? == env::var("TARGET")?;
    if !is_native || env::var("CARGO_CFG_TARGET_ENV")? != "gnu" {
        return Ok(false);
    }
    let asked = Command::new("cc")
        .arg("-print-file-name=libc.so.6")
        .output();
    // Whoever links by other means goes without.
    let path = asked.map(|answer| String::from_utf8_lossy(&answer.stdout).trim().to_owned());
    let Ok(libc) = path.and_then(fs::read) else {
        return Ok(false);
    };
    let version = b"GLIBC_ABI_DT_RELR";
    Ok(libc.windows(version.len()).any(|window| window == version))
}

/// GNU ld and lld do.
fn reads_executed() -> bool {
    let is = |name, value| env::var(name).is_ok_and(|is| is == value);
    let gnu = is("CARGO_CFG_TARGET_OS", "linux") && is("CARGO_CFG_TARGET_ENV", "gnu");
    let chosen = ["RUSTC_LINKER", "CARGO_ENCODED_RUSTFLAGS"].map(|name| env::var(name).ok());
    let is_other = |chosen: &String| OTHER_LINKERS.iter().any(|other| chosen.contains(other));
    gnu && !chosen.iter().flatten().any(is_other)
}
