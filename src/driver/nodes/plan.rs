//! Which device nodes there should be, and what to do about one that is not as
//! it should be. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::Needed;
use super::access::{Access, Capability};
use super::caps::{MigMinors, node_name};
use super::majors::{DeviceNumber, Majors, Module};

/// Minor numbers of the nvidia module's devices that are no GPU
/// (nvidia-modprobe's nvidia-modprobe-utils.h).
const CONTROL_MINOR: u32 = 255;
const MODESET_MINOR: u32 = 254;
/// The one IMEX channel that containers are given.
const IMEX_CHANNEL: u32 = 0;

/// What the driver says of the capability of a MIG instance, for where it does
/// not.
const OF_AN_INSTANCE: Access = Access {
    uid: 0,
    gid: 0,
    mode: 0o444,
    may_make: true,
};

/// What procfs and sysfs say of the driver.
#[derive(Clone, Debug, Default)]
pub(super) struct Facts {
    pub(super) majors: Majors,
    /// The nvidia-modeset module is loaded.
    pub(super) modeset: bool,
    pub(super) access: Access,
    pub(super) capabilities: Vec<Capability>,
    pub(super) mig_minors: Arc<MigMinors>,
}

/// A device node as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    /// Below the folder of device nodes.
    pub(super) name: String,
    pub(super) number: DeviceNumber,
    pub(super) access: Access,
    /// No GPU, or not this one, can be used without it.
    pub(super) required: bool,
}

/// All nodes of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) wanted: Vec<Wanted>,
    /// Required nodes that no module is loaded for.
    pub(super) unloaded: Vec<(String, Module)>,
}

impl Plan {
    /// For these GPUs and MIG instances; `imex` is whether containers may get an
    /// IMEX channel.
    pub(super) fn new(facts: &Facts, needed: &Needed, imex: bool) -> Self {
        let majors = &facts.majors;
        let mut plan = Self::default();
        let gpu = majors.gpus();
        for minor in &needed.gpus {
            let name = format!("nvidia{minor}");
            plan.required(name, (gpu, *minor), facts.access, Module::Nvidia);
        }
        let control = (majors.control(), CONTROL_MINOR);
        plan.required("nvidiactl", control, facts.access, Module::Nvidia);
        // The parameters are not asked for unified memory, by nvidia-modprobe
        // neither: it would set such a node right again.
        let uvm = Access {
            may_make: facts.access.may_make,
            ..Access::default()
        };
        plan.required("nvidia-uvm", (majors.uvm(), 0), uvm, Module::Uvm);
        plan.optional("nvidia-uvm-tools", (majors.uvm(), 1), uvm);
        let modeset = (majors.modeset(facts.modeset), MODESET_MINOR);
        plan.optional("nvidia-modeset", modeset, facts.access);
        plan.capabilities(facts, needed);
        if imex {
            let name = format!("nvidia-caps-imex-channels/channel{IMEX_CHANNEL}");
            plan.optional(name, (majors.imex_channels(), IMEX_CHANNEL), facts.access);
        }
        plan
    }

    /// Those that exist, and of them as required those that MIG devices need.
    fn capabilities(&mut self, facts: &Facts, needed: &Needed) {
        let needed = needed.instances.iter();
        let needed = needed.filter_map(|instance| facts.mig_minors.of(*instance));
        let needed: BTreeSet<_> = needed.collect();
        let capabilities = facts.capabilities.iter();
        let mut by_minor: BTreeMap<_, _> =
            capabilities.map(|one| (one.minor, one.access)).collect();
        for minor in &needed {
            by_minor.entry(*minor).or_insert(OF_AN_INSTANCE);
        }
        for (minor, mut access) in by_minor {
            access.may_make &= facts.access.may_make;
            let (name, number) = (node_name(minor), (facts.majors.capabilities(), minor));
            if needed.contains(&minor) {
                self.required(name, number, access, Module::Nvidia);
            } else {
                self.optional(name, number, access);
            }
        }
    }

    fn required(
        &mut self,
        name: impl Into<String>,
        number: (Option<u32>, u32),
        access: Access,
        module: Module,
    ) {
        let name = name.into();
        match number.0 {
            Some(major) => self.add(name, (major, number.1), access, true),
            None => self.unloaded.push((name, module)),
        }
    }

