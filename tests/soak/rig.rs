//! The node, what is known of it for certain, and the eyes that never close.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use gpu_device_plugin::api::v1beta1::Device;

use super::expect::{self, Certain, Known, Resources};
use super::journal::Journal;
use super::plan::{Kind, Plan, Text, Timed};
use super::usage::Usage;
use crate::common::kubelet::{Event, KubeletPeer, Options};
use crate::common::running::{LOADED, LONG, Running, options};

/// What came of a step; an error is a failure of the soak, in words.
pub(crate) type Outcome<T = ()> = Result<T, String>;

/// From the kubelet's accepting to the registration and its list.
pub(crate) const REGISTERED: Duration = Duration::from_millis(250).saturating_mul(LOADED);
/// How long an answer may take that comes from memory.
pub(crate) const ANSWERED: Duration = Duration::from_millis(250).saturating_mul(LOADED);
/// How often everything is looked at that nobody tells of.
const LOOK: Duration = Duration::from_millis(50);
/// Connections of clients are cut by what the kubelet does, and a moment after it.
const UNREST: Duration = Duration::from_secs(1);
/// So many of the kubelet's events are kept: more than come in the longest wait.
const EVENTS: usize = 4000;

pub(crate) struct Soak {
    pub(crate) plan: Plan,
    pub(crate) running: Running,
    pub(crate) resources: Resources,
    pub(crate) journal: Journal,
    pub(crate) truth: Truth,
    pub(crate) unrest: Unrest,
    /// The configuration file that is in place.
    pub(crate) text: Mutex<Text>,
    /// What the last good configuration file says of XID 48.
    pub(crate) lenient: AtomicBool,
    /// Numbers the kernel log's records.
    pub(crate) logged: AtomicU64,
    lists: Mutex<Lists>,
    /// How far the kubelet's events were looked at.
    seen: AtomicUsize,
}

impl Soak {
    pub(crate) async fn start(plan: Plan) -> Self {
        let node = expect::node(plan.kind);
        let resources = expect::resources(&node, plan.kind);
        let config = node.root().join("config.yaml");
        write_config(&config, plan.kind, Text::Plain);
        let options = Options {
            seed: plan.seed,
            ..options()
        };
        let flags = flags(plan.kind, &config);
        let flags: Vec<_> = flags.iter().map(String::as_str).collect();
        Self {
            plan,
            running: Running::on(node, options, &flags).await,
            resources,
            journal: Journal::new(),
            truth: Truth::default(),
            unrest: Unrest::default(),
            text: Mutex::new(Text::Plain),
            lenient: AtomicBool::new(false),
            logged: AtomicU64::new(1),
            lists: Mutex::default(),
            seen: AtomicUsize::new(0),
        }
    }

    /// The flags that the plugin was started with.
    pub(crate) fn flags(&self) -> Vec<String> {
        flags(self.plan.kind, &self.config())
    }

    fn config(&self) -> PathBuf {
        self.running.node.root().join("config.yaml")
    }

    /// Puts another configuration file in place, or takes it away.
    /// Whether it is another.
    pub(crate) fn configure(&self, text: Text) -> bool {
        let last = std::mem::replace(&mut *lock(&self.text), text);
        match text {
            // It may be gone already.
            Text::Missing => drop(fs::remove_file(self.config())),
            text => write_config(&self.config(), self.plan.kind, text),
        }
        last != text
    }

    /// The name and the devices of a resource, by its number in a plan.
    pub(crate) fn resource(&self, number: usize) -> (&str, &[Known]) {
        let mut resources = self.resources.iter();
        let (name, devices) = resources.nth(number).expect("a planned resource");
        (name, devices)
    }

    /// Does what an actor is to do, one action after the other.
    pub(crate) async fn act<A>(
        &self,
        actions: &[Timed<A>],
        mut act: impl AsyncFnMut(&A) -> Outcome,
    ) -> Outcome {
        for Timed { pause, action } in actions {
            // The pause is a part of the load: nothing is waited for by it.
            tokio::time::sleep(*pause).await;
            act(action).await?;
        }
        Ok(())
    }

