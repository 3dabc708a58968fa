//! What to measure, and how often.

use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use clap::error::ErrorKind;

use super::command::Subject;
use super::common::nvml::MAX_GPUS;

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

    /// How many GPUs the simulated node has
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

    /// Given by Cargo
    #[arg(long, hide = true)]
    bench: bool,
}

/// What to measure, and how often.
#[derive(Debug)]
pub(crate) struct Settings {
    /// Ours first.
    pub(crate) subjects: Vec<Subject>,
    pub(crate) gpus: usize,
    pub(crate) rounds: usize,
    /// Starts a round, beside the one whose life is measured.
    pub(crate) starts: usize,
    /// Calls of each method a round.
    pub(crate) calls: usize,
    /// Restarts of the kubelet a round.
    pub(crate) restarts: usize,
    /// How long the plugin is watched at rest.
    pub(crate) rest: Duration,
    pub(crate) json: Option<PathBuf>,
    pub(crate) bind_device_plugin_dir: bool,
}

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
    let quick = arguments.quick || !arguments.bench;
    let (rounds, starts, calls, restarts, rest) = if quick {
        (1, 2, 300, 10, 1)
    } else {
        (3, 6, 5000, 100, 10)
    };
    let mut subjects = vec![Subject::ours()];
    subjects.extend(arguments.plugins);
    Settings {
        subjects,
        gpus: arguments.gpus.into(),
        rounds: arguments.rounds.map_or(rounds, usize::from),
        starts,
        calls,
        restarts,
        rest: Duration::from_secs(rest),
        json: arguments.json,
        bind_device_plugin_dir: arguments.bind_device_plugin_dir,
    }
}