    fn optional(&mut self, name: impl Into<String>, number: (Option<u32>, u32), access: Access) {
        if let Some(major) = number.0 {
            self.add(name.into(), (major, number.1), access, false);
        }
    }

    fn add(&mut self, name: String, (major, minor): (u32, u32), access: Access, required: bool) {
        self.wanted.push(Wanted {
            name,
            number: DeviceNumber { major, minor },
            access,
            required,
        });
    }
}

/// What is where a node should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    Nothing,
    /// A device node; `linked` where a link leads to it.
    Node {
        number: DeviceNumber,
        linked: bool,
    },
    /// Anything else, in words.
    Other(String),
}

/// What to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Keep,
    Make,
    /// A node left over from another load of the driver.
    Replace(DeviceNumber),
    /// A node that somebody meant to be like that.
    Leave(DeviceNumber),
    /// Something that is not ours to touch, in words.
    Pass(String),
}

/// Only a node whose major number is not the driver's is surely of no use to
/// anybody: one of the driver's own may be meant to stand where it does.
pub(super) fn step(wanted: &Wanted, seen: Seen) -> Step {
    match seen {
        Seen::Nothing => Step::Make,
        Seen::Node { number, .. } if number == wanted.number => Step::Keep,
        Seen::Node { number, linked } if linked || number.major == wanted.number.major => {
            Step::Leave(number)
        }
        Seen::Node { number, .. } => Step::Replace(number),
        Seen::Other(what) => Step::Pass(what),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::driver::nodes::Instance;

    fn facts(devices: &str) -> Facts {
        Facts {
            majors: Majors::parse(&format!("Character devices:\n{devices}")),
            ..Facts::default()
        }
    }

    fn names(plan: &Plan) -> Vec<String> {
        let nodes = plan.wanted.iter();
        nodes
            .map(|node| format!("{} {}", node.name, node.number))
            .collect()
    }

    #[test]
    fn every_node_of_the_loaded_modules() {
        let mut facts = facts(
            "195 nvidia\n195 nvidia-modeset\n195 nvidiactl\n238 nvidia-uvm\n241 nvidia-caps\n235 nvidia-caps-imex-channels\n",
        );
        facts.access.gid = 44;
        facts.access.mode = 0o660;
        let closed = Access {
            mode: 0o400,
            ..Access::default()
        };
        let capability = |minor| Capability {
            minor,
            access: closed,
        };
        facts.capabilities = [2, 1, 2].map(capability).into();
        let plan = Plan::new(&facts, &[3, 0].into(), true);
        assert_eq!(
            names(&plan),
            [
                "nvidia0 195:0",
                "nvidia3 195:3",
                "nvidiactl 195:255",
                "nvidia-uvm 238:0",
                "nvidia-uvm-tools 238:1",
                "nvidia-modeset 195:254",
                "nvidia-caps/nvidia-cap1 241:1",
                "nvidia-caps/nvidia-cap2 241:2",
                "nvidia-caps-imex-channels/channel0 235:0",
            ]
        );
        assert_eq!(plan.unloaded, []);
        let access = |name: &str| {
            let node = plan.wanted.iter().find(|node| node.name == name);
            let access = node.unwrap().access;
            (access.gid, access.mode)
        };
        assert_eq!(access("nvidia0"), (44, 0o660));
        assert_eq!(access("nvidia-uvm"), (0, 0o666));
        assert_eq!(access("nvidia-caps/nvidia-cap1"), (0, 0o400));
    }

    #[test]
    fn a_module_that_is_not_loaded_is_named_for_what_is_required() {
        let plan = Plan::new(&facts("195 nvidia-frontend\n"), &[0].into(), false);
        assert_eq!(names(&plan), ["nvidia0 195:0", "nvidiactl 195:255"]);
        assert_eq!(plan.unloaded, [("nvidia-uvm".to_owned(), Module::Uvm)]);
        let nothing = Plan::new(&facts(""), &[1].into(), true);
        assert_eq!(nothing.wanted, []);
        let unloaded = nothing.unloaded.iter();
        let unloaded: Vec<_> = unloaded.map(|(name, _)| name.as_str()).collect();
        assert_eq!(unloaded, ["nvidia1", "nvidiactl", "nvidia-uvm"]);
    }

    #[test]
    fn a_mig_device_cannot_do_without_the_capabilities_of_its_instances() {
        let mut facts = facts("195 nvidia\n238 nvidia-uvm\n241 nvidia-caps\n");
        let table = MigMinors::parse("gpu0/gi1/access 12\ngpu0/gi1/ci0/access 13\n");
        facts.mig_minors = Arc::new(table);
        let access = Access {
            mode: 0o400,
            ..Access::default()
        };
        facts.capabilities = [1, 13].map(|minor| Capability { minor, access }).into();
        let instance = |compute_instance| Instance {
            gpu: 0,
            gpu_instance: 1,
            compute_instance,
        };
        let needed = Needed {
            gpus: [0].into(),
            instances: [instance(None), instance(Some(0)), instance(Some(9))].into(),
        };
        let plan = Plan::new(&facts, &needed, false);
        let caps = plan.wanted.iter().filter(|node| node.name.contains("cap"));
        let caps: Vec<_> = caps
            .map(|node| (node.number.minor, node.access.mode, node.required))
            .collect();
        assert_eq!(
            caps,
            [(1, 0o400, false), (12, 0o444, true), (13, 0o400, true)]
        );
        facts.majors = Majors::parse("Character devices:\n195 nvidia\n238 nvidia-uvm\n");
        let plan = Plan::new(&facts, &needed, false);
        let unloaded = plan.unloaded.iter().map(|(name, _)| name.as_str());
        let expected = ["nvidia-caps/nvidia-cap12", "nvidia-caps/nvidia-cap13"];
        assert_eq!(unloaded.collect::<Vec<_>>(), expected);
    }

    #[test]
    fn what_the_driver_forbids_holds_for_every_node() {
        let mut facts = facts("195 nvidia\n238 nvidia-uvm\n241 nvidia-caps\n");
        facts.access.may_make = false;
        let access = Access::default();
        facts.capabilities = vec![Capability { minor: 1, access }];
        let plan = Plan::new(&facts, &[0].into(), false);
        assert_eq!(plan.wanted.len(), 5);
        assert!(plan.wanted.iter().all(|node| !node.access.may_make));
    }

    #[test]
    fn only_a_node_of_a_major_that_is_not_the_drivers_is_replaced() {
        let wanted = Wanted {
            name: "nvidia0".into(),
            number: DeviceNumber {
                major: 195,
                minor: 0,
            },
            access: Access::default(),
            required: true,
        };
        let seen = |major, minor, linked| {
            let number = DeviceNumber { major, minor };
            (number, step(&wanted, Seen::Node { number, linked }))
        };
        assert_eq!(step(&wanted, Seen::Nothing), Step::Make);
        assert_eq!(seen(195, 0, false).1, Step::Keep);
        assert_eq!(seen(195, 0, true).1, Step::Keep);
        let (other, step_taken) = seen(194, 0, false);
        assert_eq!(step_taken, Step::Replace(other));
        let (meant, step_taken) = seen(195, 1, false);
        assert_eq!(step_taken, Step::Leave(meant));
        let (linked, step_taken) = seen(194, 0, true);
        assert_eq!(step_taken, Step::Leave(linked));
        let file = Seen::Other("a file".into());
        assert_eq!(step(&wanted, file), Step::Pass("a file".into()));
    }

    proptest! {
        #[test]
        fn no_node_is_planned_twice_or_outside_its_folder(
            devices in "([0-9]{1,4} nvidia(ctl|-frontend|-uvm|-caps|-modeset)?\n){0,6}",
            gpus in prop::collection::btree_set(any::<u32>(), 0..5),
            minors in prop::collection::vec(0..1_u32 << 20, 0..5),
            modeset: bool,
            imex: bool,
        ) {
            let mut facts = facts(&devices);
            facts.modeset = modeset;
            let access = Access::default();
            facts.capabilities = minors.iter().map(|&minor| Capability { minor, access }).collect();
            let needed = Needed { gpus, ..Needed::default() };
            let plan = Plan::new(&facts, &needed, imex);
            let names: BTreeSet<_> = plan.wanted.iter().map(|node| &node.name).collect();
            prop_assert_eq!(names.len(), plan.wanted.len());
            prop_assert!(names.iter().all(|name| name.starts_with("nvidia") && !name.contains("..")));
            let required = plan.wanted.iter().filter(|node| node.required).count();
            prop_assert_eq!(required + plan.unloaded.len(), needed.gpus.len() + 2);
        }
    }
}
