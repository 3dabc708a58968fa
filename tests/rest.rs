//! While nothing happens the plugin rests, and whatever happens then is seen as soon as
//! by a poll.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "also a test's helpers fail by panicking"
)]

mod common;

use std::fs;
use std::time::Duration;

use common::nvml::SimulatedNode;
use common::running::{LONG, Running, options};

/// Nobody polls any more.
const RESTS: &str = "polls are put off";

/// Where it is told.
const FLAGS: [&str; 2] = ["--log-level", "debug"];

/// What happens to a node, and how the plugin calls what is other then.
type Change = (&'static str, fn(&SimulatedNode));

/// A sick GPU is the first, and is well afterwards; the third was not there before.
const CHANGES: [Change; 8] = [
    ("GPU", |node| node.lose(0)),
    ("GPU", |node| {
        node.edit_gpu(0, |gpu| gpu.recovery_action = Some(2));
    }),
    ("bus", |node| node.pull(0)),
    ("count", |node| node.restore(2)),
    ("device nodes", |node| {
        fs::remove_file(node.dev().join("nvidia0")).unwrap();
    }),
    ("modules", |node| {
        fs::write(node.proc().join("devices"), "Character devices:\n").unwrap();
    }),
    ("driver files", |node| {
        fs::rename(node.volume(), node.volumes().join("away")).unwrap();
    }),
    ("kernel module", |node| {
        node.load_kernel_module("999.1.2");
    }),
];

/// Where answers name one.
const SPEC: Change = ("CDI spec", |node| {
    let spec = fs::read_dir(node.cdi_root()).unwrap().next();
    fs::remove_file(spec.unwrap().unwrap().path()).unwrap();
});

/// Puts right what a change has done, but for files that the plugin makes.
fn mend(node: &SimulatedNode) {
    node.restore(0);
    node.plug_in(0);
    fs::write(node.dev().join("nvidia0"), "").unwrap();
    _ = fs::remove_file(node.proc().join("devices"));
    node.load_kernel_module(&node.state().driver_version);
}

/// Waits until nobody polls, from a line of the log on.
async fn rests(running: &Running, from: usize) -> usize {
    let plugin = &running.plugin;
    plugin.wait_for_line_after(from, RESTS, LONG).await.unwrap();
    plugin.lines().len()
}

/// Makes each change while nobody polls, and sees it told.
async fn all_seen(running: &Running, changes: &[Change]) {
    let mut from = 0;
    for (what, change) in changes {
        from = rests(running, from).await;
        change(&running.node);
        let told = format!("not as it was; polling what=\"{what}\"");
        let plugin = &running.plugin;
        let told = plugin.wait_for_line_after(from, &told, LONG).await;
        told.unwrap_or_else(|error| panic!("{what}: {error:?}"));
        from = plugin.lines().len();
        mend(&running.node);
    }
    rests(running, from).await;
    running.counts(3, 3).await;
    running.kubelet.assert_no_violations();
}

#[tokio::test]
async fn whatever_a_poll_would_see_is_seen_at_rest() {
    let node = SimulatedNode::with(3, |state| state.gpus[2].vanished = true);
    let running = Running::on(node, options(), &FLAGS).await;
    all_seen(&running, &CHANGES).await;
}

#[tokio::test]
async fn a_spec_that_goes_is_seen_at_rest() {
    let cdi = ["--device-list-strategy", "cdi-annotations"];
    let running = Running::on(SimulatedNode::new(3), options(), &[FLAGS, cdi].concat()).await;
    all_seen(&running, &[SPEC]).await;
    assert!(
        fs::read_dir(running.node.cdi_root())
            .unwrap()
            .next()
            .is_some()
    );
}

/// Sooner than the poll that there is in any case, 30 s after the enumeration.
const SOONER: Duration = Duration::from_secs(20);

#[tokio::test]
async fn a_round_that_hangs_is_not_waited_for() {
    let running = Running::on(SimulatedNode::new(2), options(), &FLAGS).await;
    let from = rests(&running, 0).await;
    running.node.hang(0, &["nvmlDeviceGetTemperature"]);
    let told = "a round has not come to its end";
    let told = running.plugin.wait_for_line_after(from, told, SOONER).await;
    told.unwrap();
    running.node.lose(1);
    running.health(1, "Unhealthy").await;
    running.health(0, "Unhealthy").await;
    let from = running.plugin.lines().len();
    running.node.restore(0);
    running.node.restore(1);
    running.counts(2, 2).await;
    rests(&running, from).await;
    running.kubelet.assert_no_violations();
}

/// How often the threads of this name have gone to sleep.
fn sleeps(pid: u32, name: &str) -> u64 {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let threads = threads.map(|thread| thread.unwrap().path());
    let threads = threads.filter(|thread| {
        let comm = fs::read_to_string(thread.join("comm"));
        comm.is_ok_and(|comm| comm.trim() == name)
    });
    let sleeps = threads.map(|thread| -> u64 {
        let status = fs::read_to_string(thread.join("status")).unwrap();
        let mut lines = status.lines();
        let sleeps = lines.find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        sleeps.unwrap().trim().parse().unwrap()
    });
    sleeps.sum()
}

#[tokio::test]
async fn looking_at_all_gpus_wakes_one_thread_and_no_other() {
    const ROUNDS: u64 = 15;
    let running = Running::on(SimulatedNode::new(2), options(), &FLAGS).await;
    rests(&running, 0).await;
    let registered = running.plugin.wait_for_line("registered with", LONG).await;
    registered.unwrap();
    let pid = running.plugin.pid().unwrap();
    let (looks, others) = (sleeps(pid, "calls"), sleeps(pid, "gpu-device-plug"));
    let what = format!("{ROUNDS} rounds");
    running
        .eventually(&what, || async {
            (sleeps(pid, "calls") >= looks + ROUNDS).then_some(())
        })
        .await;
    let others = sleeps(pid, "gpu-device-plug") - others;
    assert!(
        others < ROUNDS / 3,
        "woken {others} times in {ROUNDS} rounds"
    );
}
