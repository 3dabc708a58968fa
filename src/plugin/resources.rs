//! An actor for each resource, from the moment that there is one.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::actor::Actor;
use crate::metrics::Metrics;
use crate::monitor::Resources;
use crate::readiness::Readiness;

/// What every actor is made with.
pub struct Actors {
    /// The kubelet's folder.
    pub folder: PathBuf,
    /// Says when to look at it.
    pub hints: watch::Receiver<u64>,
    /// Woken where the node is not what a snapshot says.
    pub rescan: Arc<Notify>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// What is missing.
    pub readiness: Readiness,
}

impl Actors {
    /// Keeps all `resources` registered until `shutdown`. One that is there stays.
    /// Returns sooner only where an actor ends by itself, which none does.
    pub async fn run(self, mut resources: watch::Receiver<Resources>, shutdown: CancellationToken) {
        let (mut started, mut actors) = (BTreeSet::new(), JoinSet::new());
        loop {
            let now = resources.borrow_and_update().clone();
            for (resource, devices) in now {
                if started.contains(&resource) {
                    continue;
                }
                let actor = Actor::new(
                    &self.folder,
                    &resource,
                    devices,
                    self.hints.clone(),
                    self.rescan.clone(),
                    self.metrics.clone(),
                    self.readiness.clone(),
                );
                actors.spawn(actor.run(shutdown.clone()));
                started.insert(resource);
            }
            tokio::select! {
                Some(_) = actors.join_next() => break,
                Ok(()) = resources.changed() => {}
                () = shutdown.cancelled() => break,
            }
        }
        // Each ends its streams and removes its socket.
        while shutdown.is_cancelled() && actors.join_next().await.is_some() {}
    }
}
