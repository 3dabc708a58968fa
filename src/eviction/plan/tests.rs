//! The plan in a world that does anything at any time.

mod world;

use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::eviction::fixture::{NODE, incident, pod, report, sick_at};
use world::{Crash, Happening, World};

fn happenings() -> impl Strategy<Value = Vec<Happening>> {
    use Happening as H;
    let slot = || 0..world::SLOTS;
    let device = || 0..world::DEVICES.len();
    let gpu = || 0..world::GPUS;
    // What keeps everything from going is rare, so that things go.
    let mostly = || prop::bool::weighted(0.85);
    let rarely = || prop::bool::weighted(0.15);
    let mode = prop_oneof![
        1 => Just(EvictionMode::Off),
        1 => Just(EvictionMode::Report),
        6 => Just(EvictionMode::Evict),
    ];
    let kind = || prop_oneof![3 => Just(0), 1 => 0..world::KINDS];
    let crash = prop_oneof![Just(Crash::Before), Just(Crash::After)];
    let happening = prop_oneof![
        20 => (0_u64..100).prop_map(H::Passes),
        4 => Just(H::Passes(600)),
        4 => gpu().prop_map(H::GpuSick),
        8 => device().prop_map(H::DeviceSick),
        1 => device().prop_map(H::Recovers),
        1 => device().prop_map(H::Relapses),
        2 => device().prop_map(H::Well),
        12 => (slot(), device(), kind()).prop_map(|(s, d, k)| H::Runs(s, d, k)),
        4 => (slot(), device(), kind()).prop_map(|(s, d, k)| H::Created(s, d, k)),
        4 => (slot(), device(), kind()).prop_map(|(s, d, k)| H::Replaced(s, d, k)),
        4 => slot().prop_map(H::Acknowledged),
        3 => slot().prop_map(H::Ended),
        2 => slot().prop_map(H::Deleted),
        2 => slot().prop_map(H::Removed),
        2 => slot().prop_map(H::Finished),
        2 => (slot(), rarely()).prop_map(|(slot, holds)| H::Budget(slot, holds)),
        2 => (slot(), kind()).prop_map(|(slot, kind)| H::Annotated(slot, kind)),
        2 => mostly().prop_map(H::ApiServer),
        2 => mostly().prop_map(H::Kubelet),
        2 => mostly().prop_map(H::Events),
        2 => mostly().prop_map(H::Answers),
        1 => rarely().prop_map(H::NodeFault),
        1 => mostly().prop_map(H::Complete),
        1 => mode.prop_map(H::Mode),
        1 => (0_u32..4).prop_map(H::PerMinute),
        1 => prop_oneof![Just(34), Just(67), Just(100)].prop_map(H::MaxSick),
        2 => Just(H::Restart),
        4 => (0_usize..6, crash).prop_map(|(after, crash)| H::Crash(after, crash)),
    ];
    vec(happening, 0..120)
}

/// When the kubelet is asked, and when the pod is evicted, after its GPU turned
/// sick.
fn times(seed: u64) -> (Duration, Duration) {
    let mut world = World::new(seed);
    let began = world.now();
    world.happens(Happening::Runs(0, 0, 0));
    world.happens(Happening::GpuSick(0));
    let asked = world.settle().unwrap();
    world.run(Duration::from_secs(600));
    (asked - began, world.last_eviction().unwrap() - began)
}

#[test]
fn nodes_that_fall_sick_together_neither_ask_nor_evict_together() {
    let all: Vec<_> = (0..200).map(times).collect();
    let seconds = Duration::from_secs;
    let Pace {
        spread,
        longest_spread,
        ..
    } = Pace::default();
    let asked = || all.iter().map(|(asked, _)| *asked);
    assert!(asked().max().unwrap() <= spread);
    assert!(asked().max().unwrap() - asked().min().unwrap() > seconds(4));
    let evicted = || all.iter().map(|(_, evicted)| *evicted);
    assert!(evicted().min().unwrap() >= seconds(60));
    // And what the answers take.
    assert!(evicted().max().unwrap() <= seconds(60 + 40) + longest_spread);
    assert!(evicted().max().unwrap() - evicted().min().unwrap() > seconds(25));
}

#[test]
fn a_budgets_refusals_come_no_faster_than_asked_for_and_end_with_the_budget() {
    let mut world = World::new(7);
    world.happens(Happening::Runs(0, 0, 0));
    world.happens(Happening::Budget(0, true));
    world.happens(Happening::GpuSick(0));
    world.run(Duration::from_secs(3 * 3600));
    let times = world.refusals();
    let pauses: Vec<_> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
    let seconds = Duration::from_secs;
    assert!(
        pauses.iter().all(|pause| *pause >= seconds(10)),
        "{pauses:?}"
    );
    // What the answers take comes on top.
    assert!(
        pauses.iter().all(|pause| *pause <= seconds(300 + 40)),
        "{pauses:?}"
    );
    assert!(times.len() > 36, "{pauses:?}");
    world.happens(Happening::Budget(0, false));
    world.run(seconds(340));
    assert!(world.last_eviction().is_some());
}

