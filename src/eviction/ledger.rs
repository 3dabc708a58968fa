//! What was said to pods and asked of the API server, so that a restart at any
//! point neither evicts twice nor forgets.
//!
//! An eviction is written down before it is asked for. One without an outcome
//! may have happened: then the API server is asked whether that UID is still
//! there, and only if it is, the eviction is asked for again. That is safe, as an
//! eviction names the UID: it cannot fall on the pod's successor.

pub mod file;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::names::Incident;
use super::names::PodName;
use super::notice::Notice;
use crate::cluster::api::PodFacts;

/// So many pods are kept at most: more than a node runs.
const MOST_PODS: usize = 1024;

/// So many evictions a minute are kept in mind at most, and no more are made.
const MOST_A_MINUTE: u32 = 1000;

const MINUTE: Duration = Duration::from_secs(60);

/// The record of one boot. Times are since boot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Ledger {
    /// When evictions were asked for in the last minute, in order.
    recent: Vec<Duration>,
    /// By UID.
    pods: BTreeMap<String, Entry>,
}

/// What was done about one pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    /// Which pod, as the kubelet names it.
    pub name: PodName,
    /// What it was done for.
    pub incident: Incident,
    /// What the pod was told of the incident.
    pub told: BTreeSet<Notice>,
    /// When its eviction was last asked for, while no outcome is known.
    pub asked: Option<Duration>,
    /// When its eviction was accepted. Nothing takes that back.
    pub evicted: Option<Duration>,
}

impl Ledger {
    /// Takes up what another process left behind: an eviction without an outcome
    /// may have happened as late as now.
    pub fn resume(&mut self, now: Duration) {
        self.recent.retain(|at| *at <= now);
        if self.pods.values().any(|entry| entry.asked.is_some())
            && let Some(last) = self.recent.last_mut()
        {
            *last = now;
        }
    }

    /// What is known of the pod.
    #[must_use]
    pub fn get(&self, uid: &str) -> Option<&Entry> {
        self.pods.get(uid)
    }

    /// Whether the pod's eviction was accepted.
    #[must_use]
    pub fn is_evicted(&self, uid: &str) -> bool {
        self.get(uid).is_some_and(|entry| entry.evicted.is_some())
    }

    /// Whether the pod was told this of this incident.
    #[must_use]
    pub fn has_told(&self, uid: &str, incident: &Incident, notice: Notice) -> bool {
        self.get(uid)
            .is_some_and(|entry| entry.incident == *incident && entry.told.contains(&notice))
    }

    /// The pod was told.
    pub fn tell(&mut self, pod: &PodFacts, incident: &Incident, notice: Notice) {
        self.entry(pod, incident).told.insert(notice);
    }

    /// The pod's eviction is about to be asked for.
    pub fn intend(&mut self, pod: &PodFacts, incident: &Incident, now: Duration) {
        self.entry(pod, incident).asked = Some(now);
        self.recent
            .retain(|at| now.saturating_sub(*at) < MINUTE && *at <= now);
        self.recent.push(now);
    }

    /// The eviction that was last asked for was accepted.
    pub fn accepted(&mut self, uid: &str, now: Duration) {
        self.answered(uid, now);
        self.evicted(uid, now);
    }

    /// The eviction that was last asked for did not happen.
    pub fn refused(&mut self, uid: &str) {
        self.recent.pop();
        self.withdraw(uid);
    }

    /// Nobody knows whether the eviction that was last asked for happened; if it
    /// did, then by now.
    pub fn answered(&mut self, uid: &str, now: Duration) {
        if self.pods.contains_key(uid)
            && let Some(last) = self.recent.last_mut()
        {
            *last = now;
        }
    }

    /// An eviction that was asked for earlier has happened.
    pub fn evicted(&mut self, uid: &str, now: Duration) {
        if let Some(entry) = self.pods.get_mut(uid) {
            entry.asked = None;
            entry.evicted = Some(now);
        }
    }

    /// An eviction that was asked for earlier has not happened.
    pub fn withdraw(&mut self, uid: &str) {
        if let Some(entry) = self.pods.get_mut(uid) {
            entry.asked = None;
        }
    }

    /// All pods: UID and entry.
    pub fn pods(&self) -> impl Iterator<Item = (&str, &Entry)> {
        self.pods.iter().map(|(uid, entry)| (uid.as_str(), entry))
    }

    /// Those whose eviction was asked for and has no outcome.
    pub fn open(&self) -> impl Iterator<Item = (&str, &Entry)> {
        self.pods().filter(|(_, entry)| entry.asked.is_some())
    }

    /// The UID of the pod of this name whose eviction was asked for and has no
    /// outcome.
    #[must_use]
    pub fn open_of(&self, name: &PodName) -> Option<&str> {
        let mut open = self.open();
        open.find_map(|(uid, entry)| (entry.name == *name).then_some(uid))
    }

