//! What is seen from outside: HTTP, metrics, logs, signals, exit codes, usage.

#![allow(
    clippy::unwrap_used,
    reason = "also a test's helpers fail by panicking"
)]

mod common;

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Command, Output};
use std::time::Instant;

use common::kubelet::{Event, KubeletPeer};
use common::nvml::SimulatedNode;
use common::running::{LONG, RESOURCE, Running, options, program, spawn};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

fn run(arguments: &[&str]) -> Output {
    Command::new(program()).args(arguments).output().unwrap()
}

// === HTTP ===

#[tokio::test]
async fn readyz_lists_everything_that_is_missing_and_livez_does_not_mind() {
    let node = SimulatedNode::with(1, |state| {
        state.init = common::nvml::Return::DriverNotLoaded;
    });
    let kubelet = KubeletPeer::new(node.device_plugin_dir(), options());
    let running = Running::unregistered(node, kubelet, &[]).await;
    let body = running.unready("kernel module").await;
    let parts: Vec<_> = body
        .lines()
        .map(|line| line.split_once(": ").unwrap().0)
        .collect();
    assert_eq!(parts, ["driver", "gpus", RESOURCE]);
    assert_eq!(running.get("/livez").await, (200, "ok\n".into()));
    assert_eq!(running.get("/").await.0, 404);

    running
        .node
        .edit(|state| state.init = common::nvml::Return::Success);
    let body = running.unready("waiting for a kubelet").await;
    assert_eq!(body.lines().count(), 1, "{body}");
    running.kubelet.start().await.unwrap();
    running.ready().await;
    running.kubelet.stop().await;
    running.unready(RESOURCE).await;
    running.kubelet.assert_no_violations();
}

#[tokio::test]
async fn metrics_are_openmetrics() {
    let running = Running::start(2).await;
    running.allocate(&[0, 1]).await.unwrap();
    let text = raw_get(&running, "/metrics").await;
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let head = head.to_ascii_lowercase();
    let content = "content-type: application/openmetrics-text; version=1.0.0; charset=utf-8";
    assert!(head.contains(content), "{head}");
    assert!(body.ends_with("# EOF\n"), "{body}");
    let mut families = BTreeMap::new();
    for line in body.lines().filter(|line| *line != "# EOF") {
        let words: Vec<_> = line.splitn(4, ' ').collect();
        match words[..] {
            ["#", "HELP" | "UNIT", name, _] => assert!(name.starts_with("gpu_device_plugin_")),
            ["#", "TYPE", name, kind] => {
                assert!(families.insert(name, kind).is_none(), "{name} twice");
            }
            _ => assert_sample(line, &families),
        }
    }
    assert_eq!(families["gpu_device_plugin_devices"], "gauge");
    assert_eq!(families["gpu_device_plugin_registrations"], "counter");
    let duration = "gpu_device_plugin_rpc_duration_seconds";
    assert_eq!(families[duration], "histogram");
    running.kubelet.assert_no_violations();
}

/// A sample is of a family that was named before it, by the suffix of its kind.
fn assert_sample(line: &str, families: &BTreeMap<&str, &str>) {
    let (sample, value) = line.rsplit_once(' ').unwrap();
    assert!(value.parse::<f64>().is_ok(), "{line}");
    let name = sample.split('{').next().unwrap();
    let family = families.iter().find(|(family, kind)| {
        let suffixes: &[&str] = match **kind {
            "counter" => &["_total"],
            "histogram" => &["_bucket", "_sum", "_count"],
            "info" => &["_info"],
            _ => &[""],
        };
        suffixes
            .iter()
            .any(|suffix| name == format!("{family}{suffix}"))
    });
    assert!(family.is_some(), "{line}");
}

