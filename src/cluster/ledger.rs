//! What the API server has been told, what it should be told, and when.
//!
//! A pure step from a report of health to the next request, or to a time to
//! wait for. It follows no changes: what was written last is compared with what
//! is wanted now, so that a change that goes away in time costs nothing.
//!
//! Three things are told, each with pauses of its own where the API server
//! refuses only that: the condition, the taint, the events.

use std::time::{Duration, SystemTime};

use super::api::NodeFacts;
use super::backoff::Backoff;
use super::condition::{Condition, Status, all_out, condition};
use super::error::ClusterError;
use super::incidents::{Heard, News};
use super::memory::Since;
use super::time::whole_seconds;
use crate::health::report::HealthReport;

/// Time since the ledger was begun.
type Time = Duration;

/// How fast the API server is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// Something new is told after up to so long, at random: many nodes may fall
    /// sick at once.
    pub spread: Duration,
    /// The same for the first write where all is well: a whole cluster may start
    /// at once, and nobody waits for that.
    pub spread_at_start: Duration,
    /// From one write of the condition to the next.
    pub pause: Duration,
    /// The same where only its words are new: they may hold what is counted.
    pub pause_for_words: Duration,
    /// The first pause after a request that failed; it doubles from then on.
    pub first_retry: Duration,
    /// The longest, where the API server cannot be asked.
    pub longest_retry: Duration,
    /// The longest, where it refuses.
    pub longest_after_refusal: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            spread: Duration::from_secs(5),
            spread_at_start: Duration::from_secs(15),
            pause: Duration::from_secs(10),
            pause_for_words: Duration::from_secs(60),
            first_retry: Duration::from_secs(1),
            longest_retry: Duration::from_secs(60),
            longest_after_refusal: Duration::from_secs(600),
        }
    }
}

/// The world at one moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen<'a> {
    pub(super) now: Time,
    /// The same for people.
    pub(super) wall: SystemTime,
    pub(super) report: &'a HealthReport,
    /// Any number, to spread many nodes.
    pub(super) jitter: u8,
}

/// A request to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Write(Condition, Since),
    Taint(bool),
    Tell(News),
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Next {
    Act(Action),
    /// Until then, or until there is another report.
    Wait(Option<Time>),
}

/// Which of the things that are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Part {
    Condition,
    Taint,
    Events,
}

