//! The thread that waits for XID events.
//!
//! The wait blocks, and may hang for ever in a sick driver, so it has a thread
//! that is never joined. A failed wait ends the thread; a new one starts after a
//! pause that grows, so that a wait that always fails costs nothing.

use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::{Instant, sleep_until};

use crate::gpu::{ErrorKind, GpuLibrary, GpuUuid, LibraryError, XidEvent};

/// How long one wait lasts: the time after which a thread that is not needed
/// any more ends.
const WAIT: Duration = Duration::from_secs(5);
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// What the subscription has to say.
#[derive(Debug)]
pub(super) enum Notice {
    /// An event came.
    Xid(XidEvent),
    /// The wait, or the subscribing, failed. There will be a pause.
    Failed(LibraryError),
    /// The pause is over: subscribe again.
    Retry,
}

/// A subscription to the events of a set of GPUs.
#[derive(Default)]
pub(super) struct Subscription {
    gpus: Vec<GpuUuid>,
    thread: Option<Listener>,
    retry_at: Option<Instant>,
    pause: Option<Duration>,
    /// These GPUs have no events, which is no fault: polling sees them.
    without_events: bool,
}

struct Listener {
    events: UnboundedReceiver<Result<XidEvent, LibraryError>>,
    stop: Arc<AtomicBool>,
    since: Instant,
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

impl Subscription {
    /// Subscribes to the events of `gpus`, unless that is so already or a
    /// failure's pause is not over. One that was missing from an earlier call is
    /// subscribed to anew: nobody says that its registration outlived its absence.
    pub(super) fn subscribe(&mut self, library: &Arc<dyn GpuLibrary>, gpus: Vec<GpuUuid>) {
        self.gpus.retain(|gpu| gpus.contains(gpu));
        let pausing = self.retry_at.is_some_and(|at| Instant::now() < at);
        let subscribed = self.thread.is_some() || self.without_events;
        if pausing || gpus.is_empty() || (subscribed && self.gpus == gpus) {
            return;
        }
        self.retry_at = None;
        self.without_events = false;
        let (sender, events) = unbounded_channel();
        let stop = Arc::new(AtomicBool::new(false));
        let listener = Listener {
            events,
            stop: stop.clone(),
            since: Instant::now(),
        };
        let (library, wanted) = (library.clone(), gpus.clone());
        let started = thread::Builder::new()
            .name("xid-events".into())
            .spawn(move || listen(library, &wanted, &stop, &sender));
        self.gpus = gpus;
        match started {
            Ok(_) => self.thread = Some(listener),
            // No thread to be had: the polls go on, and this is tried again.
            Err(_) => self.retry_at = Some(Instant::now() + self.next_pause()),
        }
    }

    /// The next thing to say. Cancel safe.
    pub(super) async fn next(&mut self) -> Notice {
        if let Some(at) = self.retry_at {
            sleep_until(at).await;
            self.retry_at = None;
            return Notice::Retry;
        }
        let Some(listener) = &mut self.thread else {
            return pending().await;
        };
        match listener.events.recv().await {
            Some(Ok(event)) => Notice::Xid(event),
            Some(Err(LibraryError {
                kind: ErrorKind::NotSupported,
                ..
            })) => {
                self.thread = None;
                self.without_events = true;
                pending().await
            }
            ended => {
                if listener.since.elapsed() > LONGEST_PAUSE {
                    self.pause = None;
                }
                self.thread = None;
                self.retry_at = Some(Instant::now() + self.next_pause());
                Notice::Failed(ended.and_then(Result::err).unwrap_or_else(thread_ended))
            }
        }
    }

    fn next_pause(&mut self) -> Duration {
        let pause = self
            .pause
            .map_or(FIRST_PAUSE, |pause| (pause * 2).min(LONGEST_PAUSE));
        *self.pause.insert(pause)
    }
}

fn listen(
    library: Arc<dyn GpuLibrary>,
    gpus: &[GpuUuid],
    stop: &AtomicBool,
    events: &UnboundedSender<Result<XidEvent, LibraryError>>,
) {
    let mut source = match library.events(gpus) {
        Ok(source) => source,
        Err(error) => return drop(events.send(Err(error))),
    };
    while !stop.load(Ordering::Relaxed) {
        let waited = source.wait(WAIT).transpose();
        let Some(event) = waited else { continue };
        let failed = event.is_err();
        // Nobody listens any more, or there is nothing more to hear.
        if events.send(event).is_err() || failed {
            return;
        }
    }
}

fn thread_ended() -> LibraryError {
    LibraryError {
        call: "nvmlEventSetWait_v2",
        kind: ErrorKind::Other,
        message: "the thread that waits has ended".into(),
    }
}
