//! The quiet point after a round: nothing is amiss any more, and everything has to
//! be as it was before.

use std::sync::atomic::Ordering;

use super::expect::{Known, Request};
use super::plan::{Restart, Round, Text, Witness};
use super::requests::Answered;
use super::rig::{ANSWERED, AT_LAST, Outcome, REGISTERED, Soak, told};
use super::usage::{Usage, median};
use crate::common::kubelet::{Event, KubeletPeer};
use crate::common::open_files::open_files;

/// The driver's calls have threads of their own, which stay for half a minute after
/// their last call, and are woken by turns: so many more than at the start are no
/// leak.
const THREADS: usize = 28;
/// The simulated driver keeps so many watches of its state between its calls.
const DRIVERS_WATCHES: usize = 8;
/// The heap fills for some dozens of rounds. So a life with this many quiet points is
/// judged by its last two thirds only.
const FILLED: usize = 30;
/// By how many KiB memory may grow from one third to the last, in a life with so many
/// quiet points at least.
const GROWTH: [(usize, u64); 3] = [(100, 256), (FILLED, 1024), (4, 2048)];
/// An XID that the configuration file may take for an application's fault, and one
/// that it never does.
const BY_FILE: u64 = 48;
const BY_CATALOGUE: u64 = 62;

impl Soak {
    /// Takes every cause away, and sees that all is well, that requests are answered
    /// without exception, that XIDs are heard, and that nothing is left behind.
    pub(crate) async fn quiet(&self, round: &Round, before: Usage) -> Outcome<Usage> {
        self.heal_all();
        // A kubelet keeps connections that it forgot until it ends.
        let busy = self.unrest.begin();
        let mark = self.stop_and_start().await?;
        self.registered(mark, REGISTERED).await?;
        drop(busy);
        self.well().await?;
        let doomed = self.plan.kind.doomed();
        self.calm(0..doomed)?;
        self.ask_all().await?;
        self.eventually("/readyz to be ready", AT_LAST, async || {
            let (status, _) = self.get("/readyz").await?;
            Ok((status == 200).then_some(()))
        })
        .await?;
        let (first, second) = round.heard;
        let others = (0..doomed).filter(|gpu| ![first, second].contains(gpu));
        self.calm(others)?;
        self.hear(first, second).await?;
        self.well().await?;
        self.calm([])?;
        // All were heard; the last has the number that the next one follows.
        self.keep_xids(1);
        self.nothing_left(before).await
    }

    /// Waits until the kubelet has every device as healthy that may be.
    pub(crate) async fn well(&self) -> Outcome {
        for (resource, devices) in &self.resources {
            let healthy = devices
                .iter()
                .filter(|known| !self.is_doomed(known))
                .count();
            let wanted = (healthy, devices.len());
            let wait = self
                .running
                .kubelet
                .wait_counts(resource, wanted, AT_LAST)
                .await;
            wait.map_err(|_| {
                let devices = told(&self.running.kubelet.devices(resource));
                format!("{resource} is not {wanted:?} within {AT_LAST:?}: {devices}")
            })?;
        }
        Ok(())
    }

    fn is_doomed(&self, known: &Known) -> bool {
        self.truth.knows_sick(known.gpu)
    }

    /// All healthy devices of a resource are given, and a sick one is not.
    async fn ask_all(&self) -> Outcome {
        for (resource, devices) in &self.resources {
            let (sick, well): (Vec<_>, Vec<_>) =
                devices.iter().partition(|known| self.is_doomed(known));
            for (asked, given) in [(well, true), (sick, false)] {
                if asked.is_empty() {
                    continue;
                }
                let ids: Vec<_> = asked.iter().map(|known| known.id.clone()).collect();
                let request = Request {
                    containers: vec![asked],
                    is_wrong: false,
                };
                // The kubelet's last doing may have cut a connection.
                self.eventually("an answer", ANSWERED, async || {
                    match self
                        .ask_allocate(resource, vec![ids.clone()], &request)
                        .await?
                    {
                        Answered::Unheard => Ok(None),
                        Answered::Given if given => Ok(Some(())),
                        Answered::Refused(_) if !given => Ok(Some(())),
                        other => Err(format!("{ids:?} at rest: {other:?}")),
                    }
                })
                .await?;
            }
        }
        Ok(())
    }

    /// XIDs are heard after all that has happened, and judged by the last good
    /// configuration file.
    async fn hear(&self, first: usize, second: usize) -> Outcome {
        let lenient = self.lenient.load(Ordering::Relaxed);
        let mark = self.running.kubelet.mark();
        self.tell(first, BY_FILE, Witness::KernelLog);
        self.tell(second, BY_CATALOGUE, Witness::KernelLog);
        self.listed_sick(mark, second).await?;
        if !lenient {
            return self.listed_sick(mark, first).await;
        }
        // Records come in order: with the second one told, the first is dealt with.
        self.well().await?;
        if self.was_sick(&self.running.kubelet, mark, first) {
            return Err(format!(
                "XID {BY_FILE} acts, and the last good file says not"
            ));
        }
        Ok(())
    }

    async fn listed_sick(&self, mark: usize, gpu: usize) -> Outcome {
        let sick = |kubelet: &KubeletPeer| self.was_sick(kubelet, mark, gpu).then_some(());
        let wait = self.running.kubelet.wait_for("", AT_LAST, sick).await;
        wait.map_err(|_| format!("no XID of GPU {gpu} is heard within {AT_LAST:?}"))
    }