    /// Waits until every resource is registered with the kubelet since the mark,
    /// and its whole list is there.
    pub(crate) async fn registered(&self, mark: usize, within: Duration) -> Outcome {
        let since = Instant::now();
        for (resource, devices) in &self.resources {
            let whole = |kubelet: &KubeletPeer| {
                let events = kubelet.events_since(mark).into_iter();
                let mut events = events.map(|record| record.event).skip_while(
                    |event| !matches!(event, Event::Registered { resource: of, .. } if of == resource),
                );
                let list = events.find_map(|event| match event {
                    Event::ListReceived {
                        resource: of,
                        devices,
                        ..
                    } if of == *resource => Some(devices),
                    _ => None,
                })?;
                (list.len() == devices.len()).then_some(())
            };
            let left = within.saturating_sub(since.elapsed());
            let wait = self.running.kubelet.wait_for("", left, whole).await;
            wait.map_err(|_| format!("{resource} is not registered and listed within {within:?}"))?;
        }
        self.journal.count("registrations waited for");
        Ok(())
    }

    /// Asks over HTTP.
    pub(crate) async fn get(&self, path: &str) -> Outcome<(u16, String)> {
        let begun = Instant::now();
        let answer = crate::common::plugin::http_get(self.running.http, path).await;
        let answer = answer.map_err(|error| format!("{path}: {error}"))?;
        let took = begun.elapsed();
        if took > ANSWERED {
            return Err(format!("{path} took {took:?}"));
        }
        Ok(answer)
    }

