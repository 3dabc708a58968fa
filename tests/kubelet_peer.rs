//! The tests' kubelet against what is known of the real one: one statement of
//! its contract each.

#![allow(
    clippy::panic,
    clippy::unwrap_used,
    reason = "also a test's helpers fail by panicking"
)]

mod common;
#[path = "kubelet_peer/stub.rs"]
mod stub;

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::time::Duration;

use gpu_device_plugin::api::v1beta1::{
    DevicePluginOptions, NumaNode, RegisterRequest, TopologyInfo,
};
use prost::Message;
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;
use tokio::task::JoinSet;
use tonic::{Code, Status};

use common::kubelet::{
    AllocateError, Event, KubeletPeer, Options, RegisterFault, Takeover, Times, Violation,
};
use common::plugin::{PluginProcess, http_get};
use stub::{RESOURCE, Stub, device, healthy};

const SOON: Duration = Duration::from_secs(5);
const GRACE: Duration = Duration::from_secs(5 * 60);
const NO_PATIENCE: Duration = Duration::from_millis(200);

/// A running kubelet in a folder of its own.
struct Node {
    kubelet: KubeletPeer,
    folder: TempDir,
}

impl std::ops::Deref for Node {
    type Target = KubeletPeer;

    fn deref(&self) -> &KubeletPeer {
        &self.kubelet
    }
}

impl Node {
    async fn start(options: Options) -> Self {
        let node = Self::stopped(options);
        node.kubelet.start().await.unwrap();
        node
    }

    fn stopped(options: Options) -> Self {
        let folder = TempDir::new().unwrap();
        Self {
            kubelet: KubeletPeer::new(folder.path(), options),
            folder,
        }
    }

    fn plugin(&self, endpoint: &str, ids: &[&str]) -> Stub {
        Stub::serve(self.folder.path(), endpoint, healthy(ids)).unwrap()
    }

    async fn registered(&self, endpoint: &str, ids: &[&str]) -> Stub {
        let plugin = self.plugin(endpoint, ids);
        let mark = self.mark();
        plugin.register().await.unwrap();
        self.sees(mark).await;
        plugin
    }

    async fn counts_become(&self, allocatable: usize, capacity: usize) {
        self.wait_counts(RESOURCE, (allocatable, capacity), SOON)
            .await
            .unwrap();
    }

    async fn refusal(&self, resource: &str, count: usize) -> String {
        self.allocate(resource, count)
            .await
            .unwrap_err()
            .to_string()
    }

    /// Waits for a list since the mark.
    async fn sees(&self, mark: usize) {
        let list = |event: &Event| matches!(event, Event::ListReceived { .. });
        self.wait_event("a list", mark, SOON, list).await.unwrap();
    }

    fn allocate_calls(&self) -> usize {
        let calls = self.events().into_iter();
        calls
            .filter(|record| matches!(record.event, Event::AllocateCalled { .. }))
            .count()
    }
}

fn position(node: &Node, wanted: impl Fn(&Event) -> bool) -> usize {
    node.events()
        .iter()
        .position(|record| wanted(&record.event))
        .unwrap()
}

// === Registration ===

#[tokio::test]
async fn register_dials_back_before_it_answers_and_lists_after() {
    let node = Node::start(Options::default()).await;
    let plugin = node.registered("gpu.sock", &["a", "b"]).await;

    let dialled = position(&node, |e| matches!(e, Event::DialledBack { .. }));
    let registered = position(&node, |e| matches!(e, Event::Registered { .. }));
    let opened = position(&node, |e| matches!(e, Event::StreamOpened { .. }));
    assert!(
        dialled < registered && registered < opened,
        "{}",
        node.history()
    );
    assert_eq!(plugin.authorities(), ["localhost", "localhost"]);
    node.assert_no_violations();
}

