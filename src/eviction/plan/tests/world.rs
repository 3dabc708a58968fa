//! A node, its kubelet and the API server, as far as the plan sees them. It
//! panics where the plan does what it must not.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::super::answers::TELL_TRIES;
use super::super::*;
use crate::cluster::api::Eviction;
use crate::device::DeviceId;
use crate::eviction::fixture::{self, NODE, sick_at};
use crate::eviction::ledger::{Entry, file};
use crate::eviction::names::DeviceName;
use crate::eviction::rules::{EVICTION, EVICTION_GRACE};
use crate::gpu::GpuUuid;
use crate::health::report::{DeviceStatus, GpuStatus, NodeFault, Sickness};
use crate::kubelet::podresources::Holder;

pub(super) const SLOTS: usize = 3;
pub(super) const GPUS: usize = 3;
/// GPU, resource and ID: a whole GPU, one with MIG devices, one with replicas.
pub(super) const DEVICES: [(usize, &str, &str); 5] = [
    (0, "nvidia.com/gpu", "GPU-0"),
    (1, "nvidia.com/mig-1g.10gb", "MIG-0"),
    (1, "nvidia.com/mig-1g.10gb", "MIG-1"),
    (2, "nvidia.com/gpu.shared", "GPU-2::0"),
    (2, "nvidia.com/gpu.shared", "GPU-2::1"),
];
/// What pods there are, see [`dress`].
pub(super) const KINDS: usize = 10;

const BOOT: &str = "boot";
const MINUTE: Duration = Duration::from_secs(60);
/// More actions without a pause are a loop.
const MOST_ACTIONS: usize = 300;
/// What is this young may not have been seen.
const UNSEEN: Duration = Duration::from_secs(20);

/// Where the process dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Crash {
    /// With the record written, and nothing done.
    Before,
    /// With the action done, and nobody told of it.
    After,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Happening {
    Passes(u64),
    GpuSick(usize),
    DeviceSick(usize),
    Recovers(usize),
    Relapses(usize),
    Well(usize),
    /// A pod of this kind with this device, by its controller.
    Created(usize, usize, usize),
    /// The same, and whoever had the name before is long gone.
    Runs(usize, usize, usize),
    /// The kubelet knows of what is in the slot now.
    Acknowledged(usize),
    /// Another pod of the same name, before the kubelet knows of either's fate.
    Replaced(usize, usize, usize),
    /// The kubelet lists it no more; the API server does not know yet.
    Ended(usize),
    Deleted(usize),
    /// At once, while its containers may still run.
    Removed(usize),
    Finished(usize),
    Budget(usize, bool),
    Annotated(usize, usize),
    ApiServer(bool),
    Kubelet(bool),
    Events(bool),
    /// Whether the answers to evictions arrive.
    Answers(bool),
    NodeFault(bool),
    Complete(bool),
    Mode(EvictionMode),
    PerMinute(u32),
    MaxSick(u32),
    Restart,
    /// So many actions from now.
    Crash(usize, Crash),
}

#[derive(Clone, Debug)]
struct Pod {
    facts: PodFacts,
    device: usize,
    held_by_budget: bool,
    changed: Duration,
}

/// A name, who has it, and whose devices the kubelet lists under it.
#[derive(Clone, Debug, Default)]
struct Slot {
    pod: Option<Pod>,
    listed: Option<usize>,
}

pub(super) struct World {
    now: Duration,
    rng: fastrand::Rng,
    pace: Pace,
    plan: Plan,
    disk: Vec<u8>,
    crash: Option<(usize, Crash)>,
    devices: Vec<Option<Sickness>>,
    slots: Vec<Slot>,
    pods_made: usize,
    options: EvictionOptions,
    fault: bool,
    complete: bool,
    api_server: bool,
    kubelet: bool,
    events: bool,
    answers: bool,
    /// By UID and since when the device was sick.
    told: BTreeMap<(String, Duration), BTreeSet<Notice>>,
    tell_failures: BTreeMap<String, u32>,
    evicted: BTreeMap<String, Duration>,
    refusals: Vec<Duration>,
    history: Vec<String>,
}

