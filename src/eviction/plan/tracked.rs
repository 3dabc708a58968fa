//! One pod on a sick GPU: what is known of it, and what it needs next.

use std::time::Duration;

use super::pace::Pace;
use crate::cluster::api::PodFacts;
use crate::config::{EvictionMode, EvictionOptions};
use crate::eviction::ledger::Ledger;
use crate::eviction::names::{DeviceName, Incident};
use crate::eviction::notice::{Consequence, Notice, message};
use crate::eviction::retry::Retry;
use crate::eviction::rules::{Spared, Verdict, judge};
use crate::eviction::sick::Sick;

/// A look at the API server.
#[derive(Clone, Debug)]
pub(super) struct Looked {
    pub(super) turn: u64,
    pub(super) at: Duration,
    /// None where there is no such pod.
    pub(super) pod: Option<PodFacts>,
}

/// A pod's name, and who goes by it.
#[derive(Clone, Debug)]
pub(super) struct Tracked {
    /// Sick devices, sorted, by the last list; empty where only the outcome of an
    /// eviction is wanted.
    pub(super) held: Vec<DeviceName>,
    pub(super) looked: Option<Looked>,
    /// The UID that a list after a look is known to be about.
    verified: Option<String>,
    /// Of requests about it.
    pub(super) retry: Retry,
    /// Of evictions that a budget refuses.
    pub(super) budget: Retry,
    /// The last refusal's words.
    pub(super) refusal: Option<String>,
    pub(super) tell_failures: u32,
    /// Its place, from 0 to 255, in the time over which evictions are spread.
    spread: u8,
}

/// What all pods have in common at one moment.
pub(super) struct Case<'a> {
    pub(super) now: Duration,
    pub(super) sick: &'a Sick<'a>,
    pub(super) options: &'a EvictionOptions,
    pub(super) ledger: &'a Ledger,
    pub(super) node: &'a str,
    pub(super) pace: &'a Pace,
    /// The last list's turn.
    pub(super) listed: u64,
}

/// What a pod needs next.
pub(super) enum Need {
    /// Nothing, until the report or the options change.
    Rest,
    /// Nothing before then.
    Wait(Duration),
    Look,
    /// A look that can wait for everything else.
    LookAgain,
    List,
    Tell(Box<Telling>),
    /// To be evicted, or to be told that it would be. It was due then.
    Evict(Duration),
}

/// An event for a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Telling {
    /// Which pod.
    pub pod: PodFacts,
    /// Of what.
    pub incident: Incident,
    /// What it is told.
    pub notice: Notice,
    /// The same in words.
    pub message: String,
}

impl Tracked {
    pub(super) fn new(pace: &Pace, spread: u8) -> Self {
        Self {
            held: Vec::new(),
            looked: None,
            verified: None,
            retry: Retry::new(pace.pod),
            budget: Retry::new(pace.budget),
            refusal: None,
            tell_failures: 0,
            spread,
        }
    }

    /// Takes in a look. Another UID is another pod.
    pub(super) fn look(&mut self, turn: u64, at: Duration, pod: Option<PodFacts>) {
        let uid = |pod: &Option<PodFacts>| pod.as_ref().map(|pod| pod.uid.clone());
        let before = self.looked.take().and_then(|looked| uid(&looked.pod));
        if before.is_some() && before != uid(&pod) {
            self.verified = None;
            self.retry.reset();
            self.budget.reset();
            self.refusal = None;
            self.tell_failures = 0;
        }
        self.looked = Some(Looked { turn, at, pod });
    }

    /// The list of this turn has it.
    pub(super) fn verify(&mut self, listed: u64) {
        if let Some(Looked { turn, pod, .. }) = &self.looked
            && *turn < listed
        {
            let pod = pod.as_ref().filter(|pod| pod.started.is_some());
            self.verified = pod.map(|pod| pod.uid.clone());
        }
    }

    /// The pod, where it was found.
    pub(super) fn pod(&self) -> Option<&PodFacts> {
        self.looked.as_ref()?.pod.as_ref()
    }

    /// What it needs next.
    pub(super) fn need(&self, case: &Case<'_>) -> Need {
        if !self.retry.is_over(case.now) {
            return Need::Wait(self.retry.until);
        }
        let acting = case.sick.first_acting(&self.held);
        if acting.is_none() && !self.held.is_empty() {
            return Need::Rest;
        }
        let Some(looked) = &self.looked else {
            return Need::Look;
        };
        let Some(acting) = acting else {
            return self.outcome(case, looked);
        };
        let pod = looked.pod.as_ref().filter(|pod| concerns(pod, case.node));
        match pod {
            Some(pod) if !case.ledger.is_evicted(&pod.uid) => {
                self.need_of(case, looked, pod, &acting)
            }
            _ => again(case, looked, case.pace.recheck),
        }
    }

