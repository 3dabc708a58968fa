//! Explores every interleaving of what can happen to the machine, to a depth,
//! and shows that from every state reached it comes back to registered.

use std::collections::HashSet;

use super::*;

/// How many things may happen, in any order, before the world turns kind. A
/// step of the machine is one of them, so the world changes between its steps too.
const DEPTH: usize = 18;
/// More actions than this without time passing is a busy loop.
const MOST_ACTIONS: usize = 8;
/// What inotify's silence is bounded by.
const TICK: Duration = Duration::from_secs(30);
/// The promise: registered this soon after a kubelet's socket accepts.
const PROMISE: Duration = Duration::from_millis(250);

/// The world around the machine: a model of the kubelet's folder, the kubelet
/// and our server, as small as the contract allows.
#[derive(Clone, Debug, Default)]
struct World {
    now: Duration,
    folder: bool,
    kubelet: Option<SocketId>,
    /// Whether somebody accepts on the kubelet's socket.
    listening: bool,
    endpoint: Option<SocketId>,
    streams: Streams,
    /// Open streams were told to end.
    ending: bool,
    /// The kubelet that our Register call is with.
    in_flight: Option<SocketId>,
    /// The kubelet has accepted a registration and will open its stream.
    owes_stream: bool,
    newer_rival: bool,
    outcome: Option<Outcome>,
    sockets: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    KubeletStarts,
    KubeletBindsOnly,
    KubeletListens,
    KubeletDies,
    KubeletSocketDeleted,
    OwnSocketDeleted,
    FolderDeleted,
    FolderMade,
    RegisterAccepted,
    RegisterFails,
    StreamOpens,
    StreamEnds,
    ToldStreamsEnd,
    CarrierCloses,
    RivalComes,
    RivalGoes,
    TimePasses,
}

const EVENTS: [Event; 17] = [
    Event::KubeletStarts,
    Event::KubeletBindsOnly,
    Event::KubeletListens,
    Event::KubeletDies,
    Event::KubeletSocketDeleted,
    Event::OwnSocketDeleted,
    Event::FolderDeleted,
    Event::FolderMade,
    Event::RegisterAccepted,
    Event::RegisterFails,
    Event::StreamOpens,
    Event::StreamEnds,
    Event::ToldStreamsEnd,
    Event::CarrierCloses,
    Event::RivalComes,
    Event::RivalGoes,
    Event::TimePasses,
];

impl Series {
    fn opens(&mut self) {
        self.open.push(self.opened);
        self.opened += 1;
    }
}

impl World {
    fn socket(&mut self) -> Option<SocketId> {
        self.sockets += 1;
        Some(SocketId::numbered(self.sockets))
    }

    /// Every connection of the kubelet breaks.
    fn connections_break(&mut self) {
        self.streams.all.open.clear();
        self.streams.kubelets.open.clear();
        self.streams.carriers = 0;
        self.owes_stream = false;
        if self.in_flight.take().is_some() {
            self.outcome = Some(Outcome::Registration(Registration::Failed));
        }
    }

    /// Does `event`; false where it cannot happen now.
    fn happen(&mut self, event: Event, wake: Option<Time>) -> bool {
        match event {
            Event::KubeletStarts | Event::KubeletBindsOnly if self.folder => {
                self.connections_break();
                self.endpoint = None;
                self.kubelet = self.socket();
                self.listening = event == Event::KubeletStarts;
            }
            Event::KubeletListens if self.kubelet.is_some() && !self.listening => {
                self.listening = true;
            }
            Event::KubeletDies if self.listening => {
                self.connections_break();
                self.listening = false;
            }
            Event::KubeletSocketDeleted if self.kubelet.is_some() => self.kubelet = None,
            Event::OwnSocketDeleted if self.endpoint.is_some() => self.endpoint = None,
            Event::FolderDeleted if self.folder => {
                self.folder = false;
                (self.kubelet, self.endpoint) = (None, None);
            }
            Event::FolderMade if !self.folder => self.folder = true,
            // It dials back: no answer without our socket.
            Event::RegisterAccepted if self.in_flight.is_some() && self.endpoint.is_some() => {
                self.in_flight = None;
                self.outcome = Some(Outcome::Registration(Registration::Accepted));
                self.owes_stream = true;
            }
            Event::RegisterFails if self.in_flight.is_some() => {
                self.in_flight = None;
                self.outcome = Some(Outcome::Registration(Registration::Failed));
            }
            Event::StreamOpens if self.owes_stream => {
                self.owes_stream = false;
                self.streams.kubelets.opens();
                self.streams.all.opens();
                self.streams.carriers += 1;
            }
            Event::StreamEnds if !self.streams.all.open.is_empty() => {
                self.streams.all.open.remove(0);
                self.streams.kubelets.open.remove(0);
            }
            Event::ToldStreamsEnd if self.ending => {
                self.ending = false;
                self.streams.all.open.clear();
                self.streams.kubelets.open.clear();
            }
            Event::CarrierCloses if self.streams.carriers > self.streams.all.open.len() => {
                self.streams.carriers = self.streams.all.open.len();
            }
            Event::RivalComes if !self.newer_rival => self.newer_rival = true,
            Event::RivalGoes if self.newer_rival => self.newer_rival = false,
            Event::TimePasses => self.now = wake.unwrap_or(self.now + TICK).max(self.now),
            _ => return false,
        }
        true
    }

