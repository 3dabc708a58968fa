//! Reports of health, for the tests of this room.

use std::time::Duration;

use crate::device::DeviceId;
use crate::gpu::GpuUuid;
use crate::health::cause::Cause;
use crate::health::class::Class;
use crate::health::report::{DeviceStatus, GpuStatus, HealthReport, Sickness};

/// A complete report.
pub(super) fn report(gpus: Vec<GpuStatus>) -> HealthReport {
    HealthReport {
        complete: true,
        node: None,
        gpus,
    }
}

/// Since 100 s after boot.
pub(super) fn sickness(cause: Cause, class: Class) -> Sickness {
    Sickness {
        cause,
        class,
        since: Duration::from_secs(100),
        recovering_until: None,
    }
}

/// XID 48, since so many seconds after boot.
pub(super) fn since(seconds: u64) -> Sickness {
    Sickness {
        since: Duration::from_secs(seconds),
        ..sickness(Cause::Xid(48), Class::Reset)
    }
}

/// `GPU-<index>`, one device.
pub(super) fn gpu(index: u32, sickness: Option<Sickness>) -> GpuStatus {
    let uuid = uuid(index);
    GpuStatus {
        devices: vec![DeviceStatus {
            resource: "nvidia.com/gpu".into(),
            id: DeviceId::from(&uuid),
            sickness: sickness.clone(),
        }],
        uuid,
        index: Some(index),
        sickness,
        notes: vec![],
    }
}

/// The same with MIG devices, of which the first few are sick.
pub(super) fn part(index: u32, sick: usize, devices: usize) -> GpuStatus {
    let uuid = uuid(index);
    let device = |place| DeviceStatus {
        resource: "nvidia.com/mig-1g.10gb".into(),
        id: DeviceId::from(&GpuUuid::from(format!("MIG-{place}").as_str())),
        sickness: (place < sick).then(|| since(100)),
    };
    GpuStatus {
        devices: (0..devices).map(device).collect(),
        uuid,
        index: Some(index),
        sickness: None,
        notes: vec![],
    }
}

fn uuid(index: u32) -> GpuUuid {
    GpuUuid::from(format!("GPU-{index}").as_str())
}
