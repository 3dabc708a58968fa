//! Does what the state machine decides.

use std::future::pending;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;

use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, info, warn};

use super::listener::{Listener, socket_name};
use super::machine::{Action, Machine, Observation, Outcome, Phase, Registration};
use super::rival::{self, Rival};
use super::service::{OPTIONS, Service};
use super::streams::Streams;
use crate::allocate::cache::Cache;
use crate::device::DeviceSnapshot;
use crate::kubelet::registration::{RegisterError, register};
use crate::kubelet::socket::SocketId;
use crate::kubelet::watch::is_deleted_under_mount;
use crate::metrics::{ConnectionLabels, Metrics, RegistrationLabels, ResourceLabels};
use crate::readiness::Readiness;

/// The name of the kubelet's socket in its folder
/// (Kubernetes' pkg/apis/deviceplugin/v1beta1/constants.go).
pub const KUBELET_SOCKET: &str = "kubelet.sock";

type Registering = Pin<Box<dyn Future<Output = Result<(), RegisterError>> + Send>>;

/// Keeps one resource registered with the kubelet.
pub struct Actor {
    folder: PathBuf,
    kubelet_socket: PathBuf,
    endpoint: String,
    endpoint_path: PathBuf,
    service: Service,
    streams: Streams,
    metrics: Arc<Metrics>,
    readiness: Readiness,
    /// Says when to look at the kubelet's folder.
    hints: watch::Receiver<u64>,
    started: Instant,
    machine: Machine,
    listener: Option<Listener>,
    retired: TaskTracker,
    registering: Option<Registering>,
    rivals: Vec<Rival>,
    /// The hint after which they were looked for.
    looked_after: Option<u64>,
    phase: Option<Phase>,
    last_error: Option<String>,
}

impl Actor {
    /// An actor for `resource`, not started yet.
    pub fn new(
        folder: &Path,
        resource: &str,
        devices: watch::Receiver<Arc<DeviceSnapshot>>,
        hints: watch::Receiver<u64>,
        rescan: Arc<Notify>,
        metrics: Arc<Metrics>,
        readiness: Readiness,
    ) -> Self {
        let streams = Streams::default();
        let endpoint = socket_name(resource);
        let service = Service {
            resource: resource.into(),
            devices,
            cache: Cache::default(),
            streams: streams.clone(),
            rescan,
            metrics: metrics.clone(),
        };
        readiness.missing(resource, "no devices to advertise yet");
        Self {
            folder: folder.into(),
            kubelet_socket: folder.join(KUBELET_SOCKET),
            endpoint_path: folder.join(&endpoint),
            endpoint,
            service,
            streams,
            metrics,
            readiness,
            hints,
            started: Instant::now(),
            machine: Machine::default(),
            listener: None,
            retired: TaskTracker::new(),
            registering: None,
            rivals: Vec::new(),
            looked_after: None,
            phase: None,
            last_error: None,
        }
    }

