//! What the peer saw, when, and how to wait for it without sleeping.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use gpu_device_plugin::api::v1beta1::Device;
use tokio::sync::watch;

use super::lock;

/// One thing that happened at the kubelet.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// kubelet.sock exists; nothing listens on it yet.
    SocketBound {
        inode: u64,
    },
    /// Connections to kubelet.sock queue; nothing accepts them yet.
    SocketListening {
        inode: u64,
    },
    /// The registration service answers.
    SocketAccepting {
        inode: u64,
    },
    /// The kubelet is dead: every connection is closed, the socket is stale.
    Stopped,
    RegisterCalled {
        resource: String,
        endpoint: String,
    },
    RegisterRefused {
        resource: String,
        reason: String,
    },
    /// The client is known by its resource's name; now it is connected.
    Dialling {
        resource: String,
        endpoint: String,
    },
    /// HTTP/2 is up on the plugin's socket.
    DialledBack {
        resource: String,
        endpoint: String,
    },
    /// Register is about to be answered with success.
    Registered {
        resource: String,
        endpoint: String,
    },
    /// The kubelet asked for ListAndWatch.
    StreamOpened {
        resource: String,
        client: u64,
    },
    ListReceived {
        resource: String,
        client: u64,
        devices: Vec<Device>,
    },
    StreamEnded {
        resource: String,
        client: u64,
        reason: String,
    },
    /// The manager marked every device of the resource unhealthy.
    Disconnected {
        resource: String,
    },
    PreferredCalled {
        resource: String,
        available: Vec<String>,
        size: usize,
    },
    AllocateCalled {
        resource: String,
        ids: Vec<String>,
    },
    PreStartCalled {
        resource: String,
        ids: Vec<String>,
    },
    CheckpointFailed {
        reason: String,
    },
}

/// An event and its time: a list's is that of its arrival.
#[derive(Debug, Clone)]
pub struct Record {
    pub at: Instant,
    pub event: Event,
}

/// Something a plugin must not do, though a kubelet may survive it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Violation {
    /// The kubelet can dereference nil (manager.go, allocateContainerResources).
    AllocatedIdVanished {
        resource: String,
        ids: Vec<String>,
    },
    /// The newer stream is lost when the older ends (handler.go, runClient).
    RegisteredOverOpenStream {
        resource: String,
    },
    /// A list in another order reads as a change to whoever compares.
    UnsortedList {
        resource: String,
    },
    DuplicateId {
        resource: String,
        id: String,
    },
    /// The kubelet rewrites its checkpoint for every list.
    RepeatedList {
        resource: String,
    },
    /// A topology without nodes, or with a negative one, where none was meant.
    MeaninglessTopology {
        resource: String,
        id: String,
    },
    /// The kubelet asks for one container and reads the first answer.
    NotOneResponse {
        resource: String,
        responses: usize,
    },
}

/// A condition did not come true in time; carries what happened instead.
pub struct WaitTimeout {
    what: String,
    waited: Duration,
    history: String,
}

impl fmt::Display for WaitTimeout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            what,
            waited,
            history,
        } = self;
        write!(
            f,
            "waited {waited:?} in vain for {what}; the kubelet's log:\n{history}"
        )
    }
}

// `unwrap` prints Debug, and the history is what a failed test needs to show.
impl fmt::Debug for WaitTimeout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for WaitTimeout {}

/// What happened, in order. A place in it is a number for good, also once what was
/// before is forgotten.
#[derive(Default)]
struct Records {
    forgotten: usize,
    kept: VecDeque<Record>,
}

impl Records {
    fn len(&self) -> usize {
        self.forgotten + self.kept.len()
    }

    fn since(&self, mark: usize) -> impl Iterator<Item = &Record> {
        self.kept.iter().skip(mark.saturating_sub(self.forgotten))
    }
}

/// Events and violations of all the kubelet's lives, and a bell for waiters.
pub(super) struct Journal {
    born: Instant,
    records: Mutex<Records>,
    violations: Mutex<Vec<Violation>>,
    bell: watch::Sender<()>,
}

impl Journal {
    pub(super) fn new() -> Self {
        Self {
            born: Instant::now(),
            records: Mutex::default(),
            violations: Mutex::default(),
            bell: watch::Sender::new(()),
        }
    }

    pub(super) fn record(&self, at: Instant, event: Event) {
        lock(&self.records).kept.push_back(Record { at, event });
        self.ring();
    }

    pub(super) fn violation(&self, violation: Violation) {
        lock(&self.violations).push(violation);
        self.ring();
    }

    /// Wakes every waiter: some state changed.
    pub(super) fn ring(&self) {
        self.bell.send_replace(());
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<()> {
        self.bell.subscribe()
    }

    pub(super) fn records(&self) -> Vec<Record> {
        self.since(0)
    }

    pub(super) fn since(&self, mark: usize) -> Vec<Record> {
        lock(&self.records).since(mark).cloned().collect()
    }

    /// Keeps the last of them.
    pub(super) fn forget(&self, but: usize) {
        let mut records = lock(&self.records);
        let old = records.kept.len().saturating_sub(but);
        records.kept.drain(..old);
        records.forgotten += old;
    }

    pub(super) fn look<T>(&self, mark: usize, look: impl FnOnce(&[Record]) -> T) -> T {
        let mut records = lock(&self.records);
        let first = mark.saturating_sub(records.forgotten);
        let kept = records.kept.make_contiguous();
        look(kept.get(first..).unwrap_or_default())
    }

    pub(super) fn find(&self, mark: usize, take: impl Fn(&Event) -> bool) -> Option<Record> {
        lock(&self.records)
            .since(mark)
            .find(|record| take(&record.event))
            .cloned()
    }

    pub(super) fn len(&self) -> usize {
        lock(&self.records).len()
    }

    pub(super) fn violations(&self) -> Vec<Violation> {
        lock(&self.violations).clone()
    }

    pub(super) fn timeout(&self, what: &str, waited: Duration) -> WaitTimeout {
        WaitTimeout {
            what: what.to_owned(),
            waited,
            history: self.history(),
        }
    }

    /// The log as text: seconds since the peer was made, and the event.
    pub(super) fn history(&self) -> String {
        lock(&self.records)
            .kept
            .iter()
            .map(|Record { at, event }| {
                format!(
                    "{:>9.3}s {event:?}\n",
                    at.duration_since(self.born).as_secs_f64()
                )
            })
            .collect()
    }
}
