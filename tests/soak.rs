//! Everything at once, for a while: kubelets that come, go and misbehave, XIDs, lost
//! and hanging GPUs, reloads, pods, slow and vanishing clients, right and wrong
//! requests, restarts of the plugin; with what must hold looked at throughout.
//!
//! Less than a minute by default; `SOAK_SECONDS=3600` is an hour. What is done is a pure
//! function of the seed, which is printed: `SOAK_SEED=…` does the same again, action
//! by action. How the actions of different actors fall together, and how far each got
//! when another began, is the machine's doing and is not repeated.

#![allow(
    clippy::panic,
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "also a test's helpers fail by panicking"
)]

mod common;

#[path = "soak/clients.rs"]
mod clients;
#[path = "soak/expect.rs"]
mod expect;
#[path = "soak/gpus.rs"]
mod gpus;
#[path = "soak/journal.rs"]
mod journal;
#[path = "soak/kubelet.rs"]
mod kubelet;
#[path = "soak/plan.rs"]
mod plan;
#[path = "soak/quiet.rs"]
mod quiet;
#[path = "soak/requests.rs"]
mod requests;
#[path = "soak/rig.rs"]
mod rig;
#[path = "soak/usage.rs"]
mod usage;

use std::fmt;
use std::io::Write;
use std::time::{Duration, Instant};

use clients::House;
use plan::{Kind, Plan, Round};
use rig::{Outcome, Soak};
use usage::Usage;

/// How long a soak runs that is told nothing.
const SECONDS: u64 = 25;
/// No round lasts this long, however loaded the machine is.
const ROUND: Duration = Duration::from_secs(240);
/// So often a long soak says how it is.
const TELL_EVERY: u64 = 20;
/// What a soak has to have done to be one.
const DONE: [&str; 9] = [
    "XIDs",
    "faults of a GPU",
    "kubelet actions",
    "lists read by others",
    "pods",
    "reloads",
    "requests answered",
    "requests refused",
    "sicknesses for certain",
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whole_gpus() {
    soak("whole_gpus", Kind::Whole).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shared_gpus() {
    soak("shared_gpus", Kind::Shared).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mig_devices() {
    soak("mig_devices", Kind::Mig).await;
}

async fn soak(test: &str, kind: Kind) {
    let seed = number("SOAK_SEED").unwrap_or_else(|| u64::from(fastrand::u32(..)));
    let seconds = number("SOAK_SECONDS").unwrap_or(SECONDS);
    let again = format!("SOAK_SEED={seed} SOAK_SECONDS={seconds} cargo test --test soak {test}");
    tell(format_args!("{test}: again by {again}"));
    let begun = Instant::now();
    let plan = Plan { seed, kind };
    let mut soak = Soak::start(plan).await;
    let outcome = run(&mut soak, test, Duration::from_secs(seconds)).await;
    let counts = soak.journal.counts();
    let took = begun.elapsed().as_secs();
    match outcome {
        Ok(memory) => tell(format_args!(
            "{test}: {took} s, seed {seed}: {counts}; {memory}"
        )),
        Err(fault) => panic!(
            "{test}, after {took} s: {fault}\n{}\nin all: {counts}\n{test}: {fault}\nagain by: {again}",
            soak.journal.last()
        ),
    }
}

/// Rounds until the time is over, each with a quiet point after it.
async fn run(soak: &mut Soak, test: &str, time: Duration) -> Outcome<String> {
    let end = Instant::now() + time;
    let mut before = soak.at_rest().await?;
    let mut life = Vec::new();
    let mut memory = Vec::new();
    for number in 0.. {
        let round = soak.plan.round(number);
        soak.journal
            .note(format_args!("round {number}, calm {:?}", round.calm));
        soak.round(&round).await?;
        let usage = soak.watched(soak.quiet(&round, before)).await?;
        soak.journal.note(format_args!("quiet: {usage:?}"));
        soak.journal.count("quiet points");
        life.push(usage);
        if number % TELL_EVERY == TELL_EVERY - 1 {
            let counts = soak.journal.counts();
            tell(format_args!("{test}: round {number}: {usage:?}; {counts}"));
        }
        let is_over = Instant::now() > end;
        if is_over || round.restart.is_some() {
            memory.push(quiet::growth(&std::mem::take(&mut life))?);
        }
        if is_over {
            break;
        }
        if let Some(restart) = round.restart {
            soak.restart(restart).await?;
            before = soak.at_rest().await?;
        }
    }
    for what in DONE {
        if soak.journal.counted(what) == 0 {
            return Err(format!("a soak without {what}"));
        }
    }
    Ok(memory.join("; "))
}

impl Soak {
    /// What the plugin uses when it has just been started and all is well.
    async fn at_rest(&self) -> Outcome<Usage> {
        self.watched(async {
            self.well().await?;
            // Once asked for everything, all that is kept open is open.
            for path in ["/livez", "/readyz", "/metrics"] {
                self.get(path).await?;
            }
            self.usage()
        })
        .await
    }

    /// Everybody does what is planned for the round.
    async fn round(&self, round: &Round) -> Outcome {
        self.calm(round.calm.iter().copied())?;
        let (mut house, mut half, mut pods) = (House::default(), Vec::new(), Vec::new());
        let [first, second] = &round.requests;
        let [sick, sicker] = &round.faults;
        let all = Box::pin(async {
            tokio::try_join!(
                self.act(&round.kubelet, async |action| self.kubelet(action).await),
                self.act(sick, async |fault| self.fault(fault).await),
                self.act(sicker, async |fault| self.fault(fault).await),
                self.act(&round.xids, async |xid| self.xid(xid).await),
                self.act(&round.driver, async |fault| self.driver(fault).await),
                self.act(first, async |ask| self.ask(ask).await),
                self.act(second, async |ask| self.ask(ask).await),
                self.act(&round.streams, async |open| self
                    .open(&mut house, open)
                    .await),
                self.act(&round.scrapes, async |scrape| self
                    .scrape(&mut half, *scrape)
                    .await),
                self.act(&round.reloads, async |reload| self.reload(*reload).await),
                self.act(&round.pods, async |action| self
                    .pod(&mut pods, *action)
                    .await),
            )
        });
        self.watched(async { all.await.map(drop) }).await?;
        self.free_all(pods);
        self.look()
    }

    /// Does it with open eyes.
    async fn watched<T>(&self, work: impl Future<Output = Outcome<T>>) -> Outcome<T> {
        tokio::select! {
            outcome = work => outcome,
            fault = self.watch() => Err(fault),
            () = tokio::time::sleep(ROUND) => Err(format!("nothing has come to an end within {ROUND:?}")),
        }
    }
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().expect("a number"))
}

/// Says it at once, and not through the capture of the output.
fn tell(what: fmt::Arguments<'_>) {
    let line = format!("\nsoak: {what}\n");
    let mut stderr = std::io::stderr();
    stderr.write_all(line.as_bytes()).expect("write to stderr");
}
