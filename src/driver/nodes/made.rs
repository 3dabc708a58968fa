//! What was made in `/dev`, kept on disk for whoever takes it away.
//!
//! A file of lines that only grows: each run adds its own in one write, which
//! others that run at the same time add before or after. A line that a crash cut
//! off names a link that there is not. A power failure may lose the last lines,
//! and takes what they tell of along, as `/dev` is in memory.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

use super::make::see;
use super::plan::Seen;
use super::{DevRoot, DeviceNumber};

/// Below the state folder.
const FILE: &str = "made-in-dev";

/// Something that was made in `/dev`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Made {
    /// Below the folder of links, and where it leads.
    Link { number: String, target: String },
    /// Below the folder of device nodes, and its numbers.
    Node { name: String, number: String },
}

impl Made {
    pub(super) fn link(number: DeviceNumber, target: &Path) -> Self {
        Self::Link {
            number: number.to_string(),
            target: target.to_string_lossy().into_owned(),
        }
    }

    pub(super) fn node(name: &str, number: DeviceNumber) -> Self {
        Self::Node {
            name: name.into(),
            number: number.to_string(),
        }
    }

    fn line(&self) -> String {
        match self {
            Self::Link { number, target } => format!("link {number} {target}\n"),
            Self::Node { name, number } => format!("node {name} {number}\n"),
        }
    }

    fn parse(line: &str) -> Option<Self> {
        let mut words = line.splitn(3, ' ');
        let kind = words.next()?;
        let (name, what) = (words.next()?, words.next()?.to_owned());
        match kind {
            "link" => is_number(name).then(|| Self::Link {
                number: name.into(),
                target: what,
            }),
            "node" => is_name(name).then(|| Self::Node {
                name: name.into(),
                number: what,
            }),
            _ => None,
        }
    }
}

/// Nothing else is ever taken away, whatever the file says.
fn is_number(name: &str) -> bool {
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|digit| digit.is_ascii_digit());
    name.split_once(':')
        .is_some_and(|(major, minor)| digits(major) && digits(minor))
}

fn is_name(name: &str) -> bool {
    name.starts_with("nvidia") && !name.contains("..")
}

fn parse(text: &str) -> BTreeSet<Made> {
    text.lines().filter_map(Made::parse).collect()
}

/// Adds to the record what it does not have yet.
pub(super) fn record(state_dir: &Path, made: &[Made]) -> io::Result<()> {
    fs::create_dir_all(state_dir)?;
    let mut file = OpenOptions::new()
        .read(true)
        .append(true)
        .create(true)
        .open(state_dir.join(FILE))?;
    let text = read(&mut file)?;
    let known = parse(&text);
    let new = made.iter().filter(|made| !known.contains(made));
    let mut lines: String = new.map(Made::line).collect();
    if lines.is_empty() {
        return Ok(());
    }
    if !text.is_empty() && !text.ends_with('\n') {
        lines.insert(0, '\n');
    }
    file.write_all(lines.as_bytes())
}

fn read(file: &mut File) -> io::Result<String> {
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// What became of all that was made in `/dev`.
#[derive(Debug, Default)]
pub struct Removal {
    /// Links that are gone now.
    pub removed: Vec<PathBuf>,
    /// What stays because it should, and why.
    pub kept: Vec<(PathBuf, String)>,
    /// What stays because it could not be taken away, and why. With any, the
    /// record stays too, and this can be done again.
    pub failed: Vec<(PathBuf, String)>,
}

const SHARED: &str = "device nodes are the driver's, and others may use them; this one goes with \
                      the next boot, where /dev is in memory";

/// Takes away the links in `/dev/char` that were made and are still as they were
/// made, and then the record of them in `state_dir`, a folder as this process
/// sees it. Without a record there is nothing to do.
///
/// Device nodes are kept: they are what nvidia-modprobe and NVIDIA's libraries
/// would have made as well, and containers and programs of the node use them
/// without saying so.
#[must_use]
pub fn remove_made(state_dir: &Path, dev_root: &DevRoot) -> Removal {
    let mut removal = Removal::default();
    let path = state_dir.join(FILE);
    let record = match File::open(&path).and_then(|mut file| read(&mut file)) {
        Ok(record) => parse(&record),
        Err(error) if error.kind() == ErrorKind::NotFound => return removal,
        Err(error) => {
            removal.failed.push((path, error.to_string()));
            return removal;
        }
    };
    let mut links = BTreeSet::new();
    for made in &record {
        match made {
            Made::Link { number, .. } => _ = links.insert(number),
            Made::Node { name, number } => removal.node(dev_root, name, number),
        }
    }
    for number in links {
        removal.link(dev_root, number, &record);
    }
    if removal.failed.is_empty()
        && let Err(error) = fs::remove_file(&path)
    {
        removal.failed.push((path, error.to_string()));
    }
    removal
}

impl Removal {
    fn node(&mut self, dev_root: &DevRoot, name: &str, number: &str) {
        let node = dev_root.node(name);
        if let Seen::Node { number: found, .. } = see(&node.here)
            && found.to_string() == number
        {
            self.kept.push((node.host, SHARED.into()));
        }
    }

    fn link(&mut self, dev_root: &DevRoot, number: &str, record: &BTreeSet<Made>) {
        let here = dev_root.links().here.join(number);
        let place = dev_root.links().host.join(number);
        let target = match fs::read_link(&here) {
            Ok(target) => target.to_string_lossy().into_owned(),
            Err(error) if error.kind() == ErrorKind::NotFound => return,
            Err(error) => {
                return self
                    .kept
                    .push((place, format!("is no link any more ({error})")));
            }
        };
        let made = Made::Link {
            number: number.into(),
            target,
        };
        if !record.contains(&made) {
            let why = "leads elsewhere than it was made to";
            return self.kept.push((place, why.into()));
        }
        match fs::remove_file(&here) {
            Ok(()) => self.removed.push(place),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => self.failed.push((place, error.to_string())),
        }
    }
}
