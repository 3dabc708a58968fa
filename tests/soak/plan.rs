//! What happens in a soak: a pure function of the seed, the kind of node and the
//! number of the round. Neither time nor what came of anything has a part in it.

use std::time::Duration;

use fastrand::Rng;

use crate::common::nvml::Return;

/// What the node's GPUs are advertised as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Whole,
    /// Each several times, and named to runtimes in every way.
    Shared,
    /// Some as MIG devices, which are resources of their own.
    Mig,
}

/// An action, and how long its actor pauses before it. The pause is a part of the
/// load, as the action is: nobody waits for anything by it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Timed<A> {
    pub(crate) pause: Duration,
    pub(crate) action: A,
}

/// All that is done between two quiet points.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Round {
    pub(crate) number: u64,
    /// GPUs that nothing happens to but faults of applications: each has to stay
    /// healthy in every list, whatever happens to the others.
    pub(crate) calm: Vec<usize>,
    pub(crate) kubelet: Vec<Timed<KubeletAction>>,
    pub(crate) faults: [Vec<Timed<Fault>>; 2],
    pub(crate) xids: Vec<Timed<Xid>>,
    pub(crate) driver: Vec<Timed<DriverFault>>,
    pub(crate) requests: [Vec<Timed<Ask>>; 2],
    pub(crate) streams: Vec<Timed<Open>>,
    pub(crate) scrapes: Vec<Timed<Scrape>>,
    pub(crate) reloads: Vec<Timed<Reload>>,
    pub(crate) pods: Vec<Timed<PodAction>>,
    /// At the quiet point, an XID whose class the configuration file may change
    /// comes from the first, and one whose class it does not from the second.
    pub(crate) heard: (usize, usize),
    /// The plugin's end and new start, after the round.
    pub(crate) restart: Option<Restart>,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum KubeletAction {
    Restart,
    InARow(u32),
    Away(Duration),
    StaleSocket(Duration),
    SocketRemoved,
    FolderGone(Duration),
    FolderReplaced,
    /// Binds, listens and serves with pauses between.
    SlowStart(Duration),
    Refuses(usize),
    RefusesFor(Duration),
    Slow(Duration),
    Hangs(Duration),
    /// Takes the registration and never asks for the list.
    NoStream,
    CancelsStreams,
    /// Somebody removes the plugin's sockets.
    PluginSocketsRemoved,
}

