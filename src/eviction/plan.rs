//! Whom to evict and when: a pure function of reports, answers and time.
//!
//! One action at a time: the caller does it, says what came of it, and asks for
//! the next. The [`Ledger`] is all that has to outlive the process; whoever keeps
//! it from before an action on can be stopped anywhere.
//!
//! A pod is known by its name alone to the kubelet and by its UID to the API
//! server. So before anything is done about a pod it is looked up, and a list of
//! the kubelet's that was asked for after that still has the name with a sick
//! device. The kubelet sets a pod's start time once it knows of it, and by then
//! has forgotten an earlier one of the same name: without a start time, a list
//! may be about that one.

mod tracked;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::ledger::{Entry, Ledger};
use super::names::PodName;
use super::names::{DeviceName, Incident};
use super::notice::{Consequence, Notice};
use super::retry::{Pauses, Retry};
use super::sick::Sick;
use crate::cluster::api::{Eviction, PodFacts};
use crate::config::{EvictionMode, EvictionOptions};
use crate::health::report::HealthReport;
use crate::kubelet::podresources::Holder;
pub use tracked::Telling;
use tracked::{Case, Need, Tracked};

/// So many pods are looked after at a time: more than a node runs.
const MOST_PODS: usize = 1024;

/// An event that failed so often in a row, over a minute, holds up nothing any
/// more.
const TELL_TRIES: u32 = 6;

/// How fast things go. None of it changes what is done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pace {
    /// After a GPU turned sick, up to so long before anybody is asked: nodes that
    /// fall sick together do not ask together.
    pub spread: Duration,
    /// The same for the eviction itself: up to half of the grace, and to this.
    pub longest_spread: Duration,
    /// From one list of the kubelet's to the next, while a GPU is sick.
    pub rescan: Duration,
    /// From one look at a pod that stays to the next: its annotations may change.
    pub recheck: Duration,
    /// An eviction goes by a look at the pod that is no older.
    pub fresh: Duration,
    /// Between lists that fail.
    pub list: Pauses,
    /// Between requests to the API server, whatever about, that fail.
    pub api: Pauses,
    /// Between requests about one pod that fail.
    pub pod: Pauses,
    /// Between evictions that a PodDisruptionBudget refuses.
    pub budget: Pauses,
    /// The least of these.
    pub least_budget: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        let pauses = |first, longest| Pauses {
            first: seconds(first),
            longest: seconds(longest),
        };
        Self {
            spread: seconds(5),
            longest_spread: seconds(30),
            rescan: seconds(30),
            recheck: seconds(300),
            fresh: seconds(20),
            list: pauses(1, 30),
            api: pauses(1, 60),
            pod: pauses(2, 300),
            budget: pauses(15, 300),
            least_budget: seconds(10),
        }
    }
}

/// What is to be done next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Ask the kubelet who holds what.
    List,
    /// Ask the API server for the pod of this name.
    Look(PodName),
    /// Write an event on a pod.
    Tell(Telling),
    /// Evict the pod of this UID. The ledger has it already, and must be on disk
    /// before it is done.
    Evict {
        /// Which pod.
        pod: PodFacts,
        /// For what.
        incident: Incident,
    },
}

/// A request that failed, or may have: it is tried again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unanswered {
    /// Any other request to the same place would have failed as well.
    pub concerns_all: bool,
    /// How long the other side wants to be left alone.
    pub retry_after: Option<Duration>,
}

/// What there is to do, and until when there is not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// What to do at once.
    pub action: Option<Action>,
    /// Without an action: when to ask again, in time since boot, if the report
    /// and the options stay as they are. None is never.
    pub wake: Option<Duration>,
}

/// What is worth a line in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    /// Which pod.
    pub pod: PodName,
    /// Its UID.
    pub uid: String,
    /// What of it.
    pub what: What,
}

