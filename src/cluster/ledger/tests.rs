use serde_json::json;

use super::*;
use crate::cluster::fixture::{gpu, report, sickness, since};
use crate::health::cause::Cause;
use crate::health::class::Class;

const SECOND: Duration = Duration::from_secs(1);

/// A ledger, a clock and an API server of which only the answers are told.
struct Desk {
    ledger: Ledger,
    now: Time,
    jitter: u8,
    done: Vec<Action>,
}

impl Desk {
    fn new(taint: bool) -> Self {
        Self::remembering(taint, None)
    }

    fn remembering(taint: bool, since: Option<Since>) -> Self {
        Self {
            ledger: Ledger::new(Pace::default(), taint, since),
            now: Time::ZERO,
            jitter: 255,
            done: Vec::new(),
        }
    }

    fn next(&mut self, report: &HealthReport) -> Next {
        let seen = Seen {
            now: self.now,
            wall: wall(self.now),
            report,
            jitter: self.jitter,
        };
        self.ledger.next(&seen)
    }

    /// The next action, once its time has come.
    fn act(&mut self, report: &HealthReport) -> Action {
        loop {
            match self.next(report) {
                Next::Act(action) => return action,
                Next::Wait(until) => self.now = until.expect("something to do"),
            }
        }
    }

    /// The next action of this part; those of others before it are taken.
    fn act_on(&mut self, part: Part, report: &HealthReport) -> Action {
        loop {
            let action = self.act(report);
            if action.part() == part {
                return action;
            }
            self.succeed(action, false);
        }
    }

    fn succeed(&mut self, action: Action, tainted: bool) {
        let node = matches!(action, Action::Write(..)).then(|| node(tainted));
        self.done.push(action.clone());
        self.ledger.settle(action, Ok(node), self.now, self.jitter);
    }

    fn fail(&mut self, action: Action, error: &ClusterError) {
        let (now, jitter) = (self.now, self.jitter);
        self.ledger.settle(action, Err(error), now, jitter);
    }

    /// Does everything, at an API server that takes it, until nothing is left.
    fn settle(&mut self, report: &HealthReport) -> Vec<Action> {
        let mark = self.done.len();
        loop {
            match self.next(report) {
                Next::Act(action) => {
                    let tainted = self.ledger.tainted == Some(true);
                    self.succeed(action, tainted);
                }
                Next::Wait(Some(until)) => {
                    assert!(until > self.now, "a wait that has no end");
                    self.now = until;
                }
                Next::Wait(None) => return self.done[mark..].to_vec(),
            }
        }
    }
}

fn wall(now: Time) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000) + now
}

fn node(tainted: bool) -> NodeFacts {
    let taint = json!({
        "key": super::super::api::TAINT_KEY, "value": super::super::api::TAINT_VALUE,
        "effect": super::super::api::TAINT_EFFECT,
    });
    let taints = if tainted { vec![taint] } else { vec![] };
    let node = json!({ "metadata": { "resourceVersion": "1" }, "spec": { "taints": taints } });
    serde_json::from_value(node).unwrap()
}

fn well() -> HealthReport {
    report(vec![gpu(0, None), gpu(1, None)])
}

fn one_sick() -> HealthReport {
    report(vec![gpu(0, None), gpu(1, Some(since(1)))])
}

fn all_sick() -> HealthReport {
    report(vec![gpu(0, Some(since(1))), gpu(1, Some(since(1)))])
}

fn hung(seconds: u64) -> HealthReport {
    let cause = Cause::NotAnswering(seconds);
    report(vec![
        gpu(0, Some(sickness(cause, Class::Reset))),
        gpu(1, None),
    ])
}

fn parts(actions: &[Action]) -> Vec<Part> {
    actions.iter().map(Action::part).collect()
}

fn written(action: &Action) -> (&Condition, Since) {
    match action {
        Action::Write(condition, since) => (condition, *since),
        other => panic!("{other:?}"),
    }
}

fn away() -> ClusterError {
    ClusterError::Unreachable("connection refused".into())
}

fn forbidden() -> ClusterError {
    ClusterError::Forbidden {
        verb: "create",
        resource: "events",
        message: "no".into(),
    }
}

#[test]
fn nothing_is_done_before_every_gpu_was_looked_at() {
    let incomplete = HealthReport {
        complete: false,
        ..one_sick()
    };
    assert_eq!(Desk::new(true).next(&incomplete), Next::Wait(None));
}

#[test]
fn when_all_is_well_there_is_one_write_and_no_more() {
    let mut desk = Desk::new(true);
    assert_eq!(parts(&desk.settle(&well())), [Part::Condition]);
    assert_eq!(desk.now, Pace::default().spread_at_start);
    desk.now += SECOND * 86_400;
    assert_eq!(desk.next(&well()), Next::Wait(None));
}

