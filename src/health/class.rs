//! How bad a signal is.

use serde::{Deserialize, Serialize};

/// How bad a signal is, and so what ends it. Ordered by gravity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Class {
    /// A fault of the program that ran, or nothing that needs an action: the
    /// device stays healthy.
    Application,
    /// Sick until the driver says that nothing is needed.
    Reset,
    /// Sick until the node has booted.
    Reboot,
    /// Sick until the GPU is another one, or the node has booted.
    Replace,
}

impl Class {
    /// Every class.
    pub const ALL: [Self; 4] = [Self::Application, Self::Reset, Self::Reboot, Self::Replace];

    /// The word for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Application => "application",
            Self::Reset => "reset",
            Self::Reboot => "reboot",
            Self::Replace => "replace",
        }
    }

    /// Whether it makes a device sick.
    #[must_use]
    pub fn acts(self) -> bool {
        self != Self::Application
    }
}
