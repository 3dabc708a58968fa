//! The simulated NVML, driven through nvml-wrapper as production does.
#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests fail as tests do"
)]

mod common;
#[path = "simulated_nvml/tests/loader.rs"]
mod loader;
#[path = "simulated_nvml/tests/vitals.rs"]
mod vitals;

use std::collections::BTreeSet;
use std::mem::MaybeUninit;
use std::path::Path;
use std::process::Command;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use common::elf::{Machine, SharedObject};
use common::nvml::{
    DRIVER_LIBRARIES, Link, Peer, Return, SimulatedNode, TopologyLevel, simulated_nvml_library,
};
use common::open_files::{OpenFile, open_files};
use nvml_wrapper::bitmasks::event::EventTypes;
use nvml_wrapper::enum_wrappers::device::TopologyLevel as NvmlLevel;
use nvml_wrapper::enums::event::XidError;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::struct_wrappers::event::EventData;
use nvml_wrapper::structs::device::FieldId;
use nvml_wrapper::sys_exports::field_id::NVML_FI_DEV_GET_GPU_RECOVERY_ACTION;
use nvml_wrapper::{Device, Nvml};
use nvml_wrapper_sys::bindings::nvmlEventData_t;
use object::elf::{FileHeader32, FileHeader64};
use object::read::elf::{ElfFile, FileHeader};
use object::{Architecture, Endianness, Object};

/// Longer than anything here takes, so that a failure is a failure.
const LONG: Duration = Duration::from_secs(60);
const LONG_MS: u32 = 60_000;
/// Many times what a storm of events takes, and a fraction of what it would if each
/// event were looked for among all of them.
const SOON: Duration = Duration::from_secs(10);

fn load(node: &SimulatedNode) -> Result<Nvml, NvmlError> {
    Nvml::builder()
        .lib_path(node.nvml_library().as_os_str())
        .init()
}

fn uuids(nvml: &Nvml) -> Vec<String> {
    let count = nvml.device_count().expect("count");
    let uuid = |index| nvml.device_by_index(index).and_then(|gpu| gpu.uuid());
    (0..count).map(|index| uuid(index).expect("UUID")).collect()
}

#[test]
fn enumerates_what_the_state_says() {
    let node = SimulatedNode::with(2, |state| state.gpus[1].minor_number = 7);
    let nvml = load(&node).expect("init");

    assert_eq!(nvml.sys_driver_version().expect("version"), "580.159.04");
    assert_eq!(nvml.sys_cuda_driver_version().expect("version"), 13000);
    assert_eq!(uuids(&nvml), [node.uuid(0), node.uuid(1)]);
    let gpu = nvml.device_by_uuid(node.uuid(1)).expect("by UUID");
    assert_eq!(gpu.index().expect("index"), 1);
    assert_eq!(gpu.minor_number().expect("minor"), 7);
    assert_eq!(gpu.name().expect("name"), "NVIDIA H200");
    assert_eq!(gpu.pci_info().expect("PCI").bus_id, "00000000:1A:00.0");
    assert_eq!(gpu.memory_info().expect("memory").total, 150_754_820_096);
    let capability = gpu.cuda_compute_capability().expect("capability");
    assert_eq!((capability.major, capability.minor), (9, 0));
    assert!(matches!(gpu.numa_node_id(), Err(NvmlError::NotSupported)));
    let by_bus_id = nvml
        .device_by_pci_bus_id("0000:1a:00.0")
        .expect("by bus ID");
    assert_eq!(by_bus_id.uuid().expect("UUID"), node.uuid(1));
}

#[test]
fn unknown_devices_are_not_found() {
    let node = SimulatedNode::new(1);
    let nvml = load(&node).expect("init");

    let by_uuid = nvml.device_by_uuid("GPU-11111111-1111-1111-1111-111111111111");
    assert!(matches!(by_uuid, Err(NvmlError::NotFound)));
    assert!(matches!(
        nvml.device_by_index(1),
        Err(NvmlError::InvalidArg)
    ));
    let by_bus_id = nvml.device_by_pci_bus_id("0000:ff:00.0");
    assert!(matches!(by_bus_id, Err(NvmlError::NotFound)));
}