/// What became of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// It was told.
    Told(Notice, String),
    /// Its eviction was accepted.
    Evicted,
    /// It was gone before.
    Gone,
    /// Its eviction was refused for now, and why.
    Held(String),
}

/// The state between steps.
#[derive(Clone, Debug)]
pub struct Plan {
    node: String,
    pace: Pace,
    rng: fastrand::Rng,
    ledger: Ledger,
    /// Counts actions: what has the higher number happened later.
    turn: u64,
    /// The last list that came, by its turn.
    listed: u64,
    list_at: Duration,
    list_retry: Retry,
    /// Of any request to the API server.
    api: Retry,
    /// The incidents that lists have been asked for.
    known: BTreeSet<Incident>,
    pods: BTreeMap<PodName, Tracked>,
}

impl Plan {
    /// Goes on from `ledger` on the node of this name. `now` is in time since boot.
    #[must_use]
    pub fn new(node: String, mut ledger: Ledger, pace: Pace, now: Duration, seed: u64) -> Self {
        ledger.resume(now);
        let (list, api) = (Retry::new(pace.list), Retry::new(pace.api));
        Self {
            node,
            pace,
            rng: fastrand::Rng::with_seed(seed),
            ledger,
            turn: 0,
            listed: 0,
            list_at: Duration::MAX,
            list_retry: list,
            api,
            known: BTreeSet::new(),
            pods: BTreeMap::new(),
        }
    }

    /// What has to outlive the process.
    #[must_use]
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// How many pods hold a sick device, by the last list.
    #[must_use]
    pub fn pods_on_sick(&self, report: &HealthReport) -> usize {
        let sick = Sick::of(report);
        let holds = |pod: &&Tracked| sick.first(&pod.held).is_some();
        self.pods.values().filter(holds).count()
    }

    /// What to do at `now`, in time since boot.
    pub fn step(
        &mut self,
        now: Duration,
        report: &HealthReport,
        options: &EvictionOptions,
    ) -> Step {
        let sick = Sick::of(report);
        if report.complete {
            self.forget(&sick);
        }
        let acting = sick.devices.keys().any(|name| sick.acts(name));
        let off = options.mode == EvictionMode::Off;
        if off || !report.complete || report.node.is_some() || !acting {
            return Step::default();
        }
        self.expect_list(now, &sick);
        let list_at = self.list_at.max(self.list_retry.until);
        if now >= list_at {
            return self.act(Action::List);
        }
        if !self.api.is_over(now) {
            return wait(list_at.min(self.api.until));
        }
        match self.next(now, &sick, options) {
            Ok(action) => self.act(action),
            Err(wake) => wait(list_at.min(wake)),
        }
    }

    /// What the kubelet listed. `report` is that of the step that asked for it, as
    /// in all that follows.
    pub fn listed(
        &mut self,
        now: Duration,
        report: &HealthReport,
        answer: Result<Vec<Holder>, Unanswered>,
    ) {
        let holders = match answer {
            Ok(holders) => holders,
            Err(Unanswered { retry_after, .. }) => {
                let jitter = self.rng.u8(..);
                return self.list_retry.failed(now, retry_after, jitter);
            }
        };
        self.list_retry.reset();
        self.listed = self.turn;
        self.list_at = now.saturating_add(self.pace.rescan);
        let found = on_sick(&Sick::of(report), holders);
        for pod in self.pods.values_mut() {
            pod.held.clear();
        }
        for (name, held) in found {
            let spread = self.rng.u8(..);
            let pod = self
                .pods
                .entry(name)
                .or_insert_with(|| Tracked::new(&self.pace, spread));
            pod.held = held.into_iter().collect();
            pod.verify(self.listed);
        }
        self.withdraw();
        self.pods.retain(|_, pod| !pod.held.is_empty());
        let open: Vec<_> = self
            .ledger
            .open()
            .map(|(_, entry)| entry.name.clone())
            .collect();
        for name in open {
            self.pods
                .entry(name)
                .or_insert_with(|| Tracked::new(&self.pace, 0));
        }
    }

