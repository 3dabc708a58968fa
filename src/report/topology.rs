//! The command `topology`: how the GPUs are linked, and which of them a request
//! would get.

use std::fmt::{self, Write as _};
use std::path::Path;

use anyhow::{Context, bail};
use serde::Serialize;

use super::{within, write_rows};
use crate::choice::{Choice, Chooser, Score};
use crate::cli::{Output, Suggest};
use crate::config::Config;
use crate::gpu::topology::{Pair, PcieLevel, Place, Topology};
use crate::gpu::{Gpu, GpuLibrary, Reading, calls};
use crate::monitor::nvml_opener;

/// Reads how the node's GPUs are linked and prints it on standard output, with what
/// is suggested for a request where one is given.
///
/// # Errors
///
/// There is no driver to ask, or it does not answer; or the request names a GPU that
/// the node does not have, or more than there are.
#[expect(clippy::print_stdout, reason = "it is what the command is for")]
pub fn print(config: &Config, output: Output, suggest: Option<&Suggest>) -> anyhow::Result<()> {
    let read = |config: &Config| {
        let library = nvml_opener(config)()?;
        read(library.as_ref(), &config.paths.sysfs)
    };
    let node = within(calls::DEADLINE, config, read)?;
    let chooser = Chooser::new(node.topology.clone());
    let suggestion = suggest.map(|suggest| suggestion(&chooser, suggest));
    let report = Report {
        node: &node,
        suggestion: suggestion.transpose()?,
    };
    let text = match output {
        Output::Json => serde_json::to_string_pretty(&report.json())? + "\n",
        Output::Table => report.to_string(),
    };
    print!("{text}");
    Ok(())
}

/// What was read.
struct Node {
    topology: Topology,
    /// The processors near each GPU, as the kernel lists them.
    cpus: Vec<Option<String>>,
    /// What could not be read.
    problems: Vec<String>,
}

fn read(library: &dyn GpuLibrary, sysfs: &Path) -> anyhow::Result<Node> {
    let count = library.count().context("the GPUs cannot be enumerated")?;
    let (mut places, mut cpus, mut problems) = (Vec::new(), Vec::new(), Vec::new());
    for index in 0..count {
        match library.read(index) {
            Reading::Gpu(gpu) => {
                places.push(Place::of(&gpu));
                cpus.push(near(&gpu, sysfs));
            }
            Reading::Partial { error, .. } | Reading::Unidentified { error, .. } => {
                problems.push(format!("GPU at index {index} cannot be read: {error}"));
            }
        }
    }
    let topology = library.topology(places);
    if !topology.is_whole() {
        problems.push("some GPUs do not tell of their NVLinks; they are taken to have none".into());
    }
    Ok(Node {
        topology,
        cpus,
        problems,
    })
}

fn near(gpu: &Gpu, sysfs: &Path) -> Option<String> {
    let file = gpu.sysfs_device(sysfs)?.join("local_cpulist");
    Some(std::fs::read_to_string(file).ok()?.trim().to_owned())
}

/// A request and what would be chosen for it.
struct Suggestion {
    available: usize,
    best: Choice,
    next: Option<Choice>,
}

fn suggestion(chooser: &Chooser, suggest: &Suggest) -> anyhow::Result<Suggestion> {
    let topology = chooser.topology();
    let all = (0..topology.len()).collect();
    let available = match suggest.available.as_slice() {
        [] => all,
        named => positions("--available", topology, named)?,
    };
    let must = positions("--must-include", topology, &suggest.must_include)?;
    let taken = must.iter().filter(|gpu| !available.contains(gpu)).count();
    let count = available.len() + taken;
    if suggest.size > count {
        let size = suggest.size;
        bail!("--suggest {size}: only {count} GPUs are available");
    }
    if must.len() > suggest.size {
        let (must, size) = (must.len(), suggest.size);
        bail!("--must-include names {must} GPUs, --suggest asks for {size}");
    }
    let best = chooser.choose(&available, &must, suggest.size);
    Ok(Suggestion {
        available: count,
        next: chooser.next_best(&available, &must, suggest.size, &best),
        best,
    })
}

