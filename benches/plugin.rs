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

#[path = "plugin/alone.rs"]
mod alone;
#[path = "plugin/arguments.rs"]
mod arguments;
#[path = "plugin/calls.rs"]
mod calls;
#[path = "plugin/command.rs"]
mod command;
#[path = "../tests/common/mod.rs"]
mod common;
#[path = "plugin/figures.rs"]
mod figures;
#[path = "plugin/groups.rs"]
mod groups;
#[path = "plugin/life.rs"]
mod life;
#[path = "plugin/many.rs"]
mod many;
#[path = "plugin/preferred.rs"]
mod preferred;
#[path = "plugin/process.rs"]
mod process;
#[path = "plugin/raw.rs"]
mod raw;
#[path = "plugin/rest.rs"]
mod rest;
#[path = "plugin/rig.rs"]
mod rig;
#[path = "plugin/table.rs"]
mod table;
#[path = "plugin/targets.rs"]
mod targets;

use std::process::ExitCode;

use anyhow::Context;

use self::arguments::{Parsed, Settings};
use self::command::Subject;
use self::figures::Figures;
use self::groups::Group;
use self::table::Table;

/// `EX_USAGE` of sysexits.h.
const USAGE: u8 = 64;

fn main() -> ExitCode {
    if let Some(library) = alone::asked() {
        return alone::run(&library);
    }
    let settings = match arguments::parse() {
        Parsed::Settings(settings) => settings,
        Parsed::Help => return ExitCode::SUCCESS,
        Parsed::Usage => return ExitCode::from(USAGE),
    };
    // One thread: a call must not wait for a thread of ours to wake another.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let run = |runtime: tokio::runtime::Runtime| runtime.block_on(run(&settings));
    match runtime.context("a runtime").and_then(run) {
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
        for group in &settings.groups {
            for (subject, figures) in settings.subjects.iter().zip(&mut all) {
                let (name, group) = (&subject.name, *group);
                eprintln!(
                    "round {round} of {}: {}, {name}",
                    settings.rounds,
                    group.name()
                );
                measure(group, subject, settings, figures).await;
            }
        }
    }
    let machine = process::machine();
    let after = process::load_average();
    println!("{machine}\nload average before and after: {before} | {after}\n");
    let table = Table::new(settings, &all);
    print!("{}", table.text());
    if let Some(file) = &settings.json {
        let json = table.json(&machine)?;
        std::fs::write(file, json).with_context(|| format!("cannot write {}", file.display()))?;
    }
    Ok(())
}

/// What cannot be measured is noted, and the others are measured.
async fn measure(group: Group, subject: &Subject, settings: &Settings, figures: &mut Figures) {
    let measured = match group {
        Group::Start => life::starts(subject, settings, figures).await,
        Group::Calls => calls::measure(subject, settings, figures).await,
        Group::Preferred => preferred::measure(subject, settings, figures).await,
        Group::Restart => life::restarts(subject, settings, figures).await,
        Group::Xid => life::xids(subject, settings, figures).await,
        Group::Rest => rest::measure(subject, settings, figures).await,
        Group::Lists => many::lists(subject, settings, figures).await,
        Group::Streams => many::streams(subject, settings, figures).await,
        Group::Binary => life::binary(subject, settings, figures).await,
    };
    if let Err(error) = measured {
        figures.failed(&subject.name, &group.name(), &error);
    }
}
