//! A kubelet's device manager, over real Unix sockets in any folder.
//!
//! It does what Kubernetes 1.36 does, races included; each part names the
//! file it follows. It serves plugins written in any language, and judges
//! them: see [`Violation`].

#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test, example and bench uses a part"
)]

mod allocation;
mod authority;
mod checkpoint;
mod clients;
mod devices;
mod events;
mod faults;
mod life;
mod link;
mod names;
mod pods;
mod registration;
mod socket;

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use gpu_device_plugin::api::v1beta1::device_plugin_client::DevicePluginClient;
use gpu_device_plugin::api::v1beta1::{Device, Empty, ListAndWatchResponse};
use tonic::Streaming;
use tonic::transport::Channel;

#[allow(unused_imports, reason = "as above")]
pub use self::{
    allocation::{AllocateError, Allocation},
    clients::Takeover,
    devices::Counts,
    events::{Event, Record, Violation, WaitTimeout},
    faults::{RegisterFault, Times},
};

use self::events::Journal;
use self::faults::Faults;
use self::life::{Life, Shared};
use self::socket::{Socket, Step};

/// The peer's pods have one container.
const CONTAINER: &str = "main";

/// How this kubelet differs from another.
#[derive(Debug, Clone)]
pub struct Options {
    pub takeover: Takeover,
    /// How long a stopped plugin's devices stay in the capacity
    /// (types.go, endpointStopGracePeriod).
    pub grace: Duration,
    /// How long Register dials back (client.go, dial).
    pub dial_limit: Duration,
    /// How long a Register waits for the end of an older stream before that
    /// is a violation.
    pub settle: Duration,
    /// Of the order in which device IDs are handed out.
    pub seed: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            takeover: Takeover::default(),
            grace: Duration::from_secs(5 * 60),
            dial_limit: Duration::from_secs(10),
            settle: Duration::from_millis(50),
            seed: 1,
        }
    }
}

/// The kubelet. It is made stopped; see [`start`](Self::start).
pub struct KubeletPeer {
    shared: Arc<Shared>,
    socket: tokio::sync::Mutex<Socket>,
    /// The current life, or the last one, whose memory can still be read.
    life: Mutex<Option<Arc<Life>>>,
    /// Admission handles one pod at a time (kubelet.go, syncLoop).
    sync_loop: tokio::sync::Mutex<()>,
    pods_made: AtomicUsize,
}

impl KubeletPeer {
    /// A stopped kubelet for the folder, which need not exist.
    pub fn new(folder: impl Into<PathBuf>, options: Options) -> Self {
        let shared = Shared {
            folder: folder.into(),
            rng: Mutex::new(fastrand::Rng::with_seed(options.seed)),
            options,
            journal: Journal::new(),
            faults: Faults::default(),
            pods: Mutex::default(),
            ahead: Mutex::default(),
        };
        Self {
            shared: Arc::new(shared),
            socket: tokio::sync::Mutex::default(),
            life: Mutex::default(),
            sync_loop: tokio::sync::Mutex::default(),
            pods_made: AtomicUsize::new(1),
        }
    }

    pub fn folder(&self) -> &Path {
        &self.shared.folder
    }

    pub fn socket_path(&self) -> PathBuf {
        socket::path(&self.shared.folder)
    }

    // === Life and death ===

    /// Wipes the folder, binds kubelet.sock and serves (server.go, Start).
    /// Goes on from [`bind_only`](Self::bind_only) and
    /// [`listen_only`](Self::listen_only); nothing to do where it runs.
    pub async fn start(&self) -> io::Result<()> {
        self.reach(Step::Serve).await
    }

    /// Starts as far as a bound socket that refuses connections: what a
    /// plugin sees that acts on the file's creation too soon.
    pub async fn bind_only(&self) -> io::Result<()> {
        self.reach(Step::Bind).await
    }

    /// Starts as far as a socket on which connections queue unanswered.
    pub async fn listen_only(&self) -> io::Result<()> {
        self.reach(Step::Listen).await
    }

    async fn reach(&self, step: Step) -> io::Result<()> {
        let mut socket = self.socket.lock().await;
        if socket.is_down() {
            *lock(&self.life) = Some(Life::begin(Arc::clone(&self.shared))?);
        }
        match self.running() {
            Some(life) => socket.advance(step, &life),
            None => Ok(()),
        }
    }

    /// Dies as if killed: returns when every connection is closed. The socket
    /// file stays, and refuses.
    pub async fn stop(&self) {
        let mut socket = self.socket.lock().await;
        let Some(life) = self.running() else {
            return;
        };
        life.end();
        socket.abandon().await;
        life.connections.wait_until_none().await;
        self.shared.journal.record(Instant::now(), Event::Stopped);
    }

    /// Stops and starts.
    pub async fn restart(&self) -> io::Result<()> {
        self.stop().await;
        self.start().await
    }

    /// Restarts `times` times without a pause.
    pub async fn recreate(&self, times: usize) -> io::Result<()> {
        for _ in 0..times {
            self.restart().await?;
        }
        Ok(())
    }

    /// Unlinks kubelet.sock, as somebody's cleaning would; the kubelet serves
    /// on, for those who are connected.
    pub fn remove_socket(&self) -> io::Result<()> {
        std::fs::remove_file(self.socket_path())
    }

    /// Stops, and leaves a kubelet.sock that refuses, even where the kubelet
    /// never ran.
    pub async fn leave_stale_socket(&self) -> io::Result<()> {
        self.stop().await;
        socket::leave_stale(&self.shared.folder)
    }

    /// Moves the kubelet's clock, which runs by itself too.
    pub fn advance_clock(&self, by: Duration) {
        *lock(&self.shared.ahead) += by;
        self.shared.journal.ring();
    }

