//! A probe: what a GPU tells of itself, and what it is not asked.

use std::collections::BTreeMap;

use gpu_device_plugin::gpu::loader::Loader;
use gpu_device_plugin::gpu::nvml::NvmlLibrary;
use gpu_device_plugin::gpu::{
    ErrorKind, Fabric, GpuLibrary, GpuUuid, LibraryError, Reading, RemappedRows, RetiredPages,
    Vitals,
};

use super::common::nvml::{self, FABRIC_WELL, Return, SimulatedNode};

const RECOVERY_ACTION: u32 = 230;
const NVLINK_COUNT: u32 = 91;
const NVLINK_STATE: u32 = 165;

/// A node with one GPU, and a session with it.
struct Rig {
    node: SimulatedNode,
    library: NvmlLibrary,
    uuid: GpuUuid,
}

impl Rig {
    fn new() -> Self {
        Self::with(|_| {})
    }

    fn with(change: impl FnOnce(&mut nvml::Gpu)) -> Self {
        let node = SimulatedNode::with(1, |state| change(&mut state.gpus[0]));
        let library = NvmlLibrary::open(
            &Loader::default(),
            Some(&node.nvml_library()),
            &node.sys(),
            None,
        );
        Self {
            library: library.expect("a session"),
            uuid: node.uuid(0).as_str().into(),
            node,
        }
    }

    fn edit(&self, change: impl FnOnce(&mut nvml::Gpu)) {
        self.node.edit_gpu(0, change);
    }

    fn fail(&self, function: &str, with: Return) {
        self.node.fail(0, function, with);
    }

    fn probe(&self) -> Result<Vitals, LibraryError> {
        self.library.probe(&self.uuid)
    }

    fn vitals(&self) -> Vitals {
        self.probe().expect("an answer")
    }

    /// As each enumeration does.
    fn read(&self) {
        assert!(matches!(self.library.read(0), Reading::Gpu(_)));
    }
}

fn links(count: u32) -> BTreeMap<u32, bool> {
    (0..count).map(|link| (link, true)).collect()
}

const WELL: Fabric = Fabric {
    state: 3,
    status: 0,
    health_mask: FABRIC_WELL,
};

#[test]
fn a_healthy_h200_tells_everything() {
    let vitals = Vitals {
        recovery_action: Some(0),
        remapped_rows: Some(RemappedRows::default()),
        retired_pages: None,
        uncorrectable_ecc: Some(0),
        sram_threshold_exceeded: Some(false),
        nvlinks: links(18),
        fabric: Some(WELL),
        clocks_event_reasons: Some(1),
    };
    let rig = Rig::new();
    assert_eq!(rig.vitals(), vitals);
    assert_eq!(rig.vitals(), vitals, "the same with what the first taught");
}

#[test]
fn what_befalls_a_gpu_is_told_by_the_next_probe() {
    let rig = Rig::new();
    rig.vitals();
    rig.edit(|gpu| {
        gpu.recovery_action = Some(4);
        gpu.remapped_rows = nvml::RemappedRows {
            correctable: 1,
            uncorrectable: 2,
            pending: true,
            failure: true,
        };
        gpu.ecc.uncorrected = 3;
        gpu.sram_threshold_exceeded = true;
        gpu.nvlinks_down = [2, 17].into();
        gpu.fabric.state = 2;
        gpu.fabric.status = 999;
        gpu.fabric.health_mask = 1;
        gpu.clocks_event_reasons = 0x48;
    });
    let mut nvlinks = links(18);
    nvlinks.extend([(2, false), (17, false)]);
    let told = Vitals {
        recovery_action: Some(4),
        remapped_rows: Some(RemappedRows {
            correctable: 1,
            uncorrectable: 2,
            pending: true,
            failure: true,
        }),
        retired_pages: None,
        uncorrectable_ecc: Some(3),
        sram_threshold_exceeded: Some(true),
        nvlinks,
        fabric: Some(Fabric {
            state: 2,
            status: 999,
            health_mask: 1,
        }),
        clocks_event_reasons: Some(0x48),
    };
    assert_eq!(rig.vitals(), told);
}

#[test]
fn a_gpu_before_ampere_tells_of_its_retired_pages() {
    let rig = Rig::with(|gpu| {
        gpu.retired_pages = Some(nvml::RetiredPages {
            single_bit: 2,
            double_bit: 1,
            pending: true,
        });
        gpu.fail_fields = (142..=145).map(|id| (id, Return::NotSupported)).collect();
    });
    let vitals = rig.vitals();
    let retired = RetiredPages {
        single_bit: 2,
        double_bit: 1,
        pending: true,
    };
    assert_eq!(vitals.retired_pages, Some(retired));
    assert_eq!(vitals.remapped_rows, None);
}

