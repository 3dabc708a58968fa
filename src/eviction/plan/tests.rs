//! The plan in a world that does anything at any time.

mod world;

use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
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
        4 => (slot(), device()).prop_map(|(slot, device)| H::Replaced(slot, device)),
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
