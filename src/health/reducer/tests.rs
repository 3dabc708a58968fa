use proptest::prelude::*;

use super::*;
use crate::health::class::Class;

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn options() -> HealthOptions {
    HealthOptions::default()
}

fn answer(asked: u64, vitals: Vitals) -> Signal {
    Signal::Probed {
        asked: secs(asked),
        answer: Ok(vitals),
    }
}

/// A GPU whose driver says that nothing is needed.
fn good() -> Vitals {
    Vitals {
        recovery_action: Some(0),
        ..Vitals::default()
    }
}

fn ok(asked: u64) -> Signal {
    answer(asked, good())
}

fn action(asked: u64, action: u32) -> Signal {
    answer(
        asked,
        Vitals {
            recovery_action: Some(action),
            ..Vitals::default()
        },
    )
}

fn lost(asked: u64) -> Signal {
    Signal::Probed {
        asked: secs(asked),
        answer: Err(LibraryError {
            call: "nvmlDeviceGetTemperature",
            kind: ErrorKind::GpuLost,
            message: "lost".into(),
        }),
    }
}

fn xid(xid: u64, at: u64) -> Signal {
    Signal::Xid {
        xid,
        instance: None,
        at: secs(at),
    }
}

fn xid_of(instance: u32, number: u64, at: u64) -> Signal {
    Signal::Xid {
        xid: number,
        instance: Some(instance),
        at: secs(at),
    }
}

fn after(signals: &[(u64, Signal)]) -> GpuHealth {
    let mut health = GpuHealth::default();
    for (at, signal) in signals {
        health.apply(secs(*at), signal, &options());
    }
    health
}

fn sickness(signals: &[(u64, Signal)]) -> Option<Sickness> {
    after(signals).sickness(&options())
}

fn cause_after(signals: &[(u64, Signal)]) -> Option<Cause> {
    sickness(signals).map(|sickness| sickness.cause)
}

// === Each class ===

#[test]
fn a_fault_of_an_application_leaves_the_gpu_healthy() {
    for number in [13, 31, 43, 45, 68, 94, 9999] {
        assert_eq!(cause_after(&[(1, xid(number, 1))]), None, "XID {number}");
    }
}

#[test]
fn a_reset_holds_until_the_driver_asks_for_nothing_for_a_while() {
    let sick = Some(Cause::Xid(48));
    assert_eq!(cause_after(&[(100, xid(48, 100))]), sick);
    let waits = [(100, xid(48, 100)), (101, ok(101)), (159, ok(159))];
    let waiting = sickness(&waits).unwrap();
    assert_eq!(waiting.class, Class::Reset);
    assert_eq!(waiting.recovering_until, Some(secs(160)));
    let through = [(100, xid(48, 100)), (101, ok(101)), (160, ok(160))];
    assert_eq!(cause_after(&through), None);
    let again = [(100, xid(48, 100)), (150, xid(62, 150)), (160, ok(160))];
    let again = sickness(&again).unwrap();
    assert_eq!(
        again.recovering_until,
        Some(secs(210)),
        "from the last one on"
    );
}

#[test]
fn an_answer_that_was_asked_for_before_an_xid_forgives_nothing() {
    let late = [(100, xid(48, 100)), (200, ok(99))];
    let sickness = sickness(&late).unwrap();
    assert_eq!(sickness.recovering_until, None, "it holds");
}

#[test]
fn a_driver_that_cannot_say_so_never_forgives_an_xid() {
    let silent = answer(3600, Vitals::default());
    assert_eq!(
        cause_after(&[(0, xid(48, 0)), (3600, silent)]),
        Some(Cause::Xid(48))
    );
}

#[test]
fn a_reboot_is_waited_for_whatever_the_driver_says() {
    let signals = [(1, xid(79, 1)), (10, ok(10)), (100_000, ok(100_000))];
    let sickness = sickness(&signals).unwrap();
    assert_eq!(
        (sickness.cause, sickness.class),
        (Cause::Xid(79), Class::Reboot)
    );
}

#[test]
fn a_gpu_that_is_to_be_replaced_stays_sick_though_the_flag_is_gone() {
    let failed = Vitals {
        remapped_rows: Some(crate::gpu::RemappedRows {
            failure: true,
            ..Default::default()
        }),
        ..good()
    };
    let signals = [(1, answer(1, failed)), (9999, ok(9999))];
    let sickness = sickness(&signals).unwrap();
    assert_eq!(sickness.class, Class::Replace);
}

