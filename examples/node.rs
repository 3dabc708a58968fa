//! A walk through a node's life, on any Linux machine.
//!
//! `cargo run --release --example node` needs no root, no GPU and no cluster.
//! It builds the plugin and a simulated NVML, lays out a node with GPUs and a
//! kubelet in a temporary folder, starts the plugin as a process, and walks
//! through what happens to a node: pods, errors of applications, a GPU that
//! falls off the bus, a restart of the kubelet. Each step is checked and its
//! time measured; the exit code is 0 only where every step held.
//!
//! With `--real` the machine's own driver and GPUs take the simulated ones'
//! place; the kubelet stays the one in the temporary folder.

#[path = "node/answer.rs"]
mod answer;
#[path = "node/build.rs"]
mod build;
#[path = "../tests/common/mod.rs"]
mod common;
#[path = "node/print.rs"]
mod print;
#[path = "node/stage.rs"]
mod stage;
#[path = "node/walk.rs"]
mod walk;

use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;

use self::common::nvml::MAX_GPUS;
use self::print::Printer;
use self::stage::Stage;
use self::walk::Walk;

/// `EX_USAGE` of sysexits.h.
const USAGE: u8 = 64;
/// One GPU for a pod and one to fall off the bus.
const FEWEST_GPUS: i64 = 2;

/// Walks the device plugin through a node's life and checks every step.
///
/// Exit codes: 0 every step held, 1 one did not, 64 bad arguments.
#[derive(Debug, Parser)]
#[command(name = "node")]
struct Arguments {
    /// How many GPUs the simulated node has
    #[arg(long, value_name = "N", default_value_t = 8, conflicts_with = "real")]
    #[arg(value_parser = clap::value_parser!(u8).range(FEWEST_GPUS..=MAX_GPUS as i64))]
    gpus: u8,

    /// Use this machine's driver and GPUs; faults are not simulated then
    #[arg(long)]
    real: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            let asked = matches!(
                error.kind(),
                ErrorKind::DisplayHelp | ErrorKind::DisplayVersion
            );
            // A closed terminal is no reason for another exit code.
            drop(error.print());
            return if asked {
                ExitCode::SUCCESS
            } else {
                ExitCode::from(USAGE)
            };
        }
    };
    match run(&arguments).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether every step held.
async fn run(arguments: &Arguments) -> anyhow::Result<bool> {
    let program = build::plugin()?;
    let stage = if arguments.real {
        Stage::real()?
    } else {
        eprintln!("building the simulated NVML");
        Stage::simulated(arguments.gpus.into())
    };
    let printer = Printer::new();
    printer.heading(&stage.describe());
    let mut walk = Walk::new(program, stage, printer);
    Ok(walk.all_steps().await)
}