impl World {
    pub(super) fn new(seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let options = EvictionOptions {
            mode: EvictionMode::Evict,
            per_minute: rng.u32(1..3),
            max_sick_percent: 100,
            ..EvictionOptions::default()
        };
        // The rarer the lists, the more happens between two.
        let pace = Pace {
            rescan: Duration::from_secs(rng.u64(20..400)),
            ..Pace::default()
        };
        let mut world = Self {
            now: Duration::from_secs(1000),
            plan: plan(Ledger::default(), &pace, Duration::ZERO, seed),
            rng,
            pace,
            disk: Vec::new(),
            crash: None,
            devices: vec![None; DEVICES.len()],
            slots: vec![Slot::default(); SLOTS],
            pods_made: 0,
            options,
            fault: false,
            complete: true,
            api_server: true,
            kubelet: true,
            events: true,
            answers: true,
            told: BTreeMap::new(),
            tell_failures: BTreeMap::new(),
            evicted: BTreeMap::new(),
            refusals: Vec::new(),
            history: Vec::new(),
        };
        world.save();
        world
    }

    pub(super) fn history(&self) -> String {
        self.history.join("\n")
    }

    pub(super) fn now(&self) -> Duration {
        self.now
    }

    pub(super) fn last_eviction(&self) -> Option<Duration> {
        self.evicted.values().max().copied()
    }

    /// When a budget refused.
    pub(super) fn refusals(&self) -> &[Duration] {
        &self.refusals
    }

    fn note(&mut self, what: impl std::fmt::Debug) {
        self.history.push(format!("{:?} {what:?}", self.now));
    }

    // === What happens ===

    pub(super) fn happens(&mut self, happening: Happening) {
        use Happening as H;
        self.note(happening);
        match happening {
            H::Passes(seconds) => self.run(Duration::from_secs(seconds)),
            H::GpuSick(gpu) => {
                let of_gpu = (0..DEVICES.len()).filter(|&device| DEVICES[device].0 == gpu);
                of_gpu.for_each(|device| self.sicken(device));
            }
            H::DeviceSick(device) => self.sicken(device),
            H::Recovers(device) => self.recover(device, Some(self.now + MINUTE)),
            H::Relapses(device) => self.recover(device, None),
            H::Well(device) => self.devices[device] = None,
            H::Created(slot, device, kind) => self.create(slot, device, kind),
            H::Runs(slot, device, kind) => {
                self.slots[slot].pod = None;
                self.create(slot, device, kind);
                self.acknowledge(slot);
            }
            H::Replaced(slot, device, kind) => {
                self.slots[slot].pod = None;
                self.create(slot, device, kind);
            }
            H::Ended(slot) => {
                self.slots[slot].listed = None;
                self.change(slot, |_| {});
            }
            H::Acknowledged(slot) => self.acknowledge(slot),
            H::Deleted(slot) => self.change(slot, |pod| pod.facts.terminating = true),
            H::Removed(slot) => self.slots[slot].pod = None,
            H::Finished(slot) => self.change(slot, |pod| pod.facts.finished = true),
            H::Budget(slot, holds) => self.change(slot, |pod| pod.held_by_budget = holds),
            H::Annotated(slot, kind) => self.change(slot, |pod| dress(&mut pod.facts, kind)),
            H::ApiServer(up) => self.api_server = up,
            H::Kubelet(up) => self.kubelet = up,
            H::Events(up) => self.events = up,
            H::Answers(arrive) => self.answers = arrive,
            H::NodeFault(is) => self.fault = is,
            H::Complete(is) => self.complete = is,
            H::Mode(mode) => self.options.mode = mode,
            H::PerMinute(most) => self.options.per_minute = most,
            H::MaxSick(percent) => self.options.max_sick_percent = percent,
            H::Restart => self.restart(),
            H::Crash(after, crash) => self.crash = Some((after, crash)),
        }
    }

