//! What holds against a GPU or a GPU instance, and the way back.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::config::HealthOptions;
use crate::health::cause::Cause;
use crate::health::class::Class;
use crate::health::report::Sickness;
use crate::health::xid::XidPolicy;

/// More relapses than this double nothing any more.
const MOST_RELAPSES: u32 = 16;

/// A GPU or a GPU instance. All times are since boot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct Scope {
    /// Events that are not over; of each XID and of each other kind the last.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    latched: Vec<Latched>,
    /// Absent while it is healthy.
    #[serde(skip_serializing_if = "Option::is_none")]
    sick: Option<Sick>,
    /// When it was last sick and became healthy.
    #[serde(skip_serializing_if = "Option::is_none")]
    recovered_at: Option<Duration>,
    /// How often it fell sick again soon after.
    #[serde(skip_serializing_if = "is_zero")]
    relapses: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Latched {
    cause: Cause,
    at: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Sick {
    since: Duration,
    /// The gravest cause that holds, or that was the last to hold.
    cause: Cause,
    class: Class,
    /// The last sign of sickness.
    last_bad: Duration,
    /// Any cause holds.
    holds: bool,
    /// A level holds: the moment that it ends is a sign of sickness still.
    by_level: bool,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "as serde's attribute has it"
)]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

impl Scope {
    /// Whether it has no past.
    pub(super) fn is_blank(&self) -> bool {
        *self == Self::default()
    }

    /// What an earlier process kept. Times from the future, which only a damaged
    /// file can have, would keep it sick for ever.
    pub(super) fn restored(&mut self, now: Duration) {
        for latched in &mut self.latched {
            latched.at = latched.at.min(now);
        }
        self.recovered_at = self.recovered_at.map(|at| at.min(now));
        if let Some(sick) = &mut self.sick {
            sick.since = sick.since.min(now);
            // Nobody looked since; the level may have lasted until now.
            sick.last_bad = if sick.by_level {
                now
            } else {
                sick.last_bad.min(now)
            };
        }
    }

    /// Holds an event against it.
    pub(super) fn latch(&mut self, cause: Cause, at: Duration) {
        let same = |latched: &&mut Latched| match (&latched.cause, &cause) {
            (Cause::Xid(one), Cause::Xid(other)) => one == other,
            (one, other) => one.kind() == other.kind(),
        };
        match self.latched.iter_mut().find(same) {
            Some(latched) => {
                latched.at = latched.at.max(at);
                latched.cause = cause;
            }
            None => self.latched.push(Latched { cause, at }),
        }
    }

    /// The driver said, when it was asked at this time, that nothing is needed.
    pub(super) fn forgive(&mut self, asked: Duration, options: &HealthOptions) {
        self.latched.retain(|latched| {
            latched.at >= asked || latched.cause.class(&options.policy).is_lasting()
        });
    }

    /// Draws the conclusion. `levels` are the causes that hold beside the latched
    /// ones; `well` says that this is the moment of a good answer.
    pub(super) fn settle(
        &mut self,
        now: Duration,
        levels: &[Cause],
        well: bool,
        options: &HealthOptions,
    ) {
        // An event that was taken to heart by other options.
        let policy = &options.policy;
        self.latched
            .retain(|latched| latched.cause.class(policy).acts());
        let latched = self.latched.iter().map(|latched| &latched.cause);
        let causes = levels.iter().filter(|cause| cause.class(policy).acts());
        let by_level = causes.clone().next().is_some();
        match gravest(causes.chain(latched), policy) {
            Some((cause, class)) => self.fell_sick(now, cause, class, by_level, options),
            None => self.recovers(now, well, options),
        }
    }

    fn fell_sick(
        &mut self,
        now: Duration,
        cause: Cause,
        class: Class,
        by_level: bool,
        options: &HealthOptions,
    ) {
        let last_event = self.latched.iter().map(|latched| latched.at).max();
        let sick = match &mut self.sick {
            Some(sick) => sick,
            None => {
                let soon = |at: Duration| now < at.saturating_add(options.relapse_window);
                let relapsed = self.recovered_at.is_some_and(soon);
                self.relapses = if relapsed {
                    (self.relapses + 1).min(MOST_RELAPSES)
                } else {
                    0
                };
                self.sick.insert(Sick {
                    since: now,
                    cause: cause.clone(),
                    class,
                    last_bad: Duration::ZERO,
                    holds: true,
                    by_level,
                })
            }
        };
        let level_until = (by_level || sick.by_level).then_some(now);
        let signs = [Some(sick.last_bad), last_event, level_until];
        sick.last_bad = signs.into_iter().flatten().max().unwrap_or(now);
        sick.cause = cause;
        sick.class = class;
        sick.holds = true;
        sick.by_level = by_level;
    }

    fn recovers(&mut self, now: Duration, well: bool, options: &HealthOptions) {
        let quiet = self.quiet(options);
        let Some(sick) = &mut self.sick else { return };
        if sick.by_level {
            sick.last_bad = now;
        }
        sick.holds = false;
        sick.by_level = false;
        if well && now >= sick.last_bad.saturating_add(quiet) {
            self.sick = None;
            self.recovered_at = Some(now);
        }
    }

    /// How long it must be without a sign of sickness.
    fn quiet(&self, options: &HealthOptions) -> Duration {
        let factor = 1 << self.relapses.min(MOST_RELAPSES);
        let longest = options.longest_quiet.max(options.quiet);
        options.quiet.saturating_mul(factor).min(longest)
    }

    /// Why it is sick.
    pub(super) fn sickness(&self, options: &HealthOptions) -> Option<Sickness> {
        let sick = self.sick.as_ref()?;
        let until = sick.last_bad.saturating_add(self.quiet(options));
        Some(Sickness {
            cause: sick.cause.clone(),
            class: sick.class,
            since: sick.since,
            recovering_until: (!sick.holds).then_some(until),
        })
    }
}

/// The first in class, and of those the first in the table of signals.
fn gravest<'a>(
    causes: impl Iterator<Item = &'a Cause>,
    policy: &XidPolicy,
) -> Option<(Cause, Class)> {
    let rank = |cause: &Cause| (std::cmp::Reverse(cause.class(policy)), cause.kind());
    let worst = causes.min_by_key(|cause| (rank(cause), (*cause).clone()))?;
    Some((worst.clone(), worst.class(policy)))
}