    fn life(&self) -> Option<Arc<Life>> {
        lock(&self.life).clone()
    }

    fn running(&self) -> Option<Arc<Life>> {
        self.life().filter(|life| !life.is_over())
    }

    // === Faults ===

    /// Arms a fault for the Register calls to come, after those armed before.
    pub fn fault(&self, fault: RegisterFault, times: Times) {
        self.shared.faults.push(fault, times);
    }

    /// Disarms all faults; a hanging Register goes on.
    pub fn clear_faults(&self) {
        self.shared.faults.clear();
    }

    /// Cancels every ListAndWatch of the resource from the kubelet's side.
    pub fn cancel_streams(&self, resource: &str) {
        if let Some(life) = self.running() {
            lock(&life.clients).cancel_streams(resource);
        }
    }

    // === What the node would report ===

    /// The resource in the node's status (manager.go, GetCapacity): 0/0 where
    /// it is unknown. A stopped kubelet's last word is what remains.
    pub fn counts(&self, resource: &str) -> Counts {
        self.life()
            .map(|life| life.counts(resource))
            .unwrap_or_default()
    }

    /// The last list as the kubelet keeps it, one device an ID.
    pub fn devices(&self, resource: &str) -> Vec<Device> {
        let devices = self
            .life()
            .and_then(|life| life.manager().all.get(resource).cloned());
        devices.unwrap_or_default().into_values().collect()
    }

    /// IDs that pods hold or are being given.
    pub fn allocated(&self, resource: &str) -> BTreeSet<String> {
        let ids = self
            .life()
            .and_then(|life| life.manager().allocated.get(resource).cloned());
        ids.unwrap_or_default()
    }

    /// How many ListAndWatch streams of the resource are open.
    pub fn streams(&self, resource: &str) -> usize {
        self.running()
            .map_or(0, |life| lock(&life.clients).streams(resource))
    }

    // === Direct calls ===

    /// A client on a [`channel`](Self::channel) of its own.
    pub async fn client(&self, resource: &str) -> io::Result<DevicePluginClient<Channel>> {
        Ok(link::client(self.channel(resource).await?))
    }

    /// A connection of one's own to the plugin that registered last.
    pub async fn channel(&self, resource: &str) -> io::Result<Channel> {
        let life = self.running().ok_or(io::ErrorKind::NotConnected)?;
        let endpoint = life.manager().endpoints.get(resource).cloned();
        let socket = endpoint.ok_or(io::ErrorKind::NotFound)?.socket;
        let closed = life.token.child_token();
        link::dial_once(&socket, &closed, &life.connections, None).await
    }

    /// One more ListAndWatch stream, which the kubelet does not read.
    pub async fn open_stream(&self, resource: &str) -> io::Result<Streaming<ListAndWatchResponse>> {
        let mut client = self.client(resource).await?;
        let stream = client
            .list_and_watch(Empty {})
            .await
            .map_err(io::Error::other)?;
        Ok(stream.into_inner())
    }

    // === What was seen ===

    pub fn events(&self) -> Vec<Record> {
        self.shared.journal.records()
    }

    /// Lets `look` see what happened since `mark`, without a copy of it.
    pub fn look<T>(&self, mark: usize, look: impl FnOnce(&[Record]) -> T) -> T {
        self.shared.journal.look(mark, look)
    }

    /// Those since [`mark`](Self::mark), as far as they are not forgotten.
    pub fn events_since(&self, mark: usize) -> Vec<Record> {
        self.shared.journal.since(mark)
    }

    /// Forgets all events but so many of the last: nobody who runs for hours can
    /// keep them all. Places in the log stay what they are.
    pub fn forget_events(&self, but: usize) {
        self.shared.journal.forget(but);
    }

    /// A place in the log, for [`wait_event`](Self::wait_event).
    pub fn mark(&self) -> usize {
        self.shared.journal.len()
    }

    /// Waits until the probe answers; it is asked at every change.
    pub async fn wait_for<T>(
        &self,
        what: &str,
        within: Duration,
        mut probe: impl FnMut(&Self) -> Option<T>,
    ) -> Result<T, WaitTimeout> {
        let wake = || self.running()?.next_expiry();
        self.shared
            .wait_for(what, within, wake, || probe(self))
            .await
    }

    /// Waits for an event since `mark` that the filter takes.
    pub async fn wait_event(
        &self,
        what: &str,
        mark: usize,
        within: Duration,
        take: impl Fn(&Event) -> bool,
    ) -> Result<Record, WaitTimeout> {
        self.wait_for(what, within, |peer| peer.shared.journal.find(mark, &take))
            .await
    }

    /// Waits for these numbers in the node's status.
    pub async fn wait_counts(
        &self,
        resource: &str,
        (allocatable, capacity): (usize, usize),
        within: Duration,
    ) -> Result<(), WaitTimeout> {
        let wanted = Counts {
            allocatable,
            capacity,
        };
        let what = format!("{resource} {allocatable}/{capacity}");
        self.wait_for(&what, within, |peer| {
            (peer.counts(resource) == wanted).then_some(())
        })
        .await
    }

    pub fn violations(&self) -> Vec<Violation> {
        self.shared.journal.violations()
    }

    /// The log as text.
    pub fn history(&self) -> String {
        self.shared.journal.history()
    }

    /// Panics where the plugin did what it must not do.
    #[track_caller]
    pub fn assert_no_violations(&self) {
        let violations = self.violations();
        assert!(
            violations.is_empty(),
            "{violations:#?}\nthe kubelet's log:\n{}",
            self.history()
        );
    }
}

impl Drop for KubeletPeer {
    fn drop(&mut self) {
        if let Some(life) = self.running() {
            life.end();
        }
    }
}

/// A test that panicked elsewhere has already failed; its data is still good.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