    fn sicken(&mut self, device: usize) {
        let seconds = self.now.as_secs();
        self.devices[device].get_or_insert_with(|| sick_at(seconds));
    }

    fn recover(&mut self, device: usize, until: Option<Duration>) {
        if let Some(sickness) = &mut self.devices[device] {
            sickness.recovering_until = until;
        }
    }

    fn create(&mut self, slot: usize, device: usize, kind: usize) {
        if self.slots[slot].pod.is_some() {
            return;
        }
        self.pods_made += 1;
        let uid = format!("uid-{}", self.pods_made);
        let mut facts = fixture::pod(&format!("pod-{slot}"), &uid);
        facts.started = None;
        facts.is_static = kind == 6;
        facts.is_daemon_set = kind == 7;
        if kind == 8 {
            facts.node_name = Some("elsewhere".into());
            facts.started = Some(std::time::SystemTime::UNIX_EPOCH);
        }
        dress(&mut facts, kind);
        self.slots[slot].pod = Some(Pod {
            facts,
            device,
            held_by_budget: kind == 9,
            changed: self.now,
        });
    }

    fn acknowledge(&mut self, slot: usize) {
        let Slot { pod, listed } = &mut self.slots[slot];
        *listed = None;
        if let Some(pod) = pod
            && pod.facts.node_name.as_deref() == Some(NODE)
        {
            *listed = (!pod.facts.finished).then_some(pod.device);
            pod.facts.started = Some(std::time::SystemTime::UNIX_EPOCH);
        }
    }

    fn change(&mut self, slot: usize, change: impl Fn(&mut Pod)) {
        if let Some(pod) = &mut self.slots[slot].pod {
            change(pod);
            pod.changed = self.now;
        }
    }

    /// Nothing that forbids an eviction is left, but what the pods are.
    pub(super) fn let_everything_go(&mut self) {
        self.note("everything may go");
        self.options.mode = EvictionMode::Evict;
        self.options.max_sick_percent = 100;
        self.options.per_minute = self.options.per_minute.max(1);
        (self.fault, self.complete) = (false, true);
        (self.api_server, self.kubelet) = (true, true);
        (self.events, self.answers) = (true, true);
        for slot in 0..SLOTS {
            self.acknowledge(slot);
            self.change(slot, |pod| pod.held_by_budget = false);
        }
    }

    pub(super) fn to_be_evicted(&self) -> impl Iterator<Item = &PodFacts> {
        let pods = self.slots.iter().filter_map(|slot| slot.pod.as_ref());
        let due = pods.filter(|pod| {
            let facts = &pod.facts;
            let goes = !facts.finished && !facts.terminating && facts.started.is_some();
            let here = facts.node_name.as_deref() == Some(NODE);
            goes && here && grace_of(facts).is_some() && self.acts(pod.device)
        });
        due.map(|pod| &pod.facts)
    }

    // === The process ===

    fn restart(&mut self) {
        let ledger = file::parse(&self.disk, BOOT).unwrap();
        self.plan = plan(ledger, &self.pace, self.now, self.rng.u64(..));
    }

    fn save(&mut self) {
        self.disk = file::bytes(BOOT, self.plan.ledger()).unwrap();
    }

    /// Does what there is to do now. When to go on.
    pub(super) fn settle(&mut self) -> Option<Duration> {
        for _ in 0..MOST_ACTIONS {
            let report = self.report();
            let step = self.plan.step(self.now, &report, &self.options);
            let Some(action) = step.action else {
                self.judge_rest(step.wake);
                self.judge_ledger();
                return step.wake;
            };
            self.save();
            self.note(&action);
            let crash = self.dies();
            if crash == Some(Crash::Before) {
                self.restart();
                continue;
            }
            let answer = self.perform(&action, &report);
            if crash == Some(Crash::After) {
                self.restart();
            } else {
                answer(self);
            }
        }
        panic!("no end of it\n{}", self.history());
    }