/// As gRPC for Go calls, given a path: tonic's client would not.
#[tokio::test]
async fn a_caller_may_name_the_sockets_path_as_the_authority() {
    let node = Node::start(Options::default()).await;
    let _plugin = node.plugin("gpu.sock", &["a"]);
    let request = RegisterRequest {
        version: "v1beta1".to_owned(),
        endpoint: "gpu.sock".to_owned(),
        resource_name: RESOURCE.to_owned(),
        options: None,
    };
    let message = request.encode_to_vec();
    let mut data = vec![0, 0, 0, 0, u8::try_from(message.len()).unwrap()];
    data.extend(message);
    // POST and http by index, the others spelt out.
    let mut headers = vec![0x83, 0x86];
    for (name, value) in [
        (0x44, "/v1beta1.Registration/Register"),
        (0x41, "%2Fvar%2Flib%2Fkubelet.sock"),
        (0x5f, "application/grpc"),
    ] {
        headers.extend([name, u8::try_from(value.len()).unwrap()]);
        headers.extend(value.bytes());
    }
    let frame = |kind: u8, flags: u8, stream: u8, payload: &[u8]| {
        let length = u8::try_from(payload.len()).unwrap();
        let head = [0, 0, length, kind, flags, 0, 0, 0, stream];
        [&head, payload].concat()
    };
    let bytes = [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        frame(4, 0, 0, &[]),
        frame(1, 0x4, 1, &headers),
        frame(0, 0x1, 1, &data),
    ]
    .concat();
    let mut caller = tokio::net::UnixStream::connect(node.socket_path())
        .await
        .unwrap();
    // In pieces, as a socket may deliver it.
    for piece in bytes.chunks(7) {
        caller.write_all(piece).await.unwrap();
    }
    node.sees(0).await;
    node.assert_no_violations();
}

#[tokio::test]
async fn register_fails_where_the_socket_listens_but_nobody_speaks_http2() {
    let node = Node::start(Options {
        dial_limit: NO_PATIENCE,
        ..Options::default()
    })
    .await;
    let plugin = Stub::silent(node.folder.path(), "gpu.sock", Vec::new());
    let _listener = UnixListener::bind(node.folder.path().join("gpu.sock")).unwrap();

    let error = plugin.register().await.unwrap_err();
    assert_eq!(error.code(), Code::Unknown);
    assert_eq!(
        error.message(),
        "failed to dial device plugin: context deadline exceeded"
    );
    assert_eq!(
        node.refusal(RESOURCE, 1).await.split(':').next(),
        Some("nvidia.com/gpu is not a device plugin's")
    );
}

#[tokio::test]
async fn register_keeps_dialling_a_plugin_that_serves_late() {
    let node = Node::start(Options::default()).await;
    let plugin = Stub::silent(node.folder.path(), "gpu.sock", healthy(&["a"]));
    let called = async {
        let called = |e: &Event| matches!(e, Event::RegisterCalled { .. });
        node.wait_event("Register", 0, SOON, called).await.unwrap();
        plugin.listen().unwrap();
    };
    let (answer, ()) = tokio::join!(plugin.register(), called);
    answer.unwrap();
    node.counts_become(1, 1).await;
}

#[tokio::test]
async fn register_checks_version_and_resource_name() {
    let node = Node::start(Options::default()).await;
    let plugin = node.plugin("gpu.sock", &["a"]);

    let error = plugin.register_as("v1alpha1", RESOURCE).await.unwrap_err();
    assert_eq!(error.code(), Code::Unknown);
    assert!(
        error
            .message()
            .starts_with("requested API version \"v1alpha1\" is not supported")
    );

    let long = format!("nvidia.com/{}", "x".repeat(64));
    let bad = [
        "gpu",
        "kubernetes.io/gpu",
        "a.kubernetes.io/b",
        "requests.nvidia.com/gpu",
    ];
    for name in bad.into_iter().chain([
        "nvidia.com/gpu+",
        "nvidia.com/",
        "/gpu",
        "A.com/gpu",
        "a/b/c",
        &long,
    ]) {
        let error = plugin.register_as("v1beta1", name).await.unwrap_err();
        assert_eq!(
            error.message(),
            format!("the ResourceName \"{name}\" is invalid")
        );
    }
    for name in [
        "nvidia.com/gpu",
        "nvidia.com/gpu.shared",
        "nvidia.com/mig-1g.10gb",
        &long[..74],
    ] {
        plugin.register_as("v1beta1", name).await.unwrap();
    }
}

#[tokio::test]
async fn options_are_asked_for_and_those_of_the_request_ignored() {
    let node = Node::start(Options::default()).await;
    let _plugin = node.registered("gpu.sock", &["a"]).await;
    let pod = node.allocate(RESOURCE, 1).await.unwrap().pod;
    node.restart_container(&pod).await.unwrap();

    let asked = |e: &Event| {
        matches!(
            e,
            Event::PreferredCalled { .. } | Event::PreStartCalled { .. }
        )
    };
    assert!(
        !node.events().iter().any(|record| asked(&record.event)),
        "{}",
        node.history()
    );
}

