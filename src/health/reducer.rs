//! Signals about one GPU to its health: a pure function of signals and time.

use std::time::Duration;

use super::xid::{XidClass, classify};
use crate::device::{Health, UnhealthyReason};
use crate::gpu::{ErrorKind, LibraryError, Vitals};

/// After an XID of the device, how long the driver must have asked for nothing
/// and the GPU have answered before it is healthy again.
pub const QUIET: Duration = Duration::from_secs(60);

/// Something that was learnt about one GPU.
#[derive(Clone, Debug)]
pub enum Signal {
    /// A critical XID event.
    Xid(u64),
    /// A scan of all GPUs found it, and read it whole.
    Present,
    /// A scan of all GPUs did not find it.
    Vanished,
    /// A scan found it and could not read it, or could not read what stands in
    /// its place.
    Unreadable(LibraryError),
    /// It was asked how it is.
    Probed(Result<Vitals, LibraryError>),
    /// A call about it is out for longer than this.
    Overdue(Duration),
}

/// The state of one GPU's health. Time is the caller's: any clock that does
/// not go back.
#[derive(Clone, Debug, Default)]
pub struct GpuHealth {
    /// The last XID of the device, and when it came.
    xid: Option<(u64, Duration)>,
    /// What the last scan found amiss.
    scan: Option<UnhealthyReason>,
    /// What the last probe found amiss.
    probe: Option<UnhealthyReason>,
}

impl GpuHealth {
    /// Takes in one signal.
    pub fn apply(&mut self, now: Duration, signal: &Signal) {
        match signal {
            Signal::Xid(xid) => {
                if classify(*xid) == XidClass::Device {
                    self.xid = Some((*xid, now));
                }
            }
            Signal::Present => self.scan = None,
            Signal::Vanished => self.scan = Some(UnhealthyReason::Vanished),
            Signal::Unreadable(error) => self.scan = Some(reason(error)),
            Signal::Probed(Err(error)) => self.probe = Some(reason(error)),
            Signal::Probed(Ok(vitals)) => self.probed(now, vitals),
            Signal::Overdue(deadline) => {
                self.probe = Some(UnhealthyReason::NotAnswering(deadline.as_secs()));
            }
        }
    }

    /// Whether the last scan found it, and read it whole.
    pub fn is_found(&self) -> bool {
        self.scan.is_none()
    }

    /// Its health as of the last signal. The gravest witness speaks first.
    pub fn health(&self) -> Health {
        let reason = self
            .scan
            .clone()
            .or_else(|| self.xid.map(|(xid, _)| UnhealthyReason::Xid(xid)))
            .or_else(|| self.probe.clone());
        reason.map_or(Health::Healthy, Health::Unhealthy)
    }

    /// An XID is forgiven by the driver's own word only: a driver that does not
    /// know the recovery action never gives it.
    fn probed(&mut self, now: Duration, vitals: &Vitals) {
        self.probe = match vitals.recovery_action {
            None | Some(0) => None,
            Some(action) => Some(UnhealthyReason::RecoveryAction(action)),
        };
        let quiet = self
            .xid
            .is_some_and(|(_, at)| now.saturating_sub(at) >= QUIET);
        if quiet && vitals.recovery_action == Some(0) {
            self.xid = None;
        }
    }
}

fn reason(error: &LibraryError) -> UnhealthyReason {
    match error.kind {
        ErrorKind::GpuLost => UnhealthyReason::Lost(error.call.into()),
        ErrorKind::ResetRequired => UnhealthyReason::ResetRequired(error.call.into()),
        ErrorKind::NotFound => UnhealthyReason::Vanished,
        _ => UnhealthyReason::Unreadable(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OK: Signal = probed(Some(0));

    const fn probed(recovery_action: Option<u32>) -> Signal {
        Signal::Probed(Ok(Vitals {
            recovery_action,
            remapped_rows: None,
            retired_pages: None,
            uncorrectable_ecc: None,
            sram_threshold_exceeded: None,
            nvlinks: std::collections::BTreeMap::new(),
            fabric: None,
            clocks_event_reasons: None,
        }))
    }

    fn after(signals: &[(u64, Signal)]) -> Health {
        let mut health = GpuHealth::default();
        for (at, signal) in signals {
            health.apply(Duration::from_secs(*at), signal);
        }
        health.health()
    }

    fn lost() -> LibraryError {
        LibraryError {
            call: "nvmlDeviceGetTemperature",
            kind: ErrorKind::GpuLost,
            message: "lost".into(),
        }
    }

    #[test]
    fn an_xid_of_the_device_holds_until_the_driver_asks_for_nothing_for_a_while() {
        let xid = Health::Unhealthy(UnhealthyReason::Xid(79));
        assert_eq!(after(&[(0, Signal::Xid(79))]), xid);
        assert_eq!(after(&[(0, Signal::Xid(79)), (59, OK)]), xid);
        assert_eq!(after(&[(0, Signal::Xid(79)), (60, OK)]), Health::Healthy);
        assert_eq!(
            after(&[(0, Signal::Xid(79)), (50, Signal::Xid(48)), (60, OK)]),
            Health::Unhealthy(UnhealthyReason::Xid(48))
        );
    }

    #[test]
    fn a_driver_that_cannot_say_so_never_forgives_an_xid() {
        let unknown = probed(None);
        assert_eq!(
            after(&[(0, Signal::Xid(48)), (3600, unknown)]),
            Health::Unhealthy(UnhealthyReason::Xid(48))
        );
    }

    #[test]
    fn a_lost_gpu_is_well_again_when_it_answers() {
        let error = Signal::Probed(Err(lost()));
        assert!(matches!(
            after(&[(0, error.clone())]),
            Health::Unhealthy(UnhealthyReason::Lost(_))
        ));
        assert_eq!(after(&[(0, error), (1, OK)]), Health::Healthy);
    }

    #[test]
    fn a_gpu_that_is_not_enumerated_is_unhealthy_whatever_it_answers() {
        assert_eq!(
            after(&[(0, Signal::Vanished), (1, OK)]),
            Health::Unhealthy(UnhealthyReason::Vanished)
        );
        assert_eq!(
            after(&[(0, Signal::Vanished), (1, Signal::Present)]),
            Health::Healthy
        );
    }

    #[test]
    fn a_recovery_action_is_a_reason_until_the_driver_takes_it_back() {
        let asked = probed(Some(2));
        let reason = Health::Unhealthy(UnhealthyReason::RecoveryAction(2));
        assert_eq!(after(&[(0, asked.clone())]), reason);
        assert_eq!(after(&[(0, asked), (1, OK)]), Health::Healthy);
    }
}