    fn dies(&mut self) -> Option<Crash> {
        let (after, crash) = self.crash?;
        self.crash = after.checked_sub(1).map(|after| (after, crash));
        (after == 0).then_some(crash)
    }

    fn judge_rest(&mut self, wake: Option<Duration>) {
        let sick = (0..DEVICES.len()).any(|device| self.acts(device));
        let off = self.options.mode == EvictionMode::Off;
        if !sick || off || self.fault || !self.complete {
            self.must(wake.is_none(), "a timer, and nothing to do");
        } else {
            let later = wake.is_some_and(|wake| wake > self.now);
            self.must(later, "nobody wakes it, or at once");
        }
    }

    /// It remembers nothing that is over, once it knows who holds what.
    fn judge_ledger(&self) {
        let since = |device: &DeviceName| {
            let place = DEVICES.iter().position(|(_, _, id)| *id == device.id);
            self.devices[place.unwrap()].as_ref().map(|sick| sick.since)
        };
        let goes_on = |entry: &Entry| {
            let listed = self.plan.pods.contains_key(&entry.name);
            listed || since(&entry.incident.device) == Some(entry.incident.since)
        };
        let all_well = self.devices.iter().all(Option::is_none);
        if self.complete && (all_well || self.plan.listed > 0) {
            let mut entries = self.plan.ledger.pods().map(|(_, entry)| entry);
            self.must(entries.all(goes_on), "it is over, and it remembers");
        }
    }

    /// Lets time pass, from wake to wake.
    pub(super) fn run(&mut self, long: Duration) {
        let end = self.now + long;
        while let Some(wake) = self.settle() {
            if wake > end {
                break;
            }
            self.now = self.now.max(wake);
        }
        self.now = self.now.max(end);
        self.settle();
    }

    // === What the world answers, and what it does not stand for ===

    fn perform(&mut self, action: &Action, report: &HealthReport) -> Box<dyn Fn(&mut Self)> {
        assert_ne!(self.options.mode, EvictionMode::Off);
        let report = report.clone();
        self.takes_time();
        let answer = self.answer(action, report);
        self.takes_time();
        answer
    }

    fn takes_time(&mut self) {
        self.now += Duration::from_millis(self.rng.u64(0..4000));
    }

    fn answer(&mut self, action: &Action, report: HealthReport) -> Box<dyn Fn(&mut Self)> {
        match action.clone() {
            Action::List => {
                let answer = self.list();
                Box::new(move |world| world.plan.listed(world.now, &report, answer.clone()))
            }
            Action::Look(name) => {
                let answer = self.look(&name);
                Box::new(move |world| _ = world.plan.looked(world.now, &name, answer.clone()))
            }
            Action::Tell(telling) => {
                let answer = self.tell(&telling);
                Box::new(move |world| _ = world.plan.told(world.now, &telling, answer))
            }
            Action::Evict { pod, .. } => {
                let answer = self.evict(&pod);
                Box::new(move |world| _ = world.plan.evicted(world.now, &pod, answer.clone()))
            }
        }
    }

    fn list(&self) -> Result<Vec<Holder>, Unanswered> {
        if !self.kubelet {
            return Err(Unanswered::default());
        }
        let slots = self.slots.iter().enumerate();
        let listed = slots.filter_map(|(slot, pod)| Some((slot, pod.listed?)));
        let holder = |(slot, device): (usize, usize)| Holder {
            namespace: "team".into(),
            pod: format!("pod-{slot}"),
            container: "main".into(),
            resource: DEVICES[device].1.into(),
            device_ids: [DEVICES[device].2.to_owned()].into(),
        };
        // The same IDs of another resource are other devices.
        let other = |holder: &Holder| Holder {
            pod: "bystander".into(),
            resource: "example.com/other".into(),
            ..holder.clone()
        };
        let holders: Vec<_> = listed.map(holder).collect();
        Ok(holders.iter().map(other).chain(holders.clone()).collect())
    }

