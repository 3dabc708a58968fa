//! What is measured of a plugin that runs.

use std::io;
use std::time::Duration;

use gpu_device_plugin::api::v1beta1::{
    AllocateRequest, AllocateResponse, ContainerAllocateRequest,
};
use prost::Message;
use prost::bytes::Bytes;

use super::arguments::Settings;
use super::common::kubelet::Event;
use super::process::{Memory, ProcessorTime};
use super::raw::Caller;
use super::rig::Rig;

const OPTIONS: &str = "/v1beta1.DevicePlugin/GetDevicePluginOptions";
const ALLOCATE: &str = "/v1beta1.DevicePlugin/Allocate";
/// After this a restart or an XID counts as missed.
const LIMIT: Duration = Duration::from_secs(10);
/// The GPU has fallen off the bus.
const XID: u64 = 79;
/// One call in this many is made before the measured ones, to warm up.
const WARM_UP: usize = 20;

/// One life of a plugin. What could not be measured is missing or empty.
#[derive(Debug, Default)]
pub(crate) struct Life {
    pub(crate) at_rest: Option<Memory>,
    pub(crate) after_load: Option<Memory>,
    /// Used while nothing happened.
    pub(crate) rest: Option<ProcessorTime>,
    /// Sorted.
    pub(crate) options: Vec<Duration>,
    /// Sorted.
    pub(crate) allocate: Vec<Duration>,
    pub(crate) answer: Option<Answer>,
    pub(crate) restarts: Vec<Option<Duration>>,
    pub(crate) xids: Vec<Option<Duration>>,
}

/// How large an answer to Allocate for one device is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Answer {
    pub(crate) devices: usize,
    pub(crate) mounts: usize,
    pub(crate) variables: usize,
    pub(crate) bytes: usize,
}

/// Takes all figures but the start's.
pub(crate) async fn measure(rig: &mut Rig, settings: &Settings) -> Life {
    let mut life = Life {
        rest: told(rig, "processor time", rest(rig, settings.rest).await),
        at_rest: told(rig, "memory", memory(rig)),
        ..Life::default()
    };
    let called = calls(rig, settings.calls, &mut life).await;
    told(rig, "calls", called.map_err(io::Error::other));
    life.restarts = restarts(rig, settings.restarts).await;
    life.xids = xids(rig, settings.gpus).await;
    life.after_load = told(rig, "memory", memory(rig));
    life
}

fn told<T>(rig: &Rig, what: &str, result: io::Result<T>) -> Option<T> {
    let tell = |error: &io::Error| {
        eprintln!("{what}: {error}\nthe plugin's log:\n{}", rig.process.log());
    };
    result.inspect_err(tell).ok()
}

fn memory(rig: &Rig) -> io::Result<Memory> {
    Memory::of(rig.pid, &rig.node.nvml_library())
}

async fn rest(rig: &Rig, time: Duration) -> io::Result<ProcessorTime> {
    let before = ProcessorTime::of(rig.pid)?;
    // Not to wait for something: this is the window that is measured.
    tokio::time::sleep(time).await;
    Ok(ProcessorTime::of(rig.pid)?.since(before))
}

/// The two methods in turn, so that what disturbs one disturbs the other.
async fn calls(rig: &Rig, calls: usize, life: &mut Life) -> Result<(), tonic::Status> {
    let channel = rig.kubelet.channel(&rig.resource).await;
    let channel = channel.map_err(|error| tonic::Status::unavailable(error.to_string()))?;
    let mut caller = Caller::new(channel);
    let devices = rig.kubelet.devices(&rig.resource);
    let requests: Vec<_> = devices.iter().map(|device| request(&device.id)).collect();
    let warm_up = calls / WARM_UP;
    for (number, request) in requests.iter().cycle().take(warm_up + calls).enumerate() {
        let (options, _) = caller.call(OPTIONS, Bytes::new()).await?;
        let (allocate, answer) = caller.call(ALLOCATE, request.clone()).await?;
        if number == 0 {
            life.answer = AllocateResponse::decode(answer).ok().as_ref().map(size);
        }
        if number >= warm_up {
            life.options.push(options);
            life.allocate.push(allocate);
        }
    }
    life.options.sort();
    life.allocate.sort();
    Ok(())
}

/// For one device.
fn request(id: &str) -> Bytes {
    let container = ContainerAllocateRequest {
        devices_ids: vec![id.to_owned()],
    };
    let request = AllocateRequest {
        container_requests: vec![container],
    };
    request.encode_to_vec().into()
}

fn size(answer: &AllocateResponse) -> Answer {
    let containers = &answer.container_responses;
    Answer {
        devices: containers.iter().map(|c| c.devices.len()).sum(),
        mounts: containers.iter().map(|c| c.mounts.len()).sum(),
        variables: containers.iter().map(|c| c.envs.len()).sum(),
        bytes: answer.encoded_len(),
    }
}

/// From the kubelet's accepting to the list.
async fn restarts(rig: &Rig, times: usize) -> Vec<Option<Duration>> {
    let mut restarts = Vec::new();
    for _ in 0..times {
        let mark = rig.kubelet.mark();
        if let Err(error) = rig.kubelet.restart().await {
            eprintln!("the kubelet does not restart: {error}");
            return restarts;
        }
        let list = rig.next_list(mark, LIMIT, |_| true).await;
        let records = rig.kubelet.events();
        let mut since = records.iter().skip(mark);
        let accepting = since.find(|r| matches!(r.event, Event::SocketAccepting { .. }));
        let time = list
            .zip(accepting)
            .map(|(list, a)| list.at.duration_since(a.at));
        restarts.push(time);
    }
    restarts
}

/// One of each GPU, from the driver's change to the list.
async fn xids(rig: &Rig, gpus: usize) -> Vec<Option<Duration>> {
    let mut xids = Vec::new();
    for position in 0..gpus {
        let uuid = rig.node.uuid(position);
        let mark = rig.kubelet.mark();
        rig.node.xid(position, XID);
        let begin = rig.node.changed_at();
        // A plugin's IDs are its own, and begin with the UUID.
        let list = rig.next_list(mark, LIMIT, |devices| {
            let mut of_gpu = devices.iter().filter(|d| d.id.contains(&uuid));
            of_gpu.any(|device| device.health != "Healthy")
        });
        xids.push(list.await.map(|list| list.at.duration_since(begin)));
    }
    xids
}
