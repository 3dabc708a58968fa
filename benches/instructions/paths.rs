//! The paths: what is done for a call, from bytes to bytes.

use std::fmt;
use std::hint::black_box;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use clap::ValueEnum;
use gpu_device_plugin::allocate::cache::Cache;
use gpu_device_plugin::api::served::device_plugin_server::DevicePlugin;
use gpu_device_plugin::api::v1beta1::{
    AllocateRequest, ContainerAllocateRequest, ContainerPreferredAllocationRequest,
    PreferredAllocationRequest, PreferredAllocationResponse,
};
use gpu_device_plugin::device::DeviceSnapshot;
use gpu_device_plugin::metrics::Metrics;
use gpu_device_plugin::plugin::service::Service;
use gpu_device_plugin::plugin::streams::Streams;
use prost::Message;
use tokio::sync::{Notify, watch};
use tonic::{Request, Response, Status};

use super::node::{snapshot, uuid};

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum HotPath {
    /// Allocate for one of 8 GPUs
    #[value(name = "allocate-1")]
    Allocate1,
    /// Allocate for all of 8 GPUs
    #[value(name = "allocate-8")]
    Allocate8,
    /// GetPreferredAllocation of 4 of 8 free GPUs
    #[value(name = "preferred-4-of-8")]
    Preferred4Of8,
    /// GetPreferredAllocation of 8 of 16 free GPUs
    #[value(name = "preferred-8-of-16")]
    Preferred8Of16,
}

impl fmt::Display for HotPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = self.to_possible_value();
        f.write_str(value.as_ref().map_or("", |value| value.get_name()))
    }
}

/// Makes so many calls.
pub(crate) fn call(path: HotPath, calls: u64, folder: &Path) -> anyhow::Result<()> {
    let (gpus, devices) = match path {
        HotPath::Allocate1 => (8, 1),
        HotPath::Allocate8 => (8, 8),
        HotPath::Preferred4Of8 => (8, 4),
        HotPath::Preferred8Of16 => (16, 8),
    };
    let (service, _devices) = service(snapshot(folder, gpus));
    let snapshot = service.devices.borrow().clone();
    anyhow::ensure!(
        service.cache.ready(&snapshot).1,
        "the node's files are not all there for certain: this user has no inotify instance left \
         (fs.inotify.max_user_instances), or a mount came or went meanwhile"
    );
    let ids: Vec<_> = (0..gpus).map(uuid).collect();
    let (request, answer): (_, fn(&Service, &[u8]) -> anyhow::Result<Vec<u8>>) = match path {
        HotPath::Allocate1 | HotPath::Allocate8 => (allocate_request(&ids[..devices]), allocate),
        HotPath::Preferred4Of8 | HotPath::Preferred8Of16 => {
            let request = preferred_request(&ids, devices)?;
            complete(&preferred(&service, &request)?, devices)?;
            (request, preferred)
        }
    };
    for _ in 0..calls {
        black_box(answer(&service, black_box(&request))?);
    }
    Ok(())
}

/// As the plugin makes one, and what keeps its devices.
fn service(snapshot: DeviceSnapshot) -> (Service, watch::Sender<Arc<DeviceSnapshot>>) {
    let (sender, devices) = watch::channel(Arc::new(snapshot));
    let service = Service {
        resource: "nvidia.com/gpu".into(),
        devices,
        cache: Cache::default(),
        streams: Streams::default(),
        rescan: Arc::new(Notify::new()),
        metrics: Arc::new(Metrics::new()),
    };
    (service, sender)
}

fn allocate_request(ids: &[String]) -> Vec<u8> {
    let container = ContainerAllocateRequest {
        devices_ids: ids.to_vec(),
    };
    let request = AllocateRequest {
        container_requests: vec![container],
    };
    request.encode_to_vec()
}

fn allocate(service: &Service, request: &[u8]) -> anyhow::Result<Vec<u8>> {
    let request = AllocateRequest::decode(request)?;
    Ok(at_once(service.allocate(Request::new(request)))?.encode_to_vec())
}

fn preferred_request(ids: &[String], size: usize) -> anyhow::Result<Vec<u8>> {
    let container = ContainerPreferredAllocationRequest {
        available_device_i_ds: ids.to_vec(),
        must_include_device_i_ds: Vec::new(),
        allocation_size: i32::try_from(size)?,
    };
    let request = PreferredAllocationRequest {
        container_requests: vec![container],
    };
    Ok(request.encode_to_vec())
}

fn preferred(service: &Service, request: &[u8]) -> anyhow::Result<Vec<u8>> {
    let request = PreferredAllocationRequest::decode(request)?;
    let answer = at_once(service.get_preferred_allocation(Request::new(request)))?;
    Ok(answer.encode_to_vec())
}

/// An answer that chooses nothing costs nothing.
fn complete(answer: &[u8], size: usize) -> anyhow::Result<()> {
    let answer = PreferredAllocationResponse::decode(answer)?;
    let chosen = answer.container_responses.first();
    let chosen = chosen.map_or(0, |chosen| chosen.device_i_ds.len());
    anyhow::ensure!(chosen == size, "chooses {chosen} of {size}");
    Ok(())
}

/// Answers come from memory: nothing is waited for, and no runtime is needed.
fn at_once<T>(answer: impl Future<Output = Result<Response<T>, Status>>) -> anyhow::Result<T> {
    match pin!(answer).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(answer) => Ok(answer?.into_inner()),
        Poll::Pending => anyhow::bail!("the answer has to be waited for"),
    }
}