#[test]
fn nodes_in_one_process_are_apart() {
    let (one, other) = (SimulatedNode::new(1), SimulatedNode::new(3));
    let (one, other) = (load(&one).expect("init"), load(&other).expect("init"));

    assert_eq!(one.device_count().expect("count"), 1);
    assert_eq!(other.device_count().expect("count"), 3);
}

#[test]
fn a_lost_gpu_is_known_but_out_of_reach() {
    let node = SimulatedNode::new(2);
    let nvml = load(&node).expect("init");
    let gpu = nvml.device_by_index(0).expect("GPU 0");

    node.lose(0);

    assert_eq!(gpu.uuid().expect("UUID"), node.uuid(0));
    assert_eq!(gpu.minor_number().expect("minor"), 0);
    assert_eq!(uuids(&nvml), [node.uuid(0), node.uuid(1)]);
    assert!(matches!(gpu.memory_info(), Err(NvmlError::GpuLost)));
    assert!(
        nvml.device_by_index(1)
            .expect("GPU 1")
            .memory_info()
            .is_ok()
    );

    node.restore(0);
    assert!(gpu.memory_info().is_ok());
}

#[test]
fn a_vanished_gpu_shifts_the_indexes_behind_it() {
    let node = SimulatedNode::new(3);
    let nvml = load(&node).expect("init");
    let vanishing = nvml.device_by_index(1).expect("GPU 1");
    let last = nvml.device_by_index(2).expect("GPU 2");

    node.vanish(1);

    assert_eq!(uuids(&nvml), [node.uuid(0), node.uuid(2)]);
    assert_eq!(last.index().expect("index"), 1);
    let by_uuid = nvml.device_by_uuid(node.uuid(1));
    assert!(matches!(by_uuid, Err(NvmlError::NotFound)));
    assert!(matches!(vanishing.uuid(), Err(NvmlError::GpuLost)));
}

#[test]
fn one_function_of_one_gpu_fails() {
    let node = SimulatedNode::new(2);
    let nvml = load(&node).expect("init");

    node.fail(0, "nvmlDeviceGetTemperature", Return::ResetRequired);

    let [first, second] = [0, 1].map(|index| {
        use nvml_wrapper::enum_wrappers::device::TemperatureSensor::Gpu;
        let gpu = nvml.device_by_index(index).expect("GPU");
        gpu.temperature(Gpu)
    });
    assert!(matches!(first, Err(NvmlError::ResetRequired)));
    assert_eq!(second.expect("temperature"), 33);
}

#[test]
fn the_recovery_action_is_field_230() {
    let node = SimulatedNode::new(1);
    let nvml = load(&node).expect("init");
    let gpu = nvml.device_by_index(0).expect("GPU 0");
    let recovery_action = || {
        let field = FieldId(NVML_FI_DEV_GET_GPU_RECOVERY_ACTION);
        let mut answers = gpu.field_values_for(&[field]).expect("fields");
        answers.remove(0).and_then(|sample| sample.value)
    };

    node.edit_gpu(0, |gpu| gpu.recovery_action = Some(2));
    let value = recovery_action().expect("a driver with the field");
    assert!(matches!(
        value,
        nvml_wrapper::enums::device::SampleValue::U32(2)
    ));

    node.edit_gpu(0, |gpu| gpu.recovery_action = None);
    assert!(matches!(recovery_action(), Err(NvmlError::InvalidArg)));
}

#[test]
fn remapped_rows_are_fields_142_to_145() {
    let node = SimulatedNode::new(1);
    let nvml = load(&node).expect("init");
    node.edit_gpu(0, |gpu| gpu.remapped_rows.pending = true);

    let gpu = nvml.device_by_index(0).expect("GPU 0");
    let fields = [142, 143, 144, 145].map(FieldId);
    let values = gpu.field_values_for(&fields).expect("fields");
    let values: Vec<_> = values
        .into_iter()
        .map(|sample| sample.and_then(|sample| sample.value).expect("a value"))
        .map(|value| matches!(value, nvml_wrapper::enums::device::SampleValue::U64(1)))
        .collect();
    assert_eq!(values, [false, false, true, false]);
}

