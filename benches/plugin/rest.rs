//! What a plugin takes while nothing happens, and after much has.

use std::time::Duration;

use super::alone::nvml_alone;
use super::arguments::Settings;
use super::calls::{Calls, in_turn};
use super::command::Subject;
use super::figures::{Figures, Section};
use super::groups::Group;
use super::life;
use super::process::{self, Memory};
use super::rig::{Rig, Shape};

/// Restarts of the kubelet in the load.
const RESTARTS: usize = 20;
const LONG: Duration = Duration::from_secs(600);

/// Memory, threads, wake-ups and processor time of one process.
pub(crate) async fn measure(
    subject: &Subject,
    settings: &Settings,
    figures: &mut Figures,
) -> anyhow::Result<()> {
    let rig = Rig::settled(subject, settings, Shape::whole(settings.gpus)).await?;
    let alone = nvml_alone(&rig.node).await?;
    at_rest(&rig, settings, figures).await?;
    let title = format!("memory and threads at rest, {} GPUs", settings.gpus);
    let mut section = figures.section(Group::Rest, title);
    put(&mut section, "at rest: ", rig.memory()?, alone);
    load(&rig, settings).await?;
    let title = "the same after calls, restarts of the kubelet and XIDs";
    let mut section = figures.section(Group::Rest, title);
    put(&mut section, "after load: ", rig.memory()?, alone);
    rig.end().await;
    Ok(())
}

async fn at_rest(rig: &Rig, settings: &Settings, figures: &mut Figures) -> anyhow::Result<()> {
    let time = settings.effort.rest;
    let before = process::processor_time(rig.pid)?;
    let wake_ups = process::wake_ups(rig.pid, time).await?;
    let used = process::processor_time(rig.pid)?.saturating_sub(before);
    let seconds = time.as_secs_f64();
    let mut section = figures.section(Group::Rest, format!("{seconds:.0} s at rest"));
    section.put("wake-ups a second", "", wake_ups / seconds);
    let in_a_minute = used.as_secs_f64() * 1e3 * 60.0 / seconds;
    section.put("processor time in 60 s", "ms", in_a_minute);
    Ok(())
}

/// What the NVML library takes is not the plugin's doing.
pub(crate) fn put(section: &mut Section, when: &str, of: Memory, alone: Memory) {
    let mut put = |what, unit, value| section.put(format!("{when}{what}"), unit, value);
    put("resident (VmRSS)", "MB", of.resident);
    put("NVML's own, alone", "MB", alone.resident);
    let beside = of.resident - alone.resident;
    put("resident beside NVML's own", "MB", beside);
    put("anonymous (RssAnon)", "MB", of.anonymous);
    put("proportional (Pss)", "MB", of.proportional);
    put("threads beside NVML's own", "", of.threads - alone.threads);
}

async fn load(rig: &Rig, settings: &Settings) -> anyhow::Result<()> {
    let ids = rig.ids();
    let allocate = Calls::of_allocate(&ids, 1);
    let calls = [&Calls::of_options(), &allocate];
    let mut caller = rig.caller().await?;
    in_turn(&mut caller, calls, settings.effort.calls, LONG).await?;
    drop(caller);
    for _ in 0..RESTARTS {
        life::restart(rig).await?;
    }
    for position in 0..settings.gpus {
        life::xid(rig, position, 1).await;
    }
    Ok(())
}
