//! Measures this device plugin, and others beside it.
//!
//! ```text
//! cargo bench                        # ours alone, all figures, about 2 minutes
//! cargo bench -- --quick             # the same with few repetitions
//! cargo bench -- --json figures.json
//! cargo bench -- --plugin NAME='COMMAND LINE'
//! ```
//!
//! The release binary runs as a process of its own on a simulated node in a
//! temporary folder, and a kubelet's device manager over real sockets registers
//! it, asks it and restarts; what is timed is what that kubelet sees. No GPU is
//! needed and, for ours, no root. `TMPDIR` names another place for the node:
//! `TMPDIR=/dev/shm` keeps a busy disk out of the figures.
//!
//! # Against another plugin
//!
//! `--plugin` (as often as there are others) takes any program that registers
//! with a kubelet. All run in turn, A B A B, each on a fresh node, and the table
//! has a column for each. In the command line these words are replaced:
//!
//! | word               | by                                              |
//! |--------------------|-------------------------------------------------|
//! | `{dir}`            | the kubelet's folder of plugins' sockets        |
//! | `{kubelet_socket}` | the kubelet's socket in it                      |
//! | `{nvml}`           | the simulated NVML's file, `libnvidia-ml.so.1`  |
//! | `{nvml_dir}`       | its folder                                      |
//! | `{driver_root}`    | where a simulated driver is installed           |
//! | `{dev_root}`       | the folder that holds its `dev`                 |
//! | `{state}`          | a folder to keep things in                      |
//! | `{sys}`, `{proc}`  | what stands for `/sys` and `/proc`              |
//!
//! Quotes and backslashes are understood as in a shell, and assignments in
//! front of the command go to its environment. A wrapper must `exec` the plugin:
//! memory and processor time are those of the process that was started.
//!
//! A plugin that insists on `/var/lib/kubelet/device-plugins` needs
//! `--bind-device-plugin-dir` and root: every plugin, ours too, is then started
//! in a mount namespace of its own in which that path is the run's folder. So
//! for NVIDIA's:
//!
//! ```text
//! cargo bench -- --bind-device-plugin-dir --plugin nvidia="\
//!     LD_LIBRARY_PATH={nvml_dir} nvidia-device-plugin --pass-device-specs=true \
//!     --device-discovery-strategy=nvml --nvidia-driver-root={driver_root} \
//!     --nvidia-dev-root={dev_root} --fail-on-init-error=true"
//! ```
//!
//! # The figures
//!
//! - *start to registered*: from starting the process to its first list.
//! - *calls*: on one connection, GetDevicePluginOptions (which does nothing: the
//!   cost of a call) and Allocate in turn, to the last byte of the answer.
//! - *kubelet restart to registered*: from the new kubelet's first accept to the
//!   plugin's list.
//! - *XID to Unhealthy*: from the change of the simulated driver to the list.
//! - *memory*: of the process (`/proc/PID/status`, `smaps`), also without what
//!   the mappings of NVML's library take, which is the driver's and not a
//!   plugin's.
//! - *processor at rest*: what it uses while nothing happens.
//!
//! Medians are over all rounds; a percentile of calls is the median of the
//! rounds' percentiles.

#[path = "plugin/arguments.rs"]
mod arguments;
#[path = "plugin/command.rs"]
mod command;
#[path = "../tests/common/mod.rs"]
mod common;
#[path = "plugin/figures.rs"]
mod figures;
#[path = "plugin/life.rs"]
mod life;
#[path = "plugin/process.rs"]
mod process;
#[path = "plugin/raw.rs"]
mod raw;
#[path = "plugin/rig.rs"]
mod rig;
#[path = "plugin/table.rs"]
mod table;

use std::process::ExitCode;

use anyhow::Context;

use self::arguments::{Parsed, Settings};
use self::command::Subject;
use self::figures::Figures;
use self::rig::Rig;

/// `EX_USAGE` of sysexits.h.
const USAGE: u8 = 64;

// One thread: a call must not wait for a thread of ours to wake another.
#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let settings = match arguments::parse() {
        Parsed::Settings(settings) => settings,
        Parsed::Help => return ExitCode::SUCCESS,
        Parsed::Usage => return ExitCode::from(USAGE),
    };
    match run(&settings).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(settings: &Settings) -> anyhow::Result<()> {
    eprintln!("building the simulated NVML");
    common::nvml::simulated_nvml_library();
    let before = process::load_average();
    let mut all: Vec<_> = settings
        .subjects
        .iter()
        .map(|_| Figures::default())
        .collect();
    for round in 1..=settings.rounds {
        for _ in 0..settings.starts {
            for (subject, figures) in settings.subjects.iter().zip(&mut all) {
                start(subject, settings, figures).await;
            }
        }
        for (subject, figures) in settings.subjects.iter().zip(&mut all) {
            eprintln!("round {round} of {}: {}", settings.rounds, subject.name);
            live(subject, settings, figures).await;
        }
    }
    println!("{}", process::machine());
    println!(
        "load average before and after: {before} | {}\n",
        process::load_average()
    );
    let rows = table::rows(settings, &all);
    print!("{}", table::text(settings, &rows));
    if let Some(file) = &settings.json {
        let json = table::json(settings, &rows)?;
        std::fs::write(file, json).with_context(|| format!("cannot write {}", file.display()))?;
    }
    Ok(())
}

/// Starts the plugin, and ends it when it is registered.
async fn start(subject: &Subject, settings: &Settings, figures: &mut Figures) {
    if let Some(rig) = rig(subject, settings, figures).await {
        rig.end().await;
    }
}

/// Starts the plugin and takes all the other figures.
async fn live(subject: &Subject, settings: &Settings, figures: &mut Figures) {
    if let Some(mut rig) = rig(subject, settings, figures).await {
        figures.lives.push(life::measure(&mut rig, settings).await);
        rig.end().await;
    }
}

async fn rig(subject: &Subject, settings: &Settings, figures: &mut Figures) -> Option<Rig> {
    match Rig::start(subject, settings).await {
        Ok(rig) => {
            figures.starts.push(Some(rig.registered_after));
            Some(rig)
        }
        Err(error) => {
            eprintln!("{}: {error:#}", subject.name);
            figures.starts.push(None);
            None
        }
    }
}
