//! What was done and what was seen, so that a failure can be read; and how often,
//! so that a soak that did nothing does not pass.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// So many lines are shown of what was done, and of what the plugin said.
const LAST: usize = 150;

pub(crate) struct Journal {
    since: Instant,
    actions: Mutex<VecDeque<String>>,
    log: Mutex<VecDeque<String>>,
    counts: Mutex<BTreeMap<&'static str, u64>>,
}

impl Journal {
    pub(crate) fn new() -> Self {
        Self {
            since: Instant::now(),
            actions: Mutex::default(),
            log: Mutex::default(),
            counts: Mutex::default(),
        }
    }

    /// Notes and counts what an actor begins to do.
    pub(crate) fn action(&self, actor: &'static str, what: &impl fmt::Debug) {
        self.count(actor);
        self.note(format!("{actor}: {what:?}"));
    }

    pub(crate) fn note(&self, line: impl fmt::Display) {
        let seconds = self.since.elapsed().as_secs_f64();
        push(&self.actions, format!("{seconds:>9.3}s {line}"));
    }

    /// A line of the plugin's log.
    pub(crate) fn said(&self, line: String) {
        push(&self.log, line);
    }

    pub(crate) fn count(&self, what: &'static str) {
        *lock(&self.counts).entry(what).or_default() += 1;
    }

    pub(crate) fn counted(&self, what: &'static str) -> u64 {
        lock(&self.counts).get(what).copied().unwrap_or_default()
    }

    pub(crate) fn counts(&self) -> String {
        let counts = lock(&self.counts);
        let counts = counts.iter().map(|(what, count)| format!("{count} {what}"));
        counts.collect::<Vec<_>>().join(", ")
    }

    /// The last of it all.
    pub(crate) fn last(&self) -> String {
        let text = |lines: &Mutex<VecDeque<String>>| {
            let lines = lock(lines);
            lines
                .iter()
                .map(|line| format!("{line}\n"))
                .collect::<String>()
        };
        format!(
            "The last of what was done:\n{}The last of what the plugin said:\n{}",
            text(&self.actions),
            text(&self.log)
        )
    }
}

fn push(lines: &Mutex<VecDeque<String>>, line: String) {
    let mut lines = lock(lines);
    lines.push_back(line);
    let old = lines.len().saturating_sub(LAST);
    lines.drain(..old);
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
