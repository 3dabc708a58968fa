//! Counts the instructions of the two hot paths, and holds them to limits.
//!
//! ```text
//! cargo bench --profile counted --bench instructions
//! cargo bench --profile counted --bench instructions -- --keep .
//! callgrind_annotate --inclusive=yes callgrind.out.allocate-1
//! cargo bench --profile counted --bench instructions -- --renew
//! ```
//!
//! A path is what the plugin itself does for a call: to decode the request, to
//! answer it, to encode the answer. Not counted is what tonic, tokio and the kernel
//! do for any call. It needs valgrind (Debian's package of that name): callgrind
//! counts a process that makes some calls, and one that makes some more, and the
//! difference is the calls'. Instructions are not time, but they are the same
//! wherever they are counted: no other program disturbs them. What a call costs in
//! time is `cargo bench`'s.
//!
//! `benches/instructions/limits` has the paths and their limits. They are of x86_64
//! and of the profile `counted` of Cargo.toml: release without LTO, which takes
//! minutes and moves no count by what matters here. Another compiler may move them;
//! then, and after a change that is worth its price, `--renew` writes them anew:
//! what was counted, and 5 % more.

#[path = "instructions/limits.rs"]
mod limits;
#[path = "instructions/node.rs"]
mod node;
#[path = "instructions/paths.rs"]
mod paths;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::Context;
use clap::Parser;
use tempfile::TempDir;

use self::limits::Limits;
use self::paths::HotPath;

/// The two processes' calls: enough to be rid of what happens once.
const CALLS: [u64; 2] = [100, 300];

#[derive(Parser)]
struct Arguments {
    /// Write the limits anew
    #[arg(long)]
    renew: bool,
    /// Keep callgrind's files in this folder, for callgrind_annotate
    #[arg(long, value_name = "FOLDER")]
    keep: Option<PathBuf>,
    /// The process that is counted: calls this path
    #[arg(long, hide = true, requires = "calls", requires = "folder")]
    path: Option<HotPath>,
    #[arg(long, hide = true)]
    calls: Option<u64>,
    #[arg(long, hide = true)]
    folder: Option<PathBuf>,
    /// Given by Cargo
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    if let (Some(path), Some(calls), Some(folder)) =
        (arguments.path, arguments.calls, &arguments.folder)
    {
        paths::call(path, calls, folder)?;
        return Ok(ExitCode::SUCCESS);
    }
    if cfg!(not(target_arch = "x86_64")) || cfg!(debug_assertions) {
        println!("*** SKIPPED instruction counts: the limits are x86_64's, optimized");
        return Ok(ExitCode::SUCCESS);
    }
    let mut limits = Limits::read()?;
    let folder = node::lay_out()?;
    let mut exceeded = Vec::new();
    for limit in limits.all_mut() {
        let count = count(limit.path, &folder, arguments.keep.as_deref())?;
        println!("{limit}: {count} instructions a call");
        if arguments.renew {
            limit.renew(count);
        } else if let Some(fault) = limit.fault(count) {
            exceeded.push(fault);
        }
    }
    if arguments.renew {
        limits.write()?;
    }
    for fault in &exceeded {
        eprintln!("{fault}");
    }
    Ok(ExitCode::from(u8::from(!exceeded.is_empty())))
}

/// Instructions a call.
fn count(path: HotPath, folder: &TempDir, keep: Option<&Path>) -> anyhow::Result<u64> {
    let [few, many] = CALLS;
    let kept = keep.map(|keep| keep.join(format!("callgrind.out.{path}")));
    let out = kept.as_deref().unwrap_or(Path::new("/dev/null"));
    let more = counted(path, many, folder.path(), out)?;
    let less = counted(path, few, folder.path(), Path::new("/dev/null"))?;
    Ok(more.saturating_sub(less) / (many - few))
}

/// Instructions of a process that makes so many calls.
fn counted(path: HotPath, calls: u64, folder: &Path, out: &Path) -> anyhow::Result<u64> {
    let output = Command::new("valgrind")
        .arg("--tool=callgrind")
        .arg(format!("--callgrind-out-file={}", out.display()))
        .arg(std::env::current_exe()?)
        .args(["--path", &path.to_string()])
        .args(["--calls", &calls.to_string()])
        .arg("--folder")
        .arg(folder)
        // What is in the environment lies on the stack, and is aligned by it.
        .env_clear()
        .output()
        .context("valgrind, of Debian's package of that name")?;
    let said = String::from_utf8_lossy(&output.stderr);
    anyhow::ensure!(output.status.success(), "{path}: {said}");
    let counted = said.lines().find_map(|line| line.split_once("Collected :"));
    let (_, counted) = counted.with_context(|| format!("no count in: {said}"))?;
    counted.trim().parse().context("callgrind's count")
}