#[test]
fn sick_and_well_again_is_a_write_and_an_event_each() {
    let mut desk = Desk::new(false);
    desk.settle(&well());
    desk.now += SECOND * 100;
    let at = desk.now;
    let sick = desk.settle(&one_sick());
    assert_eq!(parts(&sick), [Part::Condition, Part::Events]);
    let (condition, since) = written(&sick[0]);
    assert_eq!((condition.status, condition.reason), (Status::False, "Xid"));
    // Not when it was written, but when it was seen.
    assert_eq!(since.at, whole_seconds(wall(at)));
    assert_eq!(desk.now, at + Pace::default().spread);
    // The condition rests for a while after a write.
    let well = desk.settle(&well());
    assert_eq!(parts(&well), [Part::Events, Part::Condition]);
}

#[test]
fn what_goes_away_before_it_was_told_costs_nothing() {
    let mut desk = Desk::new(true);
    let Since { at, .. } = written(&desk.settle(&well())[0]).1;
    desk.now += SECOND * 100;
    assert!(matches!(desk.next(&all_sick()), Next::Wait(Some(_))));
    desk.now += SECOND;
    assert_eq!(desk.settle(&well()), []);
    // Nor does it move the time of the last transition.
    desk.now += SECOND * 100;
    desk.settle(&one_sick());
    desk.now += SECOND * 100;
    let back = desk.act_on(Part::Condition, &well());
    assert!(written(&back).1.at > at);
}

#[test]
fn the_time_is_spread_over_nodes() {
    let due = |report: &HealthReport, jitter| {
        let mut desk = Desk::new(false);
        desk.jitter = jitter;
        match desk.next(report) {
            Next::Wait(until) => until.unwrap(),
            Next::Act(_) => Time::ZERO,
        }
    };
    let pace = Pace::default();
    for (report, spread) in [(well(), pace.spread_at_start), (one_sick(), pace.spread)] {
        let dues: Vec<_> = (0..=255).map(|jitter| due(&report, jitter)).collect();
        assert_eq!((dues[0], dues[255]), (Time::ZERO, spread));
        assert!(dues.windows(2).all(|pair| pair[0] < pair[1]));
    }
}

#[test]
fn sick_before_the_first_write_is_told_as_soon_as_ever() {
    let mut desk = Desk::new(false);
    assert!(matches!(desk.next(&well()), Next::Wait(Some(_))));
    desk.act_on(Part::Condition, &one_sick());
    assert_eq!(desk.now, Pace::default().spread);
}

#[test]
fn the_time_that_was_chosen_stays() {
    let mut desk = Desk::new(false);
    let Next::Wait(Some(due)) = desk.next(&well()) else {
        panic!("at once");
    };
    for jitter in 0..=255 {
        desk.jitter = jitter;
        assert_eq!(desk.next(&well()), Next::Wait(Some(due)));
    }
}

#[test]
fn new_words_wait_for_a_minute_and_news_for_ten_seconds() {
    let mut desk = Desk::new(false);
    desk.jitter = 0;
    desk.settle(&hung(10));
    let at = desk.now;
    assert_eq!(desk.next(&hung(20)), Next::Wait(Some(at + SECOND * 60)));
    // Something that matters more does not wait for that.
    desk.act_on(Part::Condition, &all_sick());
    assert_eq!(desk.now, at + SECOND * 10);
}

#[test]
fn words_that_change_all_the_time_cost_a_write_a_minute() {
    let mut desk = Desk::new(false);
    desk.jitter = 0;
    for seconds in 0..600 {
        desk.now = SECOND * seconds;
        while let Next::Act(action) = desk.next(&hung(u64::from(seconds))) {
            desk.succeed(action, false);
        }
    }
    let writes = desk
        .done
        .iter()
        .filter(|done| done.part() == Part::Condition);
    assert_eq!(writes.count(), 10);
    let events = desk.done.iter().filter(|done| done.part() == Part::Events);
    assert_eq!(events.count(), 1);
}

#[test]
fn a_status_that_flaps_is_written_every_ten_seconds_at_most() {
    let mut desk = Desk::new(false);
    desk.jitter = 0;
    for tenth in 0..1000_u32 {
        desk.now = SECOND / 10 * tenth;
        let report = if tenth % 2 == 0 { one_sick() } else { well() };
        while let Next::Act(action) = desk.next(&report) {
            desk.succeed(action, false);
        }
    }
    let writes = desk
        .done
        .iter()
        .filter(|done| done.part() == Part::Condition);
    assert!(writes.count() <= 11);
}