    /// Whether any list since the mark has a device of the GPU as unhealthy.
    fn was_sick(&self, kubelet: &KubeletPeer, mark: usize, gpu: usize) -> bool {
        let mut own = self
            .resources
            .values()
            .flatten()
            .filter(|known| known.gpu == gpu);
        let id = own.next().map(|known| known.id.as_str());
        kubelet
            .events_since(mark)
            .iter()
            .any(|record| match &record.event {
                Event::ListReceived { devices, .. } => devices
                    .iter()
                    .any(|device| Some(device.id.as_str()) == id && device.health != "Healthy"),
                _ => false,
            })
    }

    /// Waits until the process has no more open than before.
    async fn nothing_left(&self, before: Usage) -> Outcome<Usage> {
        // The files of a resource's answers are watched from the first, and those of
        // the driver.
        let seen = self.resources.len() + 1;
        let fits = |now: Usage| {
            now.files <= before.files
                && now.mounts <= seen
                && now.watches <= before.watches + seen
                && now.drivers_watches <= before.drivers_watches + DRIVERS_WATCHES
                && now.threads <= before.threads + THREADS
        };
        let waited = self.eventually("what was opened to be closed", AT_LAST, async || {
            Ok(Some(self.usage()?).filter(|now| fits(*now)))
        });
        let waited = waited.await;
        waited.map_err(|fault| {
            let (now, pid) = (self.usage(), self.running.plugin.pid());
            let files = open_files(pid.unwrap_or_default());
            format!("{fault}: {now:?}, and was {before:?}; open are {files:?}")
        })
    }

    // === The plugin's own end and start ===

    /// The plugin ends while pods hold every device, and starts when one GPU is
    /// missing: its devices have to be listed all the same.
    pub(crate) async fn restart(&mut self, restart: Restart) -> Outcome {
        self.journal.action("plugin restarts", &restart);
        self.calm([])?;
        let mut pods = Vec::new();
        for (resource, devices) in &self.resources {
            let healthy = devices
                .iter()
                .filter(|known| !self.is_doomed(known))
                .count();
            if healthy > 0 {
                let pod = self.running.kubelet.allocate(resource, healthy).await;
                pods.push(pod.map_err(|error| format!("no pod gets all of {resource}: {error}"))?);
            }
        }
        self.look()?;
        self.end_plugin(restart.killed).await?;
        self.running.node.vanish(restart.vanished);
        if restart.boot {
            // The first boot was number 1.
            let number = self.journal.counted("plugin restarts") + 1;
            let id = format!("b0071d00-0000-4000-8000-{number:012x}");
            self.running.node.boot(&id);
            self.truth.recovers(self.plan.kind.doomed());
        }
        if restart.kubelet_away {
            self.running.kubelet.stop().await;
        }
        self.forget_lists();
        self.configure(Text::Plain);
        self.lenient.store(false, Ordering::Relaxed);
        let mark = self.running.kubelet.mark();
        let flags = self.flags();
        let flags: Vec<_> = flags.iter().map(String::as_str).collect();
        self.running.start_plugin_with(&flags).await;
        let kubelet = self.running.kubelet.start().await;
        kubelet.map_err(|error| format!("the kubelet itself failed: {error}"))?;
        // The driver's files, and their volume, are looked at anew.
        self.held_are_listed(mark).await?;
        self.look()?;
        self.running.node.restore(restart.vanished);
        self.well().await?;
        for pod in pods {
            self.running.kubelet.free(&pod.pod);
        }
        self.look()
    }

    async fn held_are_listed(&self, mark: usize) -> Outcome {
        let fault = self.registered(mark, REGISTERED * 2);
        fault
            .await
            .map_err(|fault| format!("after the plugin's restart: {fault}"))
    }

    async fn end_plugin(&mut self, killed: bool) -> Outcome {
        let plugin = &mut self.running.plugin;
        let sent = if killed {
            plugin.kill()
        } else {
            plugin.terminate()
        };
        sent.map_err(|error| format!("the plugin has ended: {error}"))?;
        let ended = plugin.wait(AT_LAST).await;
        let ended = ended.map_err(|error| format!("it does not end: {error}"))?;
        if !killed && ended.code() != Some(0) {
            return Err(format!("asked to end, it ends with {ended}"));
        }
        Ok(())
    }
}

/// Whether memory grew over the quiet points of one life.
pub(crate) fn growth(life: &[Usage]) -> Outcome<String> {
    // The first round fills caches.
    let memory: Vec<_> = life.iter().skip(1).map(|usage| usage.memory).collect();
    let points = memory.len();
    let Some((_, bound)) = GROWTH.iter().find(|(least, _)| points >= *least) else {
        return Ok(format!("memory {memory:?} KiB, too few to judge"));
    };
    let third = (points / 3).max(1);
    let from = if points < FILLED { 0 } else { third };
    let early = median(&memory[from..from + third]);
    let late = median(&memory[points - third..]);
    let told = format!(
        "memory from {early} to {late} KiB over {points} quiet points (bound: {bound} more)"
    );
    if late > early + bound {
        return Err(format!("{told}: {memory:?}"));
    }
    Ok(told)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn life(memory: impl IntoIterator<Item = u64>) -> Vec<Usage> {
        let usage = |memory| Usage {
            memory,
            ..Usage::default()
        };
        memory.into_iter().map(usage).collect()
    }

    #[test]
    fn memory_that_grows_is_told_from_memory_that_jumps() {
        growth(&life([1, 9000, 9900, 9100, 12_000, 9000, 9300, 9200])).unwrap();
        growth(&life((0..12).map(|round| 9000 + round * 1500))).unwrap_err();
        growth(&life((0..50).map(|round| 9000 + round * 150))).unwrap_err();
        growth(&life((0..120).map(|round| 9000 + round * 8))).unwrap_err();
        // It fills up, and is full.
        let filling = (1..80).map(|round| 25_000 - 15_000 / round);
        growth(&life(filling)).unwrap();
        growth(&life([0, 90_000])).unwrap();
    }
}