impl Action {
    pub(super) fn part(&self) -> Part {
        match self {
            Self::Write(..) => Part::Condition,
            Self::Taint(_) => Part::Taint,
            Self::Tell(_) => Part::Events,
        }
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Ledger {
    pace: Pace,
    /// Whether there may be a taint.
    taint: bool,
    /// At the API server, by our last write.
    written: Option<(Time, Condition)>,
    /// Of the condition that was written last, by this process or before.
    since: Option<Since>,
    /// Of the condition that is wanted, where its status is another.
    turned: Option<Since>,
    /// At the API server, by its last answer.
    tainted: Option<bool>,
    heard: Heard,
    /// When the first of what is not told yet was seen.
    noticed: Option<SystemTime>,
    lanes: [Lane; 3],
}

impl Ledger {
    /// Nothing is told yet. `since` is what is remembered of the last status.
    pub(super) fn new(pace: Pace, taint: bool, since: Option<Since>) -> Self {
        let lane = Lane::new(pace.first_retry);
        Self {
            pace,
            taint,
            written: None,
            since,
            turned: None,
            tainted: None,
            heard: Heard::default(),
            noticed: None,
            lanes: [lane.clone(), lane.clone(), lane],
        }
    }

    /// What to do now. After an action, [`settle`](Self::settle) and ask again.
    pub(super) fn next(&mut self, seen: &Seen) -> Next {
        if !seen.report.complete {
            return Next::Wait(None);
        }
        let wanted = [self.condition(seen), self.taint(seen), self.events(seen)];
        let mut wake = None;
        for (time, action) in wanted.into_iter().flatten() {
            if time <= seen.now {
                return Next::Act(action);
            }
            wake = Some(wake.map_or(time, |wake: Time| wake.min(time)));
        }
        Next::Wait(wake)
    }

    /// What an action came to. A condition that was written is answered with the
    /// node.
    pub(super) fn settle(
        &mut self,
        action: Action,
        result: Result<Option<NodeFacts>, &ClusterError>,
        now: Time,
        jitter: u8,
    ) {
        let lane = &mut self.lanes[action.part() as usize];
        match result {
            Ok(node) => {
                lane.succeeded();
                self.done(action, node, now);
            }
            Err(error) if !error.is_worth_retrying() && action.part() == Part::Events => {
                lane.succeeded();
                self.done(action, None, now);
            }
            Err(error) => self.failed(action.part(), error, now, jitter),
        }
    }

    fn done(&mut self, action: Action, node: Option<NodeFacts>, now: Time) {
        match action {
            Action::Write(condition, since) => {
                self.written = Some((now, condition));
                self.since = Some(since);
                self.tainted = node.map(|node| node.is_tainted()).or(self.tainted);
            }
            Action::Taint(wanted) => self.tainted = Some(wanted),
            Action::Tell(news) => self.heard.hear(&news),
        }
    }

    fn failed(&mut self, part: Part, error: &ClusterError, now: Time, jitter: u8) {
        let longest = if error.concerns_all() {
            self.pace.longest_retry
        } else {
            self.pace.longest_after_refusal
        };
        let backoff = &mut self.lanes[part as usize].backoff;
        let until = now + backoff.next(longest, error.retry_after(), jitter);
        self.lanes[part as usize].not_before = until;
        if error.concerns_all() {
            for lane in &mut self.lanes {
                lane.not_before = lane.not_before.max(until);
            }
        }
    }

    fn condition(&mut self, seen: &Seen) -> Option<(Time, Action)> {
        let wanted = condition(seen.report)?;
        let lane = &mut self.lanes[Part::Condition as usize];
        let mut spread = self.pace.spread;
        let (urgency, rested) = match &self.written {
            None if wanted.status == Status::True => {
                spread = self.pace.spread_at_start;
                (Urgency::Words, Time::ZERO)
            }
            None => (Urgency::News, Time::ZERO),
            Some((_, written)) if *written == wanted => {
                self.turned = None;
                lane.due = None;
                return None;
            }
            Some((at, written)) if is_reworded(written, &wanted) => {
                (Urgency::Words, *at + self.pace.pause_for_words)
            }
            Some((at, _)) => (Urgency::News, *at + self.pace.pause),
        };
        let time = lane.due(urgency, rested.max(soon(spread, seen)));
        let since = self.turn(&wanted, seen.wall);
        Some((time, Action::Write(wanted, since)))
    }

    /// Since when the wanted status holds: a write that is tried again says the
    /// same.
    fn turn(&mut self, wanted: &Condition, wall: SystemTime) -> Since {
        let of_wanted = |since: &Since| since.status == wanted.status;
        if let Some(since) = self.since.filter(of_wanted) {
            self.turned = None;
            return since;
        }
        let turned = self.turned.filter(of_wanted).unwrap_or(Since {
            status: wanted.status,
            at: whole_seconds(wall),
        });
        *self.turned.insert(turned)
    }

    fn taint(&mut self, seen: &Seen) -> Option<(Time, Action)> {
        let wanted = self.taint && all_out(seen.report);
        let lane = &mut self.lanes[Part::Taint as usize];
        // What the node has is known from the first write of the condition.
        if self.tainted.is_none_or(|tainted| tainted == wanted) {
            lane.due = None;
            return None;
        }
        let time = lane.due(Urgency::News, soon(self.pace.spread, seen));
        Some((time, Action::Taint(wanted)))
    }

    fn events(&mut self, seen: &Seen) -> Option<(Time, Action)> {
        let noticed = self.noticed.unwrap_or(seen.wall);
        let news = self.heard.news(seen.report, noticed);
        let lane = &mut self.lanes[Part::Events as usize];
        let Some(first) = news.into_iter().next() else {
            self.heard.all_told();
            self.noticed = None;
            lane.due = None;
            return None;
        };
        self.noticed = Some(noticed);
        let time = lane.due(Urgency::News, soon(self.pace.spread, seen));
        Some((time, Action::Tell(first)))
    }
}

/// Now, and up to the spread later.
fn soon(spread: Duration, seen: &Seen) -> Time {
    seen.now + spread * u32::from(seen.jitter) / u32::from(u8::MAX)
}

/// Whether nothing but the message is new.
fn is_reworded(written: &Condition, wanted: &Condition) -> bool {
    (written.status, written.reason) == (wanted.status, wanted.reason)
}

/// How much it matters that something is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Urgency {
    Words,
    News,
}

/// The time of one of the things that are told.
#[derive(Clone, Debug)]
struct Lane {
    /// Chosen when it was found to differ.
    due: Option<(Urgency, Time)>,
    /// The end of a pause.
    not_before: Time,
    backoff: Backoff,
}

impl Lane {
    fn new(first_retry: Duration) -> Self {
        Self {
            due: None,
            not_before: Time::ZERO,
            backoff: Backoff::new(first_retry),
        }
    }

    /// When to do what is found to differ: the time that was chosen first, unless
    /// it matters more now.
    fn due(&mut self, urgency: Urgency, at: Time) -> Time {
        let time = match self.due {
            Some((before, time)) if before >= urgency => time,
            Some((_, time)) => time.min(at),
            None => at,
        };
        let urgency = self.due.map_or(urgency, |(before, _)| before.max(urgency));
        self.due = Some((urgency, time));
        time.max(self.not_before)
    }

    fn succeeded(&mut self) {
        self.backoff.reset();
        self.not_before = Time::ZERO;
    }
}

#[cfg(test)]
mod tests;
