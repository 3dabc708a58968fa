//! What makes a device unhealthy, how soon the kubelet knows, and what does not.

#![allow(
    clippy::unwrap_used,
    reason = "also a test's helpers fail by panicking"
)]

mod common;

use std::time::{Duration, Instant};

use common::kubelet::KubeletPeer;
use common::nvml::{Gpu, RetiredPages, Return, SimulatedNode};
use common::plugin::PluginProcess;
use common::running::{
    LONG, RESOURCE, Running, arguments, http_address, measured, options, program,
};
use tonic::Code;

/// From an event to the list on an open stream.
const TOLD: Duration = Duration::from_millis(100);
/// After this long a call is taken to hang.
const CALL_DEADLINE: Duration = Duration::from_secs(10);

fn healthy(running: &Running) -> Vec<bool> {
    let devices = running.kubelet.devices(RESOURCE);
    devices.iter().map(|d| d.health == "Healthy").collect()
}

async fn refusal(running: &Running, position: usize) -> String {
    let status = running.allocate(&[position]).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
    status.message().to_owned()
}

// === XIDs ===

#[tokio::test]
async fn an_xid_of_the_device_is_on_the_stream_at_once_with_its_reason() {
    // Nothing but the event can tell it so soon, and none is well again so soon.
    let long = "10m";
    let flags = [
        "--health-poll-interval",
        long,
        "--health-quiet",
        long,
        "--health-longest-quiet",
        long,
    ];
    let running = Running::on(SimulatedNode::new(8), options(), &flags).await;
    running.counts(8, 8).await;
    running.listening(0).await;
    let mut times = Vec::new();
    for (position, xid) in [79, 48, 62, 64, 74, 95, 119, 140].into_iter().enumerate() {
        let mark = running.kubelet.mark();
        running.node.xid(position, xid);
        // To write it takes the simulation's file system many milliseconds.
        let happened = Instant::now();
        let listed = running.listed_since(mark).await.at;
        times.push(listed.saturating_duration_since(happened));
        let sick = healthy(&running).into_iter().take_while(|well| !well);
        assert_eq!(sick.count(), position + 1, "this one, and the earlier ones");
        let reason = refusal(&running, position).await;
        assert!(reason.contains(&format!("XID {xid}")), "{reason}");
        running.counts(7 - position, 8).await;
    }
    measured("an XID told to the kubelet", &times, TOLD);
    running.kubelet.assert_no_violations();
}