    fn perform(&mut self, machine: &Machine, action: Action) {
        match action {
            Action::Bind => {
                self.ending = !self.streams.all.open.is_empty();
                self.endpoint = if self.folder { self.socket() } else { None };
                self.outcome = Some(Outcome::Bound(self.endpoint));
            }
            Action::EndStreams => self.ending = true,
            Action::Register => {
                assert!(
                    self.streams.all.open.is_empty(),
                    "an old stream is open at Register"
                );
                assert!(
                    self.endpoint.is_some(),
                    "Register with nobody at the socket"
                );
                assert_eq!(self.endpoint, machine.bound());
                assert_eq!(self.in_flight, None, "two registrations at once");
                if self.listening {
                    self.in_flight = self.kubelet;
                } else {
                    self.outcome = Some(Outcome::Registration(Registration::Refused));
                }
            }
            Action::CancelRegister => self.in_flight = None,
        }
    }

    fn observation(&mut self) -> Observation {
        Observation {
            now: self.now,
            folder: self.folder,
            kubelet: self.kubelet,
            endpoint: self.endpoint,
            streams: self.streams.clone(),
            newer_rival: self.newer_rival,
            outcome: self.outcome.take(),
            jitter: 0,
        }
    }
}

/// Steps until the machine waits.
fn settle(machine: &mut Machine, world: &mut World) -> Step {
    for _ in 0..MOST_ACTIONS {
        let step = machine.step(&world.observation());
        match step.action {
            Some(action) => world.perform(machine, action),
            None if world.outcome.is_none() => {
                assert!(
                    step.wake.is_none_or(|wake| wake > world.now),
                    "a wake that is no wait"
                );
                return step;
            }
            None => {}
        }
    }
    panic!("busy loop: {machine:?} in {world:?}");
}

/// The state without what does not matter: absolute times and numbers.
fn key(machine: &Machine, world: &World) -> Vec<u64> {
    let mut names: Vec<SocketId> = Vec::new();
    let mut name = |id: Option<SocketId>| match id {
        None => 0,
        Some(id) => match names.iter().position(|known| *known == id) {
            Some(place) => place as u64 + 1,
            None => {
                names.push(id);
                names.len() as u64
            }
        },
    };
    let ago = |since: Time| (world.now - since).min(TICK * 2).as_millis() as u64;
    let until = |at: Time| at.saturating_sub(world.now).as_millis() as u64;
    let outcome = match world.outcome {
        None => 0,
        Some(Outcome::Bound(bound)) => 10 + name(bound),
        Some(Outcome::Registration(registration)) => 1 + registration as u64,
    };
    let stream = |number: u64| world.streams.all.opened + 1 - number;
    let link = match &machine.link {
        Link::Down => vec![0],
        Link::Ending { since } => vec![1, ago(*since)],
        Link::Registering { with, since, next } => {
            vec![2, name(Some(*with)), ago(*since), stream(next.any)]
        }
        Link::Up {
            with,
            since,
            next,
            seen,
        } => {
            vec![
                3,
                name(Some(*with)),
                ago(*since),
                stream(next.any),
                u64::from(*seen),
            ]
        }
    };
    let mut key = vec![
        name(machine.bound),
        name(machine.kubelet),
        u64::from(machine.refusals.min(5)),
        u64::from(machine.strikes),
        u64::from(machine.ended),
        until(machine.retry_at),
        until(machine.bind_at),
        name(world.kubelet),
        name(world.endpoint),
        name(world.in_flight),
        outcome,
        u64::from(world.folder),
        u64::from(world.listening),
        u64::from(world.ending),
        u64::from(world.owes_stream),
        u64::from(world.newer_rival),
        world.streams.carriers as u64,
    ];
    key.extend(link);
    key.extend(world.streams.all.open.iter().map(|number| stream(*number)));
    key
}