#[test]
fn a_field_fails_beside_others_that_do_not() {
    let node = SimulatedNode::new(1);
    node.edit_gpu(0, |gpu| gpu.fail_fields = [(143, Return::GpuIsLost)].into());
    let nvml = load(&node).expect("init");

    let gpu = nvml.device_by_index(0).expect("GPU 0");
    let values = gpu.field_values_for(&[142, 143, 144].map(FieldId));
    let values: Vec<_> = values
        .expect("fields")
        .into_iter()
        .map(|sample| sample.and_then(|sample| sample.value))
        .collect();
    assert!(matches!(
        &values[..],
        [Ok(_), Err(NvmlError::GpuLost), Ok(_)]
    ));
}

#[test]
fn uncorrectable_errors_are_field_4_while_ecc_is_on() {
    let node = SimulatedNode::new(1);
    node.edit_gpu(0, |gpu| gpu.ecc.uncorrected = 5);
    let nvml = load(&node).expect("init");
    let gpu = nvml.device_by_index(0).expect("GPU 0");
    let errors = || {
        let mut values = gpu.field_values_for(&[FieldId(4)]).expect("fields");
        values.remove(0).and_then(|sample| sample.value)
    };

    use nvml_wrapper::enum_wrappers::device::{EccCounter, MemoryError};
    let total = gpu.total_ecc_errors(MemoryError::Uncorrected, EccCounter::Volatile);
    assert_eq!(total.expect("total"), 5);
    assert!(matches!(
        errors(),
        Ok(nvml_wrapper::enums::device::SampleValue::U64(5))
    ));
    node.edit_gpu(0, |gpu| gpu.ecc.enabled = false);
    assert!(matches!(errors(), Err(NvmlError::NotSupported)));
}

#[test]
fn a_named_init_outcome_is_the_answer() {
    let node = SimulatedNode::new(1);
    let init_with = |outcome| {
        node.edit(|state| state.init = outcome);
        load(&node)
    };

    let outcome = init_with(Return::DriverNotLoaded);
    assert!(matches!(outcome, Err(NvmlError::DriverNotLoaded)));
    let outcome = init_with(Return::LibRmVersionMismatch);
    assert!(matches!(outcome, Err(NvmlError::LibRmVersionMismatch)));
    let outcome = init_with(Return::NoPermission);
    assert!(matches!(outcome, Err(NvmlError::NoPermission)));
    assert!(init_with(Return::Success).is_ok());
}

#[test]
fn no_state_file_is_no_driver() {
    let node = SimulatedNode::new(1);
    std::fs::remove_file(node.state_file()).expect("remove");
    assert!(matches!(load(&node), Err(NvmlError::DriverNotLoaded)));
}

#[test]
fn a_library_that_nobody_uses_holds_nothing() {
    let node = SimulatedNode::new(1);
    let state = node.state_file();
    let folder = state.parent().expect("a folder");
    let held = || {
        let watches = |file: &OpenFile| file.watches_alone(folder);
        let opened = open_files(std::process::id());
        opened.into_iter().filter(watches).count()
    };
    let nvml = load(&node).expect("init");
    assert_eq!(uuids(&nvml).len(), 1);
    assert_eq!(held(), 1, "in use");
    drop(nvml);
    assert_eq!(held(), 0, "after the last nvmlShutdown");

    let nvml = load(&node).expect("init");
    node.edit(|state| state.fail.insert("*".to_owned(), Return::Uninitialized));
    nvml.device_count().expect_err("count");
    drop(nvml);
    assert_eq!(held(), 0, "after an nvmlShutdown that failed");

    node.edit(|state| {
        state.fail.clear();
        state.init = Return::Unknown;
    });
    load(&node).expect_err("init");
    assert_eq!(held(), 0, "after an nvmlInit that failed");
}

