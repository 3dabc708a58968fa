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

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use gpu_device_plugin::gpu::nvml::NvmlLibrary;
use gpu_device_plugin::gpu::{GpuLibrary, GpuUuid, OpenError, Reading};

use calls::{Clock, print_calls};

/// So many probes are taken the mean of.
const PROBES: u32 = 200;

fn library_path() -> Option<PathBuf> {
    std::env::var_os("NVML_LIBRARY").map(PathBuf::from)
}

/// A session, or none where the machine has no driver.
fn open() -> Option<NvmlLibrary> {
    match NvmlLibrary::open(library_path().as_deref(), Path::new("/sys"), None) {
        Ok(library) => Some(library),
        Err(error @ (OpenError::NoLibrary(_) | OpenError::NoDriver(_))) => {
            println!("*** SKIPPED real GPU: {error}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

fn uuids(library: &NvmlLibrary) -> Vec<GpuUuid> {
    let count = library.count().expect("a count");
    let uuid = |index| match library.read(index) {
        Reading::Gpu(gpu) => {
            println!("{gpu:?}");
            gpu.uuid
        }
        sick => panic!("{sick:?}"),
    };
    (0..count).map(uuid).collect()
}

#[test]
#[ignore = "needs a GPU"]
fn vitals_of_every_gpu() {
    let Some(library) = open() else { return };
    println!("driver {}", library.driver_version().expect("a version"));
    for uuid in uuids(&library) {
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