#[tokio::test]
async fn an_error_to_the_question_for_options_fails_register() {
    let node = Node::start(Options::default()).await;
    let plugin = node.plugin("gpu.sock", &["a"]);
    plugin.script(|script| script.options = Err(Status::unavailable("later")));
    let error = plugin.register().await.unwrap_err();
    let text = "failed to get device plugin options: rpc error: code = Unavailable desc = later";
    assert_eq!((error.code(), error.message()), (Code::Unknown, text));

    plugin.script(|script| script.options = Ok(DevicePluginOptions::default()));
    plugin.register().await.unwrap();
    node.counts_become(1, 1).await;
    node.assert_no_violations();
}

// === The re-register race ===

#[tokio::test]
async fn the_end_of_a_replaced_stream_disconnects_the_newer_client() {
    let node = Node::start(Options::default()).await;
    let old = node.registered("old.sock", &["a", "b"]).await;
    let _new = node.registered("new.sock", &["a", "b"]).await;
    assert_eq!(node.streams(RESOURCE), 2);
    let over_open = Violation::RegisteredOverOpenStream {
        resource: RESOURCE.to_owned(),
    };
    assert_eq!(node.violations(), [over_open]);

    old.end_streams();
    node.counts_become(0, 2).await;
    let none = |n: &KubeletPeer| (n.streams(RESOURCE) == 0).then_some(());
    node.wait_for("the end of both streams", SOON, none)
        .await
        .unwrap();
    assert!(
        node.refusal(RESOURCE, 1)
            .await
            .contains("no healthy devices present")
    );
}

#[tokio::test]
async fn a_stream_ended_before_register_is_no_violation() {
    let node = Node::start(Options::default()).await;
    let plugin = node.registered("gpu.sock", &["a", "b"]).await;
    for _ in 0..20 {
        let mark = node.mark();
        plugin.end_streams();
        plugin.register().await.unwrap();
        node.sees(mark).await;
        node.counts_become(2, 2).await;
    }
    node.assert_no_violations();
}

#[tokio::test]
async fn later_kubelets_keep_the_newer_client() {
    for takeover in [Takeover::BySocket, Takeover::ClosesReplaced] {
        let node = Node::start(Options {
            takeover,
            ..Options::default()
        })
        .await;
        let old = node.registered("old.sock", &["a"]).await;
        let _new = node.registered("new.sock", &["a"]).await;
        old.end_streams();
        let one = |n: &KubeletPeer| (n.streams(RESOURCE) == 1).then_some(());
        node.wait_for("one stream", SOON, one).await.unwrap();
        assert_eq!(node.counts(RESOURCE).allocatable, 1, "{takeover:?}");
        node.allocate(RESOURCE, 1).await.unwrap();
    }
}

#[tokio::test]
async fn a_socket_name_used_again_loses_the_newer_client_on_later_kubelets_too() {
    let takeover = Takeover::BySocket;
    let node = Node::start(Options {
        takeover,
        ..Options::default()
    })
    .await;
    let old = node.registered("gpu.sock", &["a"]).await;
    fs::remove_file(node.folder.path().join("gpu.sock")).unwrap();
    let _new = node.registered("gpu.sock", &["a"]).await;
    old.end_streams();
    node.counts_become(0, 1).await;
}

#[tokio::test]
async fn an_old_stream_that_ends_inside_register_fails_it() {
    let node = Node::start(Options::default()).await;
    let old = node.registered("old.sock", &["a"]).await;
    let new = node.plugin("new.sock", &["a"]);
    new.hold_options(true);
    let mark = node.mark();
    let end = async {
        let dialled = |e: &Event| matches!(e, Event::DialledBack { .. });
        node.wait_event("the dial-back", mark, SOON, dialled)
            .await
            .unwrap();
        old.end_streams();
    };
    let (answer, ()) = tokio::join!(new.register(), end);
    assert!(answer.unwrap_err().message().contains("code = Canceled"));
    node.counts_become(0, 1).await;
}

#[tokio::test]
async fn an_old_stream_that_ends_while_register_dials_hides_the_newer_ones_end() {
    let node = Node::start(Options::default()).await;
    let old = node.registered("old.sock", &["a"]).await;
    let new = Stub::silent(node.folder.path(), "new.sock", healthy(&["a"]));
    let mark = node.mark();
    let end = async {
        let dialling = |e: &Event| matches!(e, Event::Dialling { .. });
        node.wait_event("the dialling", mark, SOON, dialling)
            .await
            .unwrap();
        old.end_streams();
        node.counts_become(0, 1).await;
        new.listen().unwrap();
    };
    let (answer, ()) = tokio::join!(new.register(), end);
    answer.unwrap();
    node.counts_become(1, 1).await;

    new.end_streams();
    let none = |n: &KubeletPeer| (n.streams(RESOURCE) == 0).then_some(());
    node.wait_for("the stream's end", SOON, none).await.unwrap();
    assert_eq!(node.counts(RESOURCE).allocatable, 1);
}