#[test]
fn a_bad_state_file_changes_nothing() {
    let node = SimulatedNode::new(2);
    let nvml = load(&node).expect("init");

    node.write_state_file("{");
    assert_eq!(nvml.device_count().expect("count"), 2);
    node.write_state_file(r#"{"gpus": [{"uuid": "GPU-1", "losst": true}]}"#);
    assert_eq!(nvml.device_count().expect("count"), 2);
    node.write_state_file(r#"{"gpus": [{"uuid": "GPU-1", "pci_bus_id": "1"}]}"#);
    assert_eq!(nvml.device_count().expect("count"), 2);

    node.vanish(0);
    assert_eq!(nvml.device_count().expect("count"), 1);
}

#[test]
fn every_edit_is_seen_at_the_next_call() {
    let node = SimulatedNode::new(1);
    let nvml = load(&node).expect("init");
    let gpu = nvml.device_by_index(0).expect("GPU 0");

    for action in 0..200 {
        let version = format!("580.{:03}", action % 2);
        node.edit(|state| state.driver_version.clone_from(&version));
        assert_eq!(nvml.sys_driver_version().expect("version"), version);
    }
    assert!(gpu.uuid().is_ok());
}

/// The environment is the process's, so a process of its own.
#[test]
fn the_environment_may_name_the_state_file() {
    if std::env::var_os("SIMULATED_NVML_STATE").is_some() {
        let library = simulated_nvml_library();
        let nvml = Nvml::builder().lib_path(library.as_os_str()).init();
        assert_eq!(nvml.and_then(|nvml| nvml.device_count()).expect("count"), 5);
        return;
    }
    let node = SimulatedNode::new(5);
    let here = std::env::current_exe().expect("this test");
    let status = Command::new(here)
        .args(["--exact", "the_environment_may_name_the_state_file"])
        .env("SIMULATED_NVML_STATE", node.state_file())
        .status();
    assert!(status.expect("run").success());
}

// --- Events ---

fn registered<'nvml>(nvml: &'nvml Nvml, gpus: &[u32]) -> nvml_wrapper::EventSet<'nvml> {
    let mut set = nvml.create_event_set().expect("event set");
    for &index in gpus {
        let gpu = nvml.device_by_index(index).expect("GPU");
        let types = EventTypes::CRITICAL_XID_ERROR;
        set = gpu
            .register_events(types, set)
            .map_err(|failed| failed.error)
            .expect("register");
    }
    set
}

fn xid(event: &EventData<'_>) -> (String, u64) {
    let uuid = event.device.uuid().expect("UUID");
    match event.event_data {
        Some(XidError::Value(xid)) => (uuid, xid),
        _ => panic!("{event:?} has no XID"),
    }
}

#[test]
fn an_xid_ends_a_blocking_wait() {
    let node = SimulatedNode::new(2);
    let nvml = load(&node).expect("init");
    let set = registered(&nvml, &[0, 1]);

    let event = thread::scope(|scope| {
        let waiting = scope.spawn(move || set.wait(LONG_MS).map(|event| xid(&event)));
        node.xid(1, 79);
        waiting.join().expect("no panic")
    });
    assert_eq!(event.expect("event"), (node.uuid(1), 79));
}

#[test]
fn events_come_once_in_order_for_registered_gpus() {
    let node = SimulatedNode::new(2);
    let nvml = load(&node).expect("init");
    node.xid(0, 1);
    let set = registered(&nvml, &[0]);

    node.xid(1, 2);
    node.xid(0, 3);
    node.xid(0, 4);

    assert_eq!(xid(&set.wait(LONG_MS).expect("event")).1, 3);
    assert_eq!(xid(&set.wait(LONG_MS).expect("event")).1, 4);
    assert!(matches!(set.wait(0), Err(NvmlError::Timeout)));
    assert!(matches!(set.wait(20), Err(NvmlError::Timeout)));
}

