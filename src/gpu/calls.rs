//! Calls into the GPU library, each on a thread of its own, watched by a clock.
//!
//! A call into a sick driver may never return, and no thread can be stopped
//! from outside. So a call that is overdue is reported and its thread left
//! behind; no second call is made under the same key until the first returns,
//! which bounds the threads that can be lost.

use std::collections::HashMap;
use std::future::pending;
use std::hash::Hash;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

/// A library call that has not come back by then is taken to hang.
pub const DEADLINE: Duration = Duration::from_secs(10);

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
    deadline: Instant,
    overdue: bool,
}

/// The calls that are out, by key.
pub struct Calls<K, T> {
    tasks: JoinSet<(K, Option<T>)>,
    running: HashMap<K, Running>,
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
            deadline,
        }
    }

    /// Starts `call`, unless an earlier one under `key` is still out.
    pub fn start(&mut self, key: K, call: impl FnOnce() -> T + Send + 'static) -> bool {
        if self.running.contains_key(&key) {
            return false;
        }
        let running = Running {
            deadline: Instant::now() + self.deadline,
            overdue: false,
        };
        self.running.insert(key.clone(), running);
        self.tasks
            .spawn_blocking(move || (key, catch_unwind(AssertUnwindSafe(call)).ok()));
        true
    }

    /// Whether a call that is in time and matches is still out.
    pub fn any_in_time(&self, matches: impl Fn(&K) -> bool) -> bool {
        self.running
            .iter()
            .any(|(key, running)| !running.overdue && matches(key))
    }

    /// Whether the call under `key` is out and overdue.
    pub fn is_overdue(&self, key: &K) -> bool {
        self.running.get(key).is_some_and(|running| running.overdue)
    }

    /// The next thing that happens to a call; pending while none is out.
    /// Cancel safe.
    pub async fn next(&mut self) -> Outcome<K, T> {
        let first = self
            .running
            .iter()
            .filter(|(_, running)| !running.overdue)
            .min_by_key(|(_, running)| running.deadline)
            .map(|(key, running)| (key.clone(), running.deadline));
        let overdue = async {
            match first {
                Some((key, deadline)) => {
                    sleep_until(deadline).await;
                    key
                }
                None => pending().await,
            }
        };
        tokio::select! {
            biased;
            Some(Ok((key, value))) = self.tasks.join_next() => {
                self.running.remove(&key);
                match value {
                    Some(value) => Outcome::Returned(key, value),
                    None => Outcome::Panicked(key),
                }
            }
            key = overdue => {
                if let Some(running) = self.running.get_mut(&key) {
                    running.overdue = true;
                }
                Outcome::Overdue(key)
            }
        }
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
}
