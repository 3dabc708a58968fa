//! What goes wrong, on demand.

use std::collections::BTreeSet;
use std::time::Duration;

/// What happens to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It is never answered, and not done.
    Hang,
    /// It is done and answered later.
    Slow(Duration),
    /// It is kept until [`release`](super::ApiServerPeer::release), and done then.
    Hold,
    /// It is done, and the answer is lost.
    LoseAnswer,
    /// It is answered with this status of 5xx.
    Status(u16),
    /// Priority and fairness has no room for it; `Retry-After` in seconds.
    TooMany(u64),
    /// It is answered with what no client can read.
    Garble,
}

/// Which requests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct On {
    verb: Option<&'static str>,
    resource: Option<&'static str>,
}

impl On {
    /// Every request.
    pub fn any() -> Self {
        Self::default()
    }

    /// Those that RBAC knows so.
    pub fn only(verb: &'static str, resource: &'static str) -> Self {
        Self {
            verb: Some(verb),
            resource: Some(resource),
        }
    }

    fn takes(&self, verb: &str, resource: &str) -> bool {
        self.verb.is_none_or(|wanted| wanted == verb)
            && self.resource.is_none_or(|wanted| wanted == resource)
    }
}

#[derive(Debug, Default)]
pub(super) struct Faults {
    armed: Vec<(Fault, On, usize)>,
    forbidden: BTreeSet<(String, String)>,
}

impl Faults {
    pub(super) fn arm(&mut self, fault: Fault, on: On, times: usize) {
        self.armed.push((fault, on, times));
    }

    pub(super) fn clear(&mut self) {
        self.armed.clear();
    }

    pub(super) fn forbid(&mut self, verb: &str, resource: &str) {
        self.forbidden.insert((verb.into(), resource.into()));
    }

    pub(super) fn allow_all(&mut self) {
        self.forbidden.clear();
    }

    pub(super) fn is_forbidden(&self, verb: &str, resource: &str) -> bool {
        self.forbidden.contains(&(verb.into(), resource.into()))
    }

    /// The fault of this request, which is spent.
    pub(super) fn take(&mut self, verb: &str, resource: &str) -> Option<Fault> {
        let place = self
            .armed
            .iter()
            .position(|(_, on, _)| on.takes(verb, resource))?;
        let (fault, _, times) = &mut self.armed[place];
        let fault = fault.clone();
        *times = times.saturating_sub(1);
        if *times == 0 {
            self.armed.remove(place);
        }
        Some(fault)
    }
}
