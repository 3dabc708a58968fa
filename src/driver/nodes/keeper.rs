//! Looks at all device nodes of a node, and makes what is missing.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tracing::{info, warn};

use super::access::{Access, Capability};
use super::caps::MigMinors;
use super::faults::{Faults, Hindrance, NodeFault};
use super::links::{Link, link};
use super::made::{Made, record};
use super::majors::{DeviceNumber, Majors, Module};
use super::make::{make, see};
use super::plan::{Facts, Plan, Seen, Step, Wanted, step};
use super::{DevRoot, Needed};
use crate::config::{Config, ImexChannel, MigStrategy};

/// Keeps a node's device nodes and their links as they should be.
#[derive(Clone, Debug)]
pub struct Keeper {
    dev_root: DevRoot,
    procfs: PathBuf,
    sysfs: PathBuf,
    state_dir: PathBuf,
    /// Whether anything is made at all.
    make: bool,
    imex: bool,
    /// Whether MIG devices are given.
    mig: bool,
}

/// What was found, and what was done about it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Of the nodes that no container can do without.
    pub faults: Faults,
    /// What else an operator should know of, each in a sentence.
    problems: BTreeSet<String>,
    /// The minor numbers of MIG instances' capabilities.
    pub mig_minors: Arc<MigMinors>,
    made: Vec<Made>,
    /// What /proc/devices said.
    devices: Option<Vec<u8>>,
}

impl Report {
    /// Says in the log what is news since the last one.
    pub fn tell(&self, last: &Self) {
        let tell = |what: Vec<String>| (!what.is_empty()).then(|| what.join(", "));
        let nodes = self.made.iter().filter_map(|made| match made {
            Made::Node { name, number } => Some(format!("{name} ({number})")),
            Made::Link { .. } => None,
        });
        let links = self.made.iter().filter_map(|made| match made {
            Made::Link { number, target } => Some(format!("{number} -> {target}")),
            Made::Node { .. } => None,
        });
        if let Some(nodes) = tell(nodes.collect()) {
            info!(nodes, "device nodes made");
        }
        if let Some(links) = tell(links.collect()) {
            info!(links, "links in /dev/char made");
        }
        for problem in self.problems.difference(&last.problems) {
            warn!(problem, "a device node is not as it should be");
        }
    }
}

/// How far a run goes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Extent {
    Make,
    Look,
}

