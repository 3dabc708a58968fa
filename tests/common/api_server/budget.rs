//! Disruption budgets, as far as an eviction asks them.

use super::answer::Refusal;

/// A `PodDisruptionBudget` and what its controller last found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Budget {
    pub namespace: String,
    /// The pods with this value of the label `app`.
    pub app: String,
    /// How many may be disrupted now.
    pub allowed: u32,
    /// How many are healthy, and how many have to be: for the words of a refusal.
    pub healthy: u32,
    pub desired: u32,
    /// Whether its controller has looked at it.
    pub observed: bool,
}

impl Budget {
    /// One that allows so many disruptions now.
    pub fn of(namespace: &str, app: &str, allowed: u32) -> Self {
        Self {
            namespace: namespace.into(),
            app: app.into(),
            allowed,
            healthy: 1 + allowed,
            desired: 1,
            observed: true,
        }
    }

    /// Takes one disruption (eviction.go, `checkAndDecrement`).
    pub(super) fn take(&mut self, name: &str) -> Result<(), Refusal> {
        if !self.observed {
            let why =
                format!("The disruption budget {name} is still being processed by the server.");
            return Err(Refusal::budget(&why, Some(10)));
        }
        if self.allowed == 0 {
            let (desired, healthy) = (self.desired, self.healthy);
            let why = format!(
                "The disruption budget {name} needs {desired} healthy pods and has {healthy} currently"
            );
            return Err(Refusal::budget(&why, None));
        }
        self.allowed -= 1;
        Ok(())
    }

    /// A pod of its own is ready again.
    pub(super) fn give(&mut self) {
        self.allowed += 1;
    }
}
