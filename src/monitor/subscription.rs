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

use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until};

use super::xids::{Kind, Place, Sender, Tally};
use crate::gpu::{ErrorKind, GpuLibrary, GpuUuid, LibraryError};
use crate::health::kept::since_boot;

/// How long one wait lasts: as long as the subscription is old, within these. A thread
/// that is not needed any more ends with its wait, so GPUs that come and go in turn
/// leave few of them, and one that stays is seldom woken.
const SHORTEST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(30);
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// What the subscription has to say.
#[derive(Debug)]
pub(super) enum Notice {
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
    /// Why the thread has ended.
    ended: oneshot::Receiver<LibraryError>,
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
    /// What is heard goes to `xids`.
    pub(super) fn subscribe(
        &mut self,
        library: &Arc<dyn GpuLibrary>,
        gpus: Vec<GpuUuid>,
        xids: &Sender,
    ) {
        self.gpus.retain(|gpu| gpus.contains(gpu));
        let pausing = self.retry_at.is_some_and(|at| Instant::now() < at);
        let subscribed = self.thread.is_some() || self.without_events;
        if pausing || gpus.is_empty() || (subscribed && self.gpus == gpus) {
            return;
        }
        self.retry_at = None;
        self.without_events = false;
        let (tell_end, ended) = oneshot::channel();
        let stop = Arc::new(AtomicBool::new(false));
        let listener = Listener {
            ended,
            stop: stop.clone(),
            since: Instant::now(),
        };
        let (library, wanted, xids) = (library.clone(), gpus.clone(), xids.clone());
        let started = thread::Builder::new()
            .name("xid-events".into())
            .spawn(move || {
                if let Some(error) = listen(library, &wanted, &stop, &xids) {
                    drop(tell_end.send(error));
                }
            });
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
        let error = (&mut listener.ended)
            .await
            .unwrap_or_else(|_| thread_ended());
        if error.kind == ErrorKind::NotSupported {
            self.thread = None;
            self.without_events = true;
            return pending().await;
        }
        if listener.since.elapsed() > LONGEST_PAUSE {
            self.pause = None;
        }
        self.thread = None;
        self.retry_at = Some(Instant::now() + self.next_pause());
        Notice::Failed(error)
    }

    fn next_pause(&mut self) -> Duration {
        let pause = self
            .pause
            .map_or(FIRST_PAUSE, |pause| (pause * 2).min(LONGEST_PAUSE));
        *self.pause.insert(pause)
    }
}

/// Tells of events until nobody wants them or the wait fails, and then why.
fn listen(
    library: Arc<dyn GpuLibrary>,
    gpus: &[GpuUuid],
    stop: &AtomicBool,
    xids: &Sender,
) -> Option<LibraryError> {
    let mut source = match library.events(gpus) {
        Ok(source) => source,
        Err(error) => return Some(error),
    };
    let since = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        let wait = since.elapsed().clamp(SHORTEST_WAIT, LONGEST_WAIT);
        match source.wait(wait) {
            Ok(None) => {}
            // Another thread tells of what came since nobody wanted this one's.
            Ok(Some(_)) if stop.load(Ordering::Relaxed) => {}
            Ok(Some(event)) => {
                let kind = Kind {
                    gpu: Place::Event(event.uuid),
                    xid: event.xid,
                    instance: event.gpu_instance_id,
                    action: None,
                };
                xids.send(kind, Tally::once(since_boot(), None));
            }
            Err(error) => return Some(error),
        }
    }
    None
}

fn thread_ended() -> LibraryError {
    LibraryError {
        call: "nvmlEventSetWait_v2",
        kind: ErrorKind::Other,
        message: "the thread that waits has ended".into(),
    }
}
