//! XIDs on their way from those who hear them, NVML's event wait and the kernel
//! log, to the monitor.
//!
//! A sick GPU can tell of thousands a second. What is on its way is therefore not
//! a queue but a tally: of each kind of XID how many there were, and the last.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use crate::gpu::GpuUuid;
use crate::health::kmsg::PciAddress;

/// The first of a storm is told at once, the others together so often: well
/// within the time in which the kubelet is to know.
const PAUSE: Duration = Duration::from_millis(10);

/// More kinds on their way at once than any node tells of are not XIDs of GPUs.
const MOST_KINDS: usize = 1024;

/// What tells one XID from another.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Kind {
    pub(super) gpu: Place,
    pub(super) xid: u64,
    /// The GPU instance (MIG) that it names.
    pub(super) instance: Option<u32>,
    /// Of XID 154 in the kernel log: the recovery action that it names.
    pub(super) action: Option<u32>,
}

/// How a witness names a GPU.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Place {
    /// NVML, which cannot always say.
    Event(Option<GpuUuid>),
    /// The kernel log.
    KernelLog(PciAddress),
}

/// How many there were.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    pub(super) count: u64,
    /// When the last was, in time since boot.
    pub(super) at: Duration,
    /// Its record of the kernel log.
    pub(super) seq: Option<u64>,
}

impl Tally {
    pub(super) fn once(at: Duration, seq: Option<u64>) -> Self {
        Self { count: 1, at, seq }
    }

    pub(super) fn add(&mut self, other: Self) {
        self.count = self.count.saturating_add(other.count);
        self.at = self.at.max(other.at);
        self.seq = self.seq.max(other.seq);
    }
}

/// All that is on its way.
pub(super) type Heard = BTreeMap<Kind, Tally>;

/// Puts into the mailbox. All clones are one.
#[derive(Clone, Debug, Default)]
pub(super) struct Sender(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    heard: Mutex<Heard>,
    filled: Notify,
}

impl Shared {
    /// A thread that panicked left no half-written entry behind.
    fn lock(&self) -> MutexGuard<'_, Heard> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sender {
    /// Never blocks for longer than it takes to count.
    pub(super) fn send(&self, kind: Kind, tally: Tally) {
        let mut heard = self.0.lock();
        if heard.len() < MOST_KINDS || heard.contains_key(&kind) {
            heard.entry(kind).or_default().add(tally);
        }
        drop(heard);
        self.0.filled.notify_one();
    }
}

/// Takes out of the mailbox.
#[derive(Debug)]
pub(super) struct Receiver {
    shared: Arc<Shared>,
    not_before: Instant,
}

impl Receiver {
    /// All that came since the last time, once there is any. Cancel safe.
    pub(super) async fn next(&mut self) -> Heard {
        loop {
            sleep_until(self.not_before).await;
            let heard = std::mem::take(&mut *self.shared.lock());
            if !heard.is_empty() {
                self.not_before = Instant::now() + PAUSE;
                return heard;
            }
            self.shared.filled.notified().await;
        }
    }
}

/// An empty mailbox.
pub(super) fn mailbox() -> (Sender, Receiver) {
    let sender = Sender::default();
    let receiver = Receiver {
        shared: sender.0.clone(),
        not_before: Instant::now(),
    };
    (sender, receiver)
}

/// How many XIDs there were, each told by one witness or both: as many as the one
/// told of that told of more.
#[derive(Debug, Default)]
pub(super) struct Counts(BTreeMap<(Option<GpuUuid>, u64), [u64; 2]>);

impl Counts {
    /// Takes in what a witness told. By how much the count grew.
    pub(super) fn add(&mut self, gpu: Option<&GpuUuid>, kind: &Kind, count: u64) -> u64 {
        let key = (gpu.cloned(), kind.xid);
        if self.0.len() >= MOST_KINDS && !self.0.contains_key(&key) {
            return 0;
        }
        let told = self.0.entry(key).or_default();
        let before = told.iter().copied().max();
        let witness = usize::from(matches!(kind.gpu, Place::KernelLog(_)));
        told[witness] = told[witness].saturating_add(count);
        let now = told.iter().copied().max();
        now.unwrap_or(0) - before.unwrap_or(0)
    }
}