    fn live(&mut self, name: &str) -> Option<&mut Pod> {
        let mut slots = self.slots.iter_mut();
        slots.find_map(|slot| slot.pod.as_mut().filter(|pod| pod.facts.name == name))
    }

    fn look(&mut self, name: &PodName) -> Result<Option<PodFacts>, Unanswered> {
        assert_ne!(name.name, "bystander");
        if !self.api_server {
            return Err(Unanswered::default());
        }
        Ok(self.live(&name.name).map(|pod| pod.facts.clone()))
    }

    fn tell(&mut self, telling: &Telling) -> Result<(), Unanswered> {
        let uid = &telling.pod.uid;
        let live = self.live(&telling.pod.name).cloned();
        let live = live.filter(|pod| pod.facts.uid == *uid);
        if let Some(pod) = live {
            let sick = self.devices[pod.device].is_some();
            self.must(sick, "told of a device that is not sick, or not its own");
        }
        let reports = self.options.mode == EvictionMode::Report;
        match telling.notice {
            Notice::Planned | Notice::HeldByBudget => assert!(!reports),
            Notice::WouldEvict => assert!(reports),
            _ => {}
        }
        if !self.api_server || !self.events {
            *self.tell_failures.entry(uid.clone()).or_default() += 1;
            return Err(Unanswered::default());
        }
        let incident = (uid.clone(), telling.incident.since);
        self.told
            .entry(incident)
            .or_default()
            .insert(telling.notice);
        Ok(())
    }

    fn evict(&mut self, facts: &PodFacts) -> Result<Eviction, Unanswered> {
        self.judge_eviction(facts);
        if !self.api_server {
            return Err(Unanswered::default());
        }
        let now = self.now;
        let live = self.live(&facts.name);
        let Some(pod) = live.filter(|pod| pod.facts.uid == facts.uid) else {
            return Ok(Eviction::Gone);
        };
        if pod.held_by_budget {
            self.refusals.push(now);
            return Ok(Eviction::HeldByBudget {
                retry_after: Some(Duration::from_secs(10)),
                message: "budget".into(),
            });
        }
        pod.facts.terminating = true;
        pod.changed = now;
        let before = self.evicted.insert(facts.uid.clone(), now);
        self.must(before.is_none(), "twice");
        self.judge_rate();
        if self.answers {
            Ok(Eviction::Accepted)
        } else {
            Err(Unanswered::default())
        }
    }

    /// It must be so.
    #[track_caller]
    fn must(&self, so: bool, what: &str) {
        assert!(so, "{what}\n{}", self.history());
    }

    fn judge_rate(&self) {
        let recent = self.evicted.values().filter(|at| self.now - **at < MINUTE);
        let most = self.options.per_minute as usize;
        self.must(recent.count() <= most, "more than the rate");
    }

    fn judge_eviction(&mut self, facts: &PodFacts) {
        let evicts = self.options.mode == EvictionMode::Evict;
        self.must(evicts && self.complete && !self.fault, "not now");
        self.must(!self.is_beyond(), "too large a share is sick");
        let live = self.live(&facts.name).cloned();
        if let Some(pod) = live.filter(|pod| pod.facts.uid == facts.uid) {
            self.must(self.acts(pod.device), "it has no sick device");
            self.judge_told(&pod);
            if self.now - pod.changed > UNSEEN {
                self.judge_pod(&pod);
            }
        }
    }

    fn judge_told(&self, pod: &Pod) {
        let uid = &pod.facts.uid;
        let tries = self.tell_failures.get(uid).copied().unwrap_or_default();
        let since = self.devices[pod.device].as_ref().unwrap().since;
        let told = self.told.get(&(uid.clone(), since));
        let told = told.is_some_and(|told| told.contains(&Notice::Planned));
        self.must(told || tries >= TELL_TRIES, "not told");
    }