#[test]
fn an_api_server_that_is_away_is_asked_for_ever_and_rarely() {
    let mut desk = Desk::new(true);
    let mut tries = 0;
    while desk.now < SECOND * 3600 {
        let action = desk.act(&all_sick());
        desk.fail(action, &away());
        tries += 1;
    }
    // Two parts, each from 1 s up to a minute, less a half.
    assert!((120..=260).contains(&tries), "{tries}");
    let before = desk.now;
    let done = desk.settle(&all_sick());
    assert_eq!(
        parts(&done),
        [Part::Condition, Part::Events, Part::Events, Part::Taint]
    );
    assert!(desk.now - before <= SECOND * 70, "{:?}", desk.now - before);
}

#[test]
fn what_the_api_server_asks_for_is_kept() {
    let mut desk = Desk::new(false);
    let action = desk.act(&well());
    let retry_after = Some(SECOND * 100);
    desk.fail(action, &ClusterError::TooManyRequests { retry_after });
    let Next::Wait(Some(until)) = desk.next(&well()) else {
        panic!("at once");
    };
    let pause = until - desk.now;
    assert!((SECOND * 100..=SECOND * 150).contains(&pause), "{pause:?}");
}

#[test]
fn a_refusal_of_one_thing_holds_up_no_other() {
    let mut desk = Desk::new(false);
    let write = desk.act(&one_sick());
    desk.succeed(write, false);
    for _ in 0..20 {
        let event = desk.act(&one_sick());
        assert_eq!(event.part(), Part::Events);
        desk.fail(event, &forbidden());
    }
    let at = desk.now;
    let write = desk.act(&well());
    assert_eq!(write.part(), Part::Condition);
    assert!(desk.now - at <= Pace::default().spread);
}

#[test]
fn a_failure_that_concerns_all_is_not_tried_with_each() {
    let mut desk = Desk::new(false);
    desk.settle(&well());
    let write = desk.act(&all_sick());
    desk.fail(write, &away());
    let Next::Wait(Some(until)) = desk.next(&all_sick()) else {
        panic!("the next part at once");
    };
    assert!(until > desk.now);
}

#[test]
fn an_event_that_will_never_be_taken_is_given_up() {
    let mut desk = Desk::new(false);
    let write = desk.act(&one_sick());
    desk.succeed(write, false);
    let event = desk.act(&one_sick());
    let message = "invalid".into();
    desk.fail(event, &ClusterError::Rejected { code: 422, message });
    assert_eq!(desk.next(&one_sick()), Next::Wait(None));
}

#[test]
fn a_try_that_is_repeated_says_the_same() {
    let mut desk = Desk::new(false);
    desk.settle(&well());
    desk.now += SECOND * 100;
    let first = desk.act(&one_sick());
    desk.fail(first.clone(), &away());
    let second = desk.act(&one_sick());
    assert_eq!(first, second);
    desk.succeed(second, false);
    let event = desk.act(&one_sick());
    desk.fail(event.clone(), &away());
    assert_eq!(desk.act(&one_sick()), event);
}

#[test]
fn the_taint_is_there_while_all_are_sick() {
    let mut desk = Desk::new(true);
    desk.settle(&well());
    assert!(desk.settle(&all_sick()).contains(&Action::Taint(true)));
    assert_eq!(desk.settle(&all_sick()), []);
    assert!(desk.settle(&one_sick()).contains(&Action::Taint(false)));
}

#[test]
fn a_taint_of_before_is_removed_also_where_none_is_wanted() {
    for (wanted, report) in [(true, well()), (false, all_sick())] {
        let mut desk = Desk::new(wanted);
        let write = desk.act(&report);
        desk.succeed(write, true);
        assert!(desk.settle(&report).contains(&Action::Taint(false)));
    }
}

#[test]
fn without_the_option_there_is_no_taint() {
    let mut desk = Desk::new(false);
    let done = desk.settle(&all_sick());
    assert_eq!(parts(&done), [Part::Condition, Part::Events, Part::Events]);
}

#[test]
fn a_restart_keeps_since_when_the_status_holds() {
    let at = wall(Time::ZERO) - SECOND * 1000;
    let status = Status::False;
    let since = Some(Since { status, at });
    let mut same = Desk::remembering(false, since);
    assert_eq!(written(&same.act(&one_sick())).1.at, at);
    let mut other = Desk::remembering(false, since);
    let (_, turned) = (0, written(&other.act(&well())).1);
    assert_eq!(
        (turned.status, turned.at),
        (Status::True, whole_seconds(wall(Time::ZERO)))
    );
}
