//! Many devices, and many who watch them.

use std::time::Instant;

use gpu_device_plugin::api::v1beta1::ListAndWatchResponse;
use tokio::sync::mpsc;
use tonic::Streaming;

use super::alone::nvml_alone;
use super::arguments::Settings;
use super::command::Subject;
use super::figures::Figures;
use super::groups::Group;
use super::life::{LIMIT, break_gpu, sick, xid};
use super::rest;
use super::rig::{Rig, Shape};

/// As many as a configuration of ours can have.
const LISTS: [Shape; 2] = [
    Shape {
        gpus: 8,
        replicas: 125,
    },
    Shape {
        gpus: 10,
        replicas: 1000,
    },
];
/// XIDs on each node with many devices.
const XIDS: usize = 3;
const STREAMS: usize = 100;

/// Lists of 1,000 and 10,000 devices.
pub(crate) async fn lists(
    subject: &Subject,
    settings: &Settings,
    figures: &mut Figures,
) -> anyhow::Result<()> {
    for shape in LISTS {
        if let Err(error) = list(subject, settings, shape, figures).await {
            let what = format!("{} devices", shape.devices());
            figures.failed(&subject.name, &what, &error);
        }
    }
    Ok(())
}

async fn list(
    subject: &Subject,
    settings: &Settings,
    shape: Shape,
    figures: &mut Figures,
) -> anyhow::Result<()> {
    let (mut starts, mut xids, mut memory) = (Vec::new(), Vec::new(), None);
    for _ in 0..settings.effort.lists {
        let rig = Rig::settled(subject, settings, shape).await?;
        starts.push(Some(rig.registered_after));
        for position in 0..XIDS {
            let time = xid(&rig, position, shape.replicas).await;
            xids.push(time);
            if time.is_none() {
                let uuid = rig.node.uuid(position);
                let sick = sick(&rig.kubelet.devices(&rig.resource), &uuid);
                figures.note(format!(
                    "{} devices: {LIMIT:?} after an XID {sick} of the GPU's {} are listed sick",
                    shape.devices(),
                    shape.replicas
                ));
                break;
            }
        }
        memory = Some((rig.memory()?, nvml_alone(&rig.node).await?));
        rig.end().await;
    }
    let Shape { gpus, replicas } = shape;
    let devices = shape.devices();
    let title = format!("a list of {devices} devices, {gpus} GPUs x {replicas} replicas");
    let mut section = figures.section(Group::Lists, title);
    section.times(
        &format!("{devices} devices: start to registered, "),
        &starts,
    );
    section.times(
        &format!("{devices} devices: XID to the whole list, "),
        &xids,
    );
    if let Some((memory, alone)) = memory {
        rest::put(&mut section, &format!("{devices} devices: "), memory, alone);
    }
    Ok(())
}

/// A list that a stream brought: which stream, when, and how much of it is sick.
struct Arrival {
    stream: usize,
    at: Instant,
    list: ListAndWatchResponse,
}

/// From a change until the last of 100 streams has it.
pub(crate) async fn streams(
    subject: &Subject,
    settings: &Settings,
    figures: &mut Figures,
) -> anyhow::Result<()> {
    let rig = Rig::settled(subject, settings, Shape::whole(settings.gpus)).await?;
    let (sender, mut arrivals) = mpsc::unbounded_channel();
    for stream in 0..STREAMS {
        let lists = rig.kubelet.open_stream(&rig.resource).await?;
        tokio::spawn(pass_on(stream, lists, sender.clone()));
    }
    let mut times = Vec::new();
    for position in 0..settings.gpus {
        let (uuid, begin) = break_gpu(&rig, position).await;
        let (reached, last) = reached(&mut arrivals, &uuid).await;
        if reached < STREAMS {
            figures.note(format!(
                "{LIMIT:?} after an XID {reached} of {STREAMS} more streams have the list"
            ));
            times.push(None);
            break;
        }
        times.push(last.map(|last| last.duration_since(begin)));
    }
    let (memory, alone) = (rig.memory()?, nvml_alone(&rig.node).await?);
    let title = format!("{STREAMS} list streams, {} GPUs", settings.gpus);
    let mut section = figures.section(Group::Streams, title);
    section.times("XID to the last stream's list, ", &times);
    rest::put(&mut section, "", memory, alone);
    rig.end().await;
    Ok(())
}

async fn pass_on(
    stream: usize,
    mut lists: Streaming<ListAndWatchResponse>,
    arrivals: mpsc::UnboundedSender<Arrival>,
) {
    while let Ok(Some(list)) = lists.message().await {
        let at = Instant::now();
        if arrivals.send(Arrival { stream, at, list }).is_err() {
            return;
        }
    }
}

/// How many streams brought a list in which the GPU is sick, and when the last did.
async fn reached(
    arrivals: &mut mpsc::UnboundedReceiver<Arrival>,
    uuid: &str,
) -> (usize, Option<Instant>) {
    let (mut reached, mut last) = ([false; STREAMS], None);
    let all = async {
        while reached.contains(&false)
            && let Some(arrival) = arrivals.recv().await
        {
            if sick(&arrival.list.devices, uuid) > 0 {
                reached[arrival.stream] = true;
                last = Some(arrival.at);
            }
        }
    };
    // What did not come in time is missing in what is counted.
    drop(tokio::time::timeout(LIMIT, all).await);
    (reached.iter().filter(|reached| **reached).count(), last)
}