#[test]
fn what_a_gpu_or_its_driver_does_not_know_is_absent() {
    let rig = Rig::with(|gpu| {
        gpu.recovery_action = None;
        gpu.ecc.enabled = false;
        gpu.nvswitch_links = 0;
        gpu.fabric.state = 0;
        gpu.fail_fields = (142..=145).map(|id| (id, Return::NotSupported)).collect();
        let clocks = [
            "nvmlDeviceGetCurrentClocksEventReasons",
            "nvmlDeviceGetCurrentClocksThrottleReasons",
        ];
        gpu.fail = clocks
            .map(|name| (name.to_owned(), Return::FunctionNotFound))
            .into();
    });
    assert_eq!(rig.vitals(), Vitals::default());
    assert_eq!(rig.vitals(), Vitals::default());
}

#[test]
fn a_driver_that_tells_of_a_remapping_failure_alone_is_heard() {
    let rig = Rig::with(|gpu| {
        gpu.remapped_rows.failure = true;
        gpu.fail_fields = (142..=144).map(|id| (id, Return::NotSupported)).collect();
    });
    let rows = rig.vitals().remapped_rows.expect("rows");
    assert!(rows.failure && !rows.pending);
}

#[test]
fn a_gpu_that_is_lost_or_needs_a_reset_is_so_whichever_call_says_it() {
    let calls = [
        "nvmlDeviceGetTemperature",
        "nvmlDeviceGetFieldValues",
        "nvmlDeviceGetSramEccErrorStatus",
        "nvmlDeviceGetGpuFabricInfoV",
        "nvmlDeviceGetCurrentClocksEventReasons",
    ];
    let rig = Rig::new();
    for (with, kind) in [
        (Return::GpuIsLost, ErrorKind::GpuLost),
        (Return::ResetRequired, ErrorKind::ResetRequired),
    ] {
        for call in calls {
            rig.fail(call, with);
            let error = rig.probe().expect_err(call);
            assert_eq!((error.call, error.kind), (call, kind));
            rig.node.restore(0);
        }
        for field in [RECOVERY_ACTION, 145, 30, 4, NVLINK_COUNT, NVLINK_STATE] {
            rig.edit(|gpu| gpu.fail_fields = [(field, with)].into());
            let error = rig.probe().expect_err("an error");
            let call = "nvmlDeviceGetFieldValues";
            assert_eq!((error.call, error.kind), (call, kind), "field {field}");
        }
        rig.node.restore(0);
    }
}

#[test]
fn an_odd_answer_to_a_part_takes_no_gpu_out_of_service() {
    let rig = Rig::with(|gpu| {
        gpu.fail_fields = [(145, Return::NoData), (4, Return::Unknown)].into();
        let odd = [
            ("nvmlDeviceGetSramEccErrorStatus", Return::NoPermission),
            ("nvmlDeviceGetGpuFabricInfo", Return::Unknown),
            ("nvmlDeviceGetGpuFabricInfoV", Return::NotReady),
            (
                "nvmlDeviceGetCurrentClocksEventReasons",
                Return::LibraryNotFound,
            ),
            (
                "nvmlDeviceGetCurrentClocksThrottleReasons",
                Return::InvalidState,
            ),
        ];
        gpu.fail = odd.map(|(name, with)| (name.to_owned(), with)).into();
    });
    let told = Vitals {
        recovery_action: Some(0),
        remapped_rows: Some(RemappedRows::default()),
        nvlinks: links(18),
        ..Vitals::default()
    };
    assert_eq!(rig.vitals(), told);
}

#[test]
fn a_session_that_is_gone_is_an_error_whichever_call_says_it() {
    let rig = Rig::new();
    for call in ["nvmlDeviceGetTemperature", "nvmlDeviceGetGpuFabricInfoV"] {
        rig.fail(call, Return::Uninitialized);
        let error = rig.probe().expect_err("an error");
        assert_eq!((error.call, error.kind), (call, ErrorKind::Session));
        rig.node.restore(0);
    }
}

#[test]
fn a_vanished_gpu_is_not_found() {
    let rig = Rig::new();
    rig.vitals();
    rig.node.vanish(0);
    let error = rig.probe().expect_err("an error");
    assert_eq!(error.kind, ErrorKind::NotFound);
}

// --- Drivers of other ages ---

#[test]
fn a_driver_with_an_older_structure_tells_of_its_fabric_as_well() {
    let rig = Rig::with(|gpu| gpu.fabric.version = 2);
    assert_eq!(rig.vitals().fabric, Some(WELL));
}

#[test]
fn a_driver_without_versions_tells_of_its_fabric_but_not_of_its_health() {
    let rig = Rig::new();
    rig.fail("nvmlDeviceGetGpuFabricInfoV", Return::FunctionNotFound);
    let fabric = Fabric {
        health_mask: 0,
        ..WELL
    };
    assert_eq!(rig.vitals().fabric, Some(fabric));
}

