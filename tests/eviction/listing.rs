//! The kubelet's pod-resources API, asked directly.

use gpu_device_plugin::kubelet::podresources::{DEADLINE, ListError, list};
use tempfile::TempDir;
use tonic::Code;

use crate::common::pod_resources::{Fault, PodResourcesPeer};

fn kubelet() -> (TempDir, PodResourcesPeer) {
    let folder = tempfile::tempdir().unwrap();
    let peer = PodResourcesPeer::start(folder.path()).unwrap();
    (folder, peer)
}

#[tokio::test]
async fn a_container_with_several_devices_is_one_holder() {
    let (_folder, peer) = kubelet();
    peer.hold(
        "team",
        "train-0",
        "nvidia.com/gpu",
        &["GPU-1", "GPU-0", "GPU-1"],
    );
    peer.hold("team", "train-0", "nvidia.com/mig-1g.10gb", &["MIG-7"]);
    let holders = list(peer.socket()).await.unwrap();
    let found: Vec<_> = holders
        .iter()
        .map(|holder| {
            assert_eq!(
                (holder.namespace.as_str(), holder.pod.as_str()),
                ("team", "train-0")
            );
            assert_eq!(holder.container, "main");
            let ids = holder.device_ids.iter().map(String::as_str);
            (holder.resource.as_str(), ids.collect::<Vec<_>>())
        })
        .collect();
    let expected = [
        ("nvidia.com/gpu", vec!["GPU-0", "GPU-1"]),
        ("nvidia.com/mig-1g.10gb", vec!["MIG-7"]),
    ];
    assert_eq!(found, expected);
}

#[tokio::test]
async fn what_passes_is_told_from_what_does_not() {
    let (_folder, peer) = kubelet();
    peer.fault(Fault::RateLimit, 1);
    peer.fault(Fault::Flood, 1);
    let error = list(peer.socket()).await.unwrap_err();
    assert!(matches!(error, ListError::RateLimited(_)), "{error}");
    let error = list(peer.socket()).await.unwrap_err();
    let too_large = matches!(
        error,
        ListError::Answered {
            code: Code::OutOfRange,
            ..
        }
    );
    assert!(too_large, "{error}");
    assert_eq!(list(peer.socket()).await.unwrap(), []);
    peer.stop();
    let error = list(peer.socket()).await.unwrap_err();
    assert!(matches!(error, ListError::Refused(_)), "{error}");
    peer.resume().unwrap();
    assert_eq!(list(peer.socket()).await.unwrap(), []);
}

#[tokio::test]
async fn a_kubelet_that_does_not_answer_is_given_up() {
    let (_folder, peer) = kubelet();
    peer.fault(Fault::Hang, 1);
    let error = list(peer.socket()).await.unwrap_err();
    assert!(matches!(error, ListError::TimedOut(DEADLINE)), "{error}");
    assert_eq!(list(peer.socket()).await.unwrap(), []);
}
