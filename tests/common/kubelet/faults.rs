//! What can go wrong with a registration, on demand.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::time::Duration;

use tokio::sync::watch;

use super::lock;

/// One way in which a Register call goes wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RegisterFault {
    /// Answers this error, with code Unknown, before dialling back.
    Error(String),
    /// Never answers: until the faults are cleared, the caller gives up or
    /// the kubelet stops.
    Hang,
    /// Dials back only after this time.
    Slow(Duration),
    /// Succeeds, but ListAndWatch is never asked for.
    NoStream,
    /// Succeeds, and ListAndWatch is cancelled once the plugin has taken it.
    CancelStream,
}

/// How often a fault strikes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Times {
    /// At least once.
    N(usize),
    UntilCleared,
}

/// Faults in the order in which they are used up.
#[derive(Default)]
pub(super) struct Faults {
    queue: Mutex<VecDeque<(RegisterFault, Times)>>,
    cleared: watch::Sender<()>,
}

impl Faults {
    pub(super) fn push(&self, fault: RegisterFault, times: Times) {
        lock(&self.queue).push_back((fault, times));
    }

    pub(super) fn clear(&self) {
        lock(&self.queue).clear();
        self.cleared.send_replace(());
    }

    pub(super) async fn wait_until_cleared(&self) {
        // The sender lives in self, so that waiting cannot fail.
        let _closed = self.cleared.subscribe().changed().await;
    }

    /// The fault that the next Register call meets.
    pub(super) fn take(&self) -> Option<RegisterFault> {
        let mut queue = lock(&self.queue);
        let (fault, times) = queue.pop_front()?;
        match times {
            Times::UntilCleared => queue.push_front((fault.clone(), times)),
            Times::N(left) if left > 1 => queue.push_front((fault.clone(), Times::N(left - 1))),
            Times::N(_) => {}
        }
        Some(fault)
    }
}
