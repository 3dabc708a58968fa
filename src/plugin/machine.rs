//! The state machine that keeps a resource registered with the kubelet.
//!
//! A pure step from state and observation to state and action. It follows no
//! events: each step compares what is with what should be. Is the socket at our
//! path the one that we bound? Is `kubelet.sock` the one that we registered
//! with? Is the ListAndWatch stream of that registration open? Any difference
//! leads back to [`Phase::Registered`].
//!
//! Three rules of the kubelet (Kubernetes' pkg/kubelet/cm/devicemanager) shape it:
//! - It dials back inside Register: bind first.
//! - It knows plugins by resource name only, and when the stream of an earlier
//!   registration ends it disconnects the *present* one: end streams first.
//! - It never opens a stream again that ended: register again.

use std::time::Duration;

use crate::kubelet::registration;
use crate::kubelet::socket::SocketId;

/// Time since the machine's start.
pub type Time = Duration;

/// How long a kubelet that took a registration has for opening the stream.
const STREAM_DEADLINE: Duration = Duration::from_secs(10);
/// How long streams have to end when they are told to, before their
/// connections are cut.
const END_DEADLINE: Duration = Duration::from_millis(200);
/// How long a kubelet has for closing the connection of a stream that ended.
/// It does so once it has forgotten the registration, so that is the sign that
/// a new one will not be forgotten in its place.
const LINGER_DEADLINE: Duration = Duration::from_millis(100);
/// A registration whose stream lasted this long was a good one.
const GOOD: Duration = Duration::from_secs(30);
/// When to look again for a folder that is not there.
const FOLDER_RETRY: Duration = Duration::from_millis(100);
/// Nobody accepts: connecting costs next to nothing, so it is tried again
/// at once, and for ever: a kubelet that has just bound its socket listens in less
/// than a millisecond. This is what bounds the time from its listening to the
/// registration.
const REFUSED: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(160));
/// The kubelet answered with an error, or not at all.
const FAILED: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(10));
/// The kubelet ended our stream and lives on: perhaps another plugin took the
/// name, and then each registration of ours costs it its own.
const ENDED: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(300));
/// While a newer rival lives, look this often whether it still does.
const YIELD: Duration = Duration::from_secs(5);
/// After this many registrations in a row whose stream the kubelet soon ended,
/// another plugin is the likely cause.
const CONTENDED: u32 = 5;

/// The streams that were opened on our socket.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Streams {
    /// All.
    pub all: Series,
    /// Those whose client looks like a kubelet, with numbers of their own.
    pub kubelets: Series,
    /// How many open connections have carried one.
    pub carriers: usize,
}

/// Streams by number.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Series {
    /// How many were ever opened: the next one's number.
    pub opened: u64,
    /// The numbers of those that are open.
    pub open: Vec<u64>,
}

/// The number that the next stream would have, in each series.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Next {
    any: u64,
    kubelets: u64,
}

impl Streams {
    fn next(&self) -> Next {
        Next {
            any: self.all.opened,
            kubelets: self.kubelets.opened,
        }
    }

    /// Whether the stream of a registration that began at `next` was opened, and is
    /// open: the first whose client looks like a kubelet. As long as there was none,
    /// the first of all: whoever opened it, none looks more like it.
    fn of_registration(&self, next: Next) -> (bool, bool) {
        let (series, first) = if self.kubelets.opened > next.kubelets {
            (&self.kubelets, next.kubelets)
        } else {
            (&self.all, next.any)
        };
        (series.opened > first, series.open.contains(&first))
    }
}

/// What a registration came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Registration {
    /// The kubelet took it.
    Accepted,
    /// Nobody accepted the connection.
    Refused,
    /// Any other failure.
    Failed,
}

/// What the last action came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// Of [`Action::Bind`]: the socket that was bound, if it was.
    Bound(Option<SocketId>),
    /// Of [`Action::Register`].
    Registration(Registration),
}

/// The world at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Observation {
    /// Now.
    pub now: Time,
    /// Whether the kubelet's folder is there.
    pub folder: bool,
    /// The socket at the kubelet's path.
    pub kubelet: Option<SocketId>,
    /// The socket at our path.
    pub endpoint: Option<SocketId>,
    /// Our streams.
    pub streams: Streams,
    /// Whether a live plugin for the same resource bound its socket after we
    /// bound ours.
    pub newer_rival: bool,
    /// News of the last action.
    pub outcome: Option<Outcome>,
    /// Between 0 and 255, to spread retries of many nodes.
    pub jitter: u8,
}

/// What to do now. After it, observe and step again at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Bind the socket anew and serve on it, and retire the server before it:
    /// its connections are cut. Answered by [`Outcome::Bound`].
    Bind,
    /// End every stream.
    EndStreams,
    /// Register. Answered by [`Outcome::Registration`] some time.
    Register,
    /// Give up the registration that is under way.
    CancelRegister,
}

