//! The kubelet's pod-resources API over a real Unix socket, for allocations that
//! a test sets.

#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test, example and bench uses a part"
)]

use std::collections::{BTreeMap, VecDeque};
use std::future::pending;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use gpu_device_plugin::api::podresources::pod_resources_lister_server::{
    PodResourcesLister, PodResourcesListerServer,
};
use gpu_device_plugin::api::podresources::{
    AllocatableResourcesRequest, AllocatableResourcesResponse, ContainerDevices,
    ContainerResources, ListPodResourcesRequest, ListPodResourcesResponse, PodResources,
};
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

/// What happens to a List.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Too many were asked for (Kubernetes' pkg/kubelet/apis/grpc/ratelimit.go).
    RateLimit,
    /// It is never answered.
    Hang,
    /// It is answered with more pods than anybody takes.
    Flood,
}

/// A container's devices, by namespace, pod and resource.
type Held = BTreeMap<(String, String, String), Vec<String>>;

#[derive(Default)]
struct State {
    held: Mutex<Held>,
    faults: Mutex<VecDeque<Fault>>,
    /// How many Lists came.
    lists: watch::Sender<usize>,
}

/// The kubelet, as far as it tells of pods.
pub struct PodResourcesPeer {
    socket: PathBuf,
    state: Arc<State>,
    server: Mutex<Option<JoinHandle<()>>>,
}

impl PodResourcesPeer {
    /// One that serves in `folder`.
    pub fn start(folder: &Path) -> io::Result<Self> {
        let peer = Self {
            socket: folder.join("kubelet.sock"),
            state: Arc::default(),
            server: Mutex::default(),
        };
        peer.resume()?;
        Ok(peer)
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Ends, and takes the socket along.
    pub fn stop(&self) {
        if let Some(server) = lock(&self.server).take() {
            server.abort();
        }
        drop(std::fs::remove_file(&self.socket));
    }

    /// Serves again.
    pub fn resume(&self) -> io::Result<()> {
        let listener = UnixListenerStream::new(UnixListener::bind(&self.socket)?);
        let service = PodResourcesListerServer::new(Lister(Arc::clone(&self.state)));
        let server = Server::builder().add_service(service);
        let serving = server.serve_with_incoming(listener);
        let serving = async move { drop(serving.await) };
        *lock(&self.server) = Some(tokio::spawn(serving));
        Ok(())
    }

    /// From now on the pod of this name holds these devices, and no others of the
    /// resource.
    pub fn hold(&self, namespace: &str, pod: &str, resource: &str, ids: &[&str]) {
        let key = (namespace.into(), pod.into(), resource.into());
        let ids = ids.iter().map(|&id| id.into()).collect();
        lock(&self.state.held).insert(key, ids);
    }

    /// The pod is listed no more.
    pub fn forget(&self, namespace: &str, pod: &str) {
        lock(&self.state.held).retain(|(n, p, _), _| (n.as_str(), p.as_str()) != (namespace, pod));
    }

    /// Arms a fault for so many Lists, after those armed before.
    pub fn fault(&self, fault: Fault, times: usize) {
        lock(&self.state.faults).extend(std::iter::repeat_n(fault, times));
    }

    /// How many Lists came.
    pub fn lists(&self) -> usize {
        *self.state.lists.borrow()
    }

    /// Waits for so many Lists more. Panics where they do not come.
    pub async fn more_lists(&self, more: usize, within: Duration) {
        let mut lists = self.state.lists.subscribe();
        let wanted = *lists.borrow() + more;
        let waiting = lists.wait_for(|lists| *lists >= wanted);
        match tokio::time::timeout(within, waiting).await {
            Ok(Ok(_)) => {}
            _ => panic!("{} Lists, and not {wanted}", self.lists()),
        }
    }
}

struct Lister(Arc<State>);

#[tonic::async_trait]
impl PodResourcesLister for Lister {
    async fn list(
        &self,
        _: Request<ListPodResourcesRequest>,
    ) -> Result<Response<ListPodResourcesResponse>, Status> {
        let State {
            held,
            faults,
            lists,
        } = &*self.0;
        // What is answered is as of when it was asked for.
        let pods = listed(&lock(held));
        let fault = lock(faults).pop_front();
        lists.send_modify(|lists| *lists += 1);
        let pod_resources = match fault {
            None => pods,
            Some(Fault::RateLimit) => {
                return Err(Status::resource_exhausted("rejected by rate limit"));
            }
            Some(Fault::Hang) => pending().await,
            Some(Fault::Flood) => flood(),
        };
        Ok(Response::new(ListPodResourcesResponse { pod_resources }))
    }

    async fn get_allocatable_resources(
        &self,
        _: Request<AllocatableResourcesRequest>,
    ) -> Result<Response<AllocatableResourcesResponse>, Status> {
        Err(Status::unimplemented("nobody asks for it"))
    }
}

/// One entry a device, as the kubelet has one for each device and NUMA node, and
/// a container that holds nothing.
fn listed(held: &Held) -> Vec<PodResources> {
    let pods = held.iter().map(|((namespace, name, resource), ids)| {
        let devices = ids.iter().map(|id| ContainerDevices {
            resource_name: resource.clone(),
            device_ids: vec![id.clone()],
        });
        let container = |name: &str, devices| ContainerResources {
            name: name.into(),
            devices,
        };
        PodResources {
            name: name.clone(),
            namespace: namespace.clone(),
            containers: vec![
                container("main", devices.collect()),
                container("sidecar", Vec::new()),
            ],
        }
    });
    pods.collect()
}

fn flood() -> Vec<PodResources> {
    let pod = |number| PodResources {
        name: format!("pod-{number:0>200}"),
        namespace: "flood".into(),
        containers: Vec::new(),
    };
    (0..100_000).map(pod).collect()
}

/// A test that panicked elsewhere has already failed; its data is still good.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
