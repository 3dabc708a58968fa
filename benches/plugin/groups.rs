//! Which figures belong together, and are measured together.

use clap::ValueEnum;

/// What `--only` names, in the order of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Group {
    /// Start to registered
    Start,
    /// GetDevicePluginOptions and Allocate
    Calls,
    /// GetPreferredAllocation of 8 and of 16 GPUs, each size
    Preferred,
    /// Kubelet restart to registered
    Restart,
    /// XID to the kubelet's list
    Xid,
    /// Memory, threads, wake-ups, processor time
    Rest,
    /// Lists of 1,000 and of 10,000 devices
    Lists,
    /// 100 list streams
    Streams,
    /// The binary's size
    Binary,
}

impl Group {
    pub(crate) fn name(self) -> String {
        let value = self.to_possible_value();
        value.map_or_else(String::new, |value| value.get_name().to_owned())
    }
}
