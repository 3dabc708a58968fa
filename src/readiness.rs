//! What is still missing before this node's GPUs are served.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What each part of the process waits for. Cheap to clone; all clones are one.
#[derive(Clone, Debug, Default)]
pub struct Readiness(Arc<Mutex<Parts>>);

#[derive(Debug, Default)]
struct Parts {
    missing: BTreeMap<String, String>,
    notes: BTreeMap<String, String>,
    /// What only a restart of this process can mend.
    fatal: Option<String>,
}

impl Readiness {
    /// Says that `part` waits for `what`. True where that is news.
    pub fn missing(&self, part: &str, what: impl Into<String>) -> bool {
        let what = what.into();
        self.lock().missing.insert(part.into(), what.clone()) != Some(what)
    }

    /// Says that `part` has all it needs. True where that is news.
    pub fn ready(&self, part: &str) -> bool {
        self.lock().missing.remove(part).is_some()
    }

    /// Says what is amiss with `part` and keeps nothing from being served, or
    /// that this is over. True where that is news.
    pub fn note(&self, part: &str, what: Option<&str>) -> bool {
        let mut parts = self.lock();
        let before = match what {
            Some(what) => parts.notes.insert(part.into(), what.into()),
            None => parts.notes.remove(part),
        };
        before.as_deref() != what
    }

    /// A line for each note: `note: part: what`.
    pub fn notes(&self) -> Vec<String> {
        let parts = self.lock();
        let line = |(part, what): (&String, &String)| format!("note: {part}: {what}");
        parts.notes.iter().map(line).collect()
    }

    /// Says that nothing but a restart of this process helps any more, or that
    /// this is over.
    pub fn fatal(&self, why: Option<String>) {
        self.lock().fatal = why;
    }

    /// A line for each part that waits: `part: what`.
    pub fn list(&self) -> Vec<String> {
        self.lock()
            .missing
            .iter()
            .map(|(part, what)| format!("{part}: {what}"))
            .collect()
    }

    /// Why this process should be restarted.
    pub fn why_dead(&self) -> Option<String> {
        self.lock().fatal.clone()
    }

    /// A thread that panicked left no half-written entry behind.
    fn lock(&self) -> MutexGuard<'_, Parts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_keeps_nothing_from_being_ready() {
        let readiness = Readiness::default();
        assert!(readiness.note("gpus", Some("one is silent")));
        assert!(!readiness.note("gpus", Some("one is silent")));
        assert_eq!(readiness.notes(), ["note: gpus: one is silent"]);
        assert!(readiness.list().is_empty());
        assert!(readiness.note("gpus", None));
        assert!(!readiness.note("gpus", None));
    }

    #[test]
    fn news_is_said_once() {
        let readiness = Readiness::default();
        assert!(readiness.missing("driver", "no library"));
        assert!(!readiness.missing("driver", "no library"));
        assert!(readiness.missing("driver", "no module"));
        assert_eq!(readiness.list(), ["driver: no module"]);
        assert!(readiness.ready("driver"));
        assert!(!readiness.ready("driver"));
        assert!(readiness.list().is_empty());
    }
}
