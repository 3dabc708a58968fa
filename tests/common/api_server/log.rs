//! Every request, and a bell for those who wait.

use std::fmt;
use std::sync::Mutex;
use std::time::Instant;

use serde_json::Value;
use tokio::sync::watch;

use super::store::lock;

/// A request that came.
#[derive(Clone, Debug)]
pub struct Asked {
    /// As RBAC has it.
    pub verb: &'static str,
    /// As RBAC has it, such as `pods/eviction`.
    pub resource: String,
    pub path: String,
    pub media_type: String,
    pub agent: String,
    pub body: Value,
    pub at: Instant,
    /// What it was answered with; nothing yet, or never.
    pub code: Option<u16>,
}

impl Asked {
    pub fn is(&self, verb: &str, resource: &str) -> bool {
        self.verb == verb && self.resource == resource
    }

    pub fn was_taken(&self) -> bool {
        self.code.is_some_and(|code| (200..300).contains(&code))
    }

    pub fn summary(&self) -> String {
        let code = self
            .code
            .map_or_else(|| "-".into(), |code| code.to_string());
        format!("{} {} {code}", self.verb, self.resource)
    }
}

/// A condition that did not come true.
#[derive(Debug)]
pub struct WaitTimeout(String);

impl fmt::Display for WaitTimeout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for WaitTimeout {}

#[derive(Default)]
pub(super) struct Log {
    asked: Mutex<Vec<Asked>>,
    bell: watch::Sender<u64>,
}

impl Log {
    /// Writes a request down. Its number, for the answer.
    pub(super) fn came(&self, asked: Asked) -> usize {
        let mut all = lock(&self.asked);
        all.push(asked);
        let number = all.len() - 1;
        drop(all);
        self.ring();
        number
    }

    pub(super) fn answered(&self, number: usize, code: u16) {
        if let Some(asked) = lock(&self.asked).get_mut(number) {
            asked.code = Some(code);
        }
        self.ring();
    }

    pub(super) fn all(&self) -> Vec<Asked> {
        lock(&self.asked).clone()
    }

    pub(super) fn ring(&self) {
        self.bell.send_modify(|rings| *rings += 1);
    }

    pub(super) fn bell(&self) -> watch::Receiver<u64> {
        self.bell.subscribe()
    }

    pub(super) fn timeout(&self, what: &str) -> WaitTimeout {
        let lines: Vec<_> = self.all().iter().map(Asked::summary).collect();
        let lines = lines.join("\n");
        WaitTimeout(format!(
            "waited in vain for {what}; what was asked:\n{lines}"
        ))
    }
}
