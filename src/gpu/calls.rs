//! Calls into the GPU library, on threads of their own, watched by a clock.
//!
//! A call into a sick driver may never return, and no thread can be stopped
//! from outside. So a call that is overdue is reported and its thread left
//! behind; no second call is made under the same key until the first returns,
//! which bounds the threads that can be lost.
//!
//! Few calls are out at a time, as a thread costs more than most calls; one
//! that is slow holds up no other.

use std::collections::{HashMap, VecDeque};
use std::future::pending;
use std::hash::Hash;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

/// A library call that has not come back by then is taken to hang.
pub const DEADLINE: Duration = Duration::from_secs(10);

/// So many calls are out at a time, not counting those that are slow.
const LANES: usize = 2;
/// A call that has not come back by then is slow.
const SLOW: Duration = Duration::from_millis(100);

/// What became of a call.
#[derive(Debug)]
pub enum Outcome<K, T> {
    /// It came back, in time or not.
    Returned(K, T),
    /// Its deadline has passed. Said once a call.
    Overdue(K),
    /// It panicked.
    Panicked(K),
}

struct Running {
    started: Instant,
    slow: bool,
    overdue: bool,
}

type Call<T> = Box<dyn FnOnce() -> T + Send>;

/// The calls that are out, by key.
pub struct Calls<K, T> {
    tasks: JoinSet<(K, Option<T>)>,
    running: HashMap<K, Running>,
    waiting: VecDeque<(K, Call<T>)>,
    deadline: Duration,
}

impl<K, T> Calls<K, T>
where
    K: Clone + Eq + Hash + Send + 'static,
    T: Send + 'static,
{
    /// No calls yet; each will have `deadline`.
    pub fn new(deadline: Duration) -> Self {
        Self {
            tasks: JoinSet::new(),
            running: HashMap::new(),
            waiting: VecDeque::new(),
            deadline,
        }
    }

    /// Starts `call` when its turn comes, unless an earlier one under `key` is
    /// still out.
    pub fn start(&mut self, key: K, call: impl FnOnce() -> T + Send + 'static) -> bool {
        let waiting = || self.waiting.iter().any(|(other, _)| *other == key);
        if self.running.contains_key(&key) || waiting() {
            return false;
        }
        self.waiting.push_back((key, Box::new(call)));
        self.fill_lanes();
        true
    }

    fn fill_lanes(&mut self) {
        while self.running.values().filter(|call| !call.slow).count() < LANES {
            let Some((key, call)) = self.waiting.pop_front() else {
                return;
            };
            let running = Running {
                started: Instant::now(),
                slow: false,
                overdue: false,
            };
            self.running.insert(key.clone(), running);
            self.tasks
                .spawn_blocking(move || (key, catch_unwind(AssertUnwindSafe(call)).ok()));
        }
    }

    /// Whether a call that is in time and matches is still out.
    pub fn any_in_time(&self, matches: impl Fn(&K) -> bool) -> bool {
        let mut waiting = self.waiting.iter();
        let mut running = self.running.iter();
        waiting.any(|(key, _)| matches(key))
            || running.any(|(key, running)| !running.overdue && matches(key))
    }

    /// Whether the call under `key` is out and overdue.
    pub fn is_overdue(&self, key: &K) -> bool {
        self.running.get(key).is_some_and(|running| running.overdue)
    }

    /// The next thing that happens to a call; pending while none is out.
    /// Cancel safe.
    pub async fn next(&mut self) -> Outcome<K, T> {
        loop {
            let slow = self.first(SLOW, |running| !running.slow);
            let overdue = self.first(self.deadline, |running| !running.overdue);
            tokio::select! {
                biased;
                Some(Ok((key, value))) = self.tasks.join_next() => {
                    self.running.remove(&key);
                    self.fill_lanes();
                    return match value {
                        Some(value) => Outcome::Returned(key, value),
                        None => Outcome::Panicked(key),
                    };
                }
                key = at(slow) => {
                    if let Some(running) = self.running.get_mut(&key) {
                        running.slow = true;
                    }
                    self.fill_lanes();
                }
                key = at(overdue) => {
                    if let Some(running) = self.running.get_mut(&key) {
                        running.slow = true;
                        running.overdue = true;
                    }
                    return Outcome::Overdue(key);
                }
            }
        }
    }

    /// The first of these that will have been out for so long, and when.
    fn first(&self, long: Duration, which: impl Fn(&Running) -> bool) -> Option<(K, Instant)> {
        let running = self.running.iter();
        running
            .filter(|(_, running)| which(running))
            .min_by_key(|(_, running)| running.started)
            .map(|(key, running)| (key.clone(), running.started + long))
    }
}

/// Tells of a key when its time comes.
async fn at<K>(time: Option<(K, Instant)>) -> K {
    match time {
        Some((key, time)) => {
            sleep_until(time).await;
            key
        }
        None => pending().await,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn a_call_that_hangs_is_said_once_and_not_repeated_and_others_go_on() {
        let mut calls = Calls::new(Duration::from_millis(20));
        let (release, held) = mpsc::channel::<()>();
        assert!(calls.start("hangs", move || held.recv().is_ok()));
        assert!(matches!(calls.next().await, Outcome::Overdue("hangs")));
        assert!(calls.is_overdue(&"hangs"));
        assert!(
            !calls.start("hangs", || true),
            "a second call under the key of one that hangs"
        );
        assert!(calls.start("answers", || true));
        assert!(matches!(
            calls.next().await,
            Outcome::Returned("answers", true)
        ));
        release.send(()).unwrap();
        assert!(matches!(
            calls.next().await,
            Outcome::Returned("hangs", true)
        ));
        assert!(
            calls.start("hangs", || true),
            "it came back, so it may be asked again"
        );
    }

    #[tokio::test]
    async fn calls_that_are_slow_hold_up_no_other() {
        let mut calls = Calls::new(Duration::from_secs(3600));
        let (release, held) = mpsc::channel::<()>();
        let held = std::sync::Arc::new(std::sync::Mutex::new(held));
        for number in 0..LANES {
            let held = held.clone();
            calls.start(number, move || drop(held.lock().map(|held| held.recv())));
        }
        assert!(calls.start(LANES, || ()));
        assert!(!calls.start(LANES, || ()), "it waits for its turn");
        assert!(calls.any_in_time(|key| *key == LANES));
        assert!(matches!(calls.next().await, Outcome::Returned(LANES, ())));
        drop(release);
        for _ in 0..LANES {
            assert!(matches!(calls.next().await, Outcome::Returned(..)));
        }
    }
}
