//! What this plugin's figures have to reach.

use super::groups::Group;

/// Of one of our figures.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) group: Group,
    /// The figure's name.
    pub(crate) name: &'static str,
    pub(crate) bound: Bound,
    pub(crate) judged: Judged,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Bound {
    /// In the figure's own unit.
    AtMost(f64),
    /// So many times the same figure of the first other plugin.
    OfOther(f64),
}

/// Which value of a figure's rounds counts.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Judged {
    Median,
    Worst,
}

/// The node that the targets are for.
pub(crate) const GPUS: usize = 8;

use Bound::{AtMost, OfOther};
use Group::{Binary, Calls, Lists, Preferred, Rest, Restart, Start};
use Judged::{Median, Worst};

/// All of them.
pub(crate) const TARGETS: [Target; 14] = [
    target(Start, "median", OfOther(0.5), Median),
    target(Calls, "Allocate of 1, p50", OfOther(0.6), Median),
    target(
        Calls,
        "Allocate of 1 / GetDevicePluginOptions, p50",
        AtMost(1.15),
        Median,
    ),
    target(
        Preferred,
        "8 GPUs, slowest size / GetDevicePluginOptions, p50",
        AtMost(1.3),
        Median,
    ),
    // Microseconds.
    target(
        Preferred,
        "16 GPUs, slowest size, p99",
        AtMost(1000.0),
        Median,
    ),
    target(Restart, "slowest", AtMost(25.0), Worst),
    target(
        Rest,
        "at rest: resident beside NVML's own",
        AtMost(6.0),
        Median,
    ),
    target(
        Rest,
        "after load: resident beside NVML's own",
        AtMost(6.0),
        Median,
    ),
    target(
        Rest,
        "at rest: threads beside NVML's own",
        AtMost(5.0),
        Median,
    ),
    target(
        Rest,
        "after load: threads beside NVML's own",
        AtMost(5.0),
        Median,
    ),
    target(Rest, "wake-ups a second", AtMost(1.0), Median),
    // A tick of /proc/PID/stat: what is below cannot be measured there.
    target(Rest, "processor time in 60 s", AtMost(10.0), Median),
    target(
        Lists,
        "10000 devices: resident beside NVML's own",
        AtMost(24.0),
        Median,
    ),
    target(Binary, "size, stripped", AtMost(8.0), Median),
];

const fn target(group: Group, name: &'static str, bound: Bound, judged: Judged) -> Target {
    Target {
        group,
        name,
        bound,
        judged,
    }
}