/// From now on a kubelet runs and does what it should. Returns how long it took
/// until the machine was registered.
fn turn_kind(machine: &mut Machine, world: &mut World, restart: bool) -> Duration {
    world.folder = true;
    world.newer_rival = false;
    if restart || world.kubelet.is_none() || !world.listening {
        assert!(world.happen(Event::KubeletStarts, None));
    }
    let start = world.now;
    for _ in 0..40 {
        let step = settle(machine, world);
        if step.phase == Phase::Registered {
            return world.now - start;
        }
        let done = [
            Event::ToldStreamsEnd,
            Event::CarrierCloses,
            Event::RegisterAccepted,
            Event::StreamOpens,
        ]
        .into_iter()
        .any(|event| world.happen(event, None));
        if !done {
            world.happen(Event::TimePasses, step.wake);
        }
    }
    panic!("not registered again: {machine:?} in {world:?}");
}

/// Every state reached from `start` by up to `depth` moves: an event, or a step
/// of the machine.
fn explore(start: (Machine, World), depth: usize, mut visit: impl FnMut(&Machine, &World)) {
    let mut seen = HashSet::new();
    let mut frontier = vec![start];
    for _ in 0..depth {
        let mut next = Vec::new();
        let mut reach = |machine: Machine, world: World| {
            if seen.insert(key(&machine, &world)) {
                visit(&machine, &world);
                next.push((machine, world));
            }
        };
        for (machine, world) in frontier {
            let (mut stepped, mut after) = (machine.clone(), world.clone());
            let step = stepped.step(&after.observation());
            if let Some(action) = step.action {
                after.perform(&stepped, action);
            }
            for event in EVENTS {
                let (mut world, wake) = (world.clone(), step.wake);
                if world.happen(event, wake) {
                    reach(machine.clone(), world);
                }
            }
            reach(stepped, after);
        }
        frontier = next;
    }
}

fn fresh() -> (Machine, World) {
    (Machine::default(), World::default())
}

fn registered() -> (Machine, World) {
    let (mut machine, mut world) = fresh();
    turn_kind(&mut machine, &mut world, true);
    (machine, world)
}

#[test]
fn from_every_state_it_comes_back_to_registered_and_soon_after_a_restart() {
    for start in [fresh(), registered()] {
        let mut states = 0;
        explore(start, DEPTH, |machine, world| {
            states += 1;
            turn_kind(&mut machine.clone(), &mut world.clone(), false);
            let took = turn_kind(&mut machine.clone(), &mut world.clone(), true);
            assert!(
                took <= PROMISE,
                "{took:?} after a restart: {machine:?} in {world:?}"
            );
        });
        println!("{states} states");
        assert!(
            states > 10_000,
            "only {states} states: the exploration does not explore"
        );
    }
}

#[test]
fn registered_and_undisturbed_it_does_nothing() {
    let (mut machine, mut world) = registered();
    let before = machine.clone();
    for _ in 0..10 {
        let step = settle(&mut machine, &mut world);
        assert_eq!((step.action, step.wake), (None, None));
        world.happen(Event::TimePasses, None);
    }
    assert_eq!(machine, before);
}

#[test]
fn a_socket_that_listens_late_is_met_within_the_promise() {
    // However long nobody accepted: the pauses do not grow past the promise.
    let (mut machine, mut world) = fresh();
    world.folder = true;
    world.happen(Event::KubeletBindsOnly, None);
    for tries in 0..1000 {
        let step = settle(&mut machine, &mut world);
        let pause = step.wake.expect("it tries again") - world.now;
        assert!(pause <= PROMISE, "{pause:?}");
        // A kubelet that has just bound its socket listens in a moment.
        let busy = tries >= 3 && pause < Duration::from_millis(5);
        assert!(!pause.is_zero() && !busy, "{pause:?} is busy");
        world.happen(Event::TimePasses, step.wake);
    }
}

/// A kubelet that ends every stream at once, for `rounds` of them. The times
/// of the registrations.
fn ended_streams(rounds: usize) -> (Machine, World, Vec<Duration>) {
    let (mut machine, mut world) = registered();
    let mut times = Vec::new();
    for _ in 0..rounds {
        world.happen(Event::StreamEnds, None);
        turn_kind(&mut machine, &mut world, false);
        times.push(world.now);
    }
    (machine, world, times)
}