// === Levels ===

#[test]
fn a_lost_gpu_is_well_again_a_quiet_time_after_it_answers() {
    let found = |at| (at, ok(at));
    let signals = [(0, lost(0)), found(100), found(159)];
    let waiting = sickness(&signals).unwrap();
    assert!(matches!(waiting.cause, Cause::Lost(_)));
    assert_eq!(waiting.recovering_until, Some(secs(160)));
    assert_eq!(cause_after(&[(0, lost(0)), found(100), found(160)]), None);
}

#[test]
fn a_gpu_that_is_not_enumerated_is_sick_whatever_it_answers() {
    let gone = [(0, Signal::Vanished), (1, ok(1)), (500, ok(500))];
    assert_eq!(cause_after(&gone), Some(Cause::Vanished));
    let back = [(0, Signal::Vanished), (1, Signal::Present), (61, ok(61))];
    assert_eq!(cause_after(&back), None);
    let off = [(0, Signal::OnBus(false)), (500, ok(500))];
    assert_eq!(cause_after(&off), Some(Cause::OffBus));
}

#[test]
fn it_takes_a_good_answer_and_not_time_alone() {
    let silent = [
        (0, Signal::Vanished),
        (1, Signal::Present),
        (500, Signal::Tick),
        (600, Signal::OnBus(true)),
    ];
    assert_eq!(cause_after(&silent), Some(Cause::Vanished));
}

#[test]
fn a_recovery_action_holds_until_the_driver_takes_it_back() {
    let asked = [(1, action(1, 2)), (100, action(100, 2))];
    assert_eq!(cause_after(&asked), Some(Cause::RecoveryAction(2)));
    let taken_back = [(1, action(1, 2)), (100, ok(100)), (160, ok(160))];
    assert_eq!(cause_after(&taken_back), None);
}

#[test]
fn an_announced_action_holds_until_the_driver_itself_says_otherwise() {
    let announced = (
        10,
        Signal::Announced {
            action: 1,
            at: secs(10),
        },
    );
    let cause = Some(Cause::RecoveryAction(1));
    let earlier = [announced.clone(), (11, ok(9))];
    assert_eq!(cause_after(&earlier), cause, "the answer is from before");
    let silent = [announced.clone(), (11, answer(11, Vitals::default()))];
    assert_eq!(cause_after(&silent), cause, "the driver has no such field");
    let spoken = [announced.clone(), (20, ok(20)), (80, ok(80))];
    assert_eq!(cause_after(&spoken), None);
    let stale = Signal::Announced {
        action: 0,
        at: secs(9),
    };
    assert_eq!(cause_after(&[announced, (11, stale)]), cause);
}

#[test]
fn a_link_is_down_only_if_it_was_up_and_there_is_a_fabric() {
    let fabric = Some(crate::gpu::Fabric {
        state: 3,
        ..Default::default()
    });
    let links = |first, fabric| {
        let nvlinks = [(0, first), (1, false)].into();
        Vitals {
            nvlinks,
            fabric,
            ..good()
        }
    };
    let seen = |fabric| {
        [
            (1, answer(1, links(true, fabric))),
            (2, answer(2, links(false, fabric))),
        ]
    };
    assert_eq!(cause_after(&seen(fabric)), Some(Cause::NvLinkDown(vec![0])));
    assert_eq!(cause_after(&seen(None)), None);
}

#[test]
fn a_link_that_is_down_is_down_after_a_restart_too() {
    let vitals = |up| Vitals {
        nvlinks: [(0, up)].into(),
        fabric: Some(crate::gpu::Fabric {
            state: 3,
            ..Default::default()
        }),
        ..good()
    };
    let well = after(&[(1, answer(1, vitals(true)))]);
    assert!(
        well.keep().is_blank(),
        "nothing to keep of one that is well"
    );
    let down = after(&[(1, answer(1, vitals(true))), (2, answer(2, vitals(false)))]);
    let mut kept = GpuHealth::restore(down.keep(), secs(3));
    for at in [4, 100, 200] {
        kept.apply(secs(at), &answer(at, vitals(false)), &options());
    }
    let cause = kept.sickness(&options()).map(|sickness| sickness.cause);
    assert_eq!(cause, Some(Cause::NvLinkDown(vec![0])));
}

