//! Another plugin for the same resource: noticed, told, and not fought.

#![allow(
    clippy::unwrap_used,
    reason = "also a test's helpers fail by panicking"
)]

mod common;
#[allow(dead_code, reason = "the stub serves other tests too")]
#[path = "kubelet_peer/stub.rs"]
mod stub;

use std::fs;
use std::time::Duration;

use common::kubelet::{Event, Options, RegisterFault, Takeover, Times, Violation};
use common::nvml::SimulatedNode;
use common::plugin::PluginProcess;
use common::running::{LONG, RESOURCE, Running, http_address, spawn};
use socket2::{Domain, SockAddr, Socket, Type};
use stub::{Stub, healthy};
use tokio::net::UnixListener;

const RIVALS: &str = r#"rival_plugins{resource="nvidia.com/gpu"}"#;
const TOLD: &str = "another plugin serves this resource";

async fn running(takeover: Takeover) -> Running {
    let options = Options {
        takeover,
        ..Options::default()
    };
    let running = Running::on(SimulatedNode::new(2), options, &[]).await;
    running.counts(2, 2).await;
    running
}

/// A second copy of the plugin on the node, registered.
async fn second_copy(running: &Running) -> PluginProcess {
    let mark = running.kubelet.mark();
    let copy = spawn(&running.node, &[]);
    http_address(&copy).await;
    running.listed_since(mark).await;
    copy
}

/// A newcomer cannot end the stream of the plugin that it takes over from, and
/// a rival's lists are its own affair: nothing else may be amiss.
fn assert_no_violations_but_takeovers(running: &Running) {
    let violations = running.kubelet.violations();
    let others: Vec<_> = violations
        .iter()
        .filter(|violation| !matches!(violation, Violation::RegisteredOverOpenStream { .. }))
        .collect();
    assert!(
        others.is_empty(),
        "{others:#?}\n{}",
        running.kubelet.history()
    );
}

/// Waits for a registration of ours since the mark.
async fn registers(running: &Running, mark: usize, ours: bool) {
    let wanted = |event: &Event| match event {
        Event::Registered { endpoint, .. } => endpoint.starts_with("gpu-device-plugin") == ours,
        _ => false,
    };
    let wait = running.kubelet.wait_event("Registered", mark, LONG, wanted);
    wait.await.unwrap();
}

// === Two copies ===

#[tokio::test]
async fn scenario_21_in_a_rolling_update_the_new_copy_ends_up_with_the_resource() {
    for takeover in [
        Takeover::ByName,
        Takeover::BySocket,
        Takeover::ClosesReplaced,
    ] {
        let mut running = running(takeover).await;
        let pod = running.kubelet.allocate(RESOURCE, 1).await.unwrap();
        let new = second_copy(&running).await;
        running.plugin.terminate().unwrap();
        running.plugin.wait(LONG).await.unwrap();
        running.http = http_address(&new).await;
        running.plugin = new;
        running.ready().await;
        running.counts(2, 2).await;
        assert_eq!(running.kubelet.streams(RESOURCE), 1);
        let again = running.kubelet.restart_container(&pod.pod).await.unwrap();
        assert_eq!(again, pod);
        let calls = running.register_calls(0);
        assert!(calls <= 3, "{takeover:?}: {calls} registrations");
        assert_no_violations_but_takeovers(&running);
    }
}

#[tokio::test]
async fn two_copies_settle_whatever_the_kubelet_does_with_the_older_one() {
    for takeover in [
        Takeover::ByName,
        Takeover::BySocket,
        Takeover::ClosesReplaced,
    ] {
        let running = running(takeover).await;
        let _new = second_copy(&running).await;
        running.plugin.wait_for_line(TOLD, LONG).await.unwrap();
        running.metric_reaches(RIVALS, 1.0).await;
        let effort = running.effort();
        running.pass_time().await;
        running.kubelet.restart().await.unwrap();
        running.counts(2, 2).await;
        running.pass_time().await;
        effort.assert_idle();
        running.counts(2, 2).await;
        let calls = running.register_calls(0);
        println!("{takeover:?}: {calls} registrations");
        assert!(calls <= 6, "{takeover:?}: {calls} registrations");
        let told = running.plugin.log().matches(TOLD).count();
        assert!(told <= 2, "once, and once after the restart: {told}");
        assert_no_violations_but_takeovers(&running);
    }
}

#[tokio::test]
async fn the_older_copy_stands_by_and_takes_over_when_the_newer_is_gone() {
    let running = running(Takeover::ClosesReplaced).await;
    let mut new = second_copy(&running).await;
    running.unready("standing by until it is gone").await;
    let mark = running.kubelet.mark();
    running.pass_time().await;
    assert_eq!(running.register_calls(mark), 0, "no war");

    new.kill().unwrap();
    new.wait(LONG).await.unwrap();
    running.ready().await;
    running.counts(2, 2).await;
    running.metric_reaches(RIVALS, 0.0).await;
    assert_eq!(running.metric(RIVALS).await, Some(0.0));
    assert_no_violations_but_takeovers(&running);
}

// === Plugins of others ===

