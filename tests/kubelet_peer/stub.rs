//! A device plugin that does as it is told, well or ill.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use gpu_device_plugin::api::v1beta1::device_plugin_server::{DevicePlugin, DevicePluginServer};
use gpu_device_plugin::api::v1beta1::registration_client::RegistrationClient;
use gpu_device_plugin::api::v1beta1::*;
use tokio::net::UnixListener;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Endpoint, Server};
use tonic::{Request, Response, Status};
use tower::ServiceExt;

pub(crate) const RESOURCE: &str = "nvidia.com/gpu";

/// What the plugin answers; all of it can change while it runs.
#[derive(Clone)]
pub(crate) struct Script {
    pub(crate) options: Result<DevicePluginOptions, Status>,
    pub(crate) preferred: Result<Vec<String>, Status>,
    /// How many container responses Allocate gives, or its error.
    pub(crate) responses: Result<usize, Status>,
}

impl Default for Script {
    fn default() -> Self {
        Self {
            options: Ok(DevicePluginOptions::default()),
            preferred: Ok(Vec::new()),
            responses: Ok(1),
        }
    }
}

/// The plugin, served on a socket in the kubelet's folder.
pub(crate) struct Stub {
    endpoint: String,
    folder: PathBuf,
    state: Arc<State>,
}

struct State {
    script: Mutex<Script>,
    authorities: Mutex<Vec<String>>,
    /// GetDevicePluginOptions waits while this is false.
    options_open: watch::Sender<bool>,
    devices: watch::Sender<Vec<Device>>,
    /// Cancelled and replaced to end the streams.
    streams: Mutex<CancellationToken>,
}

pub(crate) fn device(id: &str, health: &str) -> Device {
    Device {
        id: id.to_owned(),
        health: health.to_owned(),
        topology: None,
    }
}

pub(crate) fn healthy(ids: &[&str]) -> Vec<Device> {
    ids.iter().map(|id| device(id, "Healthy")).collect()
}

impl Stub {
    /// Serves on the socket. Connections end with the test's runtime.
    pub(crate) fn serve(folder: &Path, endpoint: &str, devices: Vec<Device>) -> io::Result<Self> {
        let stub = Self::silent(folder, endpoint, devices);
        stub.listen()?;
        Ok(stub)
    }

    /// A plugin that has not bound its socket yet.
    pub(crate) fn silent(folder: &Path, endpoint: &str, devices: Vec<Device>) -> Self {
        let state = Arc::new(State {
            script: Mutex::default(),
            authorities: Mutex::default(),
            options_open: watch::Sender::new(true),
            devices: watch::Sender::new(devices),
            streams: Mutex::default(),
        });
        Self {
            endpoint: endpoint.to_owned(),
            folder: folder.to_owned(),
            state,
        }
    }

    pub(crate) fn listen(&self) -> io::Result<()> {
        self.listen_at(UnixListener::bind(self.folder.join(&self.endpoint))?);
        Ok(())
    }

    /// Serves on a socket that somebody else has bound.
    pub(crate) fn listen_at(&self, listener: UnixListener) {
        let state = Arc::clone(&self.state);
        let service = DevicePluginServer::new(Service(Arc::clone(&self.state)));
        let service = service.map_request(move |request: http::Request<tonic::body::Body>| {
            let authority = request.uri().authority().map(ToString::to_string);
            state.authorities.lock().unwrap().extend(authority);
            request
        });
        let incoming = UnixListenerStream::new(listener);
        tokio::spawn(Server::builder().serve_with_incoming(service, incoming));
    }

    pub(crate) async fn register(&self) -> Result<(), Status> {
        self.register_as("v1beta1", RESOURCE).await
    }

    pub(crate) async fn register_as(&self, version: &str, resource: &str) -> Result<(), Status> {
        let request = RegisterRequest {
            version: version.to_owned(),
            endpoint: self.endpoint.clone(),
            resource_name: resource.to_owned(),
            // The opposite of what the plugin says when asked.
            options: Some(DevicePluginOptions {
                pre_start_required: true,
                get_preferred_allocation_available: true,
            }),
        };
        let kubelet = format!("unix://{}", self.folder.join("kubelet.sock").display());
        let channel = Endpoint::from_shared(kubelet).map(|e| e.connect_lazy());
        let channel = channel.map_err(|error| Status::internal(error.to_string()))?;
        RegistrationClient::new(channel)
            .register(request)
            .await
            .map(drop)
    }

    pub(crate) fn script(&self, change: impl FnOnce(&mut Script)) {
        change(&mut self.state.script.lock().unwrap());
    }

    pub(crate) fn list(&self, devices: Vec<Device>) {
        self.state.devices.send_replace(devices);
    }

    pub(crate) fn end_streams(&self) {
        std::mem::take(&mut *self.state.streams.lock().unwrap()).cancel();
    }

    pub(crate) fn hold_options(&self, hold: bool) {
        self.state.options_open.send_replace(!hold);
    }

    pub(crate) fn authorities(&self) -> Vec<String> {
        self.state.authorities.lock().unwrap().clone()
    }
}

struct Service(Arc<State>);

impl Service {
    fn script(&self) -> Script {
        self.0.script.lock().unwrap().clone()
    }
}

#[tonic::async_trait]
impl DevicePlugin for Service {
    type ListAndWatchStream = ReceiverStream<Result<ListAndWatchResponse, Status>>;

    async fn get_device_plugin_options(
        &self,
        _: Request<Empty>,
    ) -> Result<Response<DevicePluginOptions>, Status> {
        let mut open = self.0.options_open.subscribe();
        open.wait_for(|open| *open)
            .await
            .map_err(|e| Status::internal(e.to_string()))?;
        self.script().options.map(Response::new)
    }

    async fn list_and_watch(
        &self,
        _: Request<Empty>,
    ) -> Result<Response<Self::ListAndWatchStream>, Status> {
        let (sender, receiver) = mpsc::channel(1);
        let mut devices = self.0.devices.subscribe();
        let ended = self.0.streams.lock().unwrap().clone();
        devices.mark_changed();
        tokio::spawn(ended.run_until_cancelled_owned(async move {
            while devices.changed().await.is_ok() {
                let devices = devices.borrow_and_update().clone();
                if sender
                    .send(Ok(ListAndWatchResponse { devices }))
                    .await
                    .is_err()
                {
                    break;
                }
            }
        }));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn get_preferred_allocation(
        &self,
        _: Request<PreferredAllocationRequest>,
    ) -> Result<Response<PreferredAllocationResponse>, Status> {
        let answer = ContainerPreferredAllocationResponse {
            device_i_ds: self.script().preferred?,
        };
        Ok(Response::new(PreferredAllocationResponse {
            container_responses: vec![answer],
        }))
    }

    async fn allocate(
        &self,
        request: Request<AllocateRequest>,
    ) -> Result<Response<AllocateResponse>, Status> {
        let requests = request.into_inner().container_requests;
        let mut ids: Vec<_> = requests.into_iter().flat_map(|r| r.devices_ids).collect();
        ids.sort_unstable();
        let responses = self.script().responses?;
        let envs = [("IDS".to_owned(), ids.join(","))].into();
        let answer = ContainerAllocateResponse {
            envs,
            ..Default::default()
        };
        Ok(Response::new(AllocateResponse {
            container_responses: vec![answer; responses],
        }))
    }

    async fn pre_start_container(
        &self,
        _: Request<PreStartContainerRequest>,
    ) -> Result<Response<PreStartContainerResponse>, Status> {
        Ok(Response::new(PreStartContainerResponse {}))
    }
}
