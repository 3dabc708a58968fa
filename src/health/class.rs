//! How bad a signal about a GPU is.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How bad a signal is, and so what ends it. Ordered by gravity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Class {
    /// A fault of the program that ran, or nothing that needs an action: the
    /// device stays Healthy, and the signal is counted.
    Application,
    /// Unhealthy until the driver says that nothing is needed.
    Reset,
    /// Unhealthy until the node has booted again: its boot ID is another one.
    Reboot,
    /// Unhealthy until another GPU is in its place, or the node has booted again.
    Replace,
}

impl Class {
    /// Every class, the lightest first.
    pub const ALL: [Self; 4] = [Self::Application, Self::Reset, Self::Reboot, Self::Replace];

    /// As the configuration file, labels and log lines have it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Application => "application",
            Self::Reset => "reset",
            Self::Reboot => "reboot",
            Self::Replace => "replace",
        }
    }

    /// The class of this [`name`](Self::name), in lower case as it is written.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|class| class.name() == name)
    }

    /// Whether nothing ends it within one boot.
    pub const fn is_lasting(self) -> bool {
        matches!(self, Self::Reboot | Self::Replace)
    }

    /// Whether a device with such a signal is Unhealthy.
    pub const fn acts(self) -> bool {
        !matches!(self, Self::Application)
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_graver_class_is_a_greater_one() {
        assert!(Class::ALL.is_sorted());
        assert_eq!(Class::Reset.max(Class::Reboot), Class::Reboot);
    }

    #[test]
    fn only_an_applications_fault_leaves_the_device_healthy() {
        let acting = Class::ALL.into_iter().filter(|class| class.acts());
        assert!(acting.eq([Class::Reset, Class::Reboot, Class::Replace]));
    }

    #[test]
    fn a_class_is_found_by_its_name_and_by_nothing_else() {
        for class in Class::ALL {
            assert_eq!(Class::from_name(class.name()), Some(class));
            let json = format!("\"{class}\"");
            assert_eq!(serde_json::to_string(&class).unwrap(), json);
            assert_eq!(serde_json::from_str::<Class>(&json).unwrap(), class);
        }
        assert_eq!(Class::from_name("Reset"), None);
        assert_eq!(Class::from_name(""), None);
    }
}