    /// What the API server has under `name`.
    pub fn looked(
        &mut self,
        now: Duration,
        name: &PodName,
        answer: Result<Option<PodFacts>, Unanswered>,
    ) -> Option<Said> {
        let pod = match answer {
            Ok(pod) => pod,
            Err(failure) => {
                self.failed(now, name, failure);
                return None;
            }
        };
        self.api.reset();
        let said = self.resolve(now, name, pod.as_ref());
        let turn = self.turn;
        if let Some(tracked) = self.pods.get_mut(name) {
            tracked.look(turn, now, pod);
        }
        said
    }

    /// Whether the event could be written.
    pub fn told(
        &mut self,
        now: Duration,
        telling: &Telling,
        answer: Result<(), Unanswered>,
    ) -> Option<Said> {
        let Telling {
            pod,
            incident,
            notice,
            message,
        } = telling;
        let name = PodName::of(pod);
        match answer {
            Ok(()) => self.went_well(&name),
            Err(failure) if self.gives_up_telling(now, &name, failure) => {}
            Err(_) => return None,
        }
        self.ledger.tell(pod, incident, *notice);
        Some(said(pod, What::Told(*notice, message.clone())))
    }

    /// What the API server said to the eviction of `pod`.
    pub fn evicted(
        &mut self,
        now: Duration,
        pod: &PodFacts,
        answer: Result<Eviction, Unanswered>,
    ) -> Option<Said> {
        let name = PodName::of(pod);
        let what = match answer {
            Ok(Eviction::Accepted) => {
                self.went_well(&name);
                self.ledger.accepted(&pod.uid, now);
                What::Evicted
            }
            Ok(Eviction::HeldByBudget {
                retry_after,
                message,
            }) => {
                self.went_well(&name);
                self.ledger.refused(&pod.uid);
                self.hold(now, &name, retry_after, &message);
                What::Held(message)
            }
            Ok(Eviction::Gone) => {
                self.ledger.refused(&pod.uid);
                self.look_again(now, &name, Unanswered::default());
                What::Gone
            }
            Err(failure) => {
                self.ledger.answered(&pod.uid, now);
                self.look_again(now, &name, failure);
                return None;
            }
        };
        Some(said(pod, what))
    }

    /// The eviction of `pod` was not asked for, as it could not be written down.
    pub fn not_asked(&mut self, now: Duration, pod: &PodFacts) {
        self.ledger.refused(&pod.uid);
        self.failed(now, &PodName::of(pod), Unanswered::default());
    }

    /// Drops what is over.
    fn forget(&mut self, sick: &Sick<'_>) {
        if sick.devices.is_empty() {
            self.ledger.clear();
            self.pods.clear();
            return;
        }
        // Before the first list nobody knows who holds what.
        if self.listed > 0 {
            let pods = &self.pods;
            let held = |name: &PodName| pods.get(name).and_then(|pod| sick.first(&pod.held));
            self.ledger
                .retain(|entry| sick.has(&entry.incident) || held(&entry.name).is_some());
        }
    }

    /// A GPU that has just turned sick is a reason to list, but not for everybody
    /// at once.
    fn expect_list(&mut self, now: Duration, sick: &Sick<'_>) {
        let acting = sick
            .incidents()
            .filter(|incident| sick.acts(&incident.device));
        let acting: BTreeSet<_> = acting.collect();
        if !acting.is_subset(&self.known) {
            let spread = self.pace.spread / 255 * u32::from(self.rng.u8(..));
            self.list_at = self.list_at.min(now.saturating_add(spread));
        }
        self.known = acting;
    }

