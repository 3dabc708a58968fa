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

mod answers;
mod pace;
mod tracked;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::ledger::Ledger;
use super::names::{Incident, PodName};
use super::notice::{Consequence, Notice};
use super::retry::Retry;
use super::sick::Sick;
use crate::cluster::api::PodFacts;
use crate::config::{EvictionMode, EvictionOptions};
use crate::health::report::HealthReport;

pub use self::answers::{Said, Unanswered, What};
pub use self::pace::Pace;
pub use self::tracked::Telling;

use self::tracked::{Case, Need, Tracked};

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

/// What there is to do, and until when there is not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// What to do at once.
    pub action: Option<Action>,
    /// Without an action: when to ask again, in time since boot, if the report
    /// and the options stay as they are. None is never.
    pub wake: Option<Duration>,
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
            return Ok(Action::Tell(*telling));
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
        let would = |pod: &Tracked| {
            let (notice, consequence) = (Notice::WouldEvict, Consequence::WouldGo);
            pod.telling(&case, pod.pod()?, notice, &consequence)
        };
        let Some(telling) = self.pods.get(name).and_then(would) else {
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
}

fn earlier(a: Option<(Duration, PodName)>, b: (Duration, PodName)) -> Option<(Duration, PodName)> {
    match a {
        Some(a) if a <= b => Some(a),
        _ => Some(b),
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
