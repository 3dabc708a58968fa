//! What a driver can do for a container, in the words of NVIDIA's container
//! runtime (`NVIDIA_DRIVER_CAPABILITIES`).

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde::Serialize;

/// One thing that a driver's files are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Capability {
    /// CUDA and OpenCL.
    Compute,
    /// NVML, nvidia-smi and what else watches and sets GPUs.
    Utility,
    /// Video Codec SDK and VDPAU.
    Video,
    /// OpenGL, Vulkan, EGL, OptiX.
    Graphics,
    /// X.Org's modules.
    Display,
    /// NGX, such as DLSS.
    Ngx,
}

impl Capability {
    /// All of them, in the order in which they are listed.
    pub const ALL: [Self; 6] = [
        Self::Compute,
        Self::Utility,
        Self::Video,
        Self::Graphics,
        Self::Display,
        Self::Ngx,
    ];

    /// The word for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Compute => "compute",
            Self::Utility => "utility",
            Self::Video => "video",
            Self::Graphics => "graphics",
            Self::Display => "display",
            Self::Ngx => "ngx",
        }
    }
}

impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A set of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capabilities(BTreeSet<Capability>);

impl Capabilities {
    /// Every capability.
    #[must_use]
    pub fn all() -> Self {
        Self(Capability::ALL.into())
    }

    /// Whether this one is in the set.
    #[must_use]
    pub fn contains(&self, capability: Capability) -> bool {
        self.0.contains(&capability)
    }
}

/// As NVIDIA's container runtime has it.
impl Default for Capabilities {
    fn default() -> Self {
        Self([Capability::Compute, Capability::Utility].into())
    }
}

impl fmt::Display for Capabilities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::all() {
            return f.write_str("all");
        }
        let names: Vec<_> = self.0.iter().map(|capability| capability.name()).collect();
        f.write_str(&names.join(","))
    }
}

impl FromStr for Capabilities {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut set = BTreeSet::new();
        for word in text.split(',').map(str::trim) {
            if word == "all" {
                set.extend(Capability::ALL);
                continue;
            }
            let capability = Capability::ALL.into_iter().find(|one| one.name() == word);
            set.insert(capability.ok_or_else(|| {
                let names = Capability::ALL.map(Capability::name).join(", ");
                format!("is not a list of {names}, or all")
            })?);
        }
        Ok(Self(set))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_and_written() {
        for (text, written) in [
            ("compute,utility", "compute,utility"),
            ("utility, compute", "compute,utility"),
            ("all", "all"),
            ("video,all", "all"),
            ("display", "display"),
        ] {
            let set: Capabilities = text.parse().unwrap();
            assert_eq!(set.to_string(), written);
        }
        assert_eq!(Capabilities::default().to_string(), "compute,utility");
        for bad in ["", "compute,", "cuda", "Compute"] {
            assert!(bad.parse::<Capabilities>().is_err(), "{bad}");
        }
    }
}