#[test]
fn a_later_registration_is_not_told_of_the_past() {
    let node = SimulatedNode::new(2);
    let nvml = load(&node).expect("init");
    let set = registered(&nvml, &[0]);

    node.xid(1, 48);
    assert!(matches!(set.wait(0), Err(NvmlError::Timeout)));
    let second = nvml.device_by_index(1).expect("GPU 1");
    let set = second
        .register_events(EventTypes::CRITICAL_XID_ERROR, set)
        .map_err(|failed| failed.error)
        .expect("register");
    assert!(matches!(set.wait(0), Err(NvmlError::Timeout)));
}

#[test]
fn a_failure_of_the_wait_ends_it() {
    let node = SimulatedNode::new(1);
    let nvml = load(&node).expect("init");
    let set = registered(&nvml, &[0]);

    let outcome = thread::scope(|scope| {
        let waiting = scope.spawn(move || set.wait(LONG_MS).map(|_| ()));
        node.edit(|state| {
            let failure = ("nvmlEventSetWait".to_owned(), Return::GpuIsLost);
            state.fail.extend([failure]);
        });
        waiting.join().expect("no panic")
    });
    assert!(matches!(outcome, Err(NvmlError::GpuLost)));
}

/// As production reads them: nvml-wrapper's own event has no instance IDs.
#[allow(unsafe_code, reason = "the raw call is what is tested")]
fn wait_raw(set: &nvml_wrapper::EventSet<'_>) -> nvmlEventData_t {
    let mut event = MaybeUninit::zeroed();
    // SAFETY: the set is alive, and the event is written where there is room.
    unsafe {
        let wait = set.nvml.lib().nvmlEventSetWait_v2.as_ref().expect("symbol");
        assert_eq!(wait(set.handle(), event.as_mut_ptr(), LONG_MS), 0);
        event.assume_init()
    }
}

#[test]
fn events_name_the_instances_that_they_are_about() {
    let node = SimulatedNode::new(1);
    node.enable_mig(0, &["1g.18gb"]);
    let nvml = load(&node).expect("init");
    let set = registered(&nvml, &[0]);

    node.xid_of_mig(0, 13, (5, 2));
    node.xid(0, 79);

    let event = wait_raw(&set);
    assert_eq!((event.gpuInstanceId, event.computeInstanceId), (5, 2));
    assert_eq!((event.eventType, event.eventData), (8, 13));
    let event = wait_raw(&set);
    let none = 0xFFFF_FFFF;
    assert_eq!((event.gpuInstanceId, event.computeInstanceId), (none, none));
}

#[test]
fn unsupported_event_types_are_refused() {
    let node = SimulatedNode::new(1);
    let nvml = load(&node).expect("init");
    let gpu = nvml.device_by_index(0).expect("GPU 0");
    let supported = gpu.supported_event_types().expect("types");
    assert!(supported.contains(EventTypes::CRITICAL_XID_ERROR));

    node.lose(0);
    let set = nvml.create_event_set().expect("event set");
    let refused = gpu.register_events(EventTypes::CRITICAL_XID_ERROR, set);
    assert!(matches!(
        refused.map_err(|failed| failed.error),
        Err(NvmlError::GpuLost)
    ));
}

#[test]
fn a_storm_is_told_whole_in_order_and_soon() {
    const STORM: u64 = 10_000;
    let node = SimulatedNode::new(2);
    let nvml = load(&node).expect("init");
    let set = registered(&nvml, &[0, 1]);

    node.storm(1, 1..=STORM);
    let began = Instant::now();
    let first = set.wait(LONG_MS).expect("event");
    assert_eq!(xid(&first), (node.uuid(1), 1));
    let read = began.elapsed();
    for number in 2..=STORM {
        assert_eq!(wait_raw(&set).eventData, number);
    }
    let took = began.elapsed();
    println!("{STORM} events in {took:?}, of which {read:?} to read them");
    assert!(matches!(set.wait(0), Err(NvmlError::Timeout)));
    assert!(took < SOON, "{took:?}");
}