    /// Asks again and again until there is an answer, for what rings no bell.
    pub(crate) async fn eventually<T>(
        &self,
        what: &str,
        within: Duration,
        mut ask: impl AsyncFnMut() -> Outcome<Option<T>>,
    ) -> Outcome<T> {
        let end = Instant::now() + within;
        loop {
            if let Some(answer) = ask().await? {
                return Ok(answer);
            }
            if Instant::now() > end {
                return Err(format!("waited {within:?} in vain for {what}"));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    // === The eyes ===

    /// Looks at everything for ever; returns what is wrong.
    pub(crate) async fn watch(&self) -> String {
        let mut looks = tokio::time::interval(LOOK);
        loop {
            looks.tick().await;
            if let Err(fault) = self.look() {
                return fault;
            }
        }
    }

    /// Looks once at all that the kubelet and the plugin have said since the last
    /// look, and whether the plugin lives.
    pub(crate) fn look(&self) -> Outcome {
        for line in self.running.plugin.take_lines() {
            self.journal.said(line.text.clone());
            if line.text.contains("panicked") {
                return Err(format!("a panic: {}", line.text));
            }
        }
        self.usage()?;
        let kubelet = &self.running.kubelet;
        let events = kubelet.events_since(self.seen.load(Ordering::Relaxed));
        self.seen.fetch_add(events.len(), Ordering::Relaxed);
        for record in events {
            if let Event::ListReceived {
                resource, devices, ..
            } = record.event
            {
                self.journal.count("lists");
                self.check_list(&resource, &devices)?;
            }
        }
        kubelet.forget_events(EVENTS);
        match kubelet.violations().first() {
            Some(violation) => Err(format!("the kubelet chokes on {violation:?}")),
            None => Ok(()),
        }
    }

    /// What the plugin uses now. An error is a plugin that has ended.
    pub(crate) fn usage(&self) -> Outcome<Usage> {
        let pid = self.running.plugin.pid();
        let state = self.running.node.state_file();
        let driver = state.parent().unwrap_or(&state);
        let usage = pid.and_then(|pid| Usage::of(pid, driver));
        usage.ok_or_else(|| "the plugin has ended".to_owned())
    }

    /// Nothing happens to these GPUs from now on. What was listed until now is judged
    /// by what was true until now.
    pub(crate) fn calm(&self, gpus: impl IntoIterator<Item = usize>) -> Outcome {
        self.look()?;
        self.truth.set_calm(gpus);
        Ok(())
    }

    /// Judges a list, whoever got it.
    pub(crate) fn check_list(&self, resource: &str, list: &[Device]) -> Outcome {
        let calm = self.truth.calm();
        let known = self.resources.get(resource).map_or(&[][..], Vec::as_slice);
        let fault = lock(&self.lists).fault(resource, list, known, &calm);
        match fault {
            Some(fault) => Err(format!("{resource}: {fault}: {}", told(list))),
            None => Ok(()),
        }
    }

    /// Another process: of what the last one listed it knows only what pods hold.
    pub(crate) fn forget_lists(&self) {
        let resources = self.resources.keys();
        let held = resources.map(|name| (name.clone(), self.running.kubelet.allocated(name)));
        lock(&self.lists).listed = held.collect();
    }
}

fn flags(kind: Kind, config: &std::path::Path) -> Vec<String> {
    let config = format!("--config-file={}", config.display());
    let of_kind = match kind {
        Kind::Whole => "--mig-strategy=none",
        Kind::Shared => "--device-list-strategy=mounts,envvar,cdi-cri",
        Kind::Mig => "--mig-strategy=mixed",
    };
    vec![config, of_kind.to_owned()]
}

/// In one step, as every editor and the kubelet do it.
fn write_config(path: &std::path::Path, kind: Kind, text: Text) {
    let replicas = expect::REPLICAS;
    let sharing = match kind {
        Kind::Shared => {
            format!(
                "sharing: {{timeSlicing: {{resources: [{{name: gpu, replicas: {replicas}}}]}}}}\n"
            )
        }
        Kind::Whole | Kind::Mig => String::new(),
    };
    let special = match text {
        Text::Plain | Text::Missing => "",
        Text::Lenient => "health: {xids: {48: application}}\n",
        Text::Debug => "flags: {logLevel: debug}\n",
        Text::NoYaml => "health: {xids: [48\n",
        Text::UnknownKey => "helth: {xids: {48: application}}\n",
        Text::UnknownClass => "health: {xids: {48: harmless}}\n",
        Text::NeedsRestart => "flags: {resourceName: nvidia.com/other}\n",
    };
    let new = path.with_extension("new");
    fs::write(&new, format!("version: v1\n{sharing}{special}")).expect("write the file");
    fs::rename(new, path).expect("put the file in place");
}

/// A list in few words.
pub(crate) fn told(list: &[Device]) -> String {
    let devices = list.iter();
    let devices = devices.map(|device| format!("{} {}", device.id, device.health));
    devices.collect::<Vec<_>>().join(", ")
}

/// What was listed, by resource.
#[derive(Default)]
struct Lists {
    listed: BTreeMap<String, BTreeSet<String>>,
}

impl Lists {
    /// What is wrong with a list, and takes note of it.
    fn fault(
        &mut self,
        resource: &str,
        list: &[Device],
        known: &[Known],
        calm: &BTreeSet<usize>,
    ) -> Option<String> {
        if !list.is_sorted_by(|a, b| a.id < b.id) {
            return Some("not sorted, or an ID twice".into());
        }
        let listed = self.listed.entry(resource.to_owned()).or_default();
        let now: BTreeSet<String> = list.iter().map(|device| device.id.clone()).collect();
        if let Some(dropped) = listed.difference(&now).next() {
            return Some(format!("{dropped} was listed, or is held, and is missing"));
        }
        listed.extend(now);
        for device in list {
            let Some(known) = known.iter().find(|known| known.id == device.id) else {
                return Some(format!("{} is no device", device.id));
            };
            if calm.contains(&known.gpu) && device.health != "Healthy" {
                return Some(format!("nothing has happened to {}", device.id));
            }
        }
        None
    }
}

// === What is certain ===

/// What is certain of each GPU.
#[derive(Default)]
pub(crate) struct Truth(Mutex<Certainties>);

#[derive(Default)]
struct Certainties {
    calm: BTreeSet<usize>,
    /// With a number for each sickness: one GPU may have several in a row.
    sick: BTreeMap<usize, u64>,
    sicknesses: u64,
}

/// What was certain at a moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Moment {
    calm: BTreeSet<usize>,
    sick: BTreeMap<usize, u64>,
}

impl Truth {
    pub(crate) fn calm(&self) -> BTreeSet<usize> {
        lock(&self.0).calm.clone()
    }

    /// Nothing happens to these GPUs from now on.
    fn set_calm(&self, gpus: impl IntoIterator<Item = usize>) {
        lock(&self.0).calm = gpus.into_iter().collect();
    }

    /// The plugin has said that the GPU is sick, and the cause holds on.
    pub(crate) fn is_sick(&self, gpu: usize) {
        let mut certain = lock(&self.0);
        certain.sicknesses += 1;
        let number = certain.sicknesses;
        certain.sick.insert(gpu, number);
    }

    /// The cause is about to be taken away.
    pub(crate) fn recovers(&self, gpu: usize) {
        lock(&self.0).sick.remove(&gpu);
    }

    /// Whether it is certain that this GPU is sick.
    pub(crate) fn knows_sick(&self, gpu: usize) -> bool {
        lock(&self.0).sick.contains_key(&gpu)
    }

    pub(crate) fn now(&self) -> Moment {
        let certain = lock(&self.0);
        Moment {
            calm: certain.calm.clone(),
            sick: certain.sick.clone(),
        }
    }
}

impl Moment {
    /// What was certain of a GPU from this moment to the other.
    pub(crate) fn until(&self, other: &Self, gpu: usize) -> Certain {
        let sick = |moment: &Self| moment.sick.get(&gpu).copied();
        if self.calm.contains(&gpu) && other.calm.contains(&gpu) {
            Certain::Well
        } else if sick(self).is_some() && sick(self) == sick(other) {
            Certain::Sick
        } else {
            Certain::Nothing
        }
    }
}

/// Whether the kubelet is up to something.
#[derive(Default)]
pub(crate) struct Unrest(Mutex<(usize, Option<Instant>)>);

/// The kubelet is up to something until this is dropped.
pub(crate) struct Busy<'a>(&'a Unrest);

impl Unrest {
    pub(crate) fn begin(&self) -> Busy<'_> {
        lock(&self.0).0 += 1;
        Busy(self)
    }

