//! What a real GPU and its driver tell: run on a machine that has one, with
//! `cargo test --test real_gpu -- --ignored --nocapture`. It prints, and asks for
//! nothing but that a healthy GPU is told to be so. `NVML_LIBRARY` names another
//! library than the loader's.
#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests fail as tests do"
)]

#[path = "real_gpu/calls.rs"]
mod calls;
mod common;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use gpu_device_plugin::gpu::loader::Loader;
use gpu_device_plugin::gpu::nvml::NvmlLibrary;
use gpu_device_plugin::gpu::{Gpu, GpuLibrary, GpuUuid, OpenError, Reading};

use calls::{Clock, print_calls};
use common::open_files::open_files;

/// So many probes are taken the mean of.
const PROBES: u32 = 200;

fn library_path() -> Option<PathBuf> {
    std::env::var_os("NVML_LIBRARY").map(PathBuf::from)
}

/// A session, or none where the machine has no driver.
fn open() -> Option<NvmlLibrary> {
    open_by(&Loader::default())
}

fn open_by(loader: &Loader) -> Option<NvmlLibrary> {
    let library = library_path();
    match NvmlLibrary::open(loader, library.as_deref(), Path::new("/sys"), None) {
        Ok(library) => Some(library),
        Err(error @ (OpenError::NoLibrary(_) | OpenError::NoDriver(_))) => {
            println!("*** SKIPPED real GPU: {error}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

fn gpus(library: &NvmlLibrary) -> Vec<Gpu> {
    let count = library.count().expect("a count");
    let gpu = |index| match library.read(index) {
        Reading::Gpu(gpu) => gpu,
        sick => panic!("{sick:?}"),
    };
    (0..count).map(gpu).collect()
}

fn uuids(library: &NvmlLibrary) -> Vec<GpuUuid> {
    gpus(library).into_iter().map(|gpu| gpu.uuid).collect()
}

#[test]
#[ignore = "needs a GPU"]
fn vitals_of_every_gpu() {
    let Some(library) = open() else { return };
    println!("driver {}", library.driver_version().expect("a version"));
    for gpu in gpus(&library) {
        println!("{gpu:?}");
        let uuid = gpu.uuid;
        let first = library.probe(&uuid).expect("an answer");
        println!("{uuid}: {first:?}");
        assert!(matches!(first.recovery_action, None | Some(0)));
        // Clocks change; the rest does not depend on what the first has taught.
        let mut second = library.probe(&uuid).expect("an answer");
        second.clocks_event_reasons = first.clocks_event_reasons;
        assert_eq!(second, first);
    }
}

#[test]
#[ignore = "needs a GPU"]
fn what_a_probe_costs() {
    let Some(library) = open() else { return };
    for uuid in uuids(&library) {
        let first = cost(1, || drop(library.probe(&uuid)));
        let later = cost(PROBES, || drop(library.probe(&uuid)));
        println!("{uuid}: the first probe {first}, each later {later}");
    }
}

/// The mean of `times` calls: as the clock on the wall has it, and as this
/// thread's time on a processor.
fn cost(times: u32, mut call: impl FnMut()) -> String {
    let (wall, processor) = (Instant::now(), Clock::thread());
    for _ in 0..times {
        call();
    }
    let each = |all: Duration| (all / times).as_micros();
    let (wall, processor) = (each(wall.elapsed()), each(processor.elapsed()));
    format!("{wall} µs, {processor} µs of them on a processor")
}

#[test]
#[ignore = "needs a GPU"]
fn what_each_call_answers() {
    if open().is_none() {
        return;
    }
    let path = library_path().map_or_else(|| OsString::from("libnvidia-ml.so.1"), Into::into);
    let nvml = nvml_wrapper::Nvml::builder().lib_path(&path).init();
    let nvml = nvml.expect("a session");
    for index in 0..nvml.device_count().expect("a count") {
        println!("GPU {index}");
        print_calls(&nvml.device_by_index(index).expect("a GPU"));
    }
}

/// NVML leaves a file open each time it is unloaded after a session.
#[test]
#[ignore = "needs a GPU"]
fn sessions_leave_no_file_open() {
    let kept = Loader::default();
    let session = |loader: &Loader| {
        let library = Arc::new(open_by(loader)?);
        let uuids = uuids(&library);
        drop(library.events(&uuids).expect("events"));
        Some(())
    };
    if session(&kept).is_none() {
        return;
    }
    let files = || open_files(std::process::id()).len();
    let before = files();
    (0..20).for_each(|_| session(&kept).expect("a session"));
    let after = files();
    drop(kept);
    (0..20).for_each(|_| session(&Loader::default()).expect("a session"));
    println!(
        "{before} files open, after 20 sessions {after}, after 20 with the library unloaded {}",
        files()
    );
    assert_eq!(after, before);
}
