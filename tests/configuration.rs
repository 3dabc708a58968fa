//! The configuration file: what it decides, what is refused, and what changes
//! while the plugin runs.

#![allow(
    clippy::unwrap_used,
    reason = "also a test's helpers fail by panicking"
)]

mod common;

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};

use common::nvml::SimulatedNode;
use common::running::{LONG, RESOURCE, Running, arguments, options, program};

/// Where the node has its configuration file.
fn file(node: &SimulatedNode) -> PathBuf {
    node.root().join("config.yaml")
}

/// In one step, as every editor and the kubelet do it.
fn write(node: &SimulatedNode, text: &str) {
    let new = node.root().join("config.yaml.new");
    fs::write(&new, text).unwrap();
    fs::rename(new, file(node)).unwrap();
}

/// A node with this file, and the flag that names it.
fn with_file(gpus: usize, text: &str) -> (SimulatedNode, String) {
    let node = SimulatedNode::new(gpus);
    write(&node, text);
    let flag = format!("--config-file={}", file(&node).display());
    (node, flag)
}

async fn running(gpus: usize, text: &str) -> Running {
    let (node, flag) = with_file(gpus, text);
    // Nothing is well again while a test runs.
    let never = ["--health-quiet", "24h", "--health-longest-quiet", "24h"];
    let running = Running::on(node, options(), &[&[flag.as_str()], &never[..]].concat()).await;
    running.counts(gpus, gpus).await;
    running
}

/// Waits until the plugin has read the file as often as this, with this result.
async fn read(running: &Running, result: &str, times: f64) {
    let sample = format!(r#"config_reloads_total{{result="{result}"}}"#);
    running.metric_reaches(&sample, times).await;
}

fn devices(node: &SimulatedNode, extra: &[&str]) -> Output {
    let mut command = Command::new(program());
    command.args(arguments(node, extra)).arg("devices");
    command.output().unwrap()
}

const FAULTY: &str = "\
version: v1
flag: {}
flags:
  migStrategy: everything
  httpListen: nowhere
  plugin:
    deviceListStrategy: [envvar, magic]
health:
  xids: {48: bad}
eviction:
  mode: evict
";

#[test]
fn every_fault_of_a_file_is_told_at_once_with_64() {
    let (node, flag) = with_file(1, FAULTY);
    for command in [&[][..], &["devices"], &["driver"]] {
        let mut arguments = vec!["--log-level=loud", flag.as_str()];
        arguments.extend(command);
        let output = Command::new(program()).args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(64));
        let text = String::from_utf8(output.stderr).unwrap();
        let errors: Vec<_> = text
            .lines()
            .filter_map(|line| line.strip_prefix("error: "))
            .collect();
        let file = file(&node).display().to_string();
        for (line, key) in [
            (2, "flag"),
            (4, "flags.migStrategy"),
            (5, "flags.httpListen"),
            (7, "flags.plugin.deviceListStrategy"),
            (9, "health.xids.48"),
            (11, "eviction.mode"),
        ] {
            let place = format!("{file}:{line}: {key}: ");
            let told = errors.iter().any(|error| error.starts_with(&place));
            assert!(told, "{place}: {text}");
        }
        assert!(
            errors
                .iter()
                .any(|error| error.starts_with("--log-level: "))
        );
        assert_eq!(errors.len(), 7, "{text}");
    }
}

#[test]
fn a_file_that_is_not_there_is_a_fault_of_who_names_it() {
    let mut command = Command::new(program());
    let output = command
        .env("CONFIG_FILE", "/nowhere.yaml")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(64));
    let text = String::from_utf8(output.stderr).unwrap();
    let start = r#"error: CONFIG_FILE: "/nowhere.yaml" cannot be read: "#;
    assert!(text.starts_with(start), "{text}");
}