    /// Whether a connection that was made at this time may have been cut.
    pub(crate) fn since(&self, time: Instant) -> bool {
        let (busy, last) = *lock(&self.0);
        busy > 0 || last.is_some_and(|last| last + UNREST > time)
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        let mut unrest = lock(&self.0.0);
        unrest.0 -= 1;
        unrest.1 = Some(Instant::now());
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Longer than anything takes that is expected.
pub(crate) const AT_LAST: Duration = LONG;

#[cfg(test)]
mod tests {
    use super::*;

    fn list(devices: &[(&str, &str)]) -> Vec<Device> {
        let device = |(id, health): &(&str, &str)| Device {
            id: (*id).into(),
            health: (*health).into(),
            topology: None,
        };
        devices.iter().map(device).collect()
    }

    #[test]
    fn a_list_is_wrong_in_each_of_these_ways() {
        let node = expect::node(Kind::Whole);
        let resources = expect::resources(&node, Kind::Whole);
        let (resource, known) = resources.first_key_value().unwrap();
        let (a, b) = (known[0].id.as_str(), known[1].id.as_str());
        let calm = BTreeSet::from([1]);
        let mut lists = Lists::default();
        let mut fault = |devices: &[(&str, &str)]| {
            lists
                .fault(resource, &list(devices), known, &calm)
                .unwrap_or_default()
        };
        assert_eq!(fault(&[(a, "Unhealthy"), (b, "Healthy")]), "");
        assert!(fault(&[(b, "Healthy")]).ends_with("is missing"));
        assert!(fault(&[(b, "Healthy"), (a, "Healthy")]).starts_with("not sorted"));
        assert!(fault(&[(a, "Healthy"), (a, "Healthy")]).starts_with("not sorted"));
        assert!(fault(&[(a, "Healthy"), (b, "Unhealthy")]).starts_with("nothing has happened"));
        assert!(fault(&[(a, ""), (b, "Healthy"), ("x", "")]).ends_with("is no device"));
    }

    #[test]
    fn nothing_is_certain_of_a_gpu_that_changed_meanwhile() {
        let truth = Truth::default();
        truth.set_calm([0]);
        truth.is_sick(1);
        let before = truth.now();
        let certain = |gpu| before.until(&truth.now(), gpu);
        assert_eq!(
            [0, 1, 2].map(certain),
            [Certain::Well, Certain::Sick, Certain::Nothing]
        );
        truth.recovers(1);
        assert_eq!(certain(1), Certain::Nothing);
        truth.is_sick(1);
        assert_eq!(certain(1), Certain::Nothing, "another sickness");
    }
}
