//! Listens to the kernel log, which still speaks when NVML hangs.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use tokio::time::sleep;
use tracing::warn;

use super::xids::{Kind, Place, Sender, Tally};
use crate::health::kmsg::{KernelLog, KernelXid};
use crate::readiness::Readiness;

/// The part of [`Readiness`] that has a note where the log cannot be read.
const KERNEL_LOG: &str = "kernel log";

/// What cannot be read is tried again after this.
const RETRY: Duration = Duration::from_secs(60);

/// Tells of the XIDs in the kernel log after the record `seen`, for ever.
pub(super) async fn listen(
    path: PathBuf,
    mut seen: Option<u64>,
    xids: Sender,
    readiness: Readiness,
) {
    loop {
        let error = match KernelLog::open(&path, seen) {
            Ok(mut log) => {
                readiness.note(KERNEL_LOG, None);
                let error = tell(&mut log, &xids).await;
                seen = log.last_seq();
                error
            }
            Err(error) => error,
        };
        let what = format!("{}: {error}; XIDs come from NVML alone", path.display());
        if readiness.note(KERNEL_LOG, Some(&what)) {
            let path = path.display();
            warn!(%path, %error, "the kernel log cannot be read; XIDs come from NVML alone");
        }
        sleep(RETRY).await;
    }
}

async fn tell(log: &mut KernelLog, xids: &Sender) -> std::io::Error {
    let mut lines = Lines::default();
    loop {
        match log.next().await {
            Ok(found) => {
                let (kind, tally) = lines.heard(&found);
                xids.send(kind, tally);
            }
            Err(error) => return error,
        }
    }
}

/// Lines about one XID of a GPU that follow each other so soon are about one
/// fault: the driver prints three about an XID 13 within 3 ms (seen with 580 on an
/// H200), and NVML tells of one.
const ONE_FAULT: Duration = Duration::from_millis(100);

/// More kinds than any node tells of are not kept apart.
const MOST_KINDS: usize = 256;

/// When there was last a line of each kind.
#[derive(Default)]
struct Lines(BTreeMap<Kind, Duration>);

impl Lines {
    /// What a line tells. One that goes with the line before counts for nothing,
    /// and is told all the same.
    fn heard(&mut self, found: &KernelXid) -> (Kind, Tally) {
        let kind = kind(found);
        if self.0.len() >= MOST_KINDS && !self.0.contains_key(&kind) {
            self.0.clear();
        }
        let last = self.0.insert(kind.clone(), found.at);
        let same = last.is_some_and(|last| found.at.saturating_sub(last) < ONE_FAULT);
        let tally = Tally {
            count: u64::from(!same),
            ..Tally::once(found.at, Some(found.seq))
        };
        (kind, tally)
    }
}

fn kind(found: &KernelXid) -> Kind {
    Kind {
        gpu: Place::KernelLog(found.pci),
        xid: found.xid,
        instance: found.gpu_instance_id,
        action: found.recovery_action,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::kmsg::parse;

    #[test]
    fn the_lines_of_one_fault_count_once_and_those_of_the_next_again() {
        // As a real driver printed them, but for the middle of the third.
        let lines = [
            "3,700,34995844,-;NVRM: Xid (PCI:0000:00:06): 13, Graphics SM Warp Exception on (GPC 1, TPC 4, SM 0): Misaligned Address",
            "3,701,34997323,-;NVRM: Xid (PCI:0000:00:06): 13, Graphics Exception: ESR 0x519730=0x500000f",
            "3,702,34998895,-;NVRM: Xid (PCI:0000:00:06): 13, pid=483, name=faults, Graphics Exception: channel 0x0000000a",
            "3,703,42859817,-;NVRM: Xid (PCI:0000:00:06): 13, Graphics SM Warp Exception on (GPC 1, TPC 4, SM 0): Out Of Range Address",
            "3,704,42859900,-;NVRM: Xid (PCI:0000:00:06): 43, pid=504, name=faults, channel 0x0000000a",
        ];
        let mut told = Lines::default();
        let found = lines.map(|line| parse(line.as_bytes()).unwrap());
        let heard = found.map(|found| told.heard(&found));
        let counts = heard.each_ref().map(|(_, tally)| tally.count);
        assert_eq!(counts, [1, 0, 0, 1, 1]);
        assert_eq!(heard[1].1.seq, Some(701), "it is told all the same");
    }
}