#[test]
fn a_kubelet_that_keeps_ending_streams_is_not_fought() {
    let (mut machine, mut world, times) = ended_streams(12);
    let pauses: Vec<_> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(
        pauses[..2].iter().all(|pause| *pause <= PROMISE),
        "{pauses:?}"
    );
    assert!(pauses.is_sorted(), "{pauses:?}");
    assert!(pauses[10] > Duration::from_secs(30), "{pauses:?}");
    world.happen(Event::StreamEnds, None);
    world.happen(Event::CarrierCloses, None);
    assert_eq!(settle(&mut machine, &mut world).phase, Phase::Contended);
    // A new kubelet is met without a grudge.
    assert!(turn_kind(&mut machine, &mut world, true) <= PROMISE);
}

#[test]
fn a_newer_rival_has_the_name_until_it_is_gone() {
    let (mut machine, mut world) = registered();
    world.newer_rival = true;
    assert_eq!(
        settle(&mut machine, &mut world).phase,
        Phase::Registered,
        "it took nothing yet"
    );
    world.happen(Event::StreamEnds, None);
    let step = settle(&mut machine, &mut world);
    world.happen(Event::TimePasses, step.wake);
    for _ in 0..100 {
        let step = settle(&mut machine, &mut world);
        assert_eq!((step.action, step.phase), (None, Phase::Yielding));
        world.happen(Event::TimePasses, step.wake);
    }
    world.newer_rival = false;
    assert_eq!(settle(&mut machine, &mut world).phase, Phase::Registering);
}

#[test]
fn the_stream_of_another_client_is_not_taken_for_the_kubelets() {
    let (mut machine, mut world) = fresh();
    world.happen(Event::FolderMade, None);
    world.happen(Event::KubeletStarts, None);
    assert_eq!(settle(&mut machine, &mut world).phase, Phase::Registering);
    world.streams.all.opens();
    assert!(world.happen(Event::RegisterAccepted, None));
    let phase = settle(&mut machine, &mut world).phase;
    assert_eq!(phase, Phase::Registered, "there is no better");
    assert!(world.happen(Event::StreamOpens, None));
    assert_eq!(settle(&mut machine, &mut world).phase, Phase::Registered);

    let (mut without, mut machine_without) = (world.clone(), machine.clone());
    without.streams.all.open.remove(0);
    let phase = settle(&mut machine_without, &mut without).phase;
    assert_eq!(phase, Phase::Registered, "the other has gone");

    world.streams.all.open.remove(1);
    world.streams.kubelets.open.remove(0);
    let phase = settle(&mut machine, &mut world).phase;
    assert_eq!(phase, Phase::EndingStreams, "the kubelet has ended its own");
}

#[test]
fn a_stream_that_does_not_end_has_its_connection_cut() {
    let (mut machine, mut world) = registered();
    world.happen(Event::OwnSocketDeleted, None);
    let step = settle(&mut machine, &mut world);
    assert_eq!(step.phase, Phase::EndingStreams);
    let bound = world.endpoint;
    world.happen(Event::TimePasses, step.wake);
    settle(&mut machine, &mut world);
    assert_ne!(world.endpoint, bound, "the server was not replaced");
}

#[test]
fn a_kubelet_that_has_not_let_go_of_the_old_connection_is_given_time() {
    let (mut machine, mut world) = registered();
    world.happen(Event::StreamEnds, None);
    let step = settle(&mut machine, &mut world);
    assert_eq!(step.phase, Phase::EndingStreams);
    // It never closes it: that is no reason never to register again.
    let start = world.now;
    assert!(world.happen(Event::TimePasses, step.wake));
    assert_eq!(settle(&mut machine, &mut world).phase, Phase::Registering);
    assert_eq!(world.now - start, LINGER_DEADLINE);
}

#[test]
fn retries_are_spread_and_never_late() {
    let pauses: HashSet<_> = (0..=u8::MAX)
        .map(|jitter| {
            let (mut machine, mut world) = registered();
            world.happen(Event::StreamEnds, None);
            world.happen(Event::CarrierCloses, None);
            let seen = Observation {
                jitter,
                ..world.observation()
            };
            machine.step(&seen).wake.expect("it tries again") - world.now
        })
        .collect();
    assert!(pauses.len() > 100);
    assert!(
        pauses
            .iter()
            .all(|pause| *pause <= ENDED.0 && *pause * 4 >= ENDED.0 * 3)
    );
}