/// Of GPUs that are named by index or UUID, each once.
fn positions(flag: &str, topology: &Topology, named: &[String]) -> anyhow::Result<Vec<usize>> {
    let is =
        |place: &Place, name: &str| place.uuid.as_str() == name || place.index.to_string() == name;
    let position = |name: &String| {
        let position = topology.places().iter().position(|place| is(place, name));
        position.with_context(|| format!("{flag}: this node has no GPU {name:?}"))
    };
    let mut positions: Vec<_> = named.iter().map(position).collect::<Result<_, _>>()?;
    positions.sort_unstable();
    positions.dedup();
    Ok(positions)
}

struct Report<'a> {
    node: &'a Node,
    suggestion: Option<Suggestion>,
}

impl fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::new();
        for problem in &self.node.problems {
            writeln!(text, "problem: {problem}")?;
        }
        write_matrix(&mut text, self.node)?;
        write_legend(&mut text, &self.node.topology)?;
        if let Some(suggestion) = &self.suggestion {
            write_suggestion(&mut text, &self.node.topology, suggestion)?;
        }
        f.write_str(&text)
    }
}

fn write_matrix(text: &mut String, node: &Node) -> fmt::Result {
    let topology = &node.topology;
    if topology.is_empty() {
        return writeln!(text, "no GPU");
    }
    let names = topology.places().iter().map(name);
    let mut head = vec![String::new()];
    head.extend(names);
    head.extend(["NUMA", "CPUS", "UUID"].map(str::to_owned));
    let mut rows = vec![head];
    for (at, place) in topology.places().iter().enumerate() {
        let mut row = vec![name(place)];
        row.extend((0..topology.len()).map(|other| cell(topology, at, other)));
        let numa_node = place.numa_node.map(|node| node.to_string());
        let cpus = node.cpus.get(at).cloned().flatten();
        let unknown = || "-".to_owned();
        row.push(numa_node.unwrap_or_else(unknown));
        row.push(cpus.unwrap_or_else(unknown));
        row.push(place.uuid.to_string());
        rows.push(row);
    }
    write_rows(text, &rows)
}

fn name(place: &Place) -> String {
    format!("GPU{}", place.index)
}

fn cell(topology: &Topology, a: usize, b: usize) -> String {
    let pair = topology.pair(a, b);
    match (a == b, pair.nvlinks, pair.pcie) {
        (true, ..) => "X".into(),
        (false, 0, Some(level)) => level.to_string(),
        (false, 0, None) => "?".into(),
        (false, links, _) => format!("NV{links}"),
    }
}

/// What the words in the matrix mean, of those that are in it.
fn write_legend(text: &mut String, topology: &Topology) -> fmt::Result {
    let all = (0..topology.len()).flat_map(|a| (a + 1..topology.len()).map(move |b| (a, b)));
    let pairs: Vec<_> = all.map(|(a, b)| topology.pair(a, b)).collect();
    let mut links: Vec<_> = pairs.iter().filter(|pair| pair.nvlinks > 0).collect();
    links.sort_by_key(|pair| (pair.nvlinks, pair.nvlink_bandwidth));
    links.dedup_by_key(|pair| (pair.nvlinks, pair.nvlink_bandwidth));
    writeln!(text)?;
    for Pair {
        nvlinks,
        nvlink_bandwidth,
        ..
    } in links
    {
        let gigabytes = f64::from(*nvlink_bandwidth) / 1000.0;
        writeln!(
            text,
            "NV{nvlinks:<3}  {nvlinks} NVLinks, {gigabytes:.1} GB/s each way"
        )?;
    }
    for level in PcieLevel::ALL {
        let shown = |pair: &Pair| pair.nvlinks == 0 && pair.pcie == Some(level);
        if pairs.iter().any(shown) {
            writeln!(text, "{level:<5}  {}", meaning(level))?;
        }
    }
    let unknown = |pair: &Pair| pair.nvlinks == 0 && pair.pcie.is_none();
    if pairs.iter().any(unknown) {
        writeln!(text, "?      NVML does not tell; taken for the farthest")?;
    }
    Ok(())
}

