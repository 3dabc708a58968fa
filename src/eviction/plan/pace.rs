//! How fast things go.

use std::time::Duration;

use crate::eviction::retry::Pauses;

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
