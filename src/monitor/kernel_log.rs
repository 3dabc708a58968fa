//! Listens to the kernel log, which still speaks when NVML hangs.

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
    loop {
        match log.next().await {
            Ok(found) => {
                let (kind, tally) = heard(&found);
                xids.send(kind, tally);
            }
            Err(error) => return error,
        }
    }
}

fn heard(found: &KernelXid) -> (Kind, Tally) {
    let kind = Kind {
        gpu: Place::KernelLog(found.pci),
        xid: found.xid,
        instance: found.gpu_instance_id,
        action: found.recovery_action,
    };
    (kind, Tally::once(found.at, Some(found.seq)))
}
