//! What the monitor makes of the XIDs that were heard.

use tokio::time::Instant;
use tracing::warn;

use super::Monitor;
use super::xids::{Counts, Heard, Kind, Log, Place, Receiver, Sender, Tally, mailbox};
use crate::gpu::GpuUuid;
use crate::health::kept::since_boot;
use crate::health::reducer::Signal;
use crate::health::xid;
use crate::metrics::XidLabels;

/// The driver's recommended recovery action has changed: ask for it.
const RECOVERY_ACTION_CHANGED: u64 = 154;

/// The XIDs that come in, and what is known of those that came.
pub(super) struct Xids {
    receiver: Receiver,
    /// Of the kernel log, about GPUs that no enumeration has found yet.
    unplaced: Heard,
    counts: Counts,
    log: Log,
    /// The last record of the kernel log that was dealt with.
    seen: Option<u64>,
}

impl Xids {
    pub(super) fn new(seen: Option<u64>) -> (Sender, Self) {
        let (sender, receiver) = mailbox();
        let xids = Self {
            receiver,
            unplaced: Heard::new(),
            counts: Counts::default(),
            log: Log::default(),
            seen,
        };
        (sender, xids)
    }

    /// See [`Receiver::next`].
    pub(super) async fn next(&mut self) -> Heard {
        self.receiver.next().await
    }

    pub(super) fn seen(&self) -> Option<u64> {
        self.seen
    }
}

/// Which GPUs are to be asked how they are.
pub(super) enum Ask {
    All,
    These(Vec<GpuUuid>),
}

/// None.
impl Default for Ask {
    fn default() -> Self {
        Self::These(Vec::new())
    }
}

impl Ask {
    fn add(&mut self, gpu: Option<GpuUuid>) {
        match (self, gpu) {
            (Self::These(gpus), Some(gpu)) => gpus.push(gpu),
            (this, None) => *this = Self::All,
            (Self::All, Some(_)) => {}
        }
    }
}

impl Monitor {
    /// Takes in what was heard, and publishes what it changes: most change
    /// nothing, and making a snapshot is work.
    pub(super) fn heard(&mut self, heard: Heard) -> Ask {
        let (mut ask, mut news) = (Ask::default(), false);
        for (kind, tally) in heard {
            let gpu = match &kind.gpu {
                Place::Event(gpu) => gpu.clone(),
                Place::KernelLog(pci) => match self.inventory.at(*pci) {
                    Some(gpu) => Some(gpu),
                    None => {
                        self.xids.unplaced.entry(kind).or_default().add(tally);
                        continue;
                    }
                },
            };
            news |= self.happened(gpu, &kind, tally, &mut ask);
        }
        if news {
            self.publish();
        } else {
            self.keep_health();
        }
        ask
    }

    /// Lays at the doors of the GPUs that were just enumerated what the kernel log
    /// told before. What is still nobody's is counted as such.
    pub(super) fn place_xids(&mut self) -> Ask {
        let unplaced = std::mem::take(&mut self.xids.unplaced);
        let ask = self.heard(unplaced);
        for (kind, tally) in std::mem::take(&mut self.xids.unplaced) {
            self.happened(None, &kind, tally, &mut Ask::default());
        }
        ask
    }

    /// Whether any health is another now.
    fn happened(&mut self, gpu: Option<GpuUuid>, kind: &Kind, tally: Tally, ask: &mut Ask) -> bool {
        self.xids.seen = self.xids.seen.max(tally.seq);
        self.tell_xid(gpu.as_ref(), kind, tally);
        let acts = self.options.borrow().policy.class(kind.xid).acts();
        if acts || kind.xid == RECOVERY_ACTION_CHANGED {
            ask.add(gpu.clone());
        }
        let signal = match (kind.xid, kind.action) {
            (RECOVERY_ACTION_CHANGED, Some(action)) => Signal::Announced {
                action,
                at: tally.at,
            },
            (xid, _) => Signal::Xid {
                xid,
                instance: kind.instance,
                at: tally.at,
            },
        };
        gpu.is_some_and(|gpu| self.inventory.signal(since_boot(), &gpu, &signal))
    }

    fn tell_xid(&mut self, gpu: Option<&GpuUuid>, kind: &Kind, tally: Tally) {
        let uuid = gpu.map_or("unknown", GpuUuid::as_str);
        let grown = self.xids.counts.add(gpu, kind, tally.count);
        if grown == 0 {
            return;
        }
        let uuid = uuid.to_owned();
        let labels = XidLabels {
            uuid: uuid.clone(),
            xid: kind.xid,
        };
        self.metrics.xids.get_or_create(&labels).inc_by(grown);
        let Some(count) = self.xids.log.due(gpu, kind, tally, since_boot()) else {
            return;
        };
        let (xid, instance) = (kind.xid, kind.instance);
        let (class, what) = (self.options.borrow().policy.class(xid), xid::describe(xid));
        self.untold.push(move || {
            warn!(uuid, xid, %class, instance, count, what, "XID event");
        });
    }

    /// Has kept what outlives the process.
    pub(super) fn keep_health(&mut self) {
        let (inventory, seen) = (&self.inventory, self.xids.seen);
        self.kept.keep(|file| {
            file.kernel_log_seq = seen;
            file.gpus = inventory.keep();
        });
    }

    /// When to ask, lest a GPU that is well again waits for the next poll.
    pub(super) fn next_recovery(&self) -> Option<Instant> {
        let now = since_boot();
        let until = self.inventory.next_recovery(now)?;
        Some(Instant::now() + until.saturating_sub(now))
    }

    /// Looks whether the kernel has a PCI device for each GPU. The next publishing
    /// tells.
    pub(super) fn look_at_bus(&mut self) {
        let sysfs = &self.config.paths.sysfs;
        self.inventory.on_bus(since_boot(), |gpu| {
            gpu.sysfs_device(sysfs).is_some_and(|path| path.exists())
        });
    }
}
