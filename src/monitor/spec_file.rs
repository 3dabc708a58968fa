//! Keeps our CDI spec on disk as the snapshots have it.
//!
//! Answers name devices of the spec, so it is written before a snapshot that
//! needs it is published. A file system may hang as a driver may: writing is a
//! call on another thread, and the monitor never waits for it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tracing::{info, warn};

use crate::config::HostFolder;
use crate::device::{Health, Snapshots, UnhealthyReason, Unit};
use crate::driver::cdi::Spec;
use crate::driver::cdi::file::{self, Identity, Written};
use crate::gpu::calls::{Calls, Outcome};
use crate::readiness::Readiness;

/// The part of [`Readiness`] that the spec is.
const CDI_SPEC: &str = "CDI spec";

/// Writing some kilobytes that takes longer is a reason to say so.
const DEADLINE: Duration = Duration::from_secs(2);
/// What failed is tried again at the first publishing after this, and what was
/// written looked at again.
const PAUSE: Duration = Duration::from_secs(1);

/// A write that has ended: what was written, and what became of it.
pub(super) struct Attempt {
    spec: Spec,
    result: Result<Written, String>,
}

/// What was found or put there last.
struct OnDisk {
    spec: Spec,
    identity: Identity,
    since: Instant,
}

impl OnDisk {
    /// Whether the file that is there `now` is the same. Not asked at once:
    /// some file systems tell a file's identity late.
    fn is(&self, now: Option<Identity>) -> bool {
        now.is_some_and(|now| now == self.identity || self.since.elapsed() < PAUSE)
    }
}

/// A file that was written, and which it was.
pub(super) struct There {
    file: PathBuf,
    identity: Identity,
}

impl There {
    /// Whether it still is.
    pub(super) fn is_there(&self) -> bool {
        Identity::at(&self.file) == Some(self.identity)
    }
}

/// The spec's file, and what is known of it.
pub(super) struct SpecFile {
    /// `None` where no answer refers to a spec.
    file: Option<HostFolder>,
    readiness: Readiness,
    writing: Calls<(), Attempt>,
    on_disk: Option<OnDisk>,
    /// Why it is not what it should be, and since when that is known.
    failed: Option<(String, Instant)>,
}

impl SpecFile {
    pub(super) fn new(file: Option<HostFolder>, readiness: Readiness) -> Self {
        Self {
            file,
            readiness,
            writing: Calls::new(DEADLINE),
            on_disk: None,
            failed: None,
        }
    }

    /// Whether it is there as it was written, or none is wanted.
    pub(super) fn is_kept(&self) -> bool {
        let there = self.there();
        self.file.is_none() || there.is_some_and(|there| there.is_there())
    }

    /// What was written, and looked at since.
    pub(super) fn there(&self) -> Option<There> {
        let on_disk = self.on_disk.as_ref().filter(|_| self.failed.is_none())?;
        Some(There {
            file: self.file.as_ref()?.here.clone(),
            identity: on_disk.identity,
        })
    }

    /// Has the spec of `snapshots` written where that is another one. False: it
    /// is on its way, and the snapshots have to wait for [`next`](Self::next).
    /// Where it cannot be written, no device of theirs stays healthy.
    pub(super) fn keep(&mut self, snapshots: &mut Snapshots) -> bool {
        let Some(file) = self.file.clone() else {
            return true;
        };
        let Some(wanted) = Spec::of(snapshots) else {
            self.readiness.ready(CDI_SPEC);
            return true;
        };
        let now = Identity::at(&file.here);
        let on_disk = self.on_disk.as_ref().filter(|on_disk| on_disk.is(now));
        if on_disk.is_some_and(|on_disk| on_disk.spec == wanted) {
            self.failed = None;
            self.readiness.ready(CDI_SPEC);
            return true;
        }
        let serves = on_disk.is_some_and(|on_disk| on_disk.spec.serves(&wanted));
        self.write(file, wanted);
        if serves {
            return true;
        }
        // From now on it may be either.
        self.on_disk = None;
        let Some((error, _)) = &self.failed else {
            return false;
        };
        withdraw(snapshots, error);
        true
    }

    fn write(&mut self, file: HostFolder, spec: Spec) {
        let failed = self.failed.as_ref();
        if failed.is_some_and(|(_, at)| at.elapsed() < PAUSE) {
            return;
        }
        self.writing.start((), move || {
            let text = spec.text().map_err(|error| error.to_string());
            let written = |text: String| {
                file::write(&file.here, &text).map_err(|error| explain(&file, &error.to_string()))
            };
            let result = text.and_then(written);
            Attempt { spec, result }
        });
    }

    /// What becomes of writing; pending while nothing is written. Cancel safe.
    pub(super) async fn next(&mut self) -> Outcome<(), Attempt> {
        self.writing.next().await
    }

    /// Takes in what became of writing. A snapshot that waits for it can be
    /// published then.
    pub(super) fn came_back(&mut self, outcome: Outcome<(), Attempt>) {
        let Some(file) = &self.file else { return };
        let error = match outcome {
            Outcome::Returned((), attempt) => match attempt.result {
                Ok(written) => return self.written(attempt.spec, written),
                Err(error) => error,
            },
            Outcome::Overdue(()) => explain(file, &format!("no answer within {DEADLINE:?}")),
            Outcome::Panicked(()) => explain(file, "panicked"),
        };
        if self.readiness.missing(CDI_SPEC, error.as_str()) {
            warn!(error, "no CDI spec");
        }
        self.failed = Some((error, Instant::now()));
    }