#[tokio::test]
async fn after_a_failed_reregister_nobody_notices_the_old_streams_end() {
    let node = Node::start(Options {
        dial_limit: NO_PATIENCE,
        ..Options::default()
    })
    .await;
    let old = node.registered("old.sock", &["a"]).await;
    Stub::silent(node.folder.path(), "absent.sock", Vec::new())
        .register()
        .await
        .unwrap_err();

    old.end_streams();
    let none = |n: &KubeletPeer| (n.streams(RESOURCE) == 0).then_some(());
    node.wait_for("the stream's end", SOON, none).await.unwrap();
    assert_eq!(node.counts(RESOURCE).allocatable, 1);
}

// === Devices ===

#[tokio::test]
async fn a_streams_end_leaves_the_capacity_for_five_minutes() {
    let node = Node::start(Options::default()).await;
    let plugin = node.registered("gpu.sock", &["a", "b"]).await;
    plugin.end_streams();
    node.counts_become(0, 2).await;
    node.advance_clock(GRACE - Duration::from_secs(1));
    node.counts_become(0, 2).await;
    node.advance_clock(Duration::from_secs(2));
    node.counts_become(0, 0).await;

    plugin.register().await.unwrap();
    node.counts_become(2, 2).await;
    node.assert_no_violations();
}

#[tokio::test]
async fn a_short_grace_ends_by_itself() {
    let grace = Duration::from_millis(50);
    let node = Node::start(Options {
        grace,
        ..Options::default()
    })
    .await;
    let plugin = node.registered("gpu.sock", &["a"]).await;
    plugin.end_streams();
    node.counts_become(0, 0).await;
}

#[tokio::test]
async fn each_list_replaces_all_and_only_one_word_means_health() {
    let node = Node::start(Options::default()).await;
    let plugin = node.registered("gpu.sock", &["a", "b", "c", "d"]).await;
    plugin.list(vec![
        device("a", "Healthy"),
        device("b", "healthy"),
        device("c", ""),
    ]);
    node.counts_become(1, 3).await;
    plugin.list(Vec::new());
    node.counts_become(0, 0).await;
    plugin.list(healthy(&["e"]));
    node.counts_become(1, 1).await;
    node.assert_no_violations();
}

#[tokio::test]
async fn an_id_listed_with_two_healths_counts_twice() {
    let node = Node::start(Options::default()).await;
    let plugin = node.registered("gpu.sock", &["a"]).await;
    plugin.list(vec![device("a", "Healthy"), device("a", "Unhealthy")]);
    node.counts_become(1, 2).await;
    let (resource, id) = (RESOURCE.to_owned(), "a".to_owned());
    assert_eq!(node.violations(), [Violation::DuplicateId { resource, id }]);
}

#[tokio::test]
async fn a_list_over_four_mebibytes_ends_the_stream() {
    let node = Node::start(Options::default()).await;
    let plugin = node.registered("gpu.sock", &["a"]).await;
    plugin.list(
        (0..80_000)
            .map(|n| device(&format!("{n:060}"), "Healthy"))
            .collect(),
    );
    node.counts_become(0, 1).await;
    plugin.list(
        (0..50_000)
            .map(|n| device(&format!("{n:060}"), "Healthy"))
            .collect(),
    );
    plugin.register().await.unwrap();
    node.counts_become(50_000, 50_000).await;
}

// === The folder ===

#[tokio::test]
async fn start_removes_sockets_directly_in_the_folder_and_nothing_else() {
    let node = Node::stopped(Options::default());
    let at = |name: &str| node.folder.path().join(name);
    fs::create_dir(at("sub")).unwrap();
    let sockets =
        ["gpu.sock", "sub/gpu.sock", "kubelet.sock"].map(|name| UnixListener::bind(at(name)));
    assert!(sockets.iter().all(Result::is_ok));
    fs::write(at("plain"), "").unwrap();
    let inode = fs::metadata(at("kubelet.sock")).unwrap().ino();

    node.start().await.unwrap();
    assert!(!at("gpu.sock").exists());
    assert!(at("sub/gpu.sock").exists() && at("plain").exists());
    assert_ne!(fs::metadata(at("kubelet.sock")).unwrap().ino(), inode);
}