    fn judge_pod(&self, pod: &Pod) {
        let ends = pod.facts.finished || pod.facts.terminating;
        self.must(!ends, "it ends by itself");
        let here = pod.facts.node_name.as_deref() == Some(NODE);
        self.must(here, "it runs elsewhere");
        let mut slots = self.slots.iter();
        let slot = slots.find(|slot| slot.pod.as_ref().is_some_and(|p| p.facts == pod.facts));
        self.must(
            slot.unwrap().listed == Some(pod.device),
            "not by the kubelet",
        );
        let since = self.devices[pod.device].as_ref().unwrap().since;
        let grace = grace_of(&pod.facts);
        self.must(grace.is_some(), "it stays");
        self.must(self.now >= since + grace.unwrap(), "within the grace");
    }

    fn is_beyond(&self) -> bool {
        let sick = |gpu: &usize| {
            let mut devices = (0..DEVICES.len()).filter(|&device| DEVICES[device].0 == *gpu);
            devices.any(|device| self.devices[device].is_some())
        };
        let sick = (0..GPUS).filter(sick).count();
        sick > 1 && sick * 100 > GPUS * self.options.max_sick_percent as usize
    }

    fn acts(&self, device: usize) -> bool {
        let sickness = self.devices[device].as_ref();
        sickness.is_some_and(|sickness| sickness.recovering_until.is_none())
    }

    fn report(&self) -> HealthReport {
        let fault = NodeFault {
            reason: "NoDriver",
            message: String::new(),
        };
        let gpus = (0..GPUS).map(|gpu| GpuStatus {
            uuid: GpuUuid::from(format!("GPU-{gpu}").as_str()),
            index: u32::try_from(gpu).ok(),
            devices: self.statuses(gpu),
            sickness: None,
            notes: Vec::new(),
        });
        HealthReport {
            complete: self.complete,
            node: self.fault.then_some(fault),
            gpus: gpus.collect(),
        }
    }

    fn statuses(&self, gpu: usize) -> Vec<DeviceStatus> {
        let devices = DEVICES.iter().zip(&self.devices);
        let devices = devices.filter(|((of, ..), _)| *of == gpu);
        let status = |(&(_, resource, id), sickness): (&(usize, &str, &str), &Option<Sickness>)| {
            DeviceStatus {
                resource: resource.into(),
                id: DeviceId::from(&GpuUuid::from(id)),
                sickness: sickness.clone(),
            }
        };
        devices.map(status).collect()
    }
}

fn plan(ledger: Ledger, pace: &Pace, now: Duration, seed: u64) -> Plan {
    Plan::new(NODE.into(), ledger, pace.clone(), now, seed)
}

/// Gives a pod the annotations of its kind.
fn dress(facts: &mut PodFacts, kind: usize) {
    let annotations: &[(&str, &str)] = match kind {
        1 => &[(EVICTION, "false")],
        2 => &[(EVICTION, "maybe")],
        3 => &[(EVICTION_GRACE, "10m")],
        4 => &[(EVICTION_GRACE, "0s"), (EVICTION, "true")],
        5 => &[(EVICTION_GRACE, "soon")],
        _ => &[],
    };
    let annotations = annotations.iter();
    facts.annotations = annotations
        .map(|&(key, value)| (key.into(), value.into()))
        .collect();
}

/// What a pod's grace is, told in another way than by the rules; none where it
/// stays.
fn grace_of(facts: &PodFacts) -> Option<Duration> {
    if facts.is_static || facts.is_daemon_set {
        return None;
    }
    let get = |key| facts.annotations.get(key).map(String::as_str);
    match (get(EVICTION), get(EVICTION_GRACE)) {
        (None, None) => Some(MINUTE),
        (None, Some("10m")) => Some(MINUTE * 10),
        (Some("true"), Some("0s")) => Some(Duration::ZERO),
        _ => None,
    }
}
