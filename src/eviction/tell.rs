//! What the evictor says, and to whom.

use std::collections::BTreeMap;
use std::time::SystemTime;

use tracing::{debug, info};

use super::metrics::EvictionMetrics;
use super::plan::{Said, Telling, What};
use crate::cluster::api::Told;

/// The last complaint of each kind: what fails again in the same way is no news.
#[derive(Debug, Default)]
pub(super) struct Complaints(BTreeMap<&'static str, String>);

impl Complaints {
    pub(super) fn is_news(&mut self, kind: &'static str, complaint: &str) -> bool {
        let before = self.0.insert(kind, complaint.to_owned());
        before.as_deref() != Some(complaint)
    }
}

/// The event. The incident and the notice are its name, so that whoever writes it
/// again, not knowing whether it was written, writes the same.
pub(super) fn told(telling: &Telling) -> Told {
    let Telling {
        incident, notice, ..
    } = telling;
    Told {
        reason: notice.reason(),
        message: telling.message.clone(),
        warning: true,
        action: notice.action(),
        incident: format!("{} {:?} {notice:?}", incident.device, incident.since),
        at: SystemTime::now(),
    }
}

/// Counts it, and logs it.
pub(super) fn account(said: Option<Said>, metrics: &EvictionMetrics) {
    let Some(Said { pod, uid, what }) = said else {
        return;
    };
    match what {
        What::Told(notice, message) => {
            if let Some(outcome) = notice.outcome() {
                metrics.count(outcome);
            }
            let reason = notice.reason();
            info!(%pod, uid, reason, message, "a pod holds a sick GPU");
        }
        What::Evicted => {
            metrics.count("evicted");
            info!(%pod, uid, "pod evicted");
        }
        What::Gone => {
            metrics.count("gone");
            info!(%pod, uid, "pod is gone");
        }
        What::Held(why) => {
            metrics.count("held_by_budget");
            debug!(%pod, uid, why, "eviction held by a disruption budget");
        }
    }
}