/// Keeps a storm out of the log: of each XID of a GPU a line at once, then at most
/// one in each of these.
const LOG_PAUSE: Duration = Duration::from_secs(10);

/// What was not logged yet, by GPU, GPU instance and XID.
#[derive(Debug, Default)]
pub(super) struct Log(BTreeMap<(Option<GpuUuid>, Option<u32>, u64), Unsaid>);

#[derive(Debug, Default)]
struct Unsaid {
    last_line: Option<Duration>,
    count: u64,
}

impl Log {
    /// How many a line that is written now would be about; none is to be written
    /// where that is absent.
    pub(super) fn due(
        &mut self,
        gpu: Option<&GpuUuid>,
        kind: &Kind,
        tally: Tally,
        now: Duration,
    ) -> Option<u64> {
        let key = (gpu.cloned(), kind.instance, kind.xid);
        if self.0.len() >= MOST_KINDS && !self.0.contains_key(&key) {
            self.0.clear();
        }
        let Unsaid { last_line, count } = self.0.entry(key).or_default();
        *count = count.saturating_add(tally.count);
        if last_line.is_some_and(|last| now.saturating_sub(last) < LOG_PAUSE) {
            return None;
        }
        *last_line = Some(now);
        Some(std::mem::take(count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(xid: u64) -> Kind {
        Kind {
            gpu: Place::Event(Some("GPU-a".into())),
            xid,
            instance: None,
            action: None,
        }
    }

    fn in_kernel_log(xid: u64) -> Kind {
        let pci = PciAddress::from_nvml("00000000:3B:00.0").unwrap();
        Kind {
            gpu: Place::KernelLog(pci),
            ..kind(xid)
        }
    }

    fn at(seconds: u64) -> Tally {
        Tally::once(Duration::from_secs(seconds), None)
    }

    #[tokio::test]
    async fn a_storm_is_a_tally_and_nothing_of_it_is_lost() {
        let (sender, mut receiver) = mailbox();
        for time in 0..10_000 {
            sender.send(kind(48), at(time));
        }
        sender.send(kind(79), at(7));
        let heard = receiver.next().await;
        let last = Tally {
            count: 10_000,
            ..at(9_999)
        };
        assert_eq!(heard[&kind(48)], last);
        assert_eq!(heard[&kind(79)], at(7));
        sender.send(kind(13), at(8));
        assert_eq!(receiver.next().await.len(), 1);
    }

    #[test]
    fn no_flood_of_kinds_takes_memory_without_end() {
        let (sender, receiver) = mailbox();
        for xid in 0..10 * MOST_KINDS as u64 {
            sender.send(kind(xid), at(0));
        }
        assert_eq!(receiver.shared.lock().len(), MOST_KINDS);
    }

    #[test]
    fn what_two_witnesses_tell_is_counted_once() {
        let gpu = GpuUuid::from("GPU-a");
        let mut counts = Counts::default();
        let mut add = |kind: Kind, count| counts.add(Some(&gpu), &kind, count);
        assert_eq!(add(kind(31), 1), 1);
        assert_eq!(add(in_kernel_log(31), 1), 0);
        assert_eq!(add(in_kernel_log(31), 2), 2, "NVML did not tell of these");
        assert_eq!(add(kind(31), 1), 0, "late");
        assert_eq!(add(kind(43), 5), 5);
    }

    #[test]
    fn a_storm_is_a_line_now_and_then() {
        let mut log = Log::default();
        let mut due = |seconds| log.due(None, &kind(31), at(0), Duration::from_secs(seconds));
        assert_eq!(due(100), Some(1));
        assert_eq!(due(101), None);
        assert_eq!(due(109), None);
        assert_eq!(due(110), Some(3));
        assert_eq!(due(200), Some(1));
    }
}