#[tokio::test]
async fn faults_of_applications_leave_the_device_healthy_and_are_counted() {
    let running = Running::start(2).await;
    let uuid = running.node.uuid(0);
    running.listening(0).await;
    for xid in [13, 31, 43, 45, 68, 109] {
        running.node.xid(0, xid);
        let sample = format!(r#"xids_total{{uuid="{uuid}",xid="{xid}"}}"#);
        running.metric_reaches(&sample, 1.0).await;
    }
    // Events come in order: with this one told, the others are dealt with.
    running.node.xid(1, 79);
    running.health(1, "Unhealthy").await;
    assert_eq!(healthy(&running), [true, false]);
    assert_eq!(running.lists(0).len(), 2);
    running.allocate(&[0]).await.unwrap();
    running.kubelet.assert_no_violations();
}

#[tokio::test]
async fn an_xid_is_not_forgiven_by_the_next_poll() {
    let running = Running::start(2).await;
    running.listening(1).await;
    running.node.xid(1, 79);
    running.counts(1, 2).await;
    running.pass_time().await;
    running.counts(1, 2).await;
    assert_eq!(healthy(&running), [true, false]);
    running.kubelet.assert_no_violations();
}

#[tokio::test]
async fn a_changed_recovery_action_is_asked_for_when_an_xid_announces_it() {
    let polls = ["--health-poll-interval", "10m"];
    let running = Running::on(SimulatedNode::new(2), options(), &polls).await;
    running.listening(1).await;
    let announce = |action| {
        running
            .node
            .edit_gpu(1, |gpu| gpu.recovery_action = Some(action));
        running.node.xid(1, 154);
    };
    announce(2);
    running.counts(1, 2).await;
    let reason = refusal(&running, 1).await;
    assert!(reason.contains("recovery action 2"), "{reason}");
    announce(0);
    running.counts(2, 2).await;
    running.kubelet.assert_no_violations();
}

#[tokio::test]
async fn a_gpu_that_was_lost_at_the_start_is_heard_once_it_is_back() {
    let node = SimulatedNode::new(2);
    node.lose(1);
    let running = Running::on(node, options(), &[]).await;
    running.counts(1, 2).await;
    running.node.restore(1);
    running.counts(2, 2).await;
    running.listening(1).await;
    running.node.xid(1, 79);
    running.counts(1, 2).await;
    let reason = refusal(&running, 1).await;
    assert!(reason.contains("XID 79"), "{reason}");
    running.kubelet.assert_no_violations();
}

#[tokio::test]
async fn a_gpu_without_events_is_watched_by_polling_and_the_others_are_heard() {
    let node = SimulatedNode::new(2);
    node.fail(1, "nvmlDeviceRegisterEvents", Return::NotSupported);
    let running = Running::on(node, options(), &[]).await;
    running.counts(2, 2).await;
    running.listening(0).await;
    running.node.xid(0, 79);
    running.counts(1, 2).await;
    running.node.lose(1);
    running.counts(0, 2).await;
    running.kubelet.assert_no_violations();
}

// === The wait for events ===

#[tokio::test]
async fn an_error_of_the_event_wait_marks_nothing_and_does_not_spin() {
    let running = Running::start(2).await;
    let wait = "nvmlEventSetWait_v2";
    let effort = running.effort();
    let fail = |state: &mut common::nvml::State| state.fail.insert(wait.into(), Return::Unknown);
    let begun = Instant::now();
    running.node.edit(fail);
    let errors = format!(r#"nvml_errors_total{{call="{wait}"}}"#);
    // At once, and after pauses of 1 s and 2 s.
    running.metric_reaches(&errors, 3.0).await;
    let time = begun.elapsed();
    assert!(time >= Duration::from_secs(3), "3 errors in {time:?}");
    effort.assert_idle();
    assert_eq!(running.lists(0).len(), 1, "no device was marked");
    let lines = || async { (running.plugin.log().matches(wait).count() == 3).then_some(()) };
    running.eventually("a line for each error", lines).await;

    running.node.edit(|state| state.fail.clear());
    running.listening(1).await;
    running.node.xid(1, 79);
    running.counts(1, 2).await;
    assert_eq!(healthy(&running), [true, false]);
    running.kubelet.assert_no_violations();
}

#[tokio::test]
async fn a_lost_gpu_is_found_though_the_event_wait_fails() {
    let running = Running::start(2).await;
    running.node.edit(|state| {
        state
            .fail
            .insert("nvmlEventSetWait".into(), Return::GpuIsLost);
        state.gpus[0].lost = true;
    });
    running.counts(1, 2).await;
    assert_eq!(healthy(&running), [false, true]);
    running.kubelet.assert_no_violations();
}

// === Polling ===

#[tokio::test]
async fn a_lost_gpu_is_unhealthy_with_the_reason_and_healthy_when_it_answers() {
    let running = Running::start(2).await;
    running.node.lose(0);
    running.health(0, "Unhealthy").await;
    let reason = refusal(&running, 0).await;
    assert!(reason.contains("GPU is lost"), "{reason}");
    running.allocate(&[1]).await.unwrap();
    running.node.restore(0);
    running.counts(2, 2).await;
    running.allocate(&[0]).await.unwrap();
    running.kubelet.assert_no_violations();
}

#[tokio::test]
async fn a_vanished_gpu_is_unhealthy_and_never_dropped() {
    let running = Running::start(3).await;
    let pod = running.kubelet.allocate(RESOURCE, 3).await.unwrap();
    running.node.vanish(1);
    running.health(1, "Unhealthy").await;
    let reason = refusal(&running, 1).await;
    let gone = ["not enumerated any more", "gone from the bus"];
    assert!(gone.iter().any(|gone| reason.contains(gone)), "{reason}");
    // The one behind it has its index now.
    assert_eq!(healthy(&running), [true, false, true]);
    running.allocate(&[2]).await.unwrap();

    running.node.vanish(0);
    running.node.vanish(2);
    running.counts(0, 3).await;
    running.kubelet.restart().await.unwrap();
    running.counts(0, 3).await;
    for position in 0..3 {
        running.node.restore(position);
    }
    running.counts(3, 3).await;
    running.kubelet.restart_container(&pod.pod).await.unwrap();
    running.kubelet.assert_no_violations();
}

#[tokio::test]
async fn a_gpu_that_needs_a_reset_is_unhealthy_until_it_had_one() {
    let running = Running::start(2).await;
    running.node.fail(1, "*", Return::ResetRequired);
    running.health(1, "Unhealthy").await;
    let reason = refusal(&running, 1).await;
    assert!(reason.contains("reset"), "{reason}");
    running.node.restore(1);
    running.counts(2, 2).await;
    running.kubelet.assert_no_violations();
}

#[tokio::test]
async fn a_recovery_action_that_the_driver_asks_for_is_seen_by_polling() {
    let running = Running::start(2).await;
    running
        .node
        .edit_gpu(0, |gpu| gpu.recovery_action = Some(1));
    running.counts(1, 2).await;
    let reason = refusal(&running, 0).await;
    assert!(reason.contains("recovery action 1"), "{reason}");
    running.node.edit_gpu(0, |gpu| gpu.recovery_action = None);
    running.counts(2, 2).await;
    running.kubelet.assert_no_violations();
}

#[tokio::test]
async fn a_call_that_does_not_come_back_makes_its_gpu_unhealthy_and_no_other() {
    let running = Running::start(3).await;
    let mark = running.kubelet.mark();
    let hung = Instant::now();
    running.node.hang(1, &["nvmlDeviceGetTemperature"]);
    let told = running.listed_since(mark).await.at - hung;
    println!("a call that hangs was told after {told:?}");
    assert!(told >= CALL_DEADLINE);
    assert_eq!(healthy(&running), [true, false, true]);
    let reason = refusal(&running, 1).await;
    assert!(reason.contains("does not answer"), "{reason}");
    running.pass_time().await;
    running.counts(2, 3).await;
    assert_eq!(healthy(&running), [true, false, true]);
    running.node.restore(1);
    running.counts(3, 3).await;
    running.kubelet.assert_no_violations();
}

#[tokio::test]
async fn an_event_wait_that_never_returns_leaves_polling_at_work() {
    let running = Running::start(2).await;
    running
        .node
        .edit(|state| state.hang.insert("nvmlEventSetWait".into()));
    running.node.lose(1);
    running.counts(1, 2).await;
    let mut running = running;
    running.plugin.terminate().unwrap();
    let ended = running.plugin.wait(LONG).await.unwrap();
    assert_eq!(ended.code(), Some(0));
    running.kubelet.assert_no_violations();
}

// === The kernel log ===

#[tokio::test]
async fn an_xid_in_the_kernel_log_is_heard_though_nvml_hangs() {
    let polls = ["--health-poll-interval", "10m"];
    let running = Running::on(SimulatedNode::new(3), options(), &polls).await;
    running.counts(3, 3).await;
    running.node.edit(|state| state.hang.insert("*".into()));
    let mark = running.kubelet.mark();
    running.node.xid_in_kernel_log(
        1,
        7,
        79,
        "pid=1234, name=python3, GPU has fallen off the bus.",
    );
    let happened = Instant::now();
    let listed = running.listed_since(mark).await.at;
    let told = listed.saturating_duration_since(happened);
    measured(
        "an XID of the kernel log told to the kubelet",
        &[told],
        TOLD,
    );
    assert_eq!(healthy(&running), [true, false, true]);
    let reason = refusal(&running, 1).await;
    assert!(
        reason.contains("XID 79 (GPU has fallen off the bus)"),
        "{reason}"
    );
    running.kubelet.assert_no_violations();
}

#[tokio::test]
async fn the_kernel_logs_recovery_action_is_taken_at_its_word_until_the_driver_speaks() {
    let node = SimulatedNode::with(2, |state| state.gpus[1].recovery_action = None);
    let running = Running::on(node, options(), &[]).await;
    running.counts(2, 2).await;
    let announce = |seq, text| running.node.xid_in_kernel_log(1, seq, 154, text);
    announce(
        8,
        "GPU recovery action changed from 0x0 (None) to 0x1 (GPU Reset Required)",
    );
    running.counts(1, 2).await;
    let reason = refusal(&running, 1).await;
    assert!(reason.contains("recovery action 1 (GPU reset)"), "{reason}");
    running.pass_time().await;
    running.counts(1, 2).await;
    announce(
        9,
        "GPU recovery action changed from 0x1 (GPU Reset Required) to 0x0 (None)",
    );
    running.counts(2, 2).await;
    running.kubelet.assert_no_violations();
}

#[tokio::test]
async fn what_both_witnesses_tell_is_counted_once() {
    let running = Running::start(1).await;
    running.listening(0).await;
    let uuid = running.node.uuid(0);
    let count = |xid: u64| format!(r#"xids_total{{uuid="{uuid}",xid="{xid}"}}"#);
    running.node.xid(0, 31);
    running.metric_reaches(&count(31), 1.0).await;
    running
        .node
        .xid_in_kernel_log(0, 11, 31, "pid=1, name=a, Ch 1");
    running
        .node
        .xid_in_kernel_log(0, 12, 43, "pid=1, name=a, Ch 1");
    // Records come in order: with this one told, the one before is dealt with.
    running.metric_reaches(&count(43), 1.0).await;
    assert_eq!(running.metric(&count(31)).await, Some(1.0));
    running.counts(1, 1).await;
}

// === Restarts ===

#[tokio::test]
async fn what_is_sick_stays_sick_over_a_restart_until_the_next_boot() {
    let mut running = Running::start(2).await;
    running.listening(1).await;
    running.node.xid(1, 79);
    running.counts(1, 2).await;
    running
        .eventually("health is kept", || async { kept(&running, "79") })
        .await;
    for _ in 0..2 {
        let mark = running.kubelet.mark();
        running.kill_plugin().await;
        running.start_plugin().await;
        running.listed_since(mark).await;
        for list in running.lists(mark) {
            assert_eq!(list[1].health, "Unhealthy", "in every list");
        }
        running.counts(1, 2).await;
        let reason = refusal(&running, 1).await;
        assert!(reason.contains("XID 79"), "{reason}");
    }
    running.kill_plugin().await;
    running.node.boot("b0071d00-0000-4000-8000-000000000002");
    running.start_plugin().await;
    running.counts(2, 2).await;
    running.kubelet.assert_no_violations();
}

#[tokio::test]
async fn what_recovers_goes_on_recovering_after_a_restart() {
    let node = SimulatedNode::new(1);
    let quiet = ["--health-quiet", "2s", "--health-longest-quiet", "2s"];
    let mut running = Running::on(node, options(), &quiet).await;
    running.counts(1, 1).await;
    running.listening(0).await;
    let sick_since = Instant::now();
    running.node.xid(0, 48);
    running.counts(0, 1).await;
    running
        .eventually("health is kept", || async { kept(&running, "48") })
        .await;
    running.kill_plugin().await;
    running.start_plugin_with(&quiet).await;
    running.counts(1, 1).await;
    let out = sick_since.elapsed();
    assert!(out >= Duration::from_secs(2), "out for {out:?}");
    let reason = "its cause is gone, and it is watched for a while";
    assert!(
        running.plugin.log().contains(reason),
        "{}",
        running.plugin.log()
    );
}

#[tokio::test]
async fn a_damaged_record_of_health_is_told_and_put_aside() {
    let node = SimulatedNode::new(1);
    std::fs::create_dir_all(node.state_dir()).unwrap();
    std::fs::write(node.state_dir().join("health.json"), "{").unwrap();
    let running = Running::on(node, options(), &[]).await;
    running.counts(1, 1).await;
    let log = running.plugin.log();
    assert!(log.contains("health of an earlier run is lost"), "{log}");
    assert!(
        running
            .node
            .state_dir()
            .join("health.json.damaged")
            .exists()
    );
}

fn kept(running: &Running, what: &str) -> Option<()> {
    let file = running.node.state_dir().join("health.json");
    let text = std::fs::read_to_string(file).ok()?;
    text.contains(what).then_some(())
}

// === The administrator's word ===

#[tokio::test]
async fn with_all_checks_disabled_only_what_is_enabled_acts() {
    let node = SimulatedNode::new(3);
    let kubelet = KubeletPeer::new(node.device_plugin_dir(), options());
    kubelet.start().await.unwrap();
    let variables = [
        ("DP_DISABLE_HEALTHCHECKS", "all"),
        ("DP_ENABLE_HEALTHCHECKS", "48"),
    ];
    let plugin = PluginProcess::spawn(program(), arguments(&node, &[]), &variables).unwrap();
    let http = http_address(&plugin).await;
    let running = Running {
        node,
        kubelet,
        plugin,
        http,
    };
    running.counts(3, 3).await;
    running.listening(0).await;
    running.node.lose(0);
    running.node.xid(1, 79);
    running.node.xid(2, 48);
    running.counts(2, 3).await;
    assert_eq!(healthy(&running), [true, true, false]);
}

// === Every polled signal ===

/// Makes the second of two GPUs sick in one way, waits for the reason, takes the
/// cause back, and waits for the GPU.
async fn sick_and_well(reason: &str, fall_sick: impl Fn(&mut Gpu), get_well: impl Fn(&mut Gpu)) {
    let running = Running::start(2).await;
    running.node.edit_gpu(1, &fall_sick);
    running.counts(1, 2).await;
    let metric = format!(
        r#"gpu_sick{{uuid="{}",reason="{reason}",class="reset"}}"#,
        running.node.uuid(1)
    );
    running.metric_reaches(&metric, 1.0).await;
    running.node.edit_gpu(1, &get_well);
    running.counts(2, 2).await;
    assert_eq!(healthy(&running), [true, true]);
    running.kubelet.assert_no_violations();
}

/// The same with a cause that lasts until the next boot.
async fn sick_until_replaced(
    reason: &str,
    fall_sick: impl Fn(&mut Gpu),
    get_well: impl Fn(&mut Gpu),
) {
    let mut running = Running::start(2).await;
    running.node.edit_gpu(1, &fall_sick);
    running.counts(1, 2).await;
    let metric = format!(
        r#"gpu_sick{{uuid="{}",reason="{reason}",class="replace"}}"#,
        running.node.uuid(1)
    );
    running.metric_reaches(&metric, 1.0).await;
    running.node.edit_gpu(1, &get_well);
    running.pass_time().await;
    running.counts(1, 2).await;
    assert_eq!(healthy(&running), [true, false]);
    running.kill_plugin().await;
    running.node.boot("b0071d00-0000-4000-8000-000000000002");
    running.start_plugin().await;
    running.counts(2, 2).await;
}

#[tokio::test]
async fn retired_pages_that_wait_for_a_reset() {
    let pages = |pending| {
        move |gpu: &mut Gpu| {
            gpu.retired_pages = Some(RetiredPages {
                pending,
                ..RetiredPages::default()
            });
        }
    };
    sick_and_well("PageRetirementPending", pages(true), pages(false)).await;
}

#[tokio::test]
async fn uncorrectable_errors_of_a_gpu_whose_driver_names_no_action() {
    let errors = |uncorrected| {
        move |gpu: &mut Gpu| {
            gpu.recovery_action = None;
            gpu.ecc.uncorrected = uncorrected;
        }
    };
    sick_and_well("UncorrectableEcc", errors(2), errors(0)).await;
}

#[tokio::test]
async fn an_nvlink_that_was_up() {
    let fall_sick = |gpu: &mut Gpu| gpu.nvlinks_down.extend([3]);
    sick_and_well("NvLinkDown", fall_sick, |gpu| gpu.nvlinks_down.clear()).await;
}

#[tokio::test]
async fn a_fabric_that_does_not_have_the_gpu() {
    let state = |state| move |gpu: &mut Gpu| gpu.fabric.state = state;
    sick_and_well("FabricNotReady", state(2), state(3)).await;
}

#[tokio::test]
async fn a_gpu_is_lost_by_the_word_of_any_call() {
    let fail = |gpu: &mut Gpu| {
        let call = "nvmlDeviceGetCurrentClocksEventReasons".to_owned();
        gpu.fail.insert(call, Return::GpuIsLost);
    };
    sick_and_well("GpuLost", fail, |gpu| gpu.fail.clear()).await;
    let field = |gpu: &mut Gpu| gpu.fail_fields.extend([(145, Return::ResetRequired)]);
    sick_and_well("ResetRequired", field, |gpu| gpu.fail_fields.clear()).await;
}

#[tokio::test]
async fn a_row_that_could_not_be_remapped() {
    let failure = |failure| move |gpu: &mut Gpu| gpu.remapped_rows.failure = failure;
    sick_until_replaced("RowRemapFailure", failure(true), failure(false)).await;
}

#[tokio::test]
async fn too_many_errors_of_the_sram() {
    let exceeded = |exceeded| move |gpu: &mut Gpu| gpu.sram_threshold_exceeded = exceeded;
    sick_until_replaced("SramThresholdExceeded", exceeded(true), exceeded(false)).await;
}

#[tokio::test]
async fn too_many_retired_pages() {
    let pages = |double_bit| {
        move |gpu: &mut Gpu| {
            gpu.retired_pages = Some(RetiredPages {
                double_bit,
                ..RetiredPages::default()
            });
        }
    };
    sick_until_replaced("RetiredPages", pages(60), pages(2)).await;
}

#[tokio::test]
async fn a_pci_device_that_is_gone_from_the_bus() {
    let running = Running::start(2).await;
    running.node.pull(1);
    running.counts(1, 2).await;
    let reason = refusal(&running, 1).await;
    assert!(reason.contains("gone from the bus"), "{reason}");
    running.node.plug_in(1);
    running.counts(2, 2).await;
    running.kubelet.assert_no_violations();
}

#[tokio::test]
async fn heat_power_and_a_pending_remapping_are_reported_and_not_acted_on() {
    let running = Running::start(1).await;
    running.node.edit_gpu(0, |gpu| {
        gpu.clocks_event_reasons = 0x40 | 0x80;
        gpu.remapped_rows.pending = true;
    });
    let uuid = running.node.uuid(0);
    let note = |reason| format!(r#"gpu_note{{uuid="{uuid}",reason="{reason}"}}"#);
    for reason in ["ThermalSlowdown", "PowerSlowdown", "RowRemapPending"] {
        running.metric_reaches(&note(reason), 1.0).await;
    }
    assert_eq!(healthy(&running), [true]);
    running.node.edit_gpu(0, |gpu| gpu.clocks_event_reasons = 0);
    let gone = || async {
        running
            .metric(&note("ThermalSlowdown"))
            .await
            .is_none()
            .then_some(())
    };
    running.eventually("the note to go", gone).await;
    let healthy = format!(r#"gpu_healthy{{uuid="{uuid}"}}"#);
    assert_eq!(running.metric(&healthy).await, Some(1.0));
}

// === Hysteresis, storms ===

#[tokio::test]
async fn a_gpu_that_flaps_stays_out_longer_each_time() {
    let node = SimulatedNode::new(1);
    let quiet = ["--health-quiet", "200ms", "--health-longest-quiet", "1s"];
    let running = Running::on(node, options(), &quiet).await;
    running.counts(1, 1).await;
    let mut times = Vec::new();
    for _ in 0..4 {
        running.node.lose(0);
        running.counts(0, 1).await;
        running.node.restore(0);
        let answers = Instant::now();
        running.counts(1, 1).await;
        times.push(answers.elapsed());
    }
    println!("out after it answered again: {times:?}");
    for (out, least) in times.iter().zip([200, 400, 800, 1000]) {
        assert!(*out >= Duration::from_millis(least), "{times:?}");
    }
    running.kubelet.assert_no_violations();
}

#[tokio::test]
async fn a_storm_of_xids_hides_no_sick_gpu_and_is_counted_in_full() {
    const STORM: u64 = 10_000;
    let running = Running::start(2).await;
    running.listening(0).await;
    let uuid = running.node.uuid(0);
    let effort = running.effort();
    let mark = running.kubelet.mark();
    let xids = (0..STORM).map(|number| if number == STORM / 2 { 48 } else { 31 });
    running.node.storm(0, xids);
    running.counts(1, 2).await;
    let counted = format!(r#"xids_total{{uuid="{uuid}",xid="31"}}"#);
    running.metric_reaches(&counted, (STORM - 1) as f64).await;
    running.counts(2, 2).await;
    let cpu = effort.cpu();
    println!("{STORM} XIDs: {cpu:?} of CPU");
    assert!(
        cpu < Duration::from_secs(5),
        "{cpu:?}, mostly the simulation's"
    );
    assert_eq!(running.lists(mark).len(), 2, "sick, and well again");
    let lines = running.plugin.log().matches("xid=31").count();
    assert!(lines < 5, "{lines} lines");
}
