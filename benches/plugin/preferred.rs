//! GetPreferredAllocation, for each number of GPUs that a container can ask for.

use gpu_device_plugin::api::v1beta1::{
    ContainerPreferredAllocationRequest, PreferredAllocationRequest, PreferredAllocationResponse,
};
use prost::Message;
use prost::bytes::Bytes;

use super::arguments::Settings;
use super::calls::{Called, Calls, in_turn};
use super::command::Subject;
use super::figures::{Figures, TIMES, microseconds, permille, sorted};
use super::groups::Group;
use super::rig::{Rig, Shape};

const METHOD: &str = "/v1beta1.DevicePlugin/GetPreferredAllocation";

/// On nodes of 8 and of 16 GPUs, all of which are free.
pub(crate) async fn measure(
    subject: &Subject,
    settings: &Settings,
    figures: &mut Figures,
) -> anyhow::Result<()> {
    for gpus in [8, 16] {
        of_node(subject, settings, gpus, figures).await?;
    }
    Ok(())
}

async fn of_node(
    subject: &Subject,
    settings: &Settings,
    gpus: usize,
    figures: &mut Figures,
) -> anyhow::Result<()> {
    let mut rig = Rig::settled(subject, settings, Shape::whole(gpus)).await?;
    let (mut sizes, mut whole) = (Vec::new(), true);
    for size in 1..=gpus {
        match of_size(&rig, settings, size).await {
            Ok([options, called]) => {
                if let Some(short) = shortcoming(&called, size) {
                    whole = false;
                    figures.note(format!("GetPreferredAllocation, {gpus} GPUs: {short}"));
                }
                sizes.push((size, options, called));
            }
            Err(error) => {
                let what = format!("GetPreferredAllocation, {size} of {gpus} GPUs");
                figures.note(format!("{what}: {error:#}"));
                whole = false;
                // What it goes on computing must not disturb the next.
                drop(rig);
                rig = Rig::settled(subject, settings, Shape::whole(gpus)).await?;
            }
        }
    }
    put(figures, settings, gpus, &sizes);
    // Else the slowest is not among them.
    if whole {
        put_slowest(figures, gpus, &sizes);
    }
    rig.end().await;
    Ok(())
}

/// On a connection of its own: the last one may still wait for an answer.
async fn of_size(rig: &Rig, settings: &Settings, size: usize) -> anyhow::Result<[Called; 2]> {
    let container = ContainerPreferredAllocationRequest {
        available_device_i_ds: rig.ids(),
        must_include_device_i_ds: Vec::new(),
        allocation_size: i32::try_from(size)?,
    };
    let request = PreferredAllocationRequest {
        container_requests: vec![container],
    };
    let calls = Calls::new(METHOD, vec![request.encode_to_vec().into()]);
    let effort = settings.effort;
    let calls = [&Calls::of_options(), &calls];
    let mut caller = rig.caller().await?;
    in_turn(&mut caller, calls, effort.preferred, effort.preferred_time).await
}

/// What is wrong with the answer, if anything is.
fn shortcoming(called: &Called, size: usize) -> Option<String> {
    match chosen(called.first_answer.clone()) {
        Some(chosen) if chosen == size => None,
        None | Some(0) => Some("the answer is empty, so its time says nothing".to_owned()),
        Some(_) => Some("the answer has another size than was asked for".to_owned()),
    }
}

fn chosen(answer: Bytes) -> Option<usize> {
    let answer = PreferredAllocationResponse::decode(answer).ok()?;
    let container = answer.container_responses.into_iter().next()?;
    Some(container.device_i_ds.len())
}

/// A size, and the calls of GetDevicePluginOptions and GetPreferredAllocation.
type OfSize = (usize, Called, Called);

fn title(gpus: usize) -> String {
    format!("GetPreferredAllocation, {gpus} GPUs free")
}

fn put(figures: &mut Figures, settings: &Settings, gpus: usize, sizes: &[OfSize]) {
    let mut section = figures.section(Group::Preferred, title(gpus));
    for (size, _, called) in sizes {
        for (name, part) in [("p50", 500), ("p99", 990)] {
            if let Some(time) = permille(&called.times, part) {
                let name = format!("{size} of {gpus} GPUs, {name}");
                section.put(name, "us", microseconds(time));
            }
        }
        // Only where the time was not enough.
        if called.times.len() < settings.effort.preferred {
            let calls = called.times.len() as f64;
            section.put(format!("{size} of {gpus} GPUs, calls"), TIMES, calls);
        }
    }
}

fn put_slowest(figures: &mut Figures, gpus: usize, sizes: &[OfSize]) {
    let ratios = sizes
        .iter()
        .filter_map(|(_, options, called)| Some(called.p50()? / options.p50()?));
    let p99s = sizes
        .iter()
        .filter_map(|(_, _, called)| permille(&called.times, 990).map(microseconds));
    let (ratios, p99s) = (sorted(ratios), sorted(p99s));
    let mut section = figures.section(Group::Preferred, title(gpus));
    if let (Some(ratio), Some(p99)) = (ratios.last(), p99s.last()) {
        let name = format!("{gpus} GPUs, slowest size / GetDevicePluginOptions, p50");
        section.put(name, "", *ratio);
        section.put(format!("{gpus} GPUs, slowest size, p99"), "us", *p99);
    }
}