impl Keeper {
    /// A keeper of the node that the configuration describes.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        let paths = &config.paths;
        Self {
            dev_root: paths.dev_root.clone(),
            procfs: paths.procfs.clone(),
            sysfs: paths.sysfs.clone(),
            state_dir: paths.state_dir.here.clone(),
            make: config.driver.make_device_nodes,
            imex: config.allocation.imex != ImexChannel::Off,
            mig: config.mig_strategy != MigStrategy::None,
        }
    }

    /// Makes what is missing for these GPUs and MIG instances, where that is
    /// wanted. May block as a file system may.
    #[must_use]
    pub fn keep(&self, needed: &Needed) -> Report {
        self.run(needed, Extent::Make)
    }

    /// Only says what is amiss.
    #[must_use]
    pub fn look(&self, needed: &Needed) -> Report {
        self.run(needed, Extent::Look)
    }

    /// Whether a module was loaded or unloaded since the report. Costs the
    /// reading of one small file.
    #[must_use]
    pub fn is_outdated(&self, report: &Report) -> bool {
        self.devices() != report.devices
    }

    fn devices(&self) -> Option<Vec<u8>> {
        fs::read(self.procfs.join("devices")).ok()
    }

    /// A long table that nobody needs who gives no MIG devices.
    fn mig_minors(&self) -> MigMinors {
        if self.mig {
            MigMinors::read(&self.procfs)
        } else {
            MigMinors::default()
        }
    }

    fn run(&self, needed: &Needed, extent: Extent) -> Report {
        let mut report = Report {
            devices: self.devices(),
            mig_minors: Arc::new(self.mig_minors()),
            ..Report::default()
        };
        // Without it, nothing is known of what should be.
        let Some(devices) = &report.devices else {
            return report;
        };
        let facts = self.facts(&String::from_utf8_lossy(devices), &report.mig_minors);
        let plan = Plan::new(&facts, needed, self.imex);
        let nothing_loaded = plan.wanted.is_empty();
        for (name, module) in plan.unloaded {
            self.unloaded(&name, module, nothing_loaded, &mut report);
        }
        for wanted in &plan.wanted {
            let right = self.node(wanted, extent, &mut report);
            if right && self.make && extent == Extent::Make {
                self.link(&wanted.name, wanted.number, &mut report);
            }
        }
        self.record(&mut report);
        report
    }

    fn facts(&self, devices: &str, mig_minors: &Arc<MigMinors>) -> Facts {
        let driver = self.procfs.join("driver/nvidia");
        let params = fs::read(driver.join("params")).unwrap_or_default();
        Facts {
            majors: Majors::parse(devices),
            modeset: self.sysfs.join("module/nvidia_modeset").exists(),
            access: Access::parse(&String::from_utf8_lossy(&params)),
            capabilities: Capability::read_all(&driver.join("capabilities")),
            mig_minors: mig_minors.clone(),
        }
    }

    /// A node that stayed when its module went.
    fn unloaded(&self, name: &str, module: Module, nothing_loaded: bool, report: &mut Report) {
        let node = self.dev_root.node(name);
        let fault = match see(&node.here) {
            Seen::Nothing => NodeFault::Unloaded(module),
            // Where there is no driver at all, that is said by whoever asks it.
            Seen::Node { .. } if !nothing_loaded => NodeFault::Dead(module),
            Seen::Node { .. } | Seen::Other(_) => return,
        };
        report.faults.0.insert(node.host, fault);
    }

    /// Sees to one node. Whether it is right now.
    fn node(&self, wanted: &Wanted, extent: Extent, report: &mut Report) -> bool {
        let place = self.dev_root.node(&wanted.name);
        let (found, replace) = match step(wanted, see(&place.here)) {
            Step::Keep => return true,
            Step::Pass(what) => {
                let problem = format!("{} {what}; it is left as it is", place.host.display());
                report.problems.insert(problem);
                return false;
            }
            Step::Leave(number) => (Some(number), None),
            Step::Replace(number) => (Some(number), Some(true)),
            Step::Make => (None, Some(false)),
        };
        let done = match replace {
            None => Err(Hindrance::NotOurs),
            Some(replace) => self.make(&place.here, wanted, replace, extent),
        };
        match done {
            Ok(made) => {
                let made = made.then(|| Made::node(&wanted.name, wanted.number));
                report.made.extend(made);
                true
            }
            Err(hindrance) => {
                report.fault(place.host, wanted, found, hindrance);
                false
            }
        }
    }

    /// Makes a node, if nothing is in the way of that.
    fn make(
        &self,
        place: &Path,
        wanted: &Wanted,
        replace: bool,
        extent: Extent,
    ) -> Result<bool, Hindrance> {
        if !self.make {
            return Err(Hindrance::SwitchedOff);
        }
        if !wanted.access.may_make {
            return Err(Hindrance::Forbidden);
        }
        if extent == Extent::Look {
            return Err(Hindrance::OnlyLooking);
        }
        make(place, wanted, replace).map_err(|error| Hindrance::Failed(error.to_string()))
    }

    fn link(&self, name: &str, number: DeviceNumber, report: &mut Report) {
        let place = self.dev_root.links().host.join(number.to_string());
        let place = place.display();
        let problem = match link(&self.dev_root, name, number) {
            Ok(Link::Right) => return,
            Ok(Link::Made(target)) => return report.made.push(Made::link(number, &target)),
            Ok(Link::Left(what)) => format!("{place} {what}; it is left as it is"),
            Err(error) => format!(
                "{place} cannot be made: {error}; without it a systemd daemon-reload may take \
                 {name} from running containers"
            ),
        };
        report.problems.insert(problem);
    }

    fn record(&self, report: &mut Report) {
        if report.made.is_empty() {
            return;
        }
        if let Err(error) = record(&self.state_dir, &report.made) {
            let folder = self.state_dir.display();
            let problem = format!(
                "what was made in /dev cannot be noted in {folder}: {error}; uninstall will not \
                 find it"
            );
            report.problems.insert(problem);
        }
    }
}

impl Report {
    /// A required node is told by the health of its devices, another one here.
    fn fault(
        &mut self,
        host: PathBuf,
        wanted: &Wanted,
        found: Option<DeviceNumber>,
        hindrance: Hindrance,
    ) {
        let failed = matches!(hindrance, Hindrance::Failed(_));
        let fault = match found {
            None => NodeFault::Missing(hindrance),
            Some(is) => NodeFault::Wrong {
                is,
                driver: wanted.number,
                hindrance,
            },
        };
        if wanted.required {
            self.faults.0.insert(host, fault);
        } else if failed || found.is_some() {
            self.problems.insert(format!("{} {fault}", host.display()));
        }
    }
}

#[cfg(test)]
mod tests;