    /// When the next eviction may be asked for: at most `per_minute` in any minute.
    #[must_use]
    pub fn next_allowed(&self, now: Duration, per_minute: u32) -> Duration {
        let most = per_minute.min(MOST_A_MINUTE) as usize;
        let within = |at: &&Duration| now.saturating_sub(**at) < MINUTE;
        let recent: Vec<_> = self.recent.iter().filter(within).collect();
        match recent.len().checked_sub(most) {
            None => now,
            Some(_) if most == 0 => Duration::MAX,
            Some(over) => recent[over].saturating_add(MINUTE),
        }
    }

    /// Forgets the pods that are not to be kept.
    pub fn retain(&mut self, keep: impl Fn(&Entry) -> bool) {
        self.pods.retain(|_, entry| keep(entry));
    }

    /// Forgets all pods.
    pub fn clear(&mut self) {
        self.pods.clear();
    }

    fn entry(&mut self, pod: &PodFacts, incident: &Incident) -> &mut Entry {
        if !self.pods.contains_key(&pod.uid) {
            self.make_room();
        }
        let entry = self.pods.entry(pod.uid.clone()).or_insert_with(|| Entry {
            name: PodName::of(pod),
            incident: incident.clone(),
            told: BTreeSet::new(),
            asked: None,
            evicted: None,
        });
        if entry.incident != *incident {
            entry.incident = incident.clone();
            entry.told.clear();
        }
        entry
    }

    fn make_room(&mut self) {
        if self.pods.len() < MOST_PODS {
            return;
        }
        let least = self.pods.iter().min_by_key(|(_, entry)| {
            let open = entry.asked.is_some();
            (open, entry.evicted.is_none(), entry.incident.since)
        });
        if let Some(uid) = least.map(|(uid, _)| uid.clone()) {
            self.pods.remove(&uid);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::fixture::{self, incident};
    use super::*;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn pod(uid: &str) -> PodFacts {
        fixture::pod(uid, uid)
    }

    #[test]
    fn another_incident_has_told_nothing_and_an_eviction_stays_one() {
        let mut ledger = Ledger::default();
        let (first, second) = (incident(1, 0), incident(2, 0));
        ledger.tell(&pod("a"), &first, Notice::Planned);
        ledger.intend(&pod("a"), &first, seconds(5));
        ledger.accepted("a", seconds(6));
        assert!(ledger.has_told("a", &first, Notice::Planned));
        assert!(!ledger.has_told("a", &second, Notice::Planned));
        ledger.tell(&pod("a"), &second, Notice::Static);
        assert!(!ledger.has_told("a", &second, Notice::Planned));
        assert!(!ledger.has_told("a", &first, Notice::Planned));
        assert!(ledger.is_evicted("a"));
        assert_eq!(ledger.open().count(), 0);
    }

    #[test]
    fn it_is_bounded_and_what_is_open_goes_last() {
        let mut ledger = Ledger::default();
        ledger.intend(&pod("open"), &incident(0, 0), seconds(0));
        for number in 0..2 * MOST_PODS {
            let uid = format!("{number:05}");
            ledger.tell(&pod(&uid), &incident(1, 0), Notice::Planned);
        }
        assert_eq!(ledger.pods.len(), MOST_PODS);
        assert!(ledger.get("open").is_some());
    }

    #[test]
    fn an_eviction_that_was_refused_counts_for_nothing() {
        let mut ledger = Ledger::default();
        for uid in ["a", "b"] {
            ledger.intend(&pod(uid), &incident(0, 0), seconds(1));
            assert!(ledger.next_allowed(seconds(1), 1) > seconds(1));
            ledger.refused(uid);
            assert_eq!(ledger.next_allowed(seconds(1), 1), seconds(1));
        }
    }

    #[test]
    fn what_had_no_outcome_at_a_restart_may_have_happened_just_now() {
        let mut ledger = Ledger::default();
        ledger.intend(&pod("a"), &incident(0, 0), seconds(1));
        ledger.resume(seconds(50));
        assert_eq!(ledger.next_allowed(seconds(70), 1), seconds(110));
        ledger.evicted("a", seconds(70));
        ledger.resume(seconds(80));
        assert_eq!(ledger.next_allowed(seconds(80), 1), seconds(110));
    }

    proptest! {
        #[test]
        fn no_minute_has_more_evictions_than_it_may(
            per_minute in 0_u32..5,
            pauses in proptest::collection::vec(0_u64..40, 0..60),
        ) {
            let mut ledger = Ledger::default();
            let mut now = Duration::ZERO;
            let mut made = Vec::new();
            for pause in pauses {
                now += seconds(pause);
                if ledger.next_allowed(now, per_minute) <= now {
                    ledger.intend(&pod("a"), &incident(0, 0), now);
                    made.push(now);
                }
            }
            for first in &made {
                let minute = made.iter().filter(|at| *at >= first && **at < *first + MINUTE);
                prop_assert!(minute.count() <= per_minute as usize);
            }
        }
    }
}