#[tokio::test]
async fn a_wiped_plugin_socket_fails_register_after_the_dial_limit() {
    let node = Node::start(Options {
        dial_limit: NO_PATIENCE,
        ..Options::default()
    })
    .await;
    let plugin = node.registered("gpu.sock", &["a"]).await;
    node.restart().await.unwrap();
    let error = plugin.register().await.unwrap_err();
    assert!(
        error.message().starts_with("failed to dial device plugin"),
        "{error}"
    );
}

#[tokio::test]
async fn a_dead_kubelet_leaves_a_socket_that_refuses() {
    let node = Node::start(Options::default()).await;
    let plugin = node.registered("gpu.sock", &["a"]).await;
    node.stop().await;
    let refused = || UnixStream::connect(node.socket_path()).unwrap_err().kind();
    assert_eq!(refused(), io::ErrorKind::ConnectionRefused);
    assert_eq!(
        plugin.register().await.unwrap_err().code(),
        Code::Unavailable
    );

    node.leave_stale_socket().await.unwrap();
    assert_eq!(refused(), io::ErrorKind::ConnectionRefused);
    node.remove_socket().unwrap();
    assert_eq!(refused(), io::ErrorKind::NotFound);
}

#[tokio::test]
async fn the_socket_appears_before_it_listens_and_listens_before_it_answers() {
    let node = Node::stopped(Options::default());
    let connect = || UnixStream::connect(node.socket_path());
    node.bind_only().await.unwrap();
    assert_eq!(
        connect().unwrap_err().kind(),
        io::ErrorKind::ConnectionRefused
    );

    node.listen_only().await.unwrap();
    connect().unwrap();
    let plugin = node.plugin("gpu.sock", &["a"]);
    let start = async { node.start().await.unwrap() };
    let (answer, ()) = tokio::join!(plugin.register(), start);
    answer.unwrap();
    node.counts_become(1, 1).await;
}

#[tokio::test]
async fn recreated_kubelets_take_plugins_that_serve_anew() {
    let node = Node::start(Options::default()).await;
    let first = node.registered("gpu.sock", &["a"]).await;
    node.recreate(5).await.unwrap();
    first.listen().unwrap();
    first.register().await.unwrap();
    node.counts_become(1, 1).await;
    node.assert_no_violations();
}

// === Allocation ===

#[tokio::test]
async fn a_pod_gets_what_is_healthy_and_free_or_an_error() {
    let node = Node::start(Options::default()).await;
    let plugin = node.registered("gpu.sock", &["a", "b", "c"]).await;
    plugin.list(vec![
        device("a", "Healthy"),
        device("b", "Unhealthy"),
        device("c", "Healthy"),
    ]);
    node.counts_become(2, 3).await;

    let first = node.allocate(RESOURCE, 2).await.unwrap();
    assert_eq!(first.ids, ["a", "c"]);
    assert_eq!(first.response.envs["IDS"], "a,c");
    assert_eq!(
        node.refusal(RESOURCE, 1).await,
        "Allocate failed due to requested number of devices unavailable for nvidia.com/gpu. \
         Requested: 1, Available: 0, which is unexpected"
    );
    node.free(&first.pod);
    assert_eq!(node.allocate(RESOURCE, 1).await.unwrap().ids.len(), 1);
    assert!(node.allocate(RESOURCE, 0).await.unwrap().ids.is_empty());
    assert_eq!(node.allocate_calls(), 2);
    node.assert_no_violations();
}

