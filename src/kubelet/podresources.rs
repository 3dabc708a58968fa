//! Which pods hold which devices, by the kubelet's pod-resources API.
//!
//! It names a pod by namespace and name and not by UID (Kubernetes'
//! pkg/kubelet/apis/podresources/server_v1.go): who it is that holds a device is
//! known only together with the API server.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::time::timeout;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use tower::service_fn;

use crate::api::podresources::pod_resources_lister_client::PodResourcesListerClient;
use crate::api::podresources::{ListPodResourcesRequest, ListPodResourcesResponse};

/// The kubelet answers from memory, so a call that is out for longer hangs.
pub const DEADLINE: Duration = Duration::from_secs(10);

/// Longest answer that is taken, in bytes: what the kubelet's own clients allow
/// (Kubernetes' pkg/kubelet/apis/podresources/client.go).
pub const LONGEST: usize = 16 << 20;

/// The longest name that Kubernetes gives (RFC 1123's DNS names).
const LONGEST_NAME: usize = 253;

/// A container and what it holds of one resource.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Holder {
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub pod: String,
    /// The container's name in the pod.
    pub container: String,
    /// The resource's name.
    pub resource: String,
    /// IDs of the resource, as its plugin listed them.
    pub device_ids: BTreeSet<String>,
}

/// Why the kubelet's answer could not be had. Each passes: the kubelet may be
/// about to start, or busy.
#[derive(Debug, thiserror::Error)]
pub enum ListError {
    /// Nobody accepts on the socket, or there is none.
    #[error("nobody accepts on the kubelet's pod-resources socket: {0}")]
    Refused(#[source] io::Error),
    /// The connection broke before HTTP/2 was up.
    #[error("connection to the kubelet's pod-resources socket failed: {0}")]
    Connection(#[source] tonic::transport::Error),
    /// All callers of the node together ask too often: 100 times a second
    /// (Kubernetes' pkg/kubelet/apis/podresources/constants.go).
    #[error("the kubelet is asked for pod resources too often: {0}")]
    RateLimited(String),
    /// The kubelet answered with an error, or with something too long.
    #[error("the kubelet did not list pod resources ({code:?}): {message}")]
    Answered {
        /// The gRPC code.
        code: Code,
        /// Its words.
        message: String,
    },
    /// The kubelet took the call and did not answer.
    #[error("the kubelet did not list pod resources within {0:?}")]
    TimedOut(Duration),
}

/// What the containers of this node's active pods hold, sorted, each container
/// and resource once. Asked over a connection of its own.
///
/// # Errors
///
/// See [`ListError`].
pub async fn list(socket: &Path) -> Result<Vec<Holder>, ListError> {
    let call = async {
        let channel = connect(socket).await?;
        let mut client = PodResourcesListerClient::new(channel).max_decoding_message_size(LONGEST);
        let answer = client.list(ListPodResourcesRequest {}).await;
        answer.map_err(|status| answered(&status))
    };
    match timeout(DEADLINE, call).await {
        Ok(answer) => Ok(holders(answer?.into_inner())),
        Err(_) => Err(ListError::TimedOut(DEADLINE)),
    }
}

/// Connected here and not in the connector, so that a refusal is told from every
/// other failure.
async fn connect(socket: &Path) -> Result<Channel, ListError> {
    let stream = UnixStream::connect(socket)
        .await
        .map_err(ListError::Refused)?;
    let mut stream = Some(TokioIo::new(stream));
    let connect = service_fn(move |_| {
        let stream = stream.take().ok_or(io::ErrorKind::NotConnected);
        async { stream.map_err(io::Error::from) }
    });
    Endpoint::from_static("http://localhost")
        .connect_with_connector(connect)
        .await
        .map_err(ListError::Connection)
}

fn answered(status: &Status) -> ListError {
    let message = status.message().to_owned();
    match status.code() {
        Code::ResourceExhausted => ListError::RateLimited(message),
        code => ListError::Answered { code, message },
    }
}

/// The kubelet has an entry for each device and NUMA node, so one container may
/// stand there several times.
fn holders(answer: ListPodResourcesResponse) -> Vec<Holder> {
    let mut held: BTreeMap<_, BTreeSet<String>> = BTreeMap::new();
    for pod in answer.pod_resources {
        if !is_name(&pod.namespace) || !is_name(&pod.name) {
            continue;
        }
        for container in pod.containers {
            for devices in container.devices {
                let (namespace, name) = (pod.namespace.clone(), pod.name.clone());
                let key = (
                    namespace,
                    name,
                    container.name.clone(),
                    devices.resource_name,
                );
                held.entry(key).or_default().extend(devices.device_ids);
            }
        }
    }
    let holder = |((namespace, pod, container, resource), device_ids)| Holder {
        namespace,
        pod,
        container,
        resource,
        device_ids,
    };
    held.into_iter().map(holder).collect()
}

/// Whether the API server could have an object of this name. It becomes a part
/// of a request's path.
fn is_name(text: &str) -> bool {
    let letter = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let mut bytes = text.bytes();
    text.len() <= LONGEST_NAME
        && text.bytes().next().is_some_and(letter)
        && bytes.all(|byte| letter(byte) || byte == b'-' || byte == b'.')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::podresources::{ContainerDevices, ContainerResources, PodResources};

    fn devices(resource: &str, ids: &[&str]) -> ContainerDevices {
        ContainerDevices {
            resource_name: resource.into(),
            device_ids: ids.iter().map(|&id| id.into()).collect(),
        }
    }

    fn pod(namespace: &str, name: &str, devices: Vec<ContainerDevices>) -> PodResources {
        let container = ContainerResources {
            name: "main".into(),
            devices,
        };
        PodResources {
            name: name.into(),
            namespace: namespace.into(),
            containers: vec![container],
        }
    }

    #[test]
    fn entries_of_a_container_for_each_numa_node_are_one() {
        let held = vec![
            devices("nvidia.com/gpu", &["GPU-b"]),
            devices("nvidia.com/gpu", &["GPU-a"]),
            devices("nvidia.com/gpu", &["GPU-b"]),
            devices("example.com/nic", &["GPU-a"]),
        ];
        let answer = ListPodResourcesResponse {
            pod_resources: vec![pod("team", "train-0", held)],
        };
        let holders = holders(answer);
        let found: Vec<_> = holders
            .iter()
            .map(|holder| {
                let ids: Vec<_> = holder.device_ids.iter().map(String::as_str).collect();
                (holder.resource.as_str(), ids)
            })
            .collect();
        assert_eq!(
            found,
            [
                ("example.com/nic", vec!["GPU-a"]),
                ("nvidia.com/gpu", vec!["GPU-a", "GPU-b"]),
            ]
        );
    }

    #[test]
    fn a_name_that_would_lead_a_request_elsewhere_is_nobodys() {
        let names = ["", "../nodes", "a/b", "A", "a?b", "-a", &"a".repeat(254)];
        let pods = names.iter().flat_map(|name| {
            let held = || vec![devices("nvidia.com/gpu", &["GPU-a"])];
            [pod(name, "pod", held()), pod("team", name, held())]
        });
        let answer = ListPodResourcesResponse {
            pod_resources: pods.collect(),
        };
        assert_eq!(holders(answer), []);
    }

    #[tokio::test]
    async fn a_socket_that_is_not_there_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let error = list(&folder.path().join("kubelet.sock")).await.unwrap_err();
        assert!(matches!(error, ListError::Refused(_)), "{error}");
    }
}