#[test]
fn clocks_have_their_reasons_under_the_older_name_too() {
    let rig = Rig::with(|gpu| gpu.clocks_event_reasons = 0x20);
    let newer = "nvmlDeviceGetCurrentClocksEventReasons";
    rig.fail(newer, Return::FunctionNotFound);
    assert_eq!(rig.vitals().clocks_event_reasons, Some(0x20));
}

#[test]
fn links_without_a_field_of_their_state_are_asked_one_by_one_after_an_enumeration() {
    let rig = Rig::with(|gpu| {
        gpu.nvswitch_links = 6;
        gpu.nvlinks_down = [5].into();
        gpu.fail_fields = [NVLINK_COUNT, NVLINK_STATE]
            .map(|id| (id, Return::NotSupported))
            .into();
    });
    let mut nvlinks = links(6);
    nvlinks.insert(5, false);
    assert_eq!(rig.vitals().nvlinks, nvlinks);
    rig.edit(|gpu| gpu.nvlinks_down.clear());
    assert_eq!(rig.vitals().nvlinks, nvlinks, "a call each is too many");
    rig.read();
    assert_eq!(rig.vitals().nvlinks, links(6));
}

// --- What is not asked: a call that would fail shows it ---

/// The last way of each.
const LAST_WAYS: [&str; 3] = [
    "nvmlDeviceGetSramEccErrorStatus",
    "nvmlDeviceGetGpuFabricInfo",
    "nvmlDeviceGetCurrentClocksThrottleReasons",
];

#[test]
fn what_was_refused_is_asked_again_after_an_enumeration_only() {
    let rig = Rig::new();
    for call in LAST_WAYS {
        rig.edit(|gpu| {
            let earlier = [
                "nvmlDeviceGetGpuFabricInfoV",
                "nvmlDeviceGetCurrentClocksEventReasons",
            ];
            let refused = earlier.iter().chain(&LAST_WAYS);
            gpu.fail = refused
                .map(|name| ((*name).to_owned(), Return::NotSupported))
                .collect();
        });
        rig.read();
        rig.vitals();
        rig.fail(call, Return::GpuIsLost);
        rig.vitals();
        rig.read();
        assert_eq!(rig.probe().expect_err("asked again").call, call);
    }
}

#[test]
fn a_failed_probe_forgets_what_was_refused() {
    let rig = Rig::new();
    rig.fail("nvmlDeviceGetSramEccErrorStatus", Return::NotSupported);
    assert_eq!(rig.vitals().sram_threshold_exceeded, None);
    rig.node.lose(0);
    rig.probe().expect_err("a lost GPU");
    rig.node.restore(0);
    assert_eq!(rig.vitals().sram_threshold_exceeded, Some(false));
}

#[test]
fn a_gpu_without_nvlinks_is_not_asked_for_any() {
    let rig = Rig::with(|gpu| gpu.nvswitch_links = 0);
    rig.fail("nvmlDeviceGetNvLinkState", Return::GpuIsLost);
    assert!(rig.vitals().nvlinks.is_empty());
    rig.edit(|gpu| {
        gpu.fail_fields = [NVLINK_COUNT, NVLINK_STATE]
            .map(|id| (id, Return::GpuIsLost))
            .into();
    });
    assert!(rig.vitals().nvlinks.is_empty());
}

#[test]
fn links_that_tell_their_state_by_field_are_not_called() {
    let rig = Rig::new();
    rig.fail("nvmlDeviceGetNvLinkState", Return::GpuIsLost);
    rig.vitals();
    rig.edit(|gpu| gpu.fail_fields = [(NVLINK_COUNT, Return::GpuIsLost)].into());
    assert_eq!(rig.vitals().nvlinks, links(18));
}

#[test]
fn nobody_asks_for_the_memory_that_is_free() {
    let rig = Rig::new();
    rig.fail("nvmlDeviceGetMemoryInfo", Return::GpuIsLost);
    rig.vitals();
}

// --- MIG ---

#[test]
fn row_remapping_is_unknown_while_a_mig_device_exists() {
    let rig = Rig::with(|gpu| gpu.remapped_rows.failure = true);
    assert!(rig.vitals().remapped_rows.is_some());
    rig.node.enable_mig(0, &["1g.18gb"]);
    let vitals = rig.vitals();
    assert_eq!(vitals.remapped_rows, None);
    assert_eq!(vitals.recovery_action, Some(0));
    rig.edit(|gpu| gpu.mig.instances.clear());
    assert!(rig.vitals().remapped_rows.is_some_and(|rows| rows.failure));
}
