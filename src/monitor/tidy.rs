//! Driver volumes that have had their day.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use crate::config::Config;
use crate::driver::supply::{Supplier, Supply};
use crate::driver::volume::collect::Collected;
use crate::driver::volume::uses::Uses;

/// Holds what was answered from until lately, and has collected what nothing
/// can name any more.
pub(super) struct Tidy {
    grace: Duration,
    /// An answer may be on its way that is neither in the kubelet's checkpoint
    /// nor mounted yet.
    retired: Vec<(Instant, Arc<Supply>)>,
    /// The same goes for an earlier process' answers.
    due: Instant,
    under_way: Option<JoinHandle<()>>,
}

impl Tidy {
    pub(super) fn new(grace: Duration) -> Self {
        Self {
            grace,
            retired: Vec::new(),
            due: Instant::now() + grace,
            under_way: None,
        }
    }

    /// When there will be something to do.
    pub(super) fn due(&self) -> Instant {
        let retired = self.retired.iter().map(|(since, _)| *since + self.grace);
        retired.fold(self.due, Instant::min)
    }

    /// Something else is answered from now on.
    pub(super) fn retire(&mut self, supply: Arc<Supply>) {
        // What is in place needs nobody to hold it, and a volume is held by one as
        // well as by many: a driver that comes and goes must not cost a file each time.
        if let Some(volume) = supply.volume() {
            self.release(volume);
            self.retired.push((Instant::now(), supply));
        }
    }

    /// Somebody else holds this volume.
    pub(super) fn release(&mut self, volume: &Path) {
        self.retired
            .retain(|(_, retired)| retired.volume() != Some(volume));
    }

    /// Collects, if it is time, on a thread of its own: it reads as many files
    /// as the node has containers.
    pub(super) fn tidy(&mut self, config: &Config, supplier: &Supplier) {
        let now = Instant::now();
        self.retired.retain(|(since, _)| now < *since + self.grace);
        let busy = self
            .under_way
            .as_ref()
            .is_some_and(|task| !task.is_finished());
        if now < self.due || busy {
            return;
        }
        self.due = now + self.grace;
        let (paths, volumes) = (config.paths.clone(), supplier.volumes().clone());
        let collect = move || report(volumes.collect(|| Uses::read(&paths)));
        self.under_way = Some(tokio::task::spawn_blocking(collect));
    }
}

fn report(collected: anyhow::Result<Collected>) {
    match collected {
        Ok(Collected { removed, kept }) => {
            for volume in removed {
                info!(volume = %volume.display(), "removed a driver volume that nothing uses");
            }
            for (volume, why) in kept {
                debug!(volume = %volume.display(), %why, "driver volume kept");
            }
        }
        Err(error) => {
            warn!(
                error = format!("{error:#}"),
                "driver volumes are kept: it is not known what uses them"
            );
        }
    }
}
