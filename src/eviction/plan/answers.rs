//! What comes of the plan's actions.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::Plan;
use super::tracked::{Telling, Tracked};
use crate::cluster::api::{Eviction, PodFacts};
use crate::eviction::ledger::Entry;
use crate::eviction::names::{DeviceName, PodName};
use crate::eviction::notice::Notice;
use crate::eviction::sick::Sick;
use crate::health::report::HealthReport;
use crate::kubelet::podresources::Holder;

/// So many pods are looked after at a time: more than a node runs.
const MOST_PODS: usize = 1024;

/// An event that failed so often in a row, over a minute, holds up nothing any
/// more.
pub(super) const TELL_TRIES: u32 = 6;

/// A request that failed, or may have: it is tried again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unanswered {
    /// Any other request to the same place would have failed as well.
    pub concerns_all: bool,
    /// How long the other side wants to be left alone.
    pub retry_after: Option<Duration>,
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

impl Plan {
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
        for name in self.ledger.open().map(|(_, entry)| entry.name.clone()) {
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
                self.goes(&name);
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

    /// What a look says of an eviction whose outcome was not known.
    fn resolve(&mut self, now: Duration, name: &PodName, pod: Option<&PodFacts>) -> Option<Said> {
        let uid = self.ledger.open_of(name)?.to_owned();
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

    /// What was last seen of a pod is not so any more: it is being deleted.
    fn goes(&mut self, name: &PodName) {
        let looked = self.pods.get_mut(name).and_then(|pod| pod.looked.as_mut());
        if let Some(pod) = looked.and_then(|looked| looked.pod.as_mut()) {
            pod.terminating = true;
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

fn said(pod: &PodFacts, what: What) -> Said {
    Said {
        pod: PodName::of(pod),
        uid: pod.uid.clone(),
        what,
    }
}