#[tokio::test]
async fn nvidias_plugin_is_known_by_its_socket_and_has_the_name_while_it_lives() {
    let running = running(Takeover::ClosesReplaced).await;
    let folder = running.kubelet.folder();
    let rival = Stub::serve(folder, "nvidia-gpu.sock", healthy(&["GPU-a"])).unwrap();
    rival.register().await.unwrap();
    let line = running.plugin.wait_for_line(TOLD, LONG).await.unwrap();
    assert!(line.text.contains("nvidia-gpu.sock"), "{}", line.text);
    running.metric_reaches(RIVALS, 1.0).await;
    running.unready("nvidia-gpu.sock").await;
    running.counts(1, 1).await;

    let mark = running.kubelet.mark();
    fs::remove_file(folder.join("nvidia-gpu.sock")).unwrap();
    registers(&running, mark, true).await;
    running.ready().await;
    let gone = running.plugin.wait_for_line("is gone", LONG).await.unwrap();
    assert!(gone.text.contains("nvidia-gpu.sock"), "{}", gone.text);
    assert_no_violations_but_takeovers(&running);
}

/// Between bind(2) and listen(2) it is not known from one that died, and to listen
/// changes nothing in the folder.
#[tokio::test]
async fn a_rival_that_listens_later_than_it_is_seen_is_known_when_it_registers() {
    /// Long before the clock looks.
    const SOON: Duration = Duration::from_secs(10);
    const STEP: &str = "DEBUG step";
    let options = Options {
        takeover: Takeover::ClosesReplaced,
        ..Options::default()
    };
    let flags = ["--log-level", "debug"];
    let running = Running::on(SimulatedNode::new(2), options, &flags).await;
    running.counts(2, 2).await;
    let folder = running.kubelet.folder();
    let rival = Stub::silent(folder, "nvidia-gpu.sock", healthy(&["GPU-a"]));

    let seen = running.plugin.lines().len();
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
    let address = SockAddr::unix(folder.join("nvidia-gpu.sock")).unwrap();
    socket.bind(&address).unwrap();
    let step = running.plugin.wait_for_line_after(seen, STEP, SOON).await;
    step.unwrap();
    assert_eq!(running.metric(RIVALS).await, None, "nobody listens");

    socket.listen(16).unwrap();
    socket.set_nonblocking(true).unwrap();
    rival.listen_at(UnixListener::from_std(socket.into()).unwrap());
    rival.register().await.unwrap();
    let line = running.plugin.wait_for_line(TOLD, SOON).await.unwrap();
    assert!(line.text.contains("nvidia-gpu.sock"), "{}", line.text);
}

#[tokio::test]
async fn a_rival_that_registers_again_each_time_meets_growing_pauses_and_is_told() {
    let running = running(Takeover::ClosesReplaced).await;
    // By its name nobody could tell what it serves.
    let folder = running.kubelet.folder();
    let rival = Stub::serve(folder, "anything.sock", healthy(&["GPU-a"])).unwrap();
    let war = async {
        loop {
            let mark = running.kubelet.mark();
            rival.register().await.unwrap();
            registers(&running, mark, true).await;
        }
    };
    let told = running.unready("another plugin seems to register nvidia.com/gpu too");
    tokio::select! {
        () = war => {}
        body = told => println!("{body}"),
    }
    let ours = running
        .kubelet
        .events()
        .into_iter()
        .filter(|record| matches!(&record.event, Event::Registered { endpoint, .. } if endpoint != "anything.sock"))
        .count();
    assert!(ours <= 7, "{ours} registrations of ours");
    // It gave up: the name is ours again, after the pause.
    running.ready().await;
    running.counts(2, 2).await;
    assert_no_violations_but_takeovers(&running);
}

#[tokio::test]
async fn scenario_37_a_plugin_for_another_resource_is_no_rival_and_its_end_no_matter() {
    let running = running(Takeover::ByName).await;
    let name = "example.com/accelerator";
    let mut other = spawn(&running.node, &["--resource-name", name]);
    let wait = |counts| running.kubelet.wait_counts(name, counts, LONG);
    wait((2, 2)).await.unwrap();
    other.kill().unwrap();
    other.wait(LONG).await.unwrap();
    wait((0, 2)).await.unwrap();
    running.pass_time().await;
    running.counts(2, 2).await;
    assert_eq!(running.register_calls(0), 2, "one each");
    assert!(!running.plugin.log().contains(TOLD));
    assert!(!other.log().contains(TOLD));
    running.kubelet.assert_no_violations();
}

#[tokio::test]
async fn scenario_37_a_resource_that_the_kubelet_refuses_leaves_the_other_registered() {
    let running = running(Takeover::ByName).await;
    let fault = RegisterFault::Error("no".into());
    running.kubelet.fault(fault, Times::UntilCleared);
    let other = spawn(
        &running.node,
        &["--resource-name", "example.com/accelerator"],
    );
    other.wait_for_line("not registered", LONG).await.unwrap();
    running.pass_time().await;
    running.counts(2, 2).await;
    running.ready().await;
    running.kubelet.clear_faults();
    running.kubelet.assert_no_violations();
}
