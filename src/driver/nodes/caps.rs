//! Which minor number the capability of a MIG instance has: who may open its
//! device node may use the instance.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A GPU instance, or a compute instance within it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Instance {
    /// The GPU's minor number.
    pub gpu: u32,
    /// The GPU instance's ID.
    pub gpu_instance: u32,
    /// The compute instance's ID.
    pub compute_instance: Option<u32>,
}

/// The driver's table of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MigMinors(BTreeMap<Instance, u32>);

/// Linux gives a minor number twenty bits.
const MINORS: u32 = 1 << 20;

impl MigMinors {
    /// Where the driver tells it.
    pub(super) fn path(procfs: &Path) -> PathBuf {
        procfs.join("driver/nvidia-caps/mig-minors")
    }

    /// Reads it. A driver without MIG has none.
    pub(super) fn read(procfs: &Path) -> Self {
        let bytes = std::fs::read(Self::path(procfs)).unwrap_or_default();
        Self::parse(&String::from_utf8_lossy(&bytes))
    }

    /// Lines such as `gpu0/gi1/ci0/access 31`; others are passed over.
    pub(super) fn parse(text: &str) -> Self {
        Self(text.lines().filter_map(line).collect())
    }

    /// The minor number of the capability.
    #[must_use]
    pub fn of(&self, instance: Instance) -> Option<u32> {
        self.0.get(&instance).copied()
    }
}

/// The name of the device node of a capability, in `dev`.
pub(super) fn node_name(minor: u32) -> String {
    format!("nvidia-caps/nvidia-cap{minor}")
}

fn line(line: &str) -> Option<(Instance, u32)> {
    let (path, minor) = line.split_once(' ')?;
    let minor = number(minor.trim(), "").filter(|minor| *minor < MINORS)?;
    let mut parts = path.split('/');
    let mut instance = Instance {
        gpu: number(parts.next()?, "gpu")?,
        gpu_instance: number(parts.next()?, "gi")?,
        compute_instance: None,
    };
    let mut last = parts.next()?;
    if last != "access" {
        instance.compute_instance = Some(number(last, "ci")?);
        last = parts.next()?;
    }
    (last == "access" && parts.next().is_none()).then_some((instance, minor))
}

fn number(text: &str, prefix: &str) -> Option<u32> {
    text.strip_prefix(prefix)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn of_the_drivers_table() {
        let table = MigMinors::parse(
            "config 1\nmonitor 2\ngpu0/gi0/access 3\ngpu0/gi0/ci0/access 4\ngpu1/gi12/access 246\n\
             gpu1/gi12/ci7/access 254\ngpu2/gi0/access 1048576\ngpu3/gi0/other 7\n",
        );
        let of = |gpu, gpu_instance, compute_instance| {
            table.of(Instance {
                gpu,
                gpu_instance,
                compute_instance,
            })
        };
        assert_eq!(of(0, 0, None), Some(3));
        assert_eq!(of(0, 0, Some(0)), Some(4));
        assert_eq!(of(1, 12, None), Some(246));
        assert_eq!(of(1, 12, Some(7)), Some(254));
        assert_eq!(table.0.len(), 4);
    }

    proptest! {
        #[test]
        fn noise_is_passed_over(text in "((gpu|gi|ci|access)?[0-9]{0,12}[/ \n]?){0,20}[ -~\n\u{1F980}]{0,20}") {
            let table = MigMinors::parse(&text);
            prop_assert!(table.0.values().all(|minor| *minor < MINORS));
        }
    }
}