#[test]
fn the_file_decides_what_flags_leave_open() {
    let text = r#"{"flags": {"resourceName": "nvidia.com/h200", "plugin": {"deviceListStrategy": "envvar"}}}"#;
    let (node, flag) = with_file(1, text);
    let print = |extra: &[&str]| {
        let output = devices(&node, &[&[flag.as_str()], extra].concat());
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let by_file = print(&[]);
    assert!(by_file.contains("nvidia.com/h200"), "{by_file}");
    assert!(by_file.contains("NVIDIA_VISIBLE_DEVICES"), "{by_file}");
    let by_flag = print(&["--resource-name=nvidia.com/flag"]);
    assert!(by_flag.contains("nvidia.com/flag"), "{by_flag}");
}

#[test]
fn nvidias_keys_without_effect_are_named_once() {
    let text = "version: v1\nflags: {failOnInitError: true, gfd: {oneshot: true}}\n";
    let (node, flag) = with_file(1, text);
    let output = devices(&node, &[&flag]);
    assert!(output.status.success());
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(text.lines().count(), 1, "{text}");
    let keys = text.contains("flags.failOnInitError (") && text.contains("flags.gfd (");
    assert!(keys, "{text}");
}

#[tokio::test]
async fn a_file_with_faults_leaves_what_holds_and_is_told_everywhere() {
    let running = running(1, "health: {xids: {48: application}}\n").await;
    let last = "config_last_reload_successful";
    assert_eq!(running.metric(last).await, Some(1.0));
    write(&running.node, FAULTY);
    running.plugin.signal(libc::SIGHUP).unwrap();
    let told = running.plugin.wait_for_line("has faults", LONG).await;
    let told = told.unwrap().text;
    for part in [
        "ERROR",
        "flags.migStrategy",
        "flags.httpListen",
        "eviction.mode",
    ] {
        assert!(told.contains(part), "{part}: {told}");
    }
    read(&running, "failed", 1.0).await;
    assert_eq!(running.metric(last).await, Some(0.0));
    running.noted("flags.httpListen").await;
    // What held still does.
    running.listening(0).await;
    running.node.xid(0, 48);
    let xid = format!(r#"xids_total{{uuid="{}",xid="48"}}"#, running.node.uuid(0));
    running.metric_reaches(&xid, 1.0).await;
    running.counts(1, 1).await;

    write(&running.node, "health: {xids: {48: application}}\n");
    running.plugin.signal(libc::SIGHUP).unwrap();
    read(&running, "ok", 1.0).await;
    assert_eq!(running.metric(last).await, Some(1.0));
    running.ready().await;
    running.kubelet.assert_no_violations();
}

#[tokio::test]
async fn what_takes_a_restart_is_said_to() {
    let running = running(1, "flags: {resourceName: nvidia.com/gpu}\n").await;
    write(&running.node, "flags: {resourceName: nvidia.com/other}\n");
    running.plugin.signal(libc::SIGHUP).unwrap();
    let told = running.plugin.wait_for_line("needs a restart", LONG).await;
    assert!(told.unwrap().text.contains(":1: flags.resourceName: "));
    assert!(running.kubelet.devices("nvidia.com/other").is_empty());
    assert_eq!(running.kubelet.devices(RESOURCE).len(), 1);
    running.kubelet.assert_no_violations();
}

#[tokio::test]
async fn the_class_of_an_xid_changes_while_it_runs_by_itself_or_when_asked() {
    let running = running(3, "version: v1\n").await;
    running.listening(0).await;
    running.node.xid(0, 48);
    running.health(0, "Unhealthy").await;

    // Nobody says anything: the folder is watched.
    write(&running.node, "health: {xids: {48: application}}\n");
    read(&running, "ok", 1.0).await;
    running.listening(1).await;
    running.node.xid(1, 48);
    let xid = format!(r#"xids_total{{uuid="{}",xid="48"}}"#, running.node.uuid(1));
    running.metric_reaches(&xid, 1.0).await;
    running.health(1, "Healthy").await;

    write(&running.node, "health: {xids: {13: reset}}\n");
    running.plugin.signal(libc::SIGHUP).unwrap();
    read(&running, "ok", 2.0).await;
    running.node.xid(2, 13);
    running.health(2, "Unhealthy").await;
    running.counts(1, 3).await;
    running.kubelet.assert_no_violations();
}

#[tokio::test]
async fn the_log_level_changes_while_it_runs() {
    let running = running(1, "flags: {logLevel: info}\n").await;
    write(&running.node, "flags: {logLevel: error}\n");
    read(&running, "ok", 1.0).await;
    running.node.lose(0);
    running.counts(0, 1).await;
    write(&running.node, "flags: {logLevel: info}\n");
    let wait = running.plugin.wait_for_line("has changed", LONG);
    wait.await.unwrap();
    let log = running.plugin.log();
    assert!(!log.contains("device is unhealthy"), "{log}");
    running.kubelet.assert_no_violations();
}