/// Where the machine stands, for logs, metrics and readiness.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// The kubelet's folder is not there.
    NoFolder,
    /// Our socket is being bound.
    Binding,
    /// There is no `kubelet.sock`.
    NoKubelet,
    /// Old streams are ending.
    EndingStreams,
    /// A registration is under way.
    Registering,
    /// Registered; the kubelet has not opened its stream yet.
    AwaitingStream,
    /// Registered, and the stream is open.
    Registered,
    /// The last attempt failed; the next is due later.
    BackingOff,
    /// The kubelet keeps ending our streams: another plugin, most likely.
    Contended,
    /// A newer plugin for the same resource is alive; it has the name.
    Yielding,
}

impl Phase {
    /// Every phase.
    pub const ALL: [Self; 10] = [
        Self::NoFolder,
        Self::Binding,
        Self::NoKubelet,
        Self::EndingStreams,
        Self::Registering,
        Self::AwaitingStream,
        Self::Registered,
        Self::BackingOff,
        Self::Contended,
        Self::Yielding,
    ];

    /// A stable word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoFolder => "no_folder",
            Self::Binding => "binding",
            Self::NoKubelet => "no_kubelet",
            Self::EndingStreams => "ending_streams",
            Self::Registering => "registering",
            Self::AwaitingStream => "awaiting_stream",
            Self::Registered => "registered",
            Self::BackingOff => "backing_off",
            Self::Contended => "contended",
            Self::Yielding => "yielding",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Link {
    Down,
    /// Streams were told to end.
    Ending {
        since: Time,
    },
    Registering {
        with: SocketId,
        since: Time,
        next: Next,
    },
    Up {
        with: SocketId,
        since: Time,
        next: Next,
        seen: bool,
    },
}

/// The machine's state.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Machine {
    /// The socket that we bound.
    bound: Option<SocketId>,
    /// The kubelet that `strikes` and `retry_at` are about.
    kubelet: Option<SocketId>,
    link: Link,
    /// Refusals in a row by a kubelet that does not listen yet. They say nothing
    /// of one that does.
    refusals: u32,
    /// Other failures in a row with this kubelet.
    strikes: u32,
    /// How many of them were streams that the kubelet ended.
    ended: u32,
    /// Nothing is tried with this kubelet before.
    retry_at: Time,
    /// Binding failed; not before.
    bind_at: Time,
}

/// One step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// What to do now.
    pub action: Option<Action>,
    /// When to observe again, though nothing else happens.
    pub wake: Option<Time>,
    /// Where the machine stands.
    pub phase: Phase,
}

impl Default for Machine {
    fn default() -> Self {
        Self {
            bound: None,
            kubelet: None,
            link: Link::Down,
            refusals: 0,
            strikes: 0,
            ended: 0,
            retry_at: Time::ZERO,
            bind_at: Time::ZERO,
        }
    }
}

impl Machine {
    /// Takes one observation and decides.
    pub fn step(&mut self, seen: &Observation) -> Step {
        self.learn(seen);
        if let Some(step) = self.link_step(seen) {
            return step;
        }
        self.down_step(seen)
    }

    /// The socket that we bound, as long as it lies at our path.
    pub fn bound(&self) -> Option<SocketId> {
        self.bound
    }

    /// Takes in what the last action came to, and which kubelet is there.
    fn learn(&mut self, seen: &Observation) {
        match seen.outcome {
            Some(Outcome::Bound(bound)) => {
                self.bound = bound;
                if bound.is_none() {
                    self.bind_at = seen.now + FOLDER_RETRY;
                }
            }
            Some(Outcome::Registration(registration)) => self.registration(seen, registration),
            None => {}
        }
        if self.kubelet != seen.kubelet {
            // A socket that goes takes no grudge along; a new one gets a new
            // chance at once.
            self.kubelet = seen.kubelet;
            self.refusals = 0;
            self.strikes = 0;
            self.ended = 0;
            self.retry_at = seen.now;
        }
    }

    fn registration(&mut self, seen: &Observation, registration: Registration) {
        let Link::Registering { with, next, .. } = self.link else {
            return;
        };
        match registration {
            Registration::Accepted => {
                self.link = Link::Up {
                    with,
                    since: seen.now,
                    next,
                    seen: false,
                };
            }
            Registration::Refused => {
                self.back_off(seen, REFUSED, self.refusals);
                self.refusals = self.refusals.saturating_add(1);
            }
            Registration::Failed => self.strike(seen, FAILED),
        }
    }

    /// Notes a failure of a kubelet that listens.
    fn strike(&mut self, seen: &Observation, bounds: (Duration, Duration)) {
        self.back_off(seen, bounds, self.strikes);
        self.refusals = 0;
        self.strikes = self.strikes.saturating_add(1);
    }

    /// Back to the start, not before a pause that grows with the `failures`.
    fn back_off(
        &mut self,
        seen: &Observation,
        (shortest, longest): (Duration, Duration),
        failures: u32,
    ) {
        let doubled = shortest.saturating_mul(1 << failures.min(16)).min(longest);
        // Up to a quarter less, never more: the bounds above stay bounds.
        let jittered = doubled - doubled * u32::from(seen.jitter) / 1024;
        self.retry_at = seen.now + jittered;
        self.link = Link::Down;
    }