#[test]
fn a_storm_before_the_registration_is_passed_over_at_once() {
    let node = SimulatedNode::new(2);
    let nvml = load(&node).expect("init");
    let set = registered(&nvml, &[0]);

    node.storm(1, 1..=10_000);
    node.xid(0, 79);

    assert_eq!(xid(&set.wait(LONG_MS).expect("event")), (node.uuid(0), 79));
}

// --- Hanging ---

/// Whether `call` returns while `node` is held, and what after `release`.
fn answers_after<T: Send>(call: impl FnOnce() -> T + Send, release: impl FnOnce()) -> (bool, T) {
    thread::scope(|scope| {
        let (answer, answered) = mpsc::channel();
        scope.spawn(move || answer.send(call()).expect("a receiver"));
        let early = answered.recv_timeout(Duration::from_millis(100)).ok();
        release();
        let was_early = early.is_some();
        let late = || answered.recv_timeout(LONG).expect("an answer");
        (was_early, early.unwrap_or_else(late))
    })
}

#[test]
fn a_hung_call_returns_when_the_gpu_is_restored() {
    let node = SimulatedNode::new(2);
    let nvml = load(&node).expect("init");
    let memory = |index| {
        nvml.device_by_index(index)
            .and_then(|gpu| gpu.memory_info())
    };

    node.hang(0, &["nvmlDeviceGetMemoryInfo"]);

    assert!(memory(1).is_ok());
    let (early, answer) = answers_after(|| memory(0), || node.restore(0));
    assert!(!early);
    assert!(answer.is_ok());
}

#[test]
fn a_hung_call_returns_when_the_node_is_gone() {
    let node = SimulatedNode::new(1);
    let nvml = load(&node).expect("init");
    let gpu = nvml.device_by_index(0).expect("GPU 0");
    node.hang(0, &["*"]);

    let (early, _) = answers_after(|| gpu.uuid(), || drop(node));
    assert!(!early);
}

#[test]
fn init_hangs_as_well() {
    let node = SimulatedNode::new(1);
    let hang_init = |functions: BTreeSet<String>| node.edit(|state| state.hang = functions);
    hang_init(["nvmlInit".to_owned()].into());

    let (early, outcome) = answers_after(|| load(&node), || hang_init(BTreeSet::new()));
    assert!(!early);
    assert!(outcome.is_ok());
}

// --- MIG and topology ---

fn mig_devices<'nvml>(gpu: &Device<'nvml>) -> Vec<Device<'nvml>> {
    let count = gpu.mig_device_count().expect("count");
    let handles = (0..count).map(|index| gpu.mig_device_by_index(index));
    handles.filter_map(Result::ok).collect()
}

#[test]
fn mig_devices_are_devices_of_their_gpu() {
    let node = SimulatedNode::new(2);
    node.enable_mig(1, &["1g.18gb", "2g.35gb"]);
    let nvml = load(&node).expect("init");
    let whole = nvml.device_by_index(0).expect("GPU 0");
    let gpu = nvml.device_by_index(1).expect("GPU 1");

    assert_eq!(whole.mig_mode().expect("mode").current, 0);
    assert_eq!(whole.mig_device_count().expect("count"), 0);
    assert_eq!(gpu.mig_mode().expect("mode").current, 1);
    let migs = mig_devices(&gpu);
    assert_eq!(migs.len(), 2);
    let second = &migs[1];
    assert!(second.mig_is_mig_device_handle().expect("is MIG"));
    let quarter = gpu.memory_info().expect("memory").total / 4;
    assert_eq!(second.memory_info().expect("memory").total, quarter);
    assert_eq!(second.name().expect("name"), "NVIDIA H200 MIG 2g.35gb");
    assert_eq!(
        second
            .attributes()
            .expect("attributes")
            .gpu_instance_slice_count,
        2
    );
    let parent = second.mig_parent_device().expect("parent");
    assert_eq!(parent.uuid().expect("UUID"), node.uuid(1));
    let uuid = second.uuid().expect("UUID");
    assert!(uuid.starts_with("MIG-"));
    assert_eq!(
        nvml.device_by_uuid(uuid.as_str())
            .and_then(|mig| mig.uuid())
            .expect("MIG"),
        uuid
    );
    assert!(matches!(second.pci_info(), Err(NvmlError::InvalidArg)));
}

