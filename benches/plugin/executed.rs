//! Which functions run: `link/executed.ld` has the linker lay them side by side.
//!
//! The plugin runs in valgrind's callgrind while a kubelet has it do all that it does
//! day by day. What ran is written down by the names of the linker's sections, one for
//! each function, as short as they can be without naming what did not run.

#[path = "executed/name.rs"]
mod name;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;

use super::arguments::Settings;
use super::command::Subject;
use super::common::cargo;
use super::figures::Figures;
use super::groups::Group;

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/link/executed.ld");
/// A folder of its own: all is built anew, with the names of functions.
const TARGET: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/target/symbols");

/// The order matters: what runs in each run comes last, beside `.init`.
const HEAD: &str = "\
/* The functions that run, for the linker to lay side by side. Code is mapped in blocks
   of 64 KiB and more, and a block is resident for any function in it that runs. Written
   by `cargo bench -- --renew-executed`; build.rs says who reads it. A function that is
   new or has another name is laid elsewhere, which costs memory and nothing else. */
SECTIONS
{
  .text.executed :
  {
";
const TAIL: &str = "    *(.text.main)\n    *crt*.o(.text)\n  }\n}\nINSERT AFTER .text;\n";

/// What the plugin is made to do. Lists are with a configuration file, the others
/// without.
const GROUPS: [Group; 7] = [
    Group::Start,
    Group::Calls,
    Group::Preferred,
    Group::Restart,
    Group::Xid,
    Group::Rest,
    Group::Lists,
];

/// Writes the file anew.
pub(crate) async fn renew(settings: &Settings) -> anyhow::Result<()> {
    let (plugin, sections) = build()?;
    let folder = tempfile::tempdir()?;
    let subject = Subject::in_callgrind(&plugin, folder.path());
    let mut figures = Figures::default();
    for group in GROUPS {
        eprintln!("in callgrind: {}", group.name());
        super::measure(group, &subject, settings, &mut figures).await;
    }
    // What failed is told already.
    anyhow::ensure!(figures.notes.is_empty(), "{}", figures.notes.join("\n"));
    let mut runs = Vec::new();
    for file in fs::read_dir(folder.path())? {
        let text = fs::read_to_string(file?.path())?;
        runs.push(executed(&text, &plugin));
    }
    let [sometimes, always] = by_frequency(&runs, &sections);
    let names = [&sometimes, &always].map(|ran| name::patterns(ran, &sections));
    anyhow::ensure!(
        always.iter().any(|name| name.ends_with("4main")),
        "callgrind reads no names of the plugin's functions"
    );
    let lines = names.iter().flatten();
    let lines: String = lines.map(|name| format!("    *({name})\n")).collect();
    fs::write(FILE, format!("{HEAD}{lines}{TAIL}"))?;
    println!(
        "{FILE}: of {} functions {} run always and {} sometimes, by {} runs",
        sections.len(),
        always.len(),
        sometimes.len(),
        runs.len(),
    );
    Ok(())
}

/// The release binary with the names of functions, and the linker's sections of them.
fn build() -> anyhow::Result<(PathBuf, BTreeSet<String>)> {
    fs::create_dir_all(TARGET)?;
    let map = Path::new(TARGET).join("map");
    let plugin = cargo::plugin_in(TARGET, ("LINK_MAP", &map))?;
    let map = fs::read_to_string(&map).with_context(|| format!("{}", map.display()))?;
    Ok((plugin, sections(&map)))
}

/// Of each function, whichever linker wrote the map.
fn sections(map: &str) -> BTreeSet<String> {
    let words = map.split(|c: char| c.is_whitespace() || c == '(' || c == ')');
    let of_functions = words.filter(|word| word.starts_with(".text.") && word.contains("._R"));
    of_functions.map(str::to_owned).collect()
}

/// The functions of `program` in what callgrind wrote of one run. A name is written
/// out once, and is a number from then on
/// (<https://valgrind.org/docs/manual/cl-format.html>).
fn executed(text: &str, program: &Path) -> BTreeSet<String> {
    let (mut objects, mut functions) = (BTreeMap::new(), BTreeMap::new());
    let (mut ours, mut names) = (false, BTreeSet::new());
    for line in text.lines() {
        let Some((key, value)) = line.split_once("=(") else {
            continue;
        };
        let Some((number, name)) = value.split_once(')') else {
            continue;
        };
        let known = match key {
            "ob" | "cob" => &mut objects,
            "fn" | "cfn" => &mut functions,
            _ => continue,
        };
        let name = match name.trim() {
            "" => known.get(number).copied().unwrap_or_default(),
            name => {
                known.insert(number, name);
                name
            }
        };
        match key {
            "ob" => ours = Path::new(name) == program,
            // A call within a call of the same function is `name'2`.
            "fn" if ours => _ = names.insert(name.split('\'').next().unwrap_or(name).to_owned()),
            _ => {}
        }
    }
    names
}

/// The sections of what ran in some runs, and of what ran in all.
fn by_frequency(runs: &[BTreeSet<String>], sections: &BTreeSet<String>) -> [BTreeSet<String>; 2] {
    let mut split = [BTreeSet::new(), BTreeSet::new()];
    for section in sections {
        let function = section.find("._R").map(|dot| &section[dot + 1..]);
        let ran = |run: &&BTreeSet<String>| function.is_some_and(|name| run.contains(name));
        match runs.iter().filter(ran).count() {
            0 => {}
            all if all == runs.len() => _ = split[1].insert(section.clone()),
            _ => _ = split[0].insert(section.clone()),
        }
    }
    split
}