async fn raw_get(running: &Running, path: &str) -> String {
    let mut stream = TcpStream::connect(running.http).await.unwrap();
    let request = format!("GET {path} HTTP/1.0\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    text
}

#[tokio::test]
async fn metrics_tell_what_happened() {
    let running = Running::start(3).await;
    let uuid = running.node.uuid(2);
    running.allocate(&[0, 1]).await.unwrap();
    running.allocate(&[0]).await.unwrap();
    running.listening(2).await;
    running.node.xid(2, 79);
    running.counts(2, 3).await;
    running.allocate(&[2]).await.unwrap_err();
    let resource = r#"resource="nvidia.com/gpu""#;
    let xid = format!(r#"xids_total{{uuid="{uuid}",xid="79"}}"#);
    let duration = "rpc_duration_seconds_count";
    let expected = [
        (format!(r#"devices{{{resource},health="Healthy"}}"#), 2.0),
        (format!(r#"devices{{{resource},health="Unhealthy"}}"#), 1.0),
        (
            format!(r#"registrations_total{{{resource},result="ok"}}"#),
            1.0,
        ),
        (
            format!(r#"kubelet_connection{{{resource},state="registered"}}"#),
            1.0,
        ),
        (
            format!(r#"kubelet_connection{{{resource},state="no_kubelet"}}"#),
            0.0,
        ),
        (format!("allocated_devices_total{{{resource}}}"), 3.0),
        (
            format!(r#"{duration}{{{resource},method="Allocate",code="Ok"}}"#),
            2.0,
        ),
        (
            format!(r#"{duration}{{{resource},method="Allocate",code="FailedPrecondition"}}"#),
            1.0,
        ),
        (
            format!(r#"{duration}{{{resource},method="ListAndWatch",code="Ok"}}"#),
            1.0,
        ),
        (xid, 1.0),
        ("nvml_session".to_owned(), 1.0),
    ];
    for (sample, value) in expected {
        assert_eq!(running.metric(&sample).await, Some(value), "{sample}");
    }
    running.kubelet.assert_no_violations();
}

// === Logs ===

#[tokio::test]
async fn a_change_is_one_line_and_rest_is_none() {
    let running = Running::start(3).await;
    running
        .plugin
        .wait_for_line("state=\"registered\"", LONG)
        .await
        .unwrap();
    let before = running.plugin.lines().len();
    for _ in 0..5 {
        running.node.lose(1);
        running.counts(2, 3).await;
        running.node.restore(1);
        running.counts(3, 3).await;
    }
    // What is asked of it changes nothing.
    for _ in 0..20 {
        running.allocate(&[0]).await.unwrap();
        running.ready().await;
        running.get("/metrics").await;
    }
    let wait = running
        .plugin
        .wait_for_line_after(before + 14, "healthy", LONG);
    wait.await.unwrap();
    let lines: Vec<_> = running.plugin.lines()[before..]
        .iter()
        .map(|l| l.text.clone())
        .collect();
    // Sick, watched, healthy.
    assert_eq!(lines.len(), 15, "{lines:#?}");
    assert!(
        lines.iter().all(|line| line.contains("device=")),
        "{lines:#?}"
    );
    running.kubelet.assert_no_violations();
}

#[tokio::test]
async fn json_lines_have_stable_keys() {
    let node = SimulatedNode::new(2);
    let uuid = node.uuid(1);
    let running = Running::on(node, options(), &["--log-format", "json"]).await;
    running.counts(2, 2).await;
    running.listening(1).await;
    running.node.xid(1, 79);
    running.counts(1, 2).await;
    for written in [r#""state":"registered""#, "device is unhealthy"] {
        running.plugin.wait_for_line(written, LONG).await.unwrap();
    }
    let lines = running.plugin.lines();
    let lines: Vec<Value> = lines
        .iter()
        .map(|line| serde_json::from_str(&line.text).unwrap_or_else(|_| panic!("{}", line.text)))
        .collect();
    for line in &lines {
        for key in ["timestamp", "level", "message"] {
            assert!(line[key].is_string(), "{line}");
        }
    }
    let with = |message: &str| {
        let mut found = lines.iter().filter(|line| line["message"] == message);
        found
            .next_back()
            .unwrap_or_else(|| panic!("no {message:?} in {lines:#?}"))
    };
    let registered = with("registered with the kubelet");
    assert_eq!(registered["resource"], RESOURCE);
    assert_eq!(registered["state"], "registered");
    let event = with("XID event");
    assert_eq!(
        (&event["uuid"], &event["xid"]),
        (&uuid.clone().into(), &79.into())
    );
    let unhealthy = with("device is unhealthy");
    assert_eq!(unhealthy["level"], "WARN");
    assert_eq!(unhealthy["device"], uuid);
    assert_eq!(unhealthy["health"], "Unhealthy");
    assert_eq!(unhealthy["reason"], "XID 79 (GPU has fallen off the bus)");
    running.kubelet.assert_no_violations();
}

#[tokio::test]
async fn the_log_level_is_a_threshold() {
    let node = SimulatedNode::new(2);
    let kubelet = KubeletPeer::new(node.device_plugin_dir(), options());
    kubelet.start().await.unwrap();
    let plugin = spawn(&node, &["--log-level", "warn"]);
    kubelet.wait_counts(RESOURCE, (2, 2), LONG).await.unwrap();
    node.lose(0);
    plugin
        .wait_for_line("device is unhealthy", LONG)
        .await
        .unwrap();
    let lines = plugin.lines();
    assert_eq!(lines.len(), 1, "{lines:#?}");
    kubelet.assert_no_violations();
}

// === The end ===

#[tokio::test]
async fn scenario_39_sigterm_and_sigint_end_streams_remove_our_socket_and_answer_0() {
    for signal in [libc::SIGTERM, libc::SIGINT] {
        let mut running = Running::start(2).await;
        let another = running.kubelet.folder().join("another.sock");
        let _another = UnixListener::bind(&another).unwrap();
        let mark = running.kubelet.mark();
        running.plugin.signal(signal).unwrap();
        let asked = Instant::now();
        let ended = running.plugin.wait(LONG).await.unwrap();
        println!("ended {:?} after signal {signal}", asked.elapsed());
        assert_eq!(ended.code(), Some(0));
        assert_eq!(running.sockets(), [another]);
        running.counts(0, 2).await;
        let events = running.kubelet.events();
        let end = events[mark..]
            .iter()
            .find_map(|record| match &record.event {
                Event::StreamEnded { reason, .. } => Some(reason.as_str()),
                _ => None,
            });
        assert_eq!(end, Some("EOF"), "a clean end");
        assert_eq!(running.register_calls(mark), 0);
        running.kubelet.assert_no_violations();
    }
}

#[tokio::test]
async fn peers_that_do_not_let_go_do_not_hold_up_the_end() {
    let mut running = Running::start(2).await;
    let _silent = UnixStream::connect(&running.sockets()[0]).unwrap();
    let _unread = running.kubelet.open_stream(RESOURCE).await.unwrap();
    let _half_asked = std::net::TcpStream::connect(running.http).unwrap();
    running.plugin.terminate().unwrap();
    let asked = Instant::now();
    let ended = running.plugin.wait(LONG).await.unwrap();
    println!("ended {:?} after SIGTERM", asked.elapsed());
    assert_eq!(ended.code(), Some(0));
    assert!(running.sockets().is_empty());
    running.kubelet.assert_no_violations();
}

#[tokio::test]
async fn a_second_signal_ends_it_at_once() {
    let mut running = Running::start(1).await;
    // Holds up an orderly end for longer than two signals take.
    let _silent = UnixStream::connect(&running.sockets()[0]).unwrap();
    for signal in [libc::SIGSTOP, libc::SIGTERM, libc::SIGINT, libc::SIGCONT] {
        running.plugin.signal(signal).unwrap();
    }
    let ended = running.plugin.wait(LONG).await.unwrap();
    assert_eq!(ended.code(), Some(1));
    assert!(running.plugin.log().contains("stopping at once"));
    running.kubelet.assert_no_violations();
}

#[tokio::test]
async fn an_address_that_is_taken_ends_it_with_1_and_the_remedy() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let node = SimulatedNode::new(1);
    let mut plugin = spawn(&node, &["--http-listen", &address]);
    let ended = plugin.wait(LONG).await.unwrap();
    assert_eq!(ended.code(), Some(1));
    let log = plugin.log();
    assert!(
        log.contains(&address) && log.contains("--http-listen"),
        "{log}"
    );
}

// === Usage ===

#[test]
fn every_bad_argument_is_told_at_once_with_64() {
    let output = run(&[
        "--http-listen",
        "nowhere",
        "--frobnicate",
        "--health-poll-interval=1h",
        "--log-format",
        "xml",
        "--driver-root",
        "relative",
        "--resource-name",
        "kubernetes.io/gpu",
    ]);
    assert_eq!(output.status.code(), Some(64));
    assert!(output.stdout.is_empty());
    let text = String::from_utf8(output.stderr).unwrap();
    let errors: Vec<_> = text
        .lines()
        .filter(|line| line.starts_with("error: "))
        .collect();
    assert_eq!(errors.len(), 6, "{text}");
    for part in [
        "--http-listen",
        "--frobnicate",
        "--health-poll-interval",
        "--log-format",
        "--driver-root",
        "--resource-name",
    ] {
        assert!(
            errors.iter().any(|error| error.contains(part)),
            "{part}: {text}"
        );
    }
    assert!(!text.contains("panicked"), "{text}");
}

#[test]
fn scenario_36_names_that_a_kubelet_refuses_never_reach_it() {
    for name in [
        "gpu",
        "kubernetes.io/gpu",
        "requests.nvidia.com/gpu",
        "nvidia.com/g+u",
        "",
    ] {
        let output = run(&["--resource-name", name]);
        assert_eq!(output.status.code(), Some(64), "{name:?}");
    }
}

#[test]
fn a_bad_variable_is_told_by_its_name() {
    let mut command = Command::new(program());
    let output = command
        .env("HEALTH_POLL_INTERVAL", "soon")
        .env("LOG_LEVEL", "loud")
        .output();
    let output = output.unwrap();
    assert_eq!(output.status.code(), Some(64));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(
        text.contains("HEALTH_POLL_INTERVAL") && text.contains("LOG_LEVEL"),
        "{text}"
    );
}

#[test]
fn help_and_version_are_no_faults() {
    for flag in ["--help", "--version"] {
        let output = run(&[flag]);
        assert_eq!(output.status.code(), Some(0));
        assert!(output.stderr.is_empty());
        assert!(!output.stdout.is_empty());
    }
}