#[test]
fn uncorrectable_errors_count_where_the_driver_names_no_action() {
    let errors = |recovery_action| Vitals {
        recovery_action,
        uncorrectable_ecc: Some(3),
        ..Vitals::default()
    };
    let cause = cause_after(&[(1, answer(1, errors(None)))]);
    assert_eq!(cause, Some(Cause::UncorrectableEcc(3)));
    assert_eq!(cause_after(&[(1, answer(1, errors(Some(0))))]), None);
}

#[test]
fn heat_and_a_pending_remapping_are_noted_only() {
    let vitals = Vitals {
        clocks_event_reasons: Some(0x40 | 0x4),
        remapped_rows: Some(crate::gpu::RemappedRows {
            pending: true,
            ..Default::default()
        }),
        ..good()
    };
    let health = after(&[(1, answer(1, vitals))]);
    assert_eq!(health.sickness(&options()), None);
    let notes: Vec<_> = health.notes().iter().copied().collect();
    assert_eq!(notes, [Kind::RemapPending, Kind::ThermalSlowdown]);
}

// === MIG ===

#[test]
fn an_instance_is_sick_alone_and_with_its_gpu() {
    let health = after(&[(1, xid_of(3, 48, 1))]);
    assert_eq!(health.sickness(&options()), None);
    assert!(health.sickness_of(3, &options()).is_some());
    assert_eq!(health.sickness_of(4, &options()), None);
    assert!(health.sickness_of_any(&options()).is_some());
    let whole = after(&[(1, xid(48, 1))]);
    assert!(whole.sickness_of(3, &options()).is_some());
    let well = after(&[(1, xid_of(3, 48, 1)), (61, ok(61))]);
    assert_eq!(well, GpuHealth::restore(well.keep(), secs(61)));
    assert_eq!(well.sickness_of_any(&options()), None);
}

// === Flapping, options, restarts ===

#[test]
fn each_relapse_doubles_the_quiet_time_up_to_the_longest() {
    let mut health = GpuHealth::default();
    let mut now = 1000;
    let mut waits = Vec::new();
    for _ in 0..8 {
        health.apply(secs(now), &lost(now), &options());
        let since = now;
        while health.sickness(&options()).is_some() {
            now += 1;
            health.apply(secs(now), &ok(now), &options());
        }
        waits.push(now - since - 1);
    }
    assert_eq!(waits, [60, 120, 240, 480, 960, 1920, 3600, 3600]);
    now += 24 * 3600 + 1;
    health.apply(secs(now), &lost(now), &options());
    let sickness = health.sickness(&options()).unwrap();
    health.apply(secs(now + 1), &ok(now + 1), &options());
    health.apply(secs(now + 61), &ok(now + 61), &options());
    assert_eq!(health.sickness(&options()), None, "{sickness:?}");
}

#[test]
fn an_override_frees_what_was_sick_by_the_old_policy() {
    let mut health = after(&[(1, xid(79, 1))]);
    let mut options = options();
    options.policy = XidPolicyWith(79, Class::Application).into();
    health.apply(secs(2), &Signal::Tick, &options);
    health.apply(secs(100), &ok(100), &options);
    assert_eq!(health.sickness(&options), None);
}

struct XidPolicyWith(u64, Class);

impl From<XidPolicyWith> for crate::health::xid::XidPolicy {
    fn from(with: XidPolicyWith) -> Self {
        Self::default().with_overrides([(with.0, with.1)].into())
    }
}

#[test]
fn what_was_sick_is_sick_after_a_restart_and_recovers_as_it_would_have() {
    let health = after(&[(1, xid(79, 1))]);
    let kept = GpuHealth::restore(health.keep(), secs(500));
    assert_eq!(kept.sickness(&options()), health.sickness(&options()));

    let mut kept = GpuHealth::restore(after(&[(1, lost(1))]).keep(), secs(500));
    kept.apply(secs(501), &ok(501), &options());
    let recovering = kept.sickness(&options()).unwrap();
    assert_eq!(recovering.recovering_until, Some(secs(561)));
    assert_eq!(recovering.since, secs(1));
}

