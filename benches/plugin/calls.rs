//! How long a plugin takes to answer.

use std::time::{Duration, Instant};

use gpu_device_plugin::api::v1beta1::{
    AllocateRequest, AllocateResponse, ContainerAllocateRequest,
};
use prost::Message;
use prost::bytes::Bytes;

use super::arguments::Settings;
use super::command::Subject;
use super::figures::{Figures, Section, permille};
use super::groups::Group;
use super::raw::Caller;
use super::rig::{Rig, Shape};

/// Does nothing: the cost of a call.
const OPTIONS: &str = "/v1beta1.DevicePlugin/GetDevicePluginOptions";
const ALLOCATE: &str = "/v1beta1.DevicePlugin/Allocate";
/// A call that has not been answered by then is not waited for.
const CALL_LIMIT: Duration = Duration::from_secs(10);
/// Nothing that is called needs this long for all its calls.
const LONG: Duration = Duration::from_secs(600);
/// One call in so many is made before the measured ones, to warm up.
const WARM_UP: u32 = 20;

/// Calls of one method, with each of the requests in turn.
pub(crate) struct Calls {
    method: &'static str,
    requests: Vec<Bytes>,
}

impl Calls {
    pub(crate) fn new(method: &'static str, requests: Vec<Bytes>) -> Self {
        Self { method, requests }
    }

    pub(crate) fn of_options() -> Self {
        Self::new(OPTIONS, vec![Bytes::new()])
    }

    /// For containers with so many devices each.
    pub(crate) fn of_allocate(ids: &[String], devices: usize) -> Self {
        Self::new(ALLOCATE, ids.chunks_exact(devices).map(request).collect())
    }
}

fn request(ids: &[String]) -> Bytes {
    let container = ContainerAllocateRequest {
        devices_ids: ids.to_vec(),
    };
    let request = AllocateRequest {
        container_requests: vec![container],
    };
    request.encode_to_vec().into()
}

/// What came of calls.
#[derive(Default)]
pub(crate) struct Called {
    /// Sorted.
    pub(crate) times: Vec<Duration>,
    pub(crate) first_answer: Bytes,
}

impl Called {
    pub(crate) fn p50(&self) -> Option<f64> {
        permille(&self.times, 500).map(super::figures::microseconds)
    }
}

/// Makes so many calls of each, or fewer in the time given; in turn, so that what
/// disturbs one disturbs the others.
pub(crate) async fn in_turn<const N: usize>(
    caller: &mut Caller,
    all: [&Calls; N],
    count: usize,
    time: Duration,
) -> anyhow::Result<[Called; N]> {
    let calls = in_turn_without_end(caller, all, count, time);
    match tokio::time::timeout(time + CALL_LIMIT, calls).await {
        Ok(called) => called,
        Err(_) => anyhow::bail!("no answer in {CALL_LIMIT:?}"),
    }
}

async fn in_turn_without_end<const N: usize>(
    caller: &mut Caller,
    all: [&Calls; N],
    count: usize,
    time: Duration,
) -> anyhow::Result<[Called; N]> {
    let mut called = std::array::from_fn(|_| Called::default());
    let begin = Instant::now();
    let warm_up = count.div_ceil(WARM_UP as usize);
    let mut measured = 0;
    for number in 0.. {
        let warm = number >= warm_up || begin.elapsed() > time / WARM_UP;
        for (calls, called) in all.iter().zip(&mut called) {
            let request = &calls.requests[number % calls.requests.len()];
            let (time, answer) = caller.call(calls.method, request.clone()).await?;
            if number == 0 {
                called.first_answer = answer;
            }
            if warm {
                called.times.push(time);
            }
        }
        measured += usize::from(warm);
        if measured == count || (measured > 0 && begin.elapsed() > time) {
            break;
        }
    }
    for called in &mut called {
        called.times.sort();
    }
    Ok(called)
}

/// Allocate for 1 and 8 GPUs and for 64 replicas.
pub(crate) async fn measure(
    subject: &Subject,
    settings: &Settings,
    figures: &mut Figures,
) -> anyhow::Result<()> {
    whole_gpus(subject, settings, figures).await?;
    let shape = Shape {
        gpus: 8,
        replicas: 8,
    };
    let rig = Rig::settled(subject, settings, shape).await?;
    let all = Calls::of_allocate(&rig.ids(), shape.devices());
    let calls = [&Calls::of_options(), &all];
    let count = settings.effort.calls;
    let [options, all] = in_turn(&mut rig.caller().await?, calls, count, LONG).await?;
    let mut section = figures.section(Group::Calls, "calls, 8 GPUs x 8 replicas");
    allocate(&mut section, "64", &options, &all);
    rig.end().await;
    Ok(())
}

async fn whole_gpus(
    subject: &Subject,
    settings: &Settings,
    figures: &mut Figures,
) -> anyhow::Result<()> {
    let gpus = settings.gpus;
    let rig = Rig::settled(subject, settings, Shape::whole(gpus)).await?;
    let (mut caller, ids) = (rig.caller().await?, rig.ids());
    let (options, one) = (Calls::of_options(), Calls::of_allocate(&ids, 1));
    let all = Calls::of_allocate(&ids, gpus);
    let calls = [&options, &one, &all];
    let called = in_turn(&mut caller, calls, settings.effort.calls, LONG).await?;
    let [options, one, all] = called;
    let mut section = figures.section(Group::Calls, format!("calls, {gpus} GPUs"));
    section.calls("GetDevicePluginOptions", &options.times);
    allocate(&mut section, "1", &options, &one);
    answer(&mut section, one.first_answer)?;
    allocate(&mut section, &gpus.to_string(), &options, &all);
    rig.end().await;
    Ok(())
}

fn allocate(section: &mut Section, devices: &str, options: &Called, called: &Called) {
    section.calls(&format!("Allocate of {devices}"), &called.times);
    if let (Some(call), Some(nothing)) = (called.p50(), options.p50()) {
        let name = format!("Allocate of {devices} / GetDevicePluginOptions, p50");
        section.put(name, "", call / nothing);
    }
}

/// How large an answer for one device is.
fn answer(section: &mut Section, answer: Bytes) -> anyhow::Result<()> {
    let bytes = answer.len();
    let containers = AllocateResponse::decode(answer)?.container_responses;
    let mut put = |what, unit, count: usize| {
        section.put(format!("Allocate of 1, answer: {what}"), unit, count as f64);
    };
    put(
        "device nodes",
        "",
        containers.iter().map(|c| c.devices.len()).sum(),
    );
    put(
        "mounts",
        "",
        containers.iter().map(|c| c.mounts.len()).sum(),
    );
    put(
        "variables",
        "",
        containers.iter().map(|c| c.envs.len()).sum(),
    );
    put("size", "B", bytes);
    Ok(())
}