fn meaning(level: PcieLevel) -> &'static str {
    match level {
        PcieLevel::Board => "one board",
        PcieLevel::Pix => "one PCIe switch",
        PcieLevel::Pxb => "several PCIe switches, and no host bridge",
        PcieLevel::Phb => "one host bridge",
        PcieLevel::Node => "several host bridges of one NUMA node",
        PcieLevel::Sys => "the link between NUMA nodes",
    }
}

fn write_suggestion(
    text: &mut String,
    topology: &Topology,
    suggestion: &Suggestion,
) -> fmt::Result {
    let Suggestion {
        available,
        best,
        next,
    } = suggestion;
    writeln!(text)?;
    writeln!(
        text,
        "{} of {available} GPUs: {}",
        best.gpus.len(),
        names(topology, best)
    )?;
    write_choice(text, best)?;
    match next {
        None if best.gpus.len() == *available => writeln!(text, "there is no other choice"),
        None => Ok(()),
        Some(next) => {
            writeln!(text, "next best: {}", names(topology, next))?;
            write_choice(text, next)?;
            writeln!(text, "  {}", verdict(best, next))
        }
    }
}

fn names(topology: &Topology, choice: &Choice) -> String {
    let places = choice
        .gpus
        .iter()
        .filter_map(|gpu| topology.places().get(*gpu));
    places.map(name).collect::<Vec<_>>().join(" ")
}

fn write_choice(text: &mut String, choice: &Choice) -> fmt::Result {
    writeln!(text, "  links among them: {}", choice.own)?;
    writeln!(text, "  left for the next request: {}", choice.left)?;
    writeln!(text, "  NUMA nodes: {}", choice.numa_nodes)
}

/// By what the one comes before the other.
fn verdict(best: &Choice, next: &Choice) -> &'static str {
    if best.own != next.own {
        "its links are fewer or longer"
    } else if best.left != next.left {
        "it leaves less to the next request"
    } else if best.numa_nodes != next.numa_nodes {
        "it spans more NUMA nodes"
    } else {
        "it is as good, and the first has the lower indexes"
    }
}

#[derive(Serialize)]
struct Json<'a> {
    problems: &'a [String],
    gpus: Vec<JsonGpu<'a>>,
    /// A row for each GPU, in the same order.
    links: Vec<Vec<Option<Pair>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    suggestion: Option<JsonChoice>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_best: Option<JsonChoice>,
}

#[derive(Serialize)]
struct JsonGpu<'a> {
    #[serde(flatten)]
    place: &'a Place,
    cpus: Option<&'a str>,
}

#[derive(Serialize)]
struct JsonChoice {
    gpus: Vec<String>,
    own: Score,
    left: Score,
    numa_nodes: usize,
}

impl Report<'_> {
    fn json(&self) -> Json<'_> {
        let topology = &self.node.topology;
        let count = topology.len();
        let row = |a| (0..count).map(move |b| (a != b).then(|| topology.pair(a, b)));
        let gpu = |(at, place)| JsonGpu {
            place,
            cpus: self.node.cpus.get(at).and_then(Option::as_deref),
        };
        let choice = |choice: &Choice| JsonChoice {
            gpus: choice
                .gpus
                .iter()
                .filter_map(|gpu| Some(topology.places().get(*gpu)?.uuid.to_string()))
                .collect(),
            own: choice.own,
            left: choice.left,
            numa_nodes: choice.numa_nodes,
        };
        let suggestion = self.suggestion.as_ref();
        Json {
            problems: &self.node.problems,
            gpus: topology.places().iter().enumerate().map(gpu).collect(),
            links: (0..count).map(|a| row(a).collect()).collect(),
            suggestion: suggestion.map(|suggestion| choice(&suggestion.best)),
            next_best: suggestion.and_then(|s| s.next.as_ref()).map(choice),
        }
    }
}