#[test]
fn links_and_levels_hold_at_both_ends() {
    let node = SimulatedNode::with(4, |state| {
        state.gpus[0].links = vec![Link {
            to: 2,
            count: 2,
            version: 4,
        }];
        state.gpus[0].topology = vec![Peer {
            to: 1,
            level: TopologyLevel::Single,
        }];
    });
    let nvml = load(&node).expect("init");
    let gpus: Vec<_> = (0..4)
        .map(|i| nvml.device_by_index(i).expect("GPU"))
        .collect();

    for (from, to) in [(0, 2), (2, 0)] {
        let link = gpus[from].link_wrapper_for(1);
        assert!(link.is_active().expect("state"));
        assert_eq!(link.version().expect("version"), 4);
        let remote = link.remote_pci_info().expect("PCI").bus_id;
        assert_eq!(remote, gpus[to].pci_info().expect("PCI").bus_id);
        let none = gpus[from].link_wrapper_for(2).is_active();
        assert!(matches!(none, Err(NvmlError::NotSupported)));
    }
    let level = |a: usize, b: u32| {
        let b = nvml.device_by_index(b).expect("GPU");
        gpus[a].topology_common_ancestor(b).ok()
    };
    assert_eq!(level(1, 0), Some(NvmlLevel::Single));
    assert_eq!(level(0, 3), Some(NvmlLevel::System));
    assert_eq!(level(3, 2), Some(NvmlLevel::Node));
    let near = gpus[1]
        .topology_nearest_gpus(NvmlLevel::Single)
        .expect("near");
    let near: Vec<_> = near.iter().map(|gpu| gpu.uuid().expect("UUID")).collect();
    assert_eq!(near, [node.uuid(0)]);
}

#[test]
fn links_to_nvswitches_are_up_unless_the_state_has_them_down() {
    let node = SimulatedNode::new(1);
    node.edit_gpu(0, |gpu| gpu.nvlinks_down = [3].into());
    let nvml = load(&node).expect("init");
    let gpu = nvml.device_by_index(0).expect("GPU 0");

    let up = |link| gpu.link_wrapper_for(link).is_active();
    assert!(up(0).expect("state"));
    assert!(!up(3).expect("state"));
    assert!(up(17).expect("state"));
    assert!(matches!(up(18), Err(NvmlError::NotSupported)));
    let switch = gpu.link_wrapper_for(0).remote_pci_info().expect("PCI");
    assert_eq!(switch.bus_id, "00000000:05:00.0");
}

// --- The files of the node ---

#[test]
fn a_node_has_the_files_of_its_gpus() {
    let node = SimulatedNode::new(2);
    node.enable_mig(1, &["1g.18gb"]);
    let read = |path| std::fs::read_to_string(path).expect("read");

    for name in [
        "nvidia0",
        "nvidia1",
        "nvidiactl",
        "nvidia-uvm",
        "nvidia-uvm-tools",
    ] {
        assert!(node.dev().join(name).is_file(), "{name}");
    }
    let numa_node = |bdf: &str| {
        read(
            node.sys()
                .join("bus/pci/devices")
                .join(bdf)
                .join("numa_node"),
        )
    };
    assert_eq!(numa_node("0000:10:00.0"), "0\n");
    assert_eq!(numa_node("0000:1a:00.0"), "1\n");
    assert_eq!(
        read(node.sys().join("module/nvidia/version")),
        "580.159.04\n"
    );
    assert!(read(node.proc().join("driver/nvidia/version")).contains(" 580.159.04 "));
    let access = "driver/nvidia/capabilities/gpu1/mig/gi1/ci0/access";
    assert!(read(node.proc().join(access)).starts_with("DeviceFileMinor: 148\n"));
    assert!(node.dev().join("nvidia-caps/nvidia-cap147").is_file());

    node.vanish(0);
    assert!(!node.sys().join("bus/pci/devices/0000:10:00.0").exists());
}