    /// What to do about the pods, or until when nothing. Looks go first, so that
    /// one list does for all.
    fn next(
        &mut self,
        now: Duration,
        sick: &Sick<'_>,
        options: &EvictionOptions,
    ) -> Result<Action, Duration> {
        let case = self.case(now, sick, options);
        let mut wake = Duration::MAX;
        let (mut tell, mut list, mut evict, mut again) = (None, false, None, None);
        for (name, pod) in &self.pods {
            match pod.need(&case) {
                Need::Rest => {}
                Need::Wait(until) => wake = wake.min(until),
                Need::Look => return Ok(Action::Look(name.clone())),
                Need::LookAgain => again = again.or(Some(name)),
                Need::List => list = true,
                Need::Tell(telling) => tell = tell.or(Some(telling)),
                Need::Evict(due) => evict = earlier(evict, (due, name.clone())),
            }
        }
        if list {
            match self.list_now(now) {
                Ok(action) => return Ok(action),
                Err(until) => wake = wake.min(until),
            }
        }
        if let Some(telling) = tell {
            return Ok(Action::Tell(telling));
        }
        let again = again.cloned();
        let evict = evict.map(|(_, name)| self.evict(now, &name, sick, options));
        match (evict, again) {
            (Some(Ok(action)), _) => Ok(action),
            (_, Some(name)) => Ok(Action::Look(name)),
            (Some(Err(until)), None) => Err(wake.min(until)),
            (None, None) => Err(wake),
        }
    }

    /// Evicts, or says that it would, by a look and a list that are fresh.
    fn evict(
        &mut self,
        now: Duration,
        name: &PodName,
        sick: &Sick<'_>,
        options: &EvictionOptions,
    ) -> Result<Action, Duration> {
        let evicts = options.mode == EvictionMode::Evict;
        let allowed = self.ledger.next_allowed(now, options.per_minute);
        if evicts && now < allowed {
            return Err(allowed);
        }
        let looked = self.pods.get(name).and_then(|pod| pod.looked.as_ref());
        let fresh = |at: Duration| now.saturating_sub(at) <= self.pace.fresh;
        let Some(looked) = looked.filter(|looked| fresh(looked.at)) else {
            return Ok(Action::Look(name.clone()));
        };
        if self.listed <= looked.turn {
            return self.list_now(now);
        }
        let case = self.case(now, sick, options);
        let telling = self.pods.get(name).and_then(|pod| {
            let facts = pod.pod()?;
            pod.telling(&case, facts, Notice::WouldEvict, &Consequence::WouldGo)
        });
        let Some(telling) = telling else {
            return Err(Duration::MAX);
        };
        if !evicts {
            return Ok(Action::Tell(telling));
        }
        let Telling { pod, incident, .. } = telling;
        self.ledger.intend(&pod, &incident, now);
        Ok(Action::Evict { pod, incident })
    }

    fn list_now(&self, now: Duration) -> Result<Action, Duration> {
        if self.list_retry.is_over(now) {
            Ok(Action::List)
        } else {
            Err(self.list_retry.until)
        }
    }