#[test]
fn a_pod_that_may_be_evicted_again_is_found_out() {
    let mut world = World::new(3);
    world.happens(Happening::Runs(0, 0, 1));
    world.happens(Happening::GpuSick(0));
    world.run(Duration::from_secs(600));
    assert_eq!(world.last_eviction(), None);
    world.happens(Happening::Annotated(0, 0));
    world.run(Duration::from_secs(600));
    assert!(world.last_eviction().is_some());
}

#[test]
fn a_pod_whose_device_the_kubelet_took_back_is_left_alone() {
    let mut world = World::new(5);
    world.happens(Happening::Runs(0, 0, 0));
    world.happens(Happening::GpuSick(0));
    world.run(Duration::from_secs(30));
    world.happens(Happening::Ended(0));
    world.run(Duration::from_secs(600));
    assert_eq!(world.last_eviction(), None);
}

#[test]
fn a_pod_elsewhere_with_the_name_of_one_that_was_here_is_left_alone() {
    let mut world = World::new(5);
    world.happens(Happening::Runs(0, 0, 0));
    world.happens(Happening::GpuSick(0));
    world.happens(Happening::Replaced(0, 0, 8));
    world.run(Duration::from_secs(600));
    assert_eq!(world.last_eviction(), None);
}

#[test]
fn an_eviction_without_an_answer_that_did_not_happen_is_withdrawn() {
    let report = report([Some(sick_at(0)), None]);
    let (train, now) = (pod("train", "uid"), Duration::from_secs(100));
    let mut ledger = Ledger::default();
    ledger.intend(&train, &incident(0, 0), now);
    let mut plan = Plan::new(NODE.into(), ledger, Pace::default(), now, 1);
    let act = |plan: &mut Plan, after| {
        let now = now + Duration::from_secs(after);
        let step = plan.step(now, &report, &EvictionOptions::default());
        assert_eq!(step, Step::default(), "off");
        let options = EvictionOptions {
            mode: EvictionMode::Evict,
            ..EvictionOptions::default()
        };
        (now, plan.step(now, &report, &options).action)
    };
    act(&mut plan, 0);
    let (now, action) = act(&mut plan, 10);
    assert_eq!(action, Some(Action::List));
    plan.listed(now, &report, Ok(Vec::new()));
    let (now, action) = act(&mut plan, 11);
    assert_eq!(action, Some(Action::Look(PodName::of(&train))));
    assert_eq!(
        plan.looked(now, &PodName::of(&train), Ok(Some(train))),
        None
    );
    let (now, action) = act(&mut plan, 12);
    assert_eq!(action, Some(Action::List));
    plan.listed(now, &report, Ok(Vec::new()));
    assert_eq!(plan.ledger().open().count(), 0);
    assert!(!plan.ledger().is_evicted("uid"));
}

#[test]
fn an_eviction_without_an_answer_that_happened_is_counted_once() {
    let (train, now) = (pod("train", "uid"), Duration::from_secs(100));
    let mut going = train.clone();
    going.terminating = true;
    for (found, what) in [(Some(going), What::Evicted), (None, What::Gone)] {
        let mut ledger = Ledger::default();
        ledger.intend(&train, &incident(0, 0), now);
        let mut plan = Plan::new(NODE.into(), ledger, Pace::default(), now, 1);
        let said = plan.looked(now, &PodName::of(&train), Ok(found.clone()));
        assert_eq!(said.map(|said| said.what), Some(what));
        assert!(plan.ledger().is_evicted("uid"));
        assert_eq!(plan.looked(now, &PodName::of(&train), Ok(found)), None);
    }
}

proptest! {
    /// The world itself judges each action, see [`World::perform`].
    #[test]
    fn nobody_is_evicted_who_should_not_be_and_everybody_who_should(
        seed in any::<u64>(),
        happenings in happenings(),
    ) {
        let mut world = World::new(seed);
        for happening in happenings {
            world.happens(happening);
            world.settle();
        }
        world.let_everything_go();
        world.run(Duration::from_secs(2 * 3600));
        let left: Vec<_> = world.to_be_evicted().collect();
        prop_assert!(left.is_empty(), "still there: {left:?}\n{}", world.history());
    }
}