    /// What is under way or up: does it still hold? None: the link is down.
    fn link_step(&mut self, seen: &Observation) -> Option<Step> {
        let endpoint_lost = seen.endpoint != self.bound;
        match self.link.clone() {
            Link::Down | Link::Ending { .. } => None,
            Link::Registering { with, since, .. } => {
                let deadline = since + registration::DEADLINE + Duration::from_secs(1);
                if endpoint_lost || seen.kubelet != Some(with) || !seen.folder {
                    self.link = Link::Down;
                    return Some(act(Action::CancelRegister, Phase::Registering));
                }
                if seen.now >= deadline {
                    self.strike(seen, FAILED);
                    return Some(act(Action::CancelRegister, Phase::Registering));
                }
                Some(wait(Some(deadline), Phase::Registering))
            }
            Link::Up {
                with,
                since,
                next,
                seen: was_seen,
            } => {
                let (opened, open) = seen.streams.of_registration(next);
                let was_seen = was_seen || opened;
                self.link = Link::Up {
                    with,
                    since,
                    next,
                    seen: was_seen,
                };
                if endpoint_lost || seen.kubelet.is_some_and(|kubelet| kubelet != with) {
                    self.link = Link::Down;
                    return None;
                }
                if open {
                    // Though kubelet.sock may be gone: this connection is not.
                    return Some(wait(None, Phase::Registered));
                }
                let deadline = since + STREAM_DEADLINE;
                if !was_seen && seen.kubelet.is_some() && seen.now < deadline {
                    return Some(wait(Some(deadline), Phase::AwaitingStream));
                }
                self.stream_over(seen, since, was_seen);
                None
            }
        }
    }

    /// The registration's stream ended, or never came.
    fn stream_over(&mut self, seen: &Observation, since: Time, was_seen: bool) {
        if seen.now.saturating_sub(since) >= GOOD {
            self.strikes = 0;
            self.ended = 0;
        }
        if was_seen {
            self.ended = self.ended.saturating_add(1);
        }
        self.strike(seen, if was_seen { ENDED } else { FAILED });
    }

    /// Nothing is under way: what is to be done next?
    fn down_step(&mut self, seen: &Observation) -> Step {
        if !seen.folder {
            self.bound = None;
            return wait(Some(seen.now + FOLDER_RETRY), Phase::NoFolder);
        }
        if self.bound.is_none() || seen.endpoint != self.bound {
            if seen.now < self.bind_at {
                return wait(Some(self.bind_at), Phase::Binding);
            }
            self.bound = None;
            return act(Action::Bind, Phase::Binding);
        }
        let Some(kubelet) = seen.kubelet else {
            self.link = Link::Down;
            return wait(None, Phase::NoKubelet);
        };
        if let Some(step) = self.end_streams(seen) {
            return step;
        }
        if seen.now < self.retry_at {
            let contended = self.ended >= CONTENDED;
            let phase = if contended {
                Phase::Contended
            } else {
                Phase::BackingOff
            };
            return wait(Some(self.retry_at), phase);
        }
        if self.ended > 0 && seen.newer_rival {
            return wait(Some(seen.now + YIELD), Phase::Yielding);
        }
        self.link = Link::Registering {
            with: kubelet,
            since: seen.now,
            next: seen.streams.next(),
        };
        act(Action::Register, Phase::Registering)
    }

    /// No stream of an earlier registration may outlive it into the next.
    fn end_streams(&mut self, seen: &Observation) -> Option<Step> {
        let Streams { all, carriers, .. } = &seen.streams;
        let open = &all.open;
        if open.is_empty() && *carriers == 0 {
            self.link = Link::Down;
            return None;
        }
        let since = match self.link {
            Link::Ending { since } => since,
            _ => {
                self.link = Link::Ending { since: seen.now };
                if !open.is_empty() {
                    return Some(act(Action::EndStreams, Phase::EndingStreams));
                }
                seen.now
            }
        };
        if open.is_empty() {
            let deadline = since + LINGER_DEADLINE;
            // Whoever keeps a connection without a stream may keep it.
            return (seen.now < deadline).then(|| wait(Some(deadline), Phase::EndingStreams));
        }
        let deadline = since + END_DEADLINE;
        if seen.now < deadline {
            return Some(wait(Some(deadline), Phase::EndingStreams));
        }
        // A peer that does not read keeps its stream: cut the connection.
        self.link = Link::Ending { since: seen.now };
        self.bound = None;
        Some(act(Action::Bind, Phase::EndingStreams))
    }
}

fn act(action: Action, phase: Phase) -> Step {
    Step {
        action: Some(action),
        wake: None,
        phase,
    }
}

fn wait(wake: Option<Time>, phase: Phase) -> Step {
    Step {
        action: None,
        wake,
        phase,
    }
}

#[cfg(test)]
mod tests;
