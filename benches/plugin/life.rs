//! What happens to a plugin: starts, restarts of the kubelet, XIDs.

use std::time::{Duration, Instant};

use anyhow::Context;
use gpu_device_plugin::api::v1beta1::Device;

use super::arguments::Settings;
use super::command::Subject;
use super::common::kubelet::Event;
use super::figures::Figures;
use super::groups::Group;
use super::process;
use super::rig::{Rig, Shape};

/// After this a restart or an XID counts as missed.
pub(crate) const LIMIT: Duration = Duration::from_secs(10);
/// Between two XIDs: a plugin may wait a little after one, to take many at once.
const APART: Duration = Duration::from_millis(100);
/// The GPU has fallen off the bus.
const XID: u64 = 79;

/// Starts on a fresh node each.
pub(crate) async fn starts(
    subject: &Subject,
    settings: &Settings,
    figures: &mut Figures,
) -> anyhow::Result<()> {
    let mut starts = Vec::new();
    for _ in 0..settings.effort.starts {
        let rig = Rig::start(subject, settings, Shape::whole(settings.gpus)).await;
        match rig {
            Ok(rig) => {
                starts.push(Some(rig.registered_after));
                rig.end().await;
            }
            Err(error) => {
                eprintln!("{}: {error:#}", subject.name);
                starts.push(None);
            }
        }
    }
    let title = format!("start to registered, {} GPUs", settings.gpus);
    figures.section(Group::Start, title).times("", &starts);
    Ok(())
}

/// From the new kubelet's first accept to the list.
pub(crate) async fn restarts(
    subject: &Subject,
    settings: &Settings,
    figures: &mut Figures,
) -> anyhow::Result<()> {
    let rig = Rig::settled(subject, settings, Shape::whole(settings.gpus)).await?;
    let (mut restarts, begin) = (Vec::new(), Instant::now());
    for _ in 0..settings.effort.restarts.div_ceil(settings.rounds) {
        restarts.push(restart(&rig).await?);
        if begin.elapsed() > settings.effort.restarts_time {
            break;
        }
    }
    let title = "kubelet restart to registered";
    figures.section(Group::Restart, title).times("", &restarts);
    rig.end().await;
    Ok(())
}

pub(crate) async fn restart(rig: &Rig) -> anyhow::Result<Option<Duration>> {
    let mark = rig.kubelet.mark();
    let restarted = rig.kubelet.restart().await;
    restarted.context("the kubelet does not restart")?;
    let Some(list) = rig.next_list(mark, LIMIT, |_| true).await else {
        return Ok(None);
    };
    let accepting = rig.kubelet.look(mark, |records| {
        let mut records = records.iter();
        let accepting = records.find(|r| matches!(r.event, Event::SocketAccepting { .. }));
        accepting.map(|record| record.at)
    });
    Ok(accepting.map(|accepting| list.duration_since(accepting)))
}

/// One of each GPU, from the driver's change to the list.
pub(crate) async fn xids(
    subject: &Subject,
    settings: &Settings,
    figures: &mut Figures,
) -> anyhow::Result<()> {
    let mut xids = Vec::new();
    for _ in 0..settings.effort.xid_nodes {
        let rig = Rig::settled(subject, settings, Shape::whole(settings.gpus)).await?;
        for position in 0..settings.gpus {
            xids.push(xid(&rig, position, 1).await);
        }
        rig.end().await;
    }
    let title = "XID 79 to the kubelet's list";
    figures.section(Group::Xid, title).times("", &xids);
    Ok(())
}

/// Until the list in which all of the GPU's devices are sick.
pub(crate) async fn xid(rig: &Rig, position: usize, devices: usize) -> Option<Duration> {
    let mark = rig.kubelet.mark();
    let (uuid, begin) = break_gpu(rig, position).await;
    let list = rig.next_list(mark, LIMIT, |list| sick(list, &uuid) == devices);
    list.await.map(|list| list.duration_since(begin))
}

/// The GPU's UUID, and when its XID could first be seen.
pub(crate) async fn break_gpu(rig: &Rig, position: usize) -> (String, Instant) {
    tokio::time::sleep(APART).await;
    rig.node.xid(position, XID);
    (rig.node.uuid(position), rig.node.changed_at())
}

/// How many of the GPU's devices are not healthy. A plugin's IDs are its own, and
/// contain the UUID.
pub(crate) fn sick(list: &[Device], uuid: &str) -> usize {
    let sick = |device: &&Device| device.health != "Healthy" && device.id.contains(uuid);
    list.iter().filter(sick).count()
}

/// Of the program that runs, whatever the command line started it by.
pub(crate) async fn binary(
    subject: &Subject,
    settings: &Settings,
    figures: &mut Figures,
) -> anyhow::Result<()> {
    let rig = Rig::start(subject, settings, Shape::whole(settings.gpus)).await?;
    let size = process::stripped_size(rig.pid)?;
    let mut section = figures.section(Group::Binary, "binary, all features");
    section.put("size, stripped", "MB", size as f64 / 1e6);
    rig.end().await;
    Ok(())
}
