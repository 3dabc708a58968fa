//! The major numbers of the driver's devices, as `/proc/devices` lists them.

use std::collections::BTreeMap;
use std::fmt;

/// A device's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DeviceNumber {
    /// The driver's.
    pub major: u32,
    /// The device's, among its driver's.
    pub minor: u32,
}

/// As in the names of `/dev/char`: `195:0`.
impl fmt::Display for DeviceNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

/// A kernel module that device nodes belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Module {
    /// GPUs.
    Nvidia,
    /// Unified memory.
    Uvm,
}

impl Module {
    /// As modprobe knows it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Nvidia => "nvidia",
            Self::Uvm => "nvidia-uvm",
        }
    }

    /// What loads it beside modprobe, and makes its nodes.
    #[must_use]
    pub fn remedy(self) -> &'static str {
        match self {
            Self::Nvidia => "nvidia-modprobe -c 0",
            Self::Uvm => "nvidia-modprobe -u -c 0",
        }
    }
}

/// Linux gives a major number twelve bits.
const MAJORS: u32 = 1 << 12;

/// Of the driver's own devices, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Majors(BTreeMap<String, u32>);

impl Majors {
    /// Reads the character devices out of `/proc/devices`. Lines that are none
    /// are passed over, and of two of one name the first counts, as
    /// nvidia-modprobe has it.
    pub(super) fn parse(text: &str) -> Self {
        let lines = text.lines().map(str::trim);
        let lines = lines.skip_while(|line| *line != "Character devices:");
        let section = lines.skip(1).take_while(|line| !line.is_empty());
        let mut majors = BTreeMap::new();
        for line in section {
            if let Some((major, name)) = device(line) {
                majors.entry(name.to_owned()).or_insert(major);
            }
        }
        Self(majors)
    }

    /// Of `/dev/nvidiaN`. Before branch 550 all devices of the nvidia module hide
    /// behind one front end.
    pub(super) fn gpus(&self) -> Option<u32> {
        self.first(&["nvidia", FRONTEND])
    }

    /// Of `/dev/nvidiactl`.
    pub(super) fn control(&self) -> Option<u32> {
        self.first(&["nvidiactl", "nvidia", FRONTEND])
    }

    /// Of `/dev/nvidia-modeset`. The front end does not tell whether that module
    /// is loaded, so `loaded` does.
    pub(super) fn modeset(&self, loaded: bool) -> Option<u32> {
        let hidden = || self.first(&[FRONTEND]).filter(|_| loaded);
        self.first(&["nvidia-modeset"]).or_else(hidden)
    }

    /// Of `/dev/nvidia-uvm` and `/dev/nvidia-uvm-tools`.
    pub(super) fn uvm(&self) -> Option<u32> {
        self.first(&["nvidia-uvm"])
    }

    /// Of `/dev/nvidia-caps/*`.
    pub(super) fn capabilities(&self) -> Option<u32> {
        self.first(&["nvidia-caps"])
    }

    /// Of `/dev/nvidia-caps-imex-channels/*`.
    pub(super) fn imex_channels(&self) -> Option<u32> {
        self.first(&["nvidia-caps-imex-channels"])
    }

    fn first(&self, names: &[&str]) -> Option<u32> {
        names.iter().find_map(|name| self.0.get(*name).copied())
    }
}

const FRONTEND: &str = "nvidia-frontend";

fn device(line: &str) -> Option<(u32, &str)> {
    let (major, name) = line.split_once(char::is_whitespace)?;
    let major = major.parse().ok().filter(|major| *major < MAJORS)?;
    let name = name.trim();
    name.starts_with("nvidia").then_some((major, name))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A machine with branch 580.
    const TODAY: &str = "\
Character devices:
  1 mem
  4 /dev/vc/0
195 nvidia
195 nvidia-modeset
195 nvidiactl
235 nvidia-caps-imex-channels
237 nvidia-nvswitch
241 nvidia-caps
238 nvidia-uvm

Block devices:
  7 loop
 99 nvidia-uvm
";

    #[test]
    fn of_a_driver_of_today() {
        let majors = Majors::parse(TODAY);
        assert_eq!(majors.gpus(), Some(195));
        assert_eq!(majors.control(), Some(195));
        assert_eq!(majors.modeset(false), Some(195));
        assert_eq!(majors.uvm(), Some(238), "a block device is another thing");
        assert_eq!(majors.capabilities(), Some(241));
        assert_eq!(majors.imex_channels(), Some(235));
    }

    #[test]
    fn of_a_driver_with_a_front_end() {
        let majors = Majors::parse("Character devices:\n195 nvidia-frontend\n510 nvidia-uvm\n");
        assert_eq!(majors.gpus(), Some(195));
        assert_eq!(majors.control(), Some(195));
        assert_eq!(majors.uvm(), Some(510));
        assert_eq!(majors.modeset(true), Some(195));
        assert_eq!(majors.modeset(false), None);
        assert_eq!(majors.capabilities(), None);
    }

    #[test]
    fn what_is_no_device_counts_for_nothing() {
        for text in [
            "",
            "195 nvidia\n",
            "Block devices:\n195 nvidia\n",
            "Character devices:\n\n195 nvidia\n",
            "Character devices:\nnvidia\n-1 nvidia\n4096 nvidia\n1 not-nvidia\n",
        ] {
            assert_eq!(Majors::parse(text), Majors::default(), "{text:?}");
        }
        let twice = Majors::parse("Character devices:\n  7 nvidia\n8 nvidia\n");
        assert_eq!(twice.gpus(), Some(7));
    }

    proptest! {
        #[test]
        fn noise_is_passed_over(text in "(Character devices:\n)?([0-9 ]{0,6}[ -~\n\u{1F980}]{0,40}\n?){0,8}") {
            let majors = Majors::parse(&text);
            prop_assert!(majors.0.values().all(|major| *major < MAJORS));
        }
    }
}
