//! What to measure, and how often.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{Parser, ValueEnum};

use super::command::Subject;
use super::common::nvml::MAX_GPUS;
use super::groups::Group;

/// Measures this device plugin, and others beside it.
///
/// The head of benches/plugin.rs tells what the figures are.
#[derive(Debug, Parser)]
#[command(name = "plugin")]
struct Arguments {
    /// Another plugin to measure in the same run
    #[arg(long = "plugin", value_name = "NAME=COMMAND LINE")]
    #[arg(value_parser = Subject::parse)]
    plugins: Vec<Subject>,

    /// Measure these figures alone
    #[arg(long, value_name = "GROUP", value_delimiter = ',')]
    only: Vec<Group>,

    /// How many GPUs the simulated node has, where a figure's name says no
    /// other number
    #[arg(long, value_name = "N", default_value_t = 8)]
    #[arg(value_parser = clap::value_parser!(u8).range(1..=MAX_GPUS as i64))]
    gpus: u8,

    /// How often everything is measured [default: 3, or 1 with --quick]
    #[arg(long, value_name = "N")]
    #[arg(value_parser = clap::value_parser!(u8).range(1..))]
    rounds: Option<u8>,

    /// Few repetitions, for a look or to see that it works
    #[arg(long)]
    quick: bool,

    /// Write the figures to a file as JSON as well
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,

    /// Start each plugin with the run's folder mounted on
    /// /var/lib/kubelet/device-plugins, in a mount namespace of its own (needs
    /// root)
    #[arg(long)]
    bind_device_plugin_dir: bool,

    /// Instead, write link/executed.ld anew: which functions run (needs valgrind;
    /// builds the plugin with symbols first)
    #[arg(long, conflicts_with_all = ["plugins", "only", "json"])]
    renew_executed: bool,

    /// Given by Cargo
    #[arg(long, hide = true)]
    bench: bool,
}

/// What to measure, and how often.
#[derive(Debug)]
pub(crate) struct Settings {
    /// Ours first, once it is built.
    pub(crate) subjects: Vec<Subject>,
    pub(crate) gpus: usize,
    pub(crate) rounds: usize,
    pub(crate) groups: BTreeSet<Group>,
    pub(crate) effort: Effort,
    pub(crate) json: Option<PathBuf>,
    pub(crate) bind_device_plugin_dir: bool,
    pub(crate) renew_executed: bool,
}

/// How often, each round.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Effort {
    pub(crate) starts: usize,
    /// Of each method.
    pub(crate) calls: usize,
    /// Of GetPreferredAllocation, for each size, where the time is enough.
    pub(crate) preferred: usize,
    pub(crate) preferred_time: Duration,
    /// In all rounds together, where the time a round is enough.
    pub(crate) restarts: usize,
    pub(crate) restarts_time: Duration,
    /// Nodes all of whose GPUs have an XID.
    pub(crate) xid_nodes: usize,
    /// How long the plugin is watched at rest.
    pub(crate) rest: Duration,
    /// Starts with many devices.
    pub(crate) lists: usize,
}

const FULL: Effort = Effort {
    starts: 10,
    calls: 5000,
    preferred: 500,
    preferred_time: Duration::from_secs(2),
    restarts: 1000,
    restarts_time: Duration::from_secs(100),
    xid_nodes: 4,
    rest: Duration::from_secs(60),
    lists: 2,
};
const FULL_ROUNDS: usize = 3;

const QUICK: Effort = Effort {
    starts: 3,
    calls: 300,
    preferred: 50,
    preferred_time: Duration::from_millis(200),
    restarts: 10,
    restarts_time: Duration::from_secs(20),
    xid_nodes: 1,
    rest: Duration::from_secs(5),
    lists: 1,
};

/// Each thing that the plugin does, and all that it does at rest.
const RENEWAL: Effort = Effort {
    rest: FULL.rest,
    ..QUICK
};

/// What the arguments ask for.
pub(crate) enum Parsed {
    Settings(Settings),
    /// Help was asked for and printed.
    Help,
    /// The arguments are wrong, which was said.
    Usage,
}

/// Reads the process's arguments.
pub(crate) fn parse() -> Parsed {
    match Arguments::try_parse() {
        Ok(arguments) => Parsed::Settings(settings(arguments)),
        Err(error) => {
            // A closed terminal is no reason for another exit code.
            drop(error.print());
            match error.kind() {
                ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Parsed::Help,
                _ => Parsed::Usage,
            }
        }
    }
}

fn settings(arguments: Arguments) -> Settings {
    // Without --bench it is `cargo test --benches`: does it work at all?
    let (effort, rounds) = if arguments.renew_executed {
        (RENEWAL, 1)
    } else if arguments.quick || !arguments.bench {
        (QUICK, 1)
    } else {
        (FULL, FULL_ROUNDS)
    };
    let groups = if arguments.only.is_empty() {
        Group::value_variants().iter().copied().collect()
    } else {
        arguments.only.into_iter().collect()
    };
    Settings {
        subjects: arguments.plugins,
        gpus: arguments.gpus.into(),
        rounds: arguments.rounds.map_or(rounds, usize::from),
        groups,
        effort,
        json: arguments.json,
        bind_device_plugin_dir: arguments.bind_device_plugin_dir,
        renew_executed: arguments.renew_executed,
    }
}
