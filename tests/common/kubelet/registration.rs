//! The kubelet as the plugins' server: pkg/kubelet/cm/devicemanager/plugin/
//! v1beta1, server.go.

use std::sync::Arc;

use gpu_device_plugin::api::v1beta1::registration_server::{Registration, RegistrationServer};
use gpu_device_plugin::api::v1beta1::{Empty, RegisterRequest};
use tokio::net::UnixListener;
use tokio::task::JoinHandle;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

use super::events::{Event, Violation};
use super::faults::RegisterFault;
use super::life::Life;
use super::link::Wire;
use super::lock;
use super::names::is_extended_resource_name;

const VERSION: &str = "v1beta1";

/// Serves Registration until the life is over.
pub(super) fn serve(life: Arc<Life>, listener: UnixListener) -> JoinHandle<()> {
    let over = life.token.clone();
    let (token, connections) = (life.token.clone(), life.connections.clone());
    let incoming = UnixListenerStream::new(listener)
        .map(move |stream| stream.map(|s| Wire::accepted(s, token.clone(), &connections)));
    let service = RegistrationServer::new(Service { life });
    let server = Server::builder()
        .add_service(service)
        .serve_with_incoming(incoming);
    tokio::spawn(async move {
        // Dropped, not drained: a process that dies says no goodbye.
        over.run_until_cancelled(server).await;
    })
}

struct Service {
    life: Arc<Life>,
}

#[tonic::async_trait]
impl Registration for Service {
    async fn register(&self, request: Request<RegisterRequest>) -> Result<Response<Empty>, Status> {
        let RegisterRequest {
            version,
            endpoint,
            resource_name: resource,
            ..
        } = request.into_inner();
        let life = &self.life;
        let called = Event::RegisterCalled {
            resource: resource.clone(),
            endpoint: endpoint.clone(),
        };
        life.emit(called);
        // Go's handler goes on when the caller has given up, and sees its
        // context cancelled; this future would just be dropped.
        let rpc = life.token.child_token();
        let _given_up = rpc.clone().drop_guard();
        let call = handle(Arc::clone(life), version, endpoint, resource.clone(), rpc);
        let outcome = tokio::spawn(call)
            .await
            .unwrap_or_else(|error| Err(error.to_string()));
        outcome.map(|()| Response::new(Empty {})).map_err(|reason| {
            life.emit(Event::RegisterRefused {
                resource,
                reason: reason.clone(),
            });
            // A Go error without a code becomes Unknown.
            Status::unknown(reason)
        })
    }
}

/// server.go, Register. The request's options are ignored there as here.
async fn handle(
    life: Arc<Life>,
    version: String,
    endpoint: String,
    resource: String,
    rpc: CancellationToken,
) -> Result<(), String> {
    if version != VERSION {
        return Err(format!(
            "requested API version {version:?} is not supported by kubelet. \
             Supported version is [{VERSION:?}]"
        ));
    }
    if !is_extended_resource_name(&resource) {
        return Err(format!("the ResourceName {resource:?} is invalid"));
    }
    life.judge_takeover(&resource).await;
    let fault = life.shared.faults.take();
    match &fault {
        Some(RegisterFault::Error(text)) => return Err(text.clone()),
        Some(RegisterFault::Hang) => {
            rpc.run_until_cancelled(life.shared.faults.wait_until_cleared())
                .await;
        }
        Some(RegisterFault::Slow(delay)) => {
            rpc.run_until_cancelled(tokio::time::sleep(*delay)).await;
        }
        _ => {}
    }
    life.connect_client(resource, endpoint, fault, rpc).await
}

impl Life {
    /// Complains where the resource still has a stream. One that the plugin
    /// ended before it called may not have been read to its end yet, hence
    /// the moment's patience: the kubelet has the same window, but a plugin
    /// cannot see it.
    async fn judge_takeover(&self, resource: &str) {
        let ended = || (lock(&self.clients).streams(resource) == 0).then_some(());
        let patience = self.shared.options.settle;
        let what = "the end of the older stream";
        if self
            .shared
            .wait_for(what, patience, || None, ended)
            .await
            .is_err()
        {
            self.violation(Violation::RegisteredOverOpenStream {
                resource: resource.to_owned(),
            });
        }
    }
}