#[test]
fn times_from_the_future_keep_nothing_sick_for_ever() {
    let health = after(&[(u64::MAX, xid(48, u64::MAX))]);
    let mut health = GpuHealth::restore(health.keep(), secs(10));
    health.apply(secs(11), &ok(11), &options());
    health.apply(secs(100), &ok(100), &options());
    assert_eq!(health.sickness(&options()), None);
}

// === Properties ===

/// What may happen at one moment, told at once.
fn any_signal() -> impl Strategy<Value = fn(u64) -> Signal> {
    let signals: Vec<fn(u64) -> Signal> = vec![
        |at| xid(48, at),
        |at| xid(79, at),
        |at| xid(13, at),
        |at| xid_of(1, 48, at),
        |at| Signal::Announced {
            action: 1,
            at: secs(at),
        },
        |at| Signal::Announced {
            action: 0,
            at: secs(at),
        },
        |_| Signal::Present,
        |_| Signal::Vanished,
        |_| Signal::OnBus(true),
        |_| Signal::OnBus(false),
        ok,
        // Asked before what happened meanwhile.
        |at| ok(at.saturating_sub(30)),
        |at| action(at, 1),
        |at| answer(at, Vitals::default()),
        lost,
        |_| Signal::Overdue(secs(10)),
        |_| Signal::Tick,
    ];
    proptest::sample::select(signals)
}

fn is_good(signal: &Signal) -> bool {
    match signal {
        Signal::Present | Signal::OnBus(true) => true,
        Signal::Announced { action, .. } => *action == 0,
        Signal::Probed {
            answer: Ok(vitals), ..
        } => vitals.recovery_action != Some(1),
        _ => false,
    }
}

/// A history: how long after the one before, and what.
fn history() -> impl Strategy<Value = Vec<(u64, Signal)>> {
    let steps = proptest::collection::vec((0..90_u64, any_signal()), 0..40);
    steps.prop_map(|steps| {
        let mut now = 100;
        let timed = steps.into_iter().map(|(pause, signal)| {
            now += pause;
            (now, signal(now))
        });
        timed.collect()
    })
}

/// Whether it and its instance 1 are sick after each step.
fn course(history: &[(u64, Signal)], options: &HealthOptions) -> Vec<(bool, bool)> {
    let mut health = GpuHealth::default();
    let steps = history.iter().map(|(at, signal)| {
        health.apply(secs(*at), signal, options);
        let whole = health.sickness(options).is_some();
        (whole, health.sickness_of(1, options).is_some())
    });
    steps.collect()
}

/// What must hold, written down a second time and without a state: the last
/// word of each witness.
fn must_be_sick(history: &[(u64, Signal)]) -> bool {
    let last = |which: &dyn Fn(&Signal) -> Option<bool>| {
        let mut words = history.iter().rev().filter_map(|(_, signal)| which(signal));
        words.next().unwrap_or(false)
    };
    let vanished = last(&|signal| match signal {
        Signal::Vanished => Some(true),
        Signal::Present => Some(false),
        _ => None,
    });
    let off_bus = last(&|signal| match signal {
        Signal::OnBus(there) => Some(!there),
        _ => None,
    });
    let failing = last(&|signal| match signal {
        Signal::Probed { answer, .. } => Some(match answer {
            Ok(vitals) => vitals.recovery_action == Some(1),
            Err(_) => true,
        }),
        Signal::Overdue(_) => Some(true),
        _ => None,
    });
    let happened = |number| {
        history.iter().filter_map(move |(_, signal)| match signal {
            Signal::Xid {
                xid,
                instance: None,
                at,
            } if *xid == number => Some(*at),
            _ => None,
        })
    };
    let forgiven = |at: Duration| {
        history.iter().any(|(_, signal)| match signal {
            Signal::Probed {
                asked,
                answer: Ok(vitals),
            } => *asked > at && vitals.recovery_action == Some(0),
            _ => false,
        })
    };
    let reset = happened(48).any(|at| !forgiven(at));
    vanished || off_bus || failing || reset || happened(79).next().is_some()
}

