//! Measures this device plugin, and others beside it.
//!
//! ```text
//! cargo bench                        # ours alone, all figures, about 8 minutes
//! cargo bench -- --quick             # the same with few repetitions, 1 minute
//! cargo bench -- --only calls,xid    # some groups of figures; --help lists them
//! cargo bench -- --json figures.json
//! cargo bench -- --renew-executed    # no figures: link/executed.ld
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
//! | `{kmsg}`           | what stands for `/dev/kmsg`                     |
//! | `{sys}`, `{proc}`  | what stands for `/sys` and `/proc`              |
//! | `{config}`         | a configuration file, see below                 |
//!
//! More devices than a node has GPUs are replicas of them, by a configuration
//! file in the format `version: v1` that NVIDIA's plugin reads and ours too. An
//! argument that contains `{config}` is left out where nothing is shared; a
//! plugin without one has no figures of many devices.
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
//!     --nvidia-dev-root={dev_root} --fail-on-init-error=true \
//!     --config-file={config}"
//! ```
//!
//! # The figures
//!
//! - *start to registered*: from starting the process to the first list that has
//!   all devices.
//! - *calls*: on one connection, GetDevicePluginOptions (which does nothing: the
//!   cost of a call) and Allocate in turn, to the last byte of the answer.
//! - *GetPreferredAllocation*: the same, of each number of GPUs while all are
//!   free. Where an answer takes long there are fewer calls, and the table says
//!   how many; one that takes 10 s is not waited for.
//! - *kubelet restart to registered*: from the new kubelet's first accept to the
//!   plugin's list; 1000 in all rounds, fewer where they take too long. *missed*
//!   is what took more than 10 s.
//! - *XID to the kubelet's list*: from the change of the simulated driver to the
//!   list in which all devices of the GPU are sick.
//! - *wake-ups*: how often threads of the process fell asleep (the voluntary
//!   context switches of `/proc/PID/task/*/status`) while nothing happened.
//! - *memory*: of the process (`/proc/PID/status`), in MB of 1,000,000 bytes.
//!   *NVML's own* is what a program takes for loading and initialising the same
//!   library and nothing else, measured in the same round. It is the driver's
//!   doing, not a plugin's.
//! - *list of … devices*: start, XID and memory with as many replicas.
//! - *list streams*: so many clients beside the kubelet, each on a connection of
//!   its own, until the last of them has the news.
//! - *size, stripped*: of the program that runs, after `strip` (of binutils).
//!
//! Each figure is taken once a round, and shown as the median over the rounds
//! with the least and the most: `21.7 [21.2..23.0]`. `-` is what could not be
//! measured; a note below the table says why. Targets are ours, for 8 GPUs
//! (`benches/plugin/targets.rs`); a *slowest* is judged by its worst round, all
//! else by the median.

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
#[path = "plugin/executed.rs"]
mod executed;
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
    let run = |runtime: tokio::runtime::Runtime| runtime.block_on(run(settings));
    match runtime.context("a runtime").and_then(run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(mut settings: Settings) -> anyhow::Result<()> {
    eprintln!("building the simulated NVML and the plugin");
    common::nvml::simulated_nvml_library();
    if settings.renew_executed {
        return executed::renew(&settings).await;
    }
    let ours = common::cargo::plugin().context("build the plugin")?;
    settings.subjects.insert(0, Subject::ours(&ours));
    let settings = &settings;
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
