//! Measures how long it takes to make a driver volume, by link and by copy.
//!
//! ```text
//! cargo bench --bench volume -- --driver-root DIR
//! cargo bench --bench volume -- --rounds 20 --state-dir DIR --state-dir DIR
//! ```
//!
//! `--driver-root` is an unpacked driver, as `.ci/driver-packages` makes some;
//! without one there are files of a driver's sizes. All capabilities are taken.
//! Volumes are made below each `--state-dir`: the folder of temporary files, which
//! the kernel links into from the same file system, and `/dev/shm`, which takes
//! copies. Each round makes one and removes it; *again* is the time for finding
//! and checking one that is there, as at each start of the plugin. The files are
//! in memory from the second round on.

#[allow(dead_code, unreachable_pub, reason = "a part is enough")]
#[path = "../tests/common/elf.rs"]
mod elf;

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Parser;
use gpu_device_plugin::config::HostFolder;
use gpu_device_plugin::driver::capabilities::Capabilities;
use gpu_device_plugin::driver::volume::{Made, Source, Volumes};
use gpu_device_plugin::driver::{DriverFiles, DriverRoot};
use tempfile::TempDir;

/// Of files as large as a driver's: the sizes in MiB and how many have each.
const SIZES: [(usize, usize); 6] = [(95, 1), (70, 3), (45, 3), (20, 5), (2, 30), (0, 8)];
const VERSION: &str = "550.163.01";

#[derive(Parser)]
struct Arguments {
    /// An unpacked driver
    #[arg(long)]
    driver_root: Option<PathBuf>,
    /// A folder to make volumes in, as often as there are some
    #[arg(long)]
    state_dir: Vec<PathBuf>,
    /// How many volumes are made in each
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Cargo's own
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let mut folders = arguments.state_dir.clone();
    if folders.is_empty() {
        folders = vec![std::env::temp_dir(), "/dev/shm".into()];
    }
    let made_up;
    let (version, sources) = match &arguments.driver_root {
        Some(root) => driver(root)?,
        None => {
            made_up = tempfile::tempdir()?;
            (VERSION.to_owned(), synthetic(&made_up)?)
        }
    };
    println!(
        "| below | links | reflinks | copies | MiB | median | slowest | again, median | slowest |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    for folder in folders {
        let row = measure(&folder, &version, &sources, arguments.rounds);
        println!("{}", row.with_context(|| folder.display().to_string())?);
    }
    Ok(())
}

/// The newest driver under the root.
fn driver(root: &Path) -> anyhow::Result<(String, Vec<Source>)> {
    let root = DriverRoot::new(root, root);
    let versions = DriverFiles::versions(&root)?;
    let version = versions.last().context("no driver there")?;
    let all: Capabilities = "all".parse().map_err(anyhow::Error::msg)?;
    let files = DriverFiles::find(&root, version, &all)?.files;
    let sources = files.iter().map(|file| Source {
        path: file.in_volume(),
        here: file.here.clone(),
    });
    Ok((version.clone(), sources.collect()))
}

fn synthetic(folder: &TempDir) -> anyhow::Result<Vec<Source>> {
    let sizes = SIZES
        .iter()
        .flat_map(|(size, count)| std::iter::repeat_n(*size, *count));
    let mut sources = Vec::new();
    for (number, size) in sizes.enumerate() {
        let name = format!("libnvidia-{number}.so.1");
        let here = folder.path().join(&name);
        let mut file = fs::File::create(&here)?;
        file.write_all(&elf::SharedObject::named(&name).bytes())?;
        file.write_all(&vec![0x55; size << 20])?;
        let path = Path::new("lib64").join(name);
        sources.push(Source { path, here });
    }
    Ok(sources)
}

fn measure(
    folder: &Path,
    version: &str,
    sources: &[Source],
    rounds: u32,
) -> anyhow::Result<String> {
    let mut last = Made::default();
    let (mut made, mut again) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let state = tempfile::tempdir_in(folder)?;
        let volumes = Volumes::new(HostFolder {
            host: state.path().into(),
            here: state.path().into(),
        });
        let volume = volumes.make(version, sources)?;
        last = volume.made.clone().context("there was one already")?;
        made.push(last.duration);
        let begun = Instant::now();
        volumes.find(version, sources).context("it is not whole")?;
        again.push(begun.elapsed());
    }
    let Made {
        links,
        reflinks,
        copies,
        size,
        ..
    } = last;
    Ok(format!(
        "| {} | {links} | {reflinks} | {copies} | {} | {} | {} |",
        folder.display(),
        size >> 20,
        times(made),
        times(again)
    ))
}

fn times(mut times: Vec<Duration>) -> String {
    times.sort_unstable();
    let median = times.get(times.len() / 2).copied().unwrap_or_default();
    let slowest = times.last().copied().unwrap_or_default();
    format!("{median:.1?} | {slowest:.1?}")
}
