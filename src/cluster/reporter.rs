//! The task that tells the API server of this node's health: the condition, a
//! taint where it is wanted, events.
//!
//! It reads the last report and holds nobody up. When all is well it makes one
//! request in its life, the condition's first write. There is no heartbeat: with
//! ten thousand nodes one a minute would be 170 writes a second that say nothing
//! new. Whether the node lives, its lease says; whether this process does, the
//! metrics say.

use std::collections::BTreeMap;
use std::future::pending;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tracing::{debug, info, warn};

use super::api::{ApiServer, NodeFacts};
use super::error::ClusterError;
pub use super::ledger::Pace;
use super::ledger::{Action, Ledger, Next, Part, Seen};
pub use super::memory::FILE as STATE_FILE;
use super::memory::{Memory, Since};
use crate::health::report::HealthReport;

/// How the API server is told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReporterOptions {
    /// Whether the node gets a taint while every GPU of it is sick. One that is
    /// there is removed in any case once it should not be.
    pub taint: bool,
    /// Where [`STATE_FILE`] keeps since when the condition's status holds;
    /// without it that begins anew with the process.
    pub state_dir: Option<PathBuf>,
    /// How fast.
    pub pace: Pace,
}

/// The task that tells the API server of this node's health.
#[derive(Debug)]
pub struct Reporter {
    api: ApiServer,
    reports: watch::Receiver<Arc<HealthReport>>,
    ledger: Ledger,
    memory: Memory,
    started: Instant,
    /// What is said of a failure, so that it is said once.
    errors: BTreeMap<Part, String>,
}

impl Reporter {
    /// Not started yet.
    #[must_use]
    pub fn new(
        api: ApiServer,
        reports: watch::Receiver<Arc<HealthReport>>,
        options: &ReporterOptions,
    ) -> Self {
        let memory = Memory::new(options.state_dir.as_deref());
        Self {
            api,
            reports,
            ledger: Ledger::new(options.pace, options.taint, memory.recall()),
            memory,
            started: Instant::now(),
            errors: BTreeMap::new(),
        }
    }

    /// Tells for ever; ends where no report can come any more.
    pub async fn run(mut self) {
        loop {
            let report = self.reports.borrow_and_update().clone();
            let next = self.ledger.next(&Seen {
                now: self.started.elapsed(),
                wall: SystemTime::now(),
                report: &report,
                jitter: fastrand::u8(..),
            });
            match next {
                Next::Act(action) => self.act(action).await,
                Next::Wait(until) => tokio::select! {
                    changed = self.reports.changed() => if changed.is_err() { return },
                    () = sleep(self.started, until) => {}
                },
            }
        }
    }

    async fn act(&mut self, action: Action) {
        let result = self.request(&action).await;
        self.log(&action, result.as_ref().err());
        if let (Action::Write(_, since), Ok(_)) = (&action, &result) {
            self.remember(since);
        }
        let (now, jitter) = (self.started.elapsed(), fastrand::u8(..));
        match result {
            Ok(node) => self.ledger.settle(action, Ok(node), now, jitter),
            Err(error) => self.ledger.settle(action, Err(&error), now, jitter),
        }
    }

    async fn request(&self, action: &Action) -> Result<Option<NodeFacts>, ClusterError> {
        match action {
            Action::Write(condition, since) => {
                let node = self.api.set_condition(condition, since.at).await?;
                Ok(Some(node))
            }
            Action::Taint(wanted) => self.api.set_taint(*wanted).await.map(|()| None),
            Action::Tell(news) => self.api.tell_node(&news.told).await.map(|()| None),
        }
    }

    fn remember(&self, since: &Since) {
        if self.memory.recall().as_ref() == Some(since) {
            return;
        }
        if let Err(error) = self.memory.keep(since) {
            warn!(%error, "cannot keep since when the node condition holds");
        }
    }

    /// A line a change: what was told, or why it could not be.
    fn log(&mut self, action: &Action, error: Option<&ClusterError>) {
        let node = self.api.node_name();
        if let Some(error) = error {
            let text = error.to_string();
            if self.errors.get(&action.part()) != Some(&text) {
                warn!(
                    node,
                    error = text,
                    "cannot tell the API server{}",
                    what(action)
                );
                self.errors.insert(action.part(), text);
            }
            return;
        }
        self.errors.remove(&action.part());
        match action {
            Action::Write(condition, _) => {
                let (status, reason) = (condition.status.name(), condition.reason);
                info!(node, status, reason, "node condition written");
            }
            Action::Taint(true) => info!(node, "node tainted: none of its GPUs is healthy"),
            Action::Taint(false) => info!(node, "taint removed from the node"),
            Action::Tell(news) => debug!(node, reason = news.told.reason, "node event"),
        }
    }
}

async fn sleep(started: Instant, until: Option<Duration>) {
    match until {
        Some(until) => sleep_until(started + until).await,
        None => pending().await,
    }
}

/// What could not be told, for the log.
fn what(action: &Action) -> &'static str {
    match action.part() {
        Part::Condition => " of the node's condition",
        Part::Taint => " of the node's taint",
        Part::Events => " of a node event",
    }
}