#[tokio::test]
async fn a_preference_is_intersected_and_topped_up() {
    let node = Node::start(Options::default()).await;
    let plugin = node.plugin("gpu.sock", &["a", "b", "c", "d"]);
    plugin.script(|script| {
        script.options = Ok(DevicePluginOptions {
            get_preferred_allocation_available: true,
            pre_start_required: false,
        });
        script.preferred = Ok(["d", "x"].map(str::to_owned).to_vec());
    });
    plugin.register().await.unwrap();
    node.counts_become(4, 4).await;

    let first = node.allocate(RESOURCE, 1).await.unwrap();
    assert_eq!(first.ids, ["d"]);
    let second = node.allocate(RESOURCE, 2).await.unwrap();
    assert!(!second.ids.contains(&"d".to_owned()) && second.ids.len() == 2);
    let mut calls = node.events();
    calls.retain(|record| matches!(record.event, Event::PreferredCalled { size: 2, .. }));
    let [Event::PreferredCalled { available, .. }] =
        calls.iter().map(|c| &c.event).collect::<Vec<_>>()[..]
    else {
        panic!("{}", node.history());
    };
    assert_eq!(available.len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn admissions_take_turns_and_never_share_a_device() {
    let node = Arc::new(Node::start(Options::default()).await);
    let _plugin = node.registered("gpu.sock", &["a", "b", "c", "d"]).await;
    let mut admissions = JoinSet::new();
    for _ in 0..6 {
        let node = Arc::clone(&node);
        admissions.spawn(async move { node.allocate(RESOURCE, 1).await });
    }
    let outcomes = admissions.join_all().await;
    let ids: BTreeSet<_> = outcomes.iter().flatten().flat_map(|a| &a.ids).collect();
    let refused = outcomes.iter().filter(|outcome| outcome.is_err()).count();
    assert_eq!((ids.len(), refused), (4, 2));
}

#[tokio::test]
async fn an_error_to_the_question_for_a_preference_rejects_the_pod() {
    let node = Node::start(Options::default()).await;
    let plugin = node.plugin("gpu.sock", &["a"]);
    plugin.script(|script| {
        script.options = Ok(DevicePluginOptions {
            get_preferred_allocation_available: true,
            pre_start_required: false,
        });
        script.preferred = Err(Status::not_found("none"));
    });
    plugin.register().await.unwrap();
    node.counts_become(1, 1).await;
    let refusal = node.refusal(RESOURCE, 1).await;
    let why = "device plugin GetPreferredAllocation rpc failed with err: rpc error: \
               code = NotFound desc = none";
    assert!(refusal.contains(why), "{refusal}");
    assert!(node.allocated(RESOURCE).is_empty());
}

#[tokio::test]
async fn pre_start_is_called_at_each_start_and_fails_while_the_plugin_is_away() {
    let node = Node::start(Options::default()).await;
    let plugin = node.plugin("gpu.sock", &["a"]);
    plugin.script(|script| {
        script.options = Ok(DevicePluginOptions {
            get_preferred_allocation_available: false,
            pre_start_required: true,
        });
    });
    plugin.register().await.unwrap();
    node.counts_become(1, 1).await;
    let pod = node.allocate(RESOURCE, 1).await.unwrap().pod;
    node.restart_container(&pod).await.unwrap();
    position(
        &node,
        |e| matches!(e, Event::PreStartCalled { ids, .. } if ids[..] == ["a"]),
    );

    plugin.end_streams();
    node.counts_become(0, 1).await;
    let error = node.restart_container(&pod).await.unwrap_err().to_string();
    assert!(
        error.contains("device plugin PreStartContainer rpc failed"),
        "{error}"
    );
}

#[tokio::test]
async fn an_allocate_error_frees_the_devices_and_an_empty_answer_leaks_them() {
    let node = Node::start(Options::default()).await;
    let plugin = node.registered("gpu.sock", &["a"]).await;
    plugin.script(|script| script.responses = Err(Status::internal("no")));
    let refusal = node.refusal(RESOURCE, 1).await;
    assert_eq!(
        refusal,
        "Allocate failed due to rpc error: code = Internal desc = no, which is unexpected"
    );
    assert!(node.allocated(RESOURCE).is_empty());

    plugin.script(|script| script.responses = Ok(0));
    let refusal = node.refusal(RESOURCE, 1).await;
    assert!(
        refusal.contains("no containers return in allocation response"),
        "{refusal}"
    );
    assert_eq!(node.allocated(RESOURCE).len(), 1);
    let resource = RESOURCE.to_owned();
    assert_eq!(
        node.violations(),
        [Violation::NotOneResponse {
            resource,
            responses: 0
        }]
    );
}

#[tokio::test]
async fn a_container_starts_again_from_memory_whatever_its_devices_health() {
    let node = Node::start(Options::default()).await;
    let plugin = node.registered("gpu.sock", &["a"]).await;
    let first = node.allocate(RESOURCE, 1).await.unwrap();
    plugin.list(vec![device("a", "Unhealthy")]);
    node.counts_become(0, 1).await;

    assert_eq!(node.restart_container(&first.pod).await.unwrap(), first);
    assert_eq!(node.allocate_calls(), 1);
    let again = node
        .admit(&first.pod, RESOURCE, 1)
        .await
        .unwrap_err()
        .to_string();
    assert!(
        again.contains(
            "no healthy devices present; cannot allocate unhealthy devices nvidia.com/gpu"
        )
    );
    node.assert_no_violations();
}

#[tokio::test]
async fn readmission_looks_at_the_held_devices_and_their_number() {
    let node = Node::start(Options::default()).await;
    let plugin = node.registered("gpu.sock", &["a", "b"]).await;
    let first = node.allocate(RESOURCE, 1).await.unwrap();
    let mut devices = healthy(&["a", "b"]);
    devices
        .iter_mut()
        .filter(|d| d.id == first.ids[0])
        .for_each(|d| d.health = "Unhealthy".into());
    plugin.list(devices);
    node.counts_become(1, 2).await;

    let again = node
        .admit(&first.pod, RESOURCE, 1)
        .await
        .unwrap_err()
        .to_string();
    assert!(
        again.contains("previously allocated devices are no longer healthy"),
        "{again}"
    );
    let more = node
        .admit(&first.pod, RESOURCE, 2)
        .await
        .unwrap_err()
        .to_string();
    assert!(more.contains("changed request for resource"), "{more}");
}

#[tokio::test]
async fn a_resource_nobody_registered_is_stripped_until_a_plugin_comes() {
    let node = Node::start(Options::default()).await;
    let error = node.admit("early", RESOURCE, 1).await.unwrap_err();
    assert!(matches!(error, AllocateError::Stripped { .. }));
    let _plugin = node.registered("gpu.sock", &["a"]).await;
    assert_eq!(node.restart_container("early").await.unwrap().ids, ["a"]);
}

// === Restarts ===

#[tokio::test]
async fn allocations_and_answers_survive_a_restart_and_resources_wait() {
    let node = Node::start(Options::default()).await;
    let plugin = node.registered("gpu.sock", &["a", "b"]).await;
    let first = node.allocate(RESOURCE, 1).await.unwrap();
    node.restart().await.unwrap();
    node.counts_become(0, 0).await;

    assert_eq!(node.readmit_running(&first.pod).await.unwrap(), first);
    assert_eq!(node.restart_container(&first.pod).await.unwrap(), first);
    let early = node.refusal(RESOURCE, 1).await;
    assert!(early.contains("no healthy devices present"), "{early}");

    plugin.listen().unwrap();
    plugin.register().await.unwrap();
    node.counts_become(2, 2).await;
    assert_eq!(node.admit(&first.pod, RESOURCE, 1).await.unwrap(), first);
    let second = node.allocate(RESOURCE, 1).await.unwrap();
    assert_ne!(second.ids, first.ids);
    assert_eq!(node.allocate_calls(), 2);
    node.assert_no_violations();
}

#[tokio::test]
async fn a_pod_deleted_while_the_kubelet_is_down_gives_its_device_back() {
    let node = Node::start(Options::default()).await;
    let plugin = node.registered("gpu.sock", &["a"]).await;
    let first = node.allocate(RESOURCE, 1).await.unwrap();
    node.stop().await;
    node.free(&first.pod);
    node.start().await.unwrap();
    plugin.listen().unwrap();
    plugin.register().await.unwrap();
    node.counts_become(1, 1).await;
    assert_eq!(node.allocate(RESOURCE, 1).await.unwrap().ids, first.ids);
}

#[tokio::test]
async fn a_plugin_that_stays_away_for_longer_than_the_grace_stops_container_restarts() {
    let node = Node::start(Options::default()).await;
    let plugin = node.registered("gpu.sock", &["a"]).await;
    let first = node.allocate(RESOURCE, 1).await.unwrap();
    plugin.end_streams();
    node.counts_become(0, 1).await;
    assert_eq!(node.restart_container(&first.pod).await.unwrap(), first);

    node.advance_clock(GRACE + Duration::from_secs(1));
    node.counts_become(0, 0).await;
    let error = node
        .restart_container(&first.pod)
        .await
        .unwrap_err()
        .to_string();
    assert_eq!(
        error,
        "CreateContainerConfigError: endpoint not found in cache for a registered resource: nvidia.com/gpu"
    );
    assert!(
        node.refusal(RESOURCE, 1)
            .await
            .contains("cannot allocate unregistered device nvidia.com/gpu")
    );
    plugin.register().await.unwrap();
    node.counts_become(1, 1).await;
    assert_eq!(node.restart_container(&first.pod).await.unwrap(), first);
}

#[tokio::test]
async fn a_stop_closes_every_connection() {
    let node = Node::start(Options::default()).await;
    let _plugin = node.registered("gpu.sock", &["a"]).await;
    let mut stream = node.open_stream(RESOURCE).await.unwrap();
    assert_eq!(
        stream.message().await.unwrap().unwrap().devices,
        healthy(&["a"])
    );
    let mut bystander = tokio::net::UnixStream::connect(node.socket_path())
        .await
        .unwrap();
    node.stop().await;
    assert!(stream.message().await.is_err());
    let mut rest = Vec::new();
    let read = tokio::io::AsyncReadExt::read_to_end(&mut bystander, &mut rest);
    let _closed = tokio::time::timeout(SOON, read).await.unwrap();
}

// === Violations and faults ===

#[tokio::test]
async fn what_a_plugin_must_not_list_is_recorded() {
    let node = Node::start(Options::default()).await;
    let plugin = node.registered("gpu.sock", &["a"]).await;
    node.allocate(RESOURCE, 1).await.unwrap();
    let mut lost = device("b", "Healthy");
    lost.topology = Some(TopologyInfo {
        nodes: vec![NumaNode { id: -1 }],
    });
    for list in [healthy(&["a"]), vec![device("c", "Healthy"), lost]] {
        let mark = node.mark();
        plugin.list(list);
        node.sees(mark).await;
    }
    let resource = || RESOURCE.to_owned();
    assert_eq!(
        node.violations(),
        [
            Violation::RepeatedList {
                resource: resource()
            },
            Violation::AllocatedIdVanished {
                resource: resource(),
                ids: vec!["a".to_owned()]
            },
            Violation::UnsortedList {
                resource: resource()
            },
            Violation::MeaninglessTopology {
                resource: resource(),
                id: "b".to_owned()
            },
        ]
    );
}

#[tokio::test]
async fn armed_errors_are_answered_in_turn() {
    let node = Node::start(Options::default()).await;
    let plugin = node.plugin("gpu.sock", &["a"]);
    node.fault(RegisterFault::Error("no".to_owned()), Times::N(2));
    node.fault(RegisterFault::Slow(Duration::from_millis(1)), Times::N(1));
    for _ in 0..2 {
        let error = plugin.register().await.unwrap_err();
        assert_eq!((error.code(), error.message()), (Code::Unknown, "no"));
    }
    plugin.register().await.unwrap();
    node.counts_become(1, 1).await;
}

#[tokio::test]
async fn a_hanging_register_goes_on_when_told_and_dies_with_its_caller() {
    let node = Node::start(Options::default()).await;
    let plugin = node.plugin("gpu.sock", &["a"]);
    node.fault(RegisterFault::Hang, Times::UntilCleared);
    tokio::time::timeout(NO_PATIENCE, plugin.register())
        .await
        .unwrap_err();
    let mark = node.mark();
    let clear = async {
        let called = |e: &Event| matches!(e, Event::RegisterCalled { .. });
        node.wait_event("Register", mark, SOON, called)
            .await
            .unwrap();
        node.clear_faults();
    };
    let (answer, ()) = tokio::join!(plugin.register(), clear);
    answer.unwrap();
    node.counts_become(1, 1).await;
    node.assert_no_violations();
}

#[tokio::test]
async fn a_stream_can_be_withheld_or_cancelled() {
    let node = Node::start(Options::default()).await;
    let plugin = node.plugin("gpu.sock", &["a"]);
    node.fault(RegisterFault::NoStream, Times::N(1));
    plugin.register().await.unwrap();
    assert_eq!(node.streams(RESOURCE), 0);

    let ended = |e: &Event| matches!(e, Event::StreamEnded { .. });
    node.fault(RegisterFault::CancelStream, Times::N(1));
    plugin.register().await.unwrap();
    node.wait_event("the stream's end", 0, SOON, ended)
        .await
        .unwrap();

    plugin.register().await.unwrap();
    node.counts_become(1, 1).await;
    node.cancel_streams(RESOURCE);
    node.counts_become(0, 1).await;
}

// === Processes ===

#[tokio::test]
async fn a_plugin_process_is_heard_signalled_and_waited_for() {
    let script = "trap 'echo bye >&2; exit 3' TERM; echo hello $NAME; while :; do sleep 0.01; done";
    let mut process = PluginProcess::spawn("sh", ["-c", script], &[("NAME", "world")]).unwrap();
    process.wait_for_line("hello world", SOON).await.unwrap();
    process.terminate().unwrap();
    assert_eq!(process.wait(SOON).await.unwrap().code(), Some(3));
    assert_eq!(process.log(), "hello world\nbye\n");
    assert!(process.terminate().is_err());
}

#[tokio::test]
async fn http_get_returns_status_and_body() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let app = axum::Router::new().route("/livez", axum::routing::get(async || "ok"));
    tokio::spawn(async { axum::serve(listener, app).await });
    assert_eq!(
        http_get(address, "/livez").await.unwrap(),
        (200, "ok".to_owned())
    );
    assert_eq!(http_get(address, "/nowhere").await.unwrap().0, 404);
}