/// Something that befalls one GPU for a while.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Fault {
    pub(crate) gpu: usize,
    pub(crate) what: Ill,
    pub(crate) hold: Duration,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Ill {
    Lost,
    Vanished,
    Pulled,
    Hangs(&'static str),
    Fails(&'static str, Return),
    RecoveryAction,
    NvLinkDown,
    FabricNotReady,
}

impl Ill {
    /// What a refusal says of it, in one of these ways. Nothing where the next polls
    /// need not see it.
    pub(crate) fn words(&self) -> &'static [&'static str] {
        match self {
            Self::Lost => &["GPU is lost"],
            Self::Vanished => &["not enumerated any more", "gone from the bus"],
            Self::Pulled => &["gone from the bus"],
            Self::RecoveryAction => &["recovery action 1"],
            Self::NvLinkDown => &["NVLinks are down"],
            Self::FabricNotReady => &["NVSwitch fabric"],
            Self::Hangs(_) | Self::Fails(..) => &[],
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Witness {
    Nvml,
    KernelLog,
    Both,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Xid {
    /// Of a class that asks for nothing, from any GPU.
    Application(usize, u64, Witness),
    Storm(usize, u64),
    /// Of a class that ends when the driver asks for nothing.
    Reset(usize, u64, Witness),
    /// Of a class that only a boot ends, from the GPU that is there for it.
    Lasting(u64),
    /// The kernel says what has nothing to do with us.
    Noise(u32),
}

/// Something that befalls the driver as a whole, for a while.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum DriverFault {
    Hangs(&'static str, Duration),
    Fails(&'static str, Return, Duration),
}

/// An ID in a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Id {
    /// One of the resource, modulo how many it has.
    Device(usize),
    /// Nobody's.
    Unknown(u32),
    /// One of another resource, where there is one.
    Foreign(usize),
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Ask {
    Allocate {
        resource: usize,
        containers: Vec<Vec<Id>>,
    },
    /// Positions among the resource's devices: available, and how many of these
    /// from the first on must be in the answer, which is to have this size.
    Preferred {
        resource: usize,
        available: Vec<usize>,
        must: usize,
        size: usize,
    },
    Options(usize),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reader {
    Never,
    Slowly,
    /// Gone as soon as it has asked.
    Vanishes,
    /// Connects, says half a word, and stays.
    Mute,
}

/// More clients, who stay for some of the actor's steps.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Open {
    pub(crate) resource: usize,
    pub(crate) count: usize,
    pub(crate) one_connection: bool,
    pub(crate) reader: Reader,
    pub(crate) stay: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scrape {
    Live,
    Ready,
    Metrics,
    /// A client who never finishes its request.
    Half,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Text {
    Plain,
    /// Makes XID 48 an application's fault.
    Lenient,
    Debug,
    NoYaml,
    UnknownKey,
    UnknownClass,
    NeedsRestart,
    /// There is no file any more.
    Missing,
}

impl Text {
    pub(crate) fn is_good(self) -> bool {
        matches!(self, Self::Plain | Self::Lenient | Self::Debug)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reload {
    pub(crate) text: Text,
    /// Else the folder's watch has to notice.
    pub(crate) hangup: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PodAction {
    Admit { resource: usize, count: usize },
    RestartContainer(usize),
    Readmit(usize),
    Free(usize),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Restart {
    /// Killed, or asked to end.
    pub(crate) killed: bool,
    pub(crate) boot: bool,
    /// Not there when the plugin starts, though a pod may hold it.
    pub(crate) vanished: usize,
    pub(crate) kubelet_away: bool,
}

/// A node's soak, whole.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) kind: Kind,
}

/// What takes a while to be noticed, such as a call that hangs for longer than its
/// deadline of 10 s, happens in every round with this number's remainder only.
const LONG_ROUND: u64 = 6;
/// The plugin is restarted after the first round and then after so many. A life
/// has to be long to show a leak.
const LIFE: u64 = 250;

impl Kind {
    pub(crate) fn gpus(self) -> usize {
        match self {
            Self::Whole => 8,
            Self::Shared | Self::Mig => 4,
        }
    }

    pub(crate) fn resources(self) -> usize {
        match self {
            Self::Whole | Self::Shared => 1,
            Self::Mig => 3,
        }
    }

    /// The GPU whose faults may last until the next boot: the last one.
    pub(crate) fn doomed(self) -> usize {
        self.gpus() - 1
    }
}

impl Plan {
    /// A generator of its own for each actor in each round: what one draws does not
    /// move what another gets.
    fn rng(&self, actor: u64, round: u64) -> Rng {
        let mut rng = Rng::with_seed(self.seed);
        for part in [self.kind as u64, actor, round] {
            rng = Rng::with_seed(rng.u64(..) ^ part);
        }
        rng
    }

    pub(crate) fn round(&self, number: u64) -> Round {
        let rng = &mut self.rng(0, number);
        let long = number % LONG_ROUND == LONG_ROUND - 1;
        let node_wide = rng.u8(..4) == 0;
        let mut gpus: Vec<_> = (0..self.kind.doomed()).collect();
        rng.shuffle(&mut gpus);
        let heard = (gpus[0], gpus[1]);
        let calm = if node_wide { 0 } else { gpus.len().div_ceil(3) };
        let victims = gpus.split_off(calm);
        let own = |actor| self.rng(actor, number);
        let longest = if long { 12_000 } else { 900 };
        let kubelet = kubelet(&mut own(1), long);
        let streams = self.streams(&mut own(8), &kubelet);
        Round {
            number,
            kubelet,
            faults: [0, 1].map(|worker| {
                let of_worker = |(position, _): &(usize, &usize)| position % 2 == worker;
                let victims = victims.iter().enumerate().filter(of_worker);
                let victims: Vec<_> = victims.map(|(_, gpu)| *gpu).collect();
                faults(&mut own(2 + worker as u64), &victims, longest)
            }),
            xids: self.xids(&mut own(4), &victims),
            driver: driver(&mut own(5), node_wide),
            requests: [6, 7].map(|actor| self.requests(&mut own(actor))),
            streams,
            scrapes: scrapes(&mut own(9)),
            reloads: reloads(&mut own(10)),
            pods: self.pods(&mut own(11)),
            restart: self.restart(&mut own(12), number),
            calm: gpus,
            heard,
        }
    }

    fn xids(&self, rng: &mut Rng, victims: &[usize]) -> Vec<Timed<Xid>> {
        const WITNESSES: [Witness; 3] = [Witness::Nvml, Witness::KernelLog, Witness::Both];
        timed(rng, 12, 50..500, |rng| {
            let anyone = rng.usize(..self.kind.gpus());
            let witness = WITNESSES[rng.usize(..3)];
            match rng.u8(..20) {
                0..8 => Xid::Application(anyone, pick(rng, &[13, 31, 43, 45]), witness),
                8..11 => Xid::Storm(anyone, rng.u64(50..400)),
                11..17 => {
                    let gpu = pick(rng, victims);
                    Xid::Reset(gpu, pick(rng, &[48, 62, 64, 74, 95, 119, 140]), witness)
                }
                17..19 => Xid::Noise(rng.u32(..)),
                _ => Xid::Lasting(pick(rng, &[79, 151])),
            }
        })
    }

    fn requests(&self, rng: &mut Rng) -> Vec<Timed<Ask>> {
        timed(rng, 45, 10..120, |rng| {
            let resource = rng.usize(..self.kind.resources());
            let several = |rng: &mut Rng, most: usize| {
                let count = rng.usize(1..=most);
                (0..count).map(|_| Id::Device(rng.usize(..64))).collect()
            };
            match rng.u8(..20) {
                0..11 => Ask::Allocate {
                    resource,
                    containers: vec![several(rng, 4)],
                },
                11..13 => Ask::Allocate {
                    resource,
                    containers: (0..rng.usize(..4)).map(|_| several(rng, 2)).collect(),
                },
                13..15 => {
                    let mut ids: Vec<Id> = several(rng, 2);
                    let wrong = [Id::Unknown(rng.u32(..)), Id::Foreign(rng.usize(..64))];
                    ids.insert(rng.usize(..=ids.len()), wrong[rng.usize(..2)]);
                    let containers = vec![ids];
                    Ask::Allocate {
                        resource,
                        containers,
                    }
                }
                15 => Ask::Allocate {
                    resource,
                    containers: vec![Vec::new()],
                },
                16..19 => preferred(rng, resource),
                _ => Ask::Options(resource),
            }
        })
    }

    fn streams(&self, rng: &mut Rng, kubelet: &[Timed<KubeletAction>]) -> Vec<Timed<Open>> {
        use Reader::{Mute, Never, Slowly, Vanishes};
        // While a kubelet has not asked for the list, the plugin takes anybody's
        // stream for the kubelet's: a limit of its own, and not what is looked for.
        let no_stream = |timed: &Timed<_>| timed.action == KubeletAction::NoStream;
        let readers: &[_] = if kubelet.iter().any(no_stream) {
            &[Mute]
        } else {
            &[Never, Never, Slowly, Slowly, Vanishes, Mute]
        };
        timed(rng, 14, 50..400, |rng| Open {
            resource: rng.usize(..self.kind.resources()),
            count: rng.usize(1..=15),
            one_connection: rng.bool(),
            reader: pick(rng, readers),
            stay: rng.usize(1..8),
        })
    }

    fn pods(&self, rng: &mut Rng) -> Vec<Timed<PodAction>> {
        timed(rng, 10, 100..600, |rng| match rng.u8(..8) {
            0..4 => PodAction::Admit {
                resource: rng.usize(..self.kind.resources()),
                count: rng.usize(1..3),
            },
            4 => PodAction::RestartContainer(rng.usize(..8)),
            5 => PodAction::Readmit(rng.usize(..8)),
            _ => PodAction::Free(rng.usize(..8)),
        })
    }

    fn restart(&self, rng: &mut Rng, number: u64) -> Option<Restart> {
        let restart = Restart {
            killed: rng.bool(),
            boot: rng.bool(),
            vanished: rng.usize(..self.kind.doomed()),
            kubelet_away: rng.bool(),
        };
        (number == 0 || number % LIFE == LIFE - 1).then_some(restart)
    }
}

fn pick<T: Clone>(rng: &mut Rng, of: &[T]) -> T {
    of[rng.usize(..of.len())].clone()
}

fn milliseconds(rng: &mut Rng, range: std::ops::Range<u64>) -> Duration {
    Duration::from_millis(rng.u64(range))
}

fn timed<A>(
    rng: &mut Rng,
    count: usize,
    pauses: std::ops::Range<u64>,
    mut action: impl FnMut(&mut Rng) -> A,
) -> Vec<Timed<A>> {
    let one = |_| Timed {
        pause: milliseconds(rng, pauses.clone()),
        action: action(rng),
    };
    (0..count).map(one).collect()
}

fn kubelet(rng: &mut Rng, long: bool) -> Vec<Timed<KubeletAction>> {
    use KubeletAction as A;
    let count = if long { 10 } else { 5 };
    let mut actions = timed(rng, count, 100..1200, |rng| {
        let short = milliseconds(rng, 20..900);
        match rng.u8(..17) {
            0..3 => A::Restart,
            3 => A::InARow(rng.u32(2..6)),
            4 => A::Away(short),
            5 => A::StaleSocket(short),
            6 => A::SocketRemoved,
            7 => A::FolderGone(short),
            8 => A::FolderReplaced,
            9 => A::SlowStart(short),
            10 => A::Refuses(rng.usize(1..4)),
            11 => A::RefusesFor(short),
            12 => A::Slow(short),
            13 => A::Hangs(short),
            14 => A::CancelsStreams,
            15 if long => A::NoStream,
            _ => A::PluginSocketsRemoved,
        }
    });
    // A kubelet that ends streams again and again is followed by pauses that grow
    // to minutes; a new one is not.
    actions[0].action = A::Restart;
    for position in 1..actions.len() {
        let pair = [position - 1, position].map(|at| actions[at].action == A::CancelsStreams);
        if pair == [true, true] {
            actions[position].action = A::Restart;
        }
    }
    actions
}

fn faults(rng: &mut Rng, victims: &[usize], longest: u64) -> Vec<Timed<Fault>> {
    const HANGING: [&str; 3] = ["*", "nvmlDeviceGetTemperature", "nvmlDeviceGetFieldValues"];
    const FAILING: [(&str, Return); 4] = [
        ("*", Return::GpuIsLost),
        ("*", Return::Unknown),
        ("nvmlDeviceGetTemperature", Return::ResetRequired),
        ("nvmlDeviceGetUUID", Return::Unknown),
    ];
    if victims.is_empty() {
        return Vec::new();
    }
    let mut faults = timed(rng, 5, 50..500, |rng| Fault {
        gpu: pick(rng, victims),
        what: match rng.u8(..10) {
            0..2 => Ill::Lost,
            2 => Ill::Vanished,
            3 => Ill::Pulled,
            4 => Ill::Hangs(pick(rng, &HANGING)),
            5..7 => {
                let (function, with) = pick(rng, &FAILING);
                Ill::Fails(function, with)
            }
            7 => Ill::RecoveryAction,
            8 => Ill::NvLinkDown,
            _ => Ill::FabricNotReady,
        },
        hold: milliseconds(rng, 50..900),
    });
    if longest > 10_000 {
        faults[0].action.what = Ill::Hangs(pick(rng, &HANGING));
        faults[0].action.hold = milliseconds(rng, 10_500..longest);
    }
    faults
}

fn driver(rng: &mut Rng, node_wide: bool) -> Vec<Timed<DriverFault>> {
    use DriverFault::{Fails, Hangs};
    let count = if node_wide { 3 } else { 0 };
    timed(rng, count, 100..900, |rng| {
        let hold = milliseconds(rng, 100..1500);
        match rng.u8(..6) {
            0 => Hangs("*", hold),
            1 => Hangs("nvmlDeviceGetCount", hold),
            2 => Fails("nvmlDeviceGetCount", Return::Unknown, hold),
            3 => Fails("*", Return::Uninitialized, hold),
            4 => Fails("nvmlSystemGetDriverVersion", Return::Unknown, hold),
            _ => Fails("nvmlEventSetWait", Return::Unknown, hold),
        }
    })
}

fn preferred(rng: &mut Rng, resource: usize) -> Ask {
    let mut available: Vec<_> = (0..rng.usize(1..9)).collect();
    rng.shuffle(&mut available);
    let must = rng.usize(..=available.len().min(2));
    Ask::Preferred {
        resource,
        must,
        // More than there are, now and then.
        size: rng.usize(must.max(1)..available.len() + 2),
        available,
    }
}

fn scrapes(rng: &mut Rng) -> Vec<Timed<Scrape>> {
    use Scrape::{Half, Live, Metrics, Ready};
    timed(rng, 30, 30..250, |rng| {
        pick(rng, &[Live, Live, Ready, Metrics, Half])
    })
}

fn reloads(rng: &mut Rng) -> Vec<Timed<Reload>> {
    use Text::{Debug, Lenient, Missing, NeedsRestart, NoYaml, Plain, UnknownClass, UnknownKey};
    let texts = [
        Plain,
        Lenient,
        Lenient,
        Debug,
        NoYaml,
        UnknownKey,
        UnknownClass,
        NeedsRestart,
        Missing,
    ];
    timed(rng, 4, 100..1000, |rng| Reload {
        text: pick(rng, &texts),
        hangup: rng.bool(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_is_the_same_soak_and_another_is_another() {
        let plan = |seed, kind| Plan { seed, kind };
        for kind in [Kind::Whole, Kind::Shared, Kind::Mig] {
            for number in 0..20 {
                let round = plan(7, kind).round(number);
                assert_eq!(round, plan(7, kind).round(number));
                assert_ne!(round, plan(8, kind).round(number));
                assert_ne!(round.kubelet, plan(7, kind).round(number + 1).kubelet);
            }
        }
    }

    #[test]
    fn nothing_is_planned_for_a_calm_gpu_but_faults_of_applications() {
        for (seed, kind) in [(1, Kind::Whole), (2, Kind::Shared), (3, Kind::Mig)] {
            for number in 0..200 {
                let round = Plan { seed, kind }.round(number);
                let faults = round.faults.iter().flatten();
                let xids = round.xids.iter().filter_map(|timed| match timed.action {
                    Xid::Reset(gpu, ..) => Some(gpu),
                    _ => None,
                });
                for gpu in faults.map(|fault| fault.action.gpu).chain(xids) {
                    assert!(!round.calm.contains(&gpu) && gpu != kind.doomed());
                }
                assert!(round.calm.is_empty() || round.driver.is_empty());
                assert_ne!(round.heard.0, round.heard.1);
            }
        }
    }
}