    /// It holds nothing any more; whether that is our doing shows in a look.
    fn outcome(&self, case: &Case<'_>, looked: &Looked) -> Need {
        if case.listed > looked.turn {
            Need::Rest
        } else {
            Need::List
        }
    }

    fn need_of(&self, case: &Case<'_>, looked: &Looked, pod: &PodFacts, acting: &Incident) -> Need {
        if pod.started.is_none() {
            return again(case, looked, case.pace.rescan);
        }
        if self.verified.as_ref() != Some(&pod.uid) {
            return Need::List;
        }
        match judge(pod, case.options.grace) {
            Verdict::Spare(spared) => self.spare(case, looked, pod, &spared),
            Verdict::Evict { grace } => {
                self.evict(case, looked, pod, self.due(case, acting, grace))
            }
        }
    }

    fn spare(&self, case: &Case<'_>, looked: &Looked, pod: &PodFacts, spared: &Spared) -> Need {
        let notice = Notice::of(spared);
        self.tell(case, pod, notice, &Consequence::Stays(spared))
            .unwrap_or_else(|| again(case, looked, case.pace.recheck))
    }

    fn evict(&self, case: &Case<'_>, looked: &Looked, pod: &PodFacts, due: Duration) -> Need {
        let evicts = case.options.mode == EvictionMode::Evict;
        let wait = due.saturating_sub(case.now);
        let told = |notice, consequence| self.tell(case, pod, notice, &consequence);
        let planned = evicts.then(|| told(Notice::Planned, Consequence::In(wait)));
        let refusal = self.refusal.as_deref().filter(|_| evicts);
        let held = refusal.map(|why| told(Notice::HeldByBudget, Consequence::WaitsForBudget(why)));
        if let Some(telling) = planned.flatten().or(held.flatten()) {
            return telling;
        }
        if case.now < due {
            return Need::Wait(due);
        }
        if case.sick.is_beyond(case.options.max_sick_percent) {
            return told(Notice::ShareExceeded, Consequence::WaitsForShare)
                .unwrap_or_else(|| again(case, looked, case.pace.recheck));
        }
        if !evicts && self.has_told(case, pod, Notice::WouldEvict) {
            return again(case, looked, case.pace.recheck);
        }
        if self.budget.is_over(case.now) {
            Need::Evict(due)
        } else {
            Need::Wait(self.budget.until)
        }
    }

    fn due(&self, case: &Case<'_>, acting: &Incident, grace: Duration) -> Duration {
        let over = (grace / 2).min(case.pace.longest_spread);
        let spread = over / 255 * u32::from(self.spread);
        acting.since.saturating_add(grace).saturating_add(spread)
    }

    /// What it would be told now, unless it was.
    fn tell(
        &self,
        case: &Case<'_>,
        pod: &PodFacts,
        notice: Notice,
        consequence: &Consequence<'_>,
    ) -> Option<Need> {
        if self.has_told(case, pod, notice) {
            return None;
        }
        let telling = self.telling(case, pod, notice, consequence);
        Some(Need::Tell(Box::new(telling?)))
    }

    fn has_told(&self, case: &Case<'_>, pod: &PodFacts, notice: Notice) -> bool {
        let incident = case.sick.first(&self.held);
        incident.is_some_and(|incident| case.ledger.has_told(&pod.uid, &incident, notice))
    }

    pub(super) fn telling(
        &self,
        case: &Case<'_>,
        pod: &PodFacts,
        notice: Notice,
        consequence: &Consequence<'_>,
    ) -> Option<Telling> {
        Some(Telling {
            pod: pod.clone(),
            incident: case.sick.first(&self.held)?,
            notice,
            message: message(case.sick, &self.held, consequence),
        })
    }
}

/// Whether the pod is one that runs here.
fn concerns(pod: &PodFacts, node: &str) -> bool {
    pod.node_name.as_deref() == Some(node) && !pod.finished && !pod.terminating
}

/// Another look, so long after the last.
fn again(case: &Case<'_>, looked: &Looked, pause: Duration) -> Need {
    let at = looked.at.saturating_add(pause);
    if case.now < at {
        Need::Wait(at)
    } else {
        Need::LookAgain
    }
}