    fn written(&mut self, spec: Spec, written: Written) {
        if let (true, Some(file)) = (written.changed, &self.file) {
            let (names, file) = (spec.names(), file.host.display());
            info!(%file, names, "CDI spec written");
        }
        self.on_disk = Some(OnDisk {
            spec,
            identity: written.identity,
            since: Instant::now(),
        });
        self.failed = None;
    }
}

fn explain(file: &HostFolder, error: &str) -> String {
    let folder = file.host.parent().unwrap_or(&file.host);
    format!(
        "cannot write the CDI spec {}: {error}; mount {} of the host into the plugin's container, \
         writable, or name another folder with --cdi-root",
        file.host.display(),
        folder.display()
    )
}

fn withdraw(snapshots: &mut Snapshots, error: &str) {
    let reason = || UnhealthyReason::NoCdiSpec(error.into());
    let mut last: Option<(Arc<Unit>, Arc<Unit>)> = None;
    for device in snapshots.values_mut().flat_map(|s| &mut s.devices) {
        if device.health != Health::Healthy {
            continue;
        }
        // Replicas of one go on sharing it.
        let known = last.take().filter(|(of, _)| Arc::ptr_eq(of, &device.unit));
        let (of, withdrawn) = known.unwrap_or_else(|| {
            let unit = Unit {
                health: Health::Unhealthy(reason()),
                ..Unit::clone(&device.unit)
            };
            (device.unit.clone(), Arc::new(unit))
        });
        device.unit = withdrawn.clone();
        last = Some((of, withdrawn));
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::device::{Common, Device, DeviceNode, DeviceSnapshot};
    use crate::driver::DriverMount;
    use crate::gpu::GpuUuid;

    const RESOURCE: &str = "nvidia.com/gpu";

    fn device(snapshots: &mut Snapshots) -> &mut Device {
        &mut snapshots.get_mut(RESOURCE).unwrap().devices[0]
    }

    /// One healthy GPU, and a driver that is in this file.
    fn snapshot(driver: &str) -> Snapshots {
        let uuid = GpuUuid::from("GPU-a");
        let device = Device {
            id: (&uuid).into(),
            unit: Arc::new(Unit {
                uuid: Some(uuid),
                gpu: None,
                numa_node: None,
                mig: None,
                health: Health::Healthy,
                nodes: vec![DeviceNode {
                    host: "/dev/nvidia0".into(),
                    here: "/dev/nvidia0".into(),
                    container: "/dev/nvidia0".into(),
                }],
            }),
        };
        let mount = DriverMount {
            host: driver.into(),
            here: driver.into(),
            container: "/usr/lib64/libcuda.so.1".into(),
        };
        let snapshot = DeviceSnapshot {
            complete: true,
            devices: vec![device],
            common: Common {
                mounts: vec![mount],
                ..Common::default()
            },
            ..DeviceSnapshot::default()
        };
        [(RESOURCE.to_owned(), snapshot)].into()
    }

    fn spec_file(path: &Path) -> (SpecFile, Readiness) {
        let readiness = Readiness::default();
        let file = HostFolder {
            host: path.into(),
            here: path.into(),
        };
        (SpecFile::new(Some(file), readiness.clone()), readiness)
    }

    async fn come_back(spec_file: &mut SpecFile) {
        let outcome = spec_file.next().await;
        spec_file.came_back(outcome);
    }

    fn is_idle(spec_file: &SpecFile) -> bool {
        !spec_file.writing.any_in_time(|()| true)
    }

    #[tokio::test]
    async fn a_snapshot_waits_for_its_spec_and_one_that_it_serves_does_not() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("spec.json");
        let (mut spec_file, readiness) = spec_file(&path);
        let mut first = snapshot("/libcuda.so.1");
        assert!(!spec_file.keep(&mut first));
        come_back(&mut spec_file).await;
        assert!(path.exists());
        assert!(spec_file.keep(&mut first) && is_idle(&spec_file));
        assert_eq!(first, snapshot("/libcuda.so.1"), "nothing is withdrawn");

        // Of all there is none now; that is written without a wait.
        let mut sick = first.clone();
        let unit = Arc::make_mut(&mut device(&mut sick).unit);
        unit.health = Health::Unhealthy(UnhealthyReason::NoDriver("gone".into()));
        assert!(spec_file.keep(&mut sick) && !is_idle(&spec_file));
        come_back(&mut spec_file).await;

        let mut other = snapshot("/libcuda.so.2");
        assert!(!spec_file.keep(&mut other));
        assert!(!spec_file.keep(&mut first), "the other is on its way");
        come_back(&mut spec_file).await;
        assert!(spec_file.keep(&mut other));
        assert!(readiness.list().is_empty());
    }

    #[tokio::test]
    async fn what_fails_is_told_and_not_tried_again_at_once() {
        let root = tempfile::tempdir().unwrap();
        // A folder stands in the file's place.
        let (mut spec_file, readiness) = spec_file(root.path());
        let mut first = snapshot("/libcuda.so.1");
        assert!(!spec_file.keep(&mut first));
        come_back(&mut spec_file).await;
        assert!(spec_file.keep(&mut first) && is_idle(&spec_file));
        let reason = device(&mut first).health.reason().unwrap().to_string();
        assert!(reason.starts_with("cannot write the CDI spec"), "{reason}");
        assert_eq!(readiness.list(), [format!("CDI spec: {reason}")]);
    }

    #[tokio::test]
    async fn without_a_spec_to_keep_nothing_waits() {
        let mut none = SpecFile::new(None, Readiness::default());
        assert!(none.keep(&mut snapshot("/libcuda.so.1")));
        let root = tempfile::tempdir().unwrap();
        let (mut spec_file, _) = spec_file(&root.path().join("spec.json"));
        assert!(spec_file.keep(&mut Snapshots::default()));
        assert!(is_idle(&spec_file));
    }
}