#[test]
fn a_gpu_that_was_pulled_has_no_pci_device_until_it_is_plugged_in() {
    let node = SimulatedNode::new(2);
    let nvml = load(&node).expect("init");
    let folder = node.sys().join("bus/pci/devices/0000:10:00.0");

    node.pull(0);
    assert!(!folder.exists());
    node.xid(1, 31);
    assert!(!folder.exists(), "also after something else");
    let gpu = nvml.device_by_index(0).expect("GPU 0");
    assert!(gpu.memory_info().is_ok(), "NVML knows nothing of it");

    node.plug_in(0);
    assert!(folder.join("numa_node").is_file());
}

#[test]
fn a_new_driver_replaces_the_old_one() {
    let node = SimulatedNode::new(1);
    let nvml = load(&node).expect("init");
    let library = |version: &str| {
        node.driver_library_dir()
            .join(format!("libcuda.so.{version}"))
    };
    assert!(library("580.159.04").is_file());

    node.install_driver("590.10");

    assert!(!library("580.159.04").exists());
    let link = node.driver_library_dir().join("libcuda.so");
    assert_eq!(
        link.canonicalize().expect("links"),
        library("590.10").canonicalize().expect("it")
    );
    assert_eq!(nvml.sys_driver_version().expect("version"), "590.10");
}

/// Class, SONAME and needed libraries, as production reads them.
fn read_back<Elf: FileHeader<Endian = Endianness>>(bytes: &[u8]) -> (bool, Vec<String>) {
    let elf = ElfFile::<Elf>::parse(bytes).expect("an ELF file");
    let table = elf.elf_dynamic_table().expect("a dynamic table");
    let names = table.iter().filter(|entry| entry.is_string());
    let names = names.map(|entry| table.string(entry).expect("a name").to_vec());
    let names = names.map(|name| String::from_utf8(name).expect("ASCII"));
    (elf.is_64(), names.collect())
}

#[test]
fn shared_objects_read_back_as_written() {
    let library = SharedObject::named("libcuda.so.1").needs(["libm.so.6", "libc.so.6"]);
    let names = ["libcuda.so.1", "libm.so.6", "libc.so.6"].map(str::to_owned);

    for (machine, architecture) in [
        (Machine::X86_64, Architecture::X86_64),
        (Machine::Aarch64, Architecture::Aarch64),
        (Machine::I386, Architecture::I386),
    ] {
        let bytes = library.clone().on(machine).bytes();
        let (is_64, read) = match machine {
            Machine::I386 => read_back::<FileHeader32<Endianness>>(&bytes),
            _ => read_back::<FileHeader64<Endianness>>(&bytes),
        };
        assert_eq!(is_64, machine != Machine::I386);
        assert_eq!(read, names, "{machine:?}");
        let file = object::File::parse(&*bytes).expect("an object");
        assert_eq!(file.architecture(), architecture);
    }
}

/// The loader is asked for NVML: that it finds no symbol in the library means
/// that it has loaded it.
#[test]
fn the_loader_takes_the_drivers_libraries() {
    let node = SimulatedNode::new(1);
    let load = |path: &Path| {
        let loaded = Nvml::builder().lib_path(path.as_os_str()).init();
        loaded.expect_err("no NVML")
    };
    for library in &DRIVER_LIBRARIES[..4] {
        let path = node.driver_library_dir().join(library.soname("580.159.04"));
        let error = load(&path);
        assert!(matches!(error, NvmlError::FailedToLoadSymbol(_)), "{error}");
    }
    let other = node.root().join("libcuda.so.1");
    SharedObject::named("libcuda.so.1")
        .on(Machine::I386)
        .write(&other);
    assert!(matches!(load(&other), NvmlError::LibloadingError(_)));
}