    /// Keeps the resource registered until `shutdown`, then ends its streams
    /// and removes its socket.
    pub async fn run(mut self, shutdown: CancellationToken) {
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = self.reconcile() => {}
        }
        self.streams.end_all();
        if let Some(listener) = self.listener.take() {
            listener.retire().await;
        }
        self.retired.close();
        self.retired.wait().await;
    }

    async fn reconcile(&mut self) {
        // A list that is not complete would have the kubelet take devices from
        // pods that hold them.
        if self
            .service
            .devices
            .wait_for(|snapshot| snapshot.complete)
            .await
            .is_err()
        {
            return;
        }
        rival::remove_stale(&self.folder, &self.service.resource, &self.endpoint);
        let mut changes = self.streams.changes();
        let mut outcome = None;
        loop {
            let seen = self.observe(outcome.take());
            let step = self.machine.step(&seen);
            debug!(resource = self.service.resource, ?seen, ?step, "step");
            self.tell(step.phase);
            if let Some(action) = step.action {
                outcome = self.perform(action);
                continue;
            }
            let wake = step.wake.map(|wake| self.started + wake);
            tokio::select! {
                result = registered(&mut self.registering) => {
                    self.registering = None;
                    outcome = Some(Outcome::Registration(self.registration(result)));
                }
                () = changes.changed() => {}
                changed = self.hints.changed() => if changed.is_err() { return },
                () = sleep(wake) => {}
            }
        }
    }

    fn observe(&mut self, outcome: Option<Outcome>) -> Observation {
        let folder = self.folder.is_dir();
        let deleted = is_deleted_under_mount(&self.folder);
        self.readiness.fatal(deleted.then(|| {
            format!(
                "{} was deleted while it is mounted here",
                self.folder.display()
            )
        }));
        // One that comes or goes changes the folder, but before it listens; and of one
        // that was killed the hints of the slow clock tell.
        let hint = *self.hints.borrow();
        if self.looked_after != Some(hint) {
            let any_silent = self.look_for_rivals();
            self.looked_after = Some(hint).filter(|_| !any_silent);
        }
        let endpoint = SocketId::at(&self.endpoint_path);
        // A socket that nobody serves is none.
        let served = self
            .listener
            .as_ref()
            .is_some_and(|listener| !listener.has_ended());
        let bound = self.machine.bound();
        Observation {
            now: self.started.elapsed(),
            folder,
            kubelet: SocketId::at(&self.kubelet_socket),
            endpoint: endpoint.filter(|_| served),
            streams: self.streams.now(),
            newer_rival: self.rivals.iter().any(|rival| Some(rival.id) > bound),
            outcome,
            jitter: fastrand::u8(..),
        }
    }

    /// Does `action`. What it came to, where that is known at once.
    fn perform(&mut self, action: Action) -> Option<Outcome> {
        match action {
            Action::Bind => Some(Outcome::Bound(self.bind())),
            Action::EndStreams => {
                self.streams.end_all();
                None
            }
            Action::Register => {
                let (socket, endpoint) = (self.kubelet_socket.clone(), self.endpoint.clone());
                let resource = self.service.resource.clone();
                self.registering = Some(Box::pin(async move {
                    register(&socket, endpoint, resource, OPTIONS).await
                }));
                None
            }
            Action::CancelRegister => {
                self.registering = None;
                None
            }
        }
    }

    fn bind(&mut self) -> Option<SocketId> {
        if let Some(listener) = self.listener.take() {
            self.streams.end_all();
            self.retired.spawn(listener.retire());
        }
        // What lies there is not served by us, and the name is ours alone.
        drop(std::fs::remove_file(&self.endpoint_path));
        match Listener::bind(self.endpoint_path.clone(), self.service.clone()) {
            Ok(listener) => {
                info!(
                    resource = self.service.resource,
                    socket = self.endpoint,
                    "serving"
                );
                Some(self.listener.insert(listener).id())
            }
            Err(error) => {
                let socket = self.endpoint_path.display();
                self.error(format!("cannot bind {socket}: {error}"));
                None
            }
        }
    }

    fn registration(&mut self, result: Result<(), RegisterError>) -> Registration {
        let word = result
            .as_ref()
            .map_or_else(RegisterError::as_str, |()| "ok");
        let resource = self.service.resource.clone();
        let labels = RegistrationLabels {
            resource,
            result: word,
        };
        self.metrics.registrations.get_or_create(&labels).inc();
        match result {
            Ok(()) => {
                self.last_error = None;
                Registration::Accepted
            }
            Err(error) => {
                let refused = matches!(error, RegisterError::Refused(_));
                self.error(error.to_string());
                if refused {
                    Registration::Refused
                } else {
                    Registration::Failed
                }
            }
        }
    }

    /// Says an error once, however often it comes.
    fn error(&mut self, error: String) {
        if self.last_error.as_ref() != Some(&error) {
            warn!(resource = self.service.resource, error, "not registered");
            self.last_error = Some(error);
        }
    }

    /// Whether one may become a rival unseen.
    fn look_for_rivals(&mut self) -> bool {
        let resource = &self.service.resource;
        let rival::Found { rivals, any_silent } =
            rival::find(&self.folder, resource, &self.endpoint);
        if rivals == self.rivals {
            return any_silent;
        }
        for rival in rivals.iter().filter(|rival| !self.rivals.contains(rival)) {
            let socket = &rival.name;
            warn!(
                resource,
                socket, "another plugin serves this resource; remove one of the two"
            );
        }
        for rival in self.rivals.iter().filter(|rival| !rivals.contains(rival)) {
            info!(
                resource,
                socket = rival.name,
                "the other plugin for this resource is gone"
            );
        }
        let labels = ResourceLabels {
            resource: resource.clone(),
        };
        let count = i64::try_from(rivals.len()).unwrap_or(i64::MAX);
        self.metrics.rivals.get_or_create(&labels).set(count);
        self.rivals = rivals;
        any_silent
    }

    /// Makes the phase known: readiness, metric, and a line when it changed.
    fn tell(&mut self, phase: Phase) {
        let resource = &self.service.resource;
        if phase == Phase::Registered {
            self.readiness.ready(resource);
        } else {
            self.readiness.missing(resource, self.explain(phase));
        }
        if self.phase == Some(phase) {
            return;
        }
        let state = phase.as_str();
        if self.phase == Some(Phase::Registered) {
            info!(resource, state, "not registered any more");
        }
        match phase {
            Phase::Registered => info!(resource, state, "registered with the kubelet"),
            Phase::Contended | Phase::Yielding => warn!(resource, state, "{}", self.explain(phase)),
            Phase::NoFolder | Phase::NoKubelet => info!(resource, state, "{}", self.explain(phase)),
            _ => debug!(resource, state, "phase"),
        }
        for one in Phase::ALL {
            let labels = ConnectionLabels {
                resource: resource.clone(),
                state: one.as_str(),
            };
            self.metrics
                .connection
                .get_or_create(&labels)
                .set(i64::from(one == phase));
        }
        self.phase = Some(phase);
    }

    /// What is missing, and what would help.
    fn explain(&self, phase: Phase) -> String {
        let because = |otherwise| self.last_error.as_deref().unwrap_or(otherwise);
        let others = || -> String {
            let names: Vec<_> = self
                .rivals
                .iter()
                .map(|rival| rival.name.as_str())
                .collect();
            names.join(", ")
        };
        match phase {
            Phase::NoFolder => format!(
                "{} does not exist; is a kubelet running, and --device-plugin-dir right?",
                self.folder.display()
            ),
            Phase::NoKubelet => format!(
                "{} does not exist; waiting for a kubelet",
                self.kubelet_socket.display()
            ),
            Phase::Binding => because("binding the socket").into(),
            Phase::EndingStreams => "ending old streams".into(),
            Phase::Registering => "registering".into(),
            Phase::AwaitingStream => {
                "registered; the kubelet has not asked for the list yet".into()
            }
            Phase::Registered => "registered".into(),
            Phase::BackingOff => because("the kubelet ended the stream").into(),
            Phase::Contended => format!(
                "the kubelet keeps ending our stream: another plugin seems to register {} too (live sockets: {}); remove one of the two",
                self.service.resource,
                if self.rivals.is_empty() {
                    "none known".into()
                } else {
                    others()
                }
            ),
            Phase::Yielding => format!(
                "a newer plugin serves {} ({}); standing by until it is gone",
                self.service.resource,
                others()
            ),
        }
    }
}

async fn registered(registering: &mut Option<Registering>) -> Result<(), RegisterError> {
    match registering {
        Some(registering) => registering.await,
        None => pending().await,
    }
}

async fn sleep(until: Option<Instant>) {
    match until {
        Some(until) => sleep_until(until).await,
        None => pending().await,
    }
}
