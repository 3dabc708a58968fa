//! What the kubelet asks, answered from the last snapshot.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::sync::{Notify, mpsc, watch};
use tokio_stream::Stream;
use tonic::{Request, Response, Status};
use tracing::info;

use super::connection::ConnectionInfo;
use super::streams::{Streams, Ticket};
use crate::allocate::cache::Cache;
use crate::allocate::preferred::preferred;
use crate::allocate::response;
use crate::api::EncodedAllocateResponse;
use crate::api::served::device_plugin_server::DevicePlugin;
use crate::api::v1beta1::{
    AllocateRequest, DevicePluginOptions, Empty, ListAndWatchResponse, PreStartContainerRequest,
    PreStartContainerResponse, PreferredAllocationRequest, PreferredAllocationResponse,
};
use crate::device::DeviceSnapshot;
use crate::metrics::{Metrics, ResourceLabels};

/// What the kubelet is told at registration, and whenever it asks.
pub const OPTIONS: DevicePluginOptions = DevicePluginOptions {
    pre_start_required: false,
    get_preferred_allocation_available: true,
};

/// How the user agent of a kubelet's client begins: its `dial`
/// (pkg/kubelet/cm/devicemanager/plugin/v1beta1/client.go) names none, so it is
/// grpc-go's own.
const KUBELETS_AGENT: &str = "grpc-go/";

/// The kubelet's side of one resource.
#[derive(Clone, Debug)]
pub struct Service {
    /// The resource's name.
    pub resource: String,
    /// Its devices.
    pub devices: watch::Receiver<Arc<DeviceSnapshot>>,
    /// What was made ready for the last answer.
    pub cache: Cache,
    /// Its streams.
    pub streams: Streams,
    /// Woken where the node is not what the snapshot says.
    pub rescan: Arc<Notify>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
}

#[tonic::async_trait]
impl DevicePlugin for Service {
    type ListAndWatchStream = Lists;

    async fn get_device_plugin_options(
        &self,
        _request: Request<Empty>,
    ) -> Result<Response<DevicePluginOptions>, Status> {
        Ok(Response::new(OPTIONS))
    }

    async fn list_and_watch(&self, request: Request<Empty>) -> Result<Response<Lists>, Status> {
        let connection = request.extensions().get::<ConnectionInfo>();
        let peer = connection.and_then(|connection| connection.peer.peer_cred);
        let (uid, pid) = (
            peer.map(|peer| peer.uid()),
            // 0: of another PID namespace, and no help.
            peer.and_then(|peer| peer.pid()).filter(|pid| *pid > 0),
        );
        let agent = request.metadata().get("user-agent");
        let agent = agent.and_then(|agent| agent.to_str().ok());
        info!(
            resource = self.resource,
            uid, pid, agent, "list stream opened"
        );
        let connection = connection.map(|connection| connection.number);
        let like_kubelet = agent.is_some_and(|agent| agent.starts_with(KUBELETS_AGENT));
        let ticket = self.streams.open(connection, like_kubelet);
        let (lists, receiver) = mpsc::channel(1);
        tokio::spawn(send_lists(
            self.devices.clone(),
            ticket.told_to_end(),
            lists,
        ));
        Ok(Response::new(Lists {
            receiver,
            _ticket: ticket,
        }))
    }

    async fn get_preferred_allocation(
        &self,
        request: Request<PreferredAllocationRequest>,
    ) -> Result<Response<PreferredAllocationResponse>, Status> {
        let snapshot = self.devices.borrow().clone();
        Ok(Response::new(preferred(&snapshot, request.get_ref())))
    }

    async fn allocate(
        &self,
        request: Request<AllocateRequest>,
    ) -> Result<Response<EncodedAllocateResponse>, Status> {
        let request = request.into_inner();
        let snapshot = self.devices.borrow().clone();
        let (prepared, exist) = self.cache.ready(&snapshot);
        let answer = response::allocate(&snapshot, &prepared, &request, exist);
        let answer = answer.map_err(|error| {
            info!(resource = self.resource, %error, "allocation refused");
            if error.is_news() {
                // Not at the next poll: controllers make pods faster than that.
                self.rescan.notify_one();
            }
            error.into_status()
        })?;
        let devices = request
            .container_requests
            .iter()
            .map(|container| container.devices_ids.len());
        let labels = ResourceLabels {
            resource: self.resource.clone(),
        };
        let count = devices.sum::<usize>();
        self.metrics
            .allocated
            .get_or_create(&labels)
            .inc_by(u64::try_from(count).unwrap_or(0));
        Ok(Response::new(answer))
    }

    async fn pre_start_container(
        &self,
        _request: Request<PreStartContainerRequest>,
    ) -> Result<Response<PreStartContainerResponse>, Status> {
        Ok(Response::new(PreStartContainerResponse::default()))
    }
}

/// One ListAndWatch stream: the full list at once, and again whenever it
/// changed.
#[derive(Debug)]
pub struct Lists {
    receiver: mpsc::Receiver<Result<ListAndWatchResponse, Status>>,
    /// Held here, and not where the lists are made: the stream is over when the
    /// transport lets go of it, and only then may a registration follow.
    _ticket: Ticket,
}

impl Stream for Lists {
    type Item = Result<ListAndWatchResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.receiver.poll_recv(context)
    }
}

async fn send_lists(
    mut devices: watch::Receiver<Arc<DeviceSnapshot>>,
    told_to_end: impl Future<Output = ()>,
    lists: mpsc::Sender<Result<ListAndWatchResponse, Status>>,
) {
    let send_all = async {
        let mut last: Option<Arc<DeviceSnapshot>> = None;
        loop {
            let now = devices.borrow_and_update().clone();
            // Each list makes the kubelet write its checkpoint: only news.
            let news = |last: &Arc<DeviceSnapshot>| !response::same_list(last, &now);
            if last.as_ref().is_none_or(news) && lists.send(Ok(response::list(&now))).await.is_err()
            {
                return;
            }
            last = Some(now);
            if devices.changed().await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = told_to_end => {}
        () = lists.closed() => {}
        () = send_all => {}
    }
}
