//! One life of the kubelet process, and what outlives it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use gpu_device_plugin::api::v1beta1::Device;
use tokio_util::sync::CancellationToken;

use super::clients::{Client, Clients};
use super::devices::{Counts, Manager};
use super::events::{Event, Journal, Violation, WaitTimeout};
use super::faults::Faults;
use super::link::OpenCount;
use super::{Options, checkpoint, lock};

/// A pod as the API server knows it: one container, one kind of device.
#[derive(Debug, Clone)]
pub(super) struct PodSpec {
    pub(super) resource: String,
    pub(super) count: usize,
}

/// What a restart of the kubelet does not touch.
pub(super) struct Shared {
    pub(super) folder: PathBuf,
    pub(super) options: Options,
    pub(super) journal: Journal,
    pub(super) faults: Faults,
    pub(super) pods: Mutex<BTreeMap<String, PodSpec>>,
    pub(super) rng: Mutex<fastrand::Rng>,
    /// How far the test has moved the kubelet's clock ahead.
    pub(super) ahead: Mutex<Duration>,
}

impl Shared {
    pub(super) fn now(&self) -> Instant {
        Instant::now() + *lock(&self.ahead)
    }

    /// Go's maps hand out their keys in any order; so does the peer.
    pub(super) fn shuffled(&self, ids: impl IntoIterator<Item = String>) -> Vec<String> {
        let mut ids: Vec<_> = ids.into_iter().collect();
        lock(&self.rng).shuffle(&mut ids);
        ids
    }

    /// Waits until the probe answers. It is asked again at every change and,
    /// where `wake` names one, at a time.
    pub(super) async fn wait_for<T>(
        &self,
        what: &str,
        within: Duration,
        wake: impl Fn() -> Option<Instant>,
        mut probe: impl FnMut() -> Option<T>,
    ) -> Result<T, WaitTimeout> {
        let mut bell = self.journal.subscribe();
        let deadline = tokio::time::Instant::now() + within;
        loop {
            bell.mark_unchanged();
            if let Some(found) = probe() {
                return Ok(found);
            }
            let wake = wake().map_or(deadline, |at| deadline.min(at.into()));
            tokio::select! {
                _ = bell.changed() => {}
                () = tokio::time::sleep_until(wake) => {
                    if wake >= deadline {
                        return Err(self.journal.timeout(what, within));
                    }
                }
            }
        }
    }
}

/// A kubelet process from its start to its death.
pub(super) struct Life {
    pub(super) shared: Arc<Shared>,
    /// Cancelled at death; parent of every connection's token.
    pub(super) token: CancellationToken,
    pub(super) connections: OpenCount,
    pub(super) clients: Mutex<Clients>,
    manager: Mutex<Manager>,
}

impl Life {
    pub(super) fn begin(shared: Arc<Shared>) -> std::io::Result<Arc<Self>> {
        let manager = checkpoint::read(&shared.folder, shared.now())?;
        Ok(Arc::new(Self {
            token: CancellationToken::new(),
            connections: OpenCount::new(),
            clients: Mutex::default(),
            manager: Mutex::new(manager),
            shared,
        }))
    }

    /// Dies. Holding the manager keeps a task of this life from writing the
    /// checkpoint that the next life has already read.
    pub(super) fn end(&self) {
        let _manager = self.manager();
        self.token.cancel();
    }

    pub(super) fn is_over(&self) -> bool {
        self.token.is_cancelled()
    }

    pub(super) fn manager(&self) -> MutexGuard<'_, Manager> {
        lock(&self.manager)
    }

    /// Records an event, unless the dead kubelet could not have seen it.
    pub(super) fn emit(&self, event: Event) {
        self.emit_at(Instant::now(), event);
    }

    fn emit_at(&self, at: Instant, event: Event) {
        if !self.is_over() {
            self.shared.journal.record(at, event);
        }
    }

    pub(super) fn violation(&self, violation: Violation) {
        if !self.is_over() {
            self.shared.journal.violation(violation);
        }
    }

    /// manager.go, writeCheckpoint: a failure is only logged.
    pub(super) fn write_checkpoint(&self, manager: &Manager) {
        if self.is_over() {
            return;
        }
        if let Err(error) = checkpoint::write(&self.shared.folder, manager) {
            self.emit(Event::CheckpointFailed {
                reason: error.to_string(),
            });
        }
    }

    /// PluginListAndWatchReceiver, with the peer's judgement of the list.
    pub(super) fn receive(
        &self,
        client: &Client,
        devices: Vec<Device>,
        previous: Option<&[Device]>,
    ) {
        // What follows waits for the disk, and is told of only then.
        let arrival = Instant::now();
        let resource = client.resource.as_str();
        let mut manager = self.manager();
        if self.is_over() {
            return;
        }
        for violation in manager.judge(resource, &devices, previous) {
            self.violation(violation);
        }
        manager.receive(resource, &devices);
        self.write_checkpoint(&manager);
        drop(manager);
        let received = Event::ListReceived {
            resource: resource.to_owned(),
            client: client.id,
            devices,
        };
        self.emit_at(arrival, received);
    }

    /// GetCapacity, for one resource. Like the kubelet's, it forgets endpoints
    /// whose grace is over, and only it does.
    pub(super) fn counts(&self, resource: &str) -> Counts {
        let mut manager = self.manager();
        if manager.forget_expired(self.shared.options.grace, self.shared.now()) {
            self.write_checkpoint(&manager);
        }
        manager.counts(resource)
    }

    /// The real time at which the next endpoint's grace will be over.
    pub(super) fn next_expiry(&self) -> Option<Instant> {
        let expiry = self.manager().next_expiry(self.shared.options.grace)?;
        // The kubelet compares with "greater".
        let real = expiry.checked_sub(*lock(&self.shared.ahead))? + Duration::from_millis(1);
        (real > Instant::now()).then_some(real)
    }

    /// UpdateAllocatedDevices.
    pub(super) fn free_inactive(&self) {
        let active: BTreeSet<String> = lock(&self.shared.pods).keys().cloned().collect();
        self.manager().free_inactive(|pod| active.contains(pod));
    }
}