    fn case<'a>(
        &'a self,
        now: Duration,
        sick: &'a Sick<'a>,
        options: &'a EvictionOptions,
    ) -> Case<'a> {
        Case {
            now,
            sick,
            options,
            ledger: &self.ledger,
            node: &self.node,
            pace: &self.pace,
            listed: self.listed,
        }
    }

    fn act(&mut self, action: Action) -> Step {
        self.turn += 1;
        Step {
            action: Some(action),
            wake: None,
        }
    }

    /// What a look says of an eviction whose outcome was not known.
    fn resolve(&mut self, now: Duration, name: &PodName, pod: Option<&PodFacts>) -> Option<Said> {
        let mut open = self.ledger.open();
        let uid = open.find_map(|(uid, entry)| (entry.name == *name).then(|| uid.to_owned()));
        drop(open);
        let uid = uid?;
        let same = pod.filter(|pod| pod.uid == uid);
        let what = match same {
            Some(pod) if !pod.terminating => return None,
            Some(_) => What::Evicted,
            None => What::Gone,
        };
        self.ledger.evicted(&uid, now);
        let pod = name.clone();
        Some(Said { pod, uid, what })
    }

    /// Evictions without an outcome of pods that a list after a look has no more.
    fn withdraw(&mut self) {
        let pods = &self.pods;
        let listed = self.listed;
        let settled = |(uid, entry): (&str, &Entry)| {
            let pod = pods.get(&entry.name).filter(|pod| pod.held.is_empty())?;
            let looked = pod.looked.as_ref().filter(|looked| looked.turn < listed)?;
            let same = looked.pod.as_ref().is_some_and(|pod| pod.uid == uid);
            same.then(|| uid.to_owned())
        };
        let uids: Vec<String> = self.ledger.open().filter_map(settled).collect();
        for uid in uids {
            self.ledger.withdraw(&uid);
        }
    }

    fn went_well(&mut self, name: &PodName) {
        self.api.reset();
        if let Some(pod) = self.pods.get_mut(name) {
            pod.retry.reset();
            pod.tell_failures = 0;
        }
    }

    fn failed(&mut self, now: Duration, name: &PodName, failure: Unanswered) {
        let (after, jitter) = (failure.retry_after, self.rng.u8(..));
        if failure.concerns_all {
            self.api.failed(now, after, jitter);
        }
        if let Some(pod) = self.pods.get_mut(name) {
            pod.retry.failed(now, after, jitter);
        }
    }

    fn gives_up_telling(&mut self, now: Duration, name: &PodName, failure: Unanswered) -> bool {
        self.failed(now, name, failure);
        self.pods.get_mut(name).is_none_or(|pod| {
            pod.tell_failures += 1;
            let enough = pod.tell_failures >= TELL_TRIES;
            if enough {
                pod.tell_failures = 0;
            }
            enough
        })
    }

    /// What is there instead may be gone as well, again and again: not at once.
    fn look_again(&mut self, now: Duration, name: &PodName, failure: Unanswered) {
        self.failed(now, name, failure);
        if let Some(pod) = self.pods.get_mut(name) {
            pod.looked = None;
        }
    }

    fn hold(&mut self, now: Duration, name: &PodName, after: Option<Duration>, why: &str) {
        let least = self.pace.least_budget;
        let least = after.unwrap_or_default().max(least);
        let jitter = self.rng.u8(..);
        if let Some(pod) = self.pods.get_mut(name) {
            pod.budget.failed(now, Some(least), jitter);
            pod.refusal = Some(why.to_owned());
        }
    }
}

/// The pods that hold sick devices.
fn on_sick(sick: &Sick<'_>, holders: Vec<Holder>) -> BTreeMap<PodName, BTreeSet<DeviceName>> {
    let mut found = BTreeMap::<PodName, BTreeSet<DeviceName>>::new();
    for holder in holders {
        let name = PodName {
            namespace: holder.namespace,
            name: holder.pod,
        };
        let resource = holder.resource;
        let devices = holder.device_ids.into_iter().map(|id| DeviceName {
            resource: resource.clone(),
            id,
        });
        let devices: Vec<_> = devices
            .filter(|device| sick.devices.contains_key(device))
            .collect();
        let room = found.len() < MOST_PODS || found.contains_key(&name);
        if !devices.is_empty() && room {
            found.entry(name).or_default().extend(devices);
        }
    }
    found
}

fn earlier(a: Option<(Duration, PodName)>, b: (Duration, PodName)) -> Option<(Duration, PodName)> {
    match a {
        Some(a) if a <= b => Some(a),
        _ => Some(b),
    }
}

fn said(pod: &PodFacts, what: What) -> Said {
    Said {
        pod: PodName::of(pod),
        uid: pod.uid.clone(),
        what,
    }
}

fn wait(until: Duration) -> Step {
    Step {
        action: None,
        wake: (until < Duration::MAX).then_some(until),
    }
}

#[cfg(test)]
mod tests;