proptest! {
    #[test]
    fn a_gpu_with_a_cause_that_holds_is_never_healthy(history in history()) {
        for (step, (sick, _)) in course(&history, &options()).into_iter().enumerate() {
            prop_assert!(sick || !must_be_sick(&history[..=step]), "at step {step}");
        }
    }

    #[test]
    fn no_signal_twice_changes_anything(history in history()) {
        let twice: Vec<_> = history.iter().flat_map(|step| [step.clone(), step.clone()]).collect();
        let once = course(&history, &options());
        let doubled: Vec<_> = course(&twice, &options()).into_iter().skip(1).step_by(2).collect();
        prop_assert_eq!(once, doubled);
    }

    #[test]
    fn the_loss_of_good_news_makes_nothing_healthier(
        history in history(),
        lost in proptest::collection::vec(any::<bool>(), 40),
    ) {
        let losable = |step: usize| lost.get(step).copied().unwrap_or(false) && is_good(&history[step].1);
        let kept: Vec<usize> = (0..history.len()).filter(|step| !losable(*step)).collect();
        let fewer: Vec<_> = kept.iter().map(|step| history[*step].clone()).collect();
        // Else one that never recovered has had no relapse, and a shorter quiet time.
        let options = HealthOptions { relapse_window: Duration::ZERO, ..options() };
        let (all, some) = (course(&history, &options), course(&fewer, &options));
        for (place, step) in kept.iter().enumerate() {
            let (whole, instance) = all[*step];
            prop_assert!(some[place].0 || !whole, "the GPU at step {step}");
            prop_assert!(some[place].1 || !instance, "the instance at step {step}");
        }
    }

    #[test]
    fn witnesses_of_one_moment_may_speak_in_any_order(
        before in history(),
        moment in Just(vec![xid(48, 9000), xid_of(1, 48, 9000), xid(79, 9000), ok(8999),
            Signal::Announced { action: 1, at: secs(9000) }]).prop_shuffle(),
        count in 0..5_usize,
    ) {
        let run = |order: &[Signal]| {
            let mut health = after(&before);
            for signal in order {
                health.apply(secs(9000), signal, &options());
            }
            (health.sickness(&options()).map(|s| s.cause), health.sickness_of(1, &options()).is_some())
        };
        let told = &moment[..count];
        let mut reversed = told.to_vec();
        reversed.reverse();
        let (one, other) = (run(told), run(&reversed));
        prop_assert_eq!(one.0.is_some(), other.0.is_some());
        prop_assert_eq!(one.1, other.1);
    }

    #[test]
    fn a_restart_makes_nothing_healthier_and_forgets_no_relapse(history in history(), step in 0..40_usize) {
        let step = step.min(history.len());
        let health = after(&history[..step]);
        let now = history.get(step.saturating_sub(1)).map_or(0, |(at, _)| *at);
        let text = serde_json::to_string(&health.keep()).unwrap();
        let mut kept = GpuHealth::restore(serde_json::from_str(&text).unwrap(), secs(now));
        prop_assert_eq!(kept.sickness(&options()).map(|s| s.since), health.sickness(&options()).map(|s| s.since));
        let mut health = health;
        for (at, signal) in &history[step..] {
            health.apply(secs(*at), signal, &options());
            kept.apply(secs(*at), signal, &options());
            let forgotten = matches!(signal, Signal::Tick);
            // Levels are learnt anew by this process, latched causes are kept.
            let latched = health.sickness(&options()).is_some_and(|s| s.class.is_lasting());
            prop_assert!(forgotten || !latched || kept.sickness(&options()).is_some());
        }
    }

    #[test]
    fn nothing_but_a_reboot_wedges_a_gpu_that_is_well(history in history()) {
        let lasting = |signal: &Signal| matches!(signal, Signal::Xid { xid: 79, .. });
        let history: Vec<_> = history.into_iter().filter(|(_, signal)| !lasting(signal)).collect();
        let mut health = after(&history);
        let mut now = history.last().map_or(100, |(at, _)| *at);
        health.apply(secs(now), &Signal::Present, &options());
        health.apply(secs(now), &Signal::OnBus(true), &options());
        for _ in 0..40 {
            now += 100;
            health.apply(secs(now), &ok(now), &options());
        }
        prop_assert_eq!(health.sickness_of_any(&options()), None);
    }
}
