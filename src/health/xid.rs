//! What an XID says of the GPU it came from.
//!
//! After the immediate actions of NVIDIA's XID catalogue
//! (<https://docs.nvidia.com/deploy/xid-errors/analyzing-xid-catalog.html>),
//! except for 109, which users of NVIDIA's plugin know as an application's
//! fault and which stays one here.

/// Whose matter an XID is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XidClass {
    /// A fault of the program that ran, or nothing that needs an action.
    Application,
    /// The GPU, or the node, needs an action before it is of use again.
    Device,
    /// The driver's recommended recovery action has changed: ask for it.
    RecoveryAction,
}

/// The class of an XID. One that is not known is an application's: counted and
/// logged, and not acted on.
pub fn classify(xid: u64) -> XidClass {
    match xid {
        46
        | 48
        | 54
        | 62
        | 64
        | 74
        | 79
        | 95
        | 110
        | 119
        | 120
        | 136
        | 140
        | 142
        | 143
        | 144..=151
        | 155
        | 156
        | 158 => XidClass::Device,
        154 => XidClass::RecoveryAction,
        _ => XidClass::Application,
    }
}

/// What each XID is taken for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct XidPolicy {}

impl XidPolicy {
    /// The class of an XID.
    #[must_use]
    pub fn class(&self, xid: u64) -> super::class::Class {
        match (classify(xid), xid) {
            (XidClass::Device, 79 | 151) => super::class::Class::Reboot,
            (XidClass::Device, _) => super::class::Class::Reset,
            _ => super::class::Class::Application,
        }
    }

    /// Whether polled signals make a device sick.
    #[must_use]
    pub fn acts_on_polls(&self) -> bool {
        true
    }
}

/// What an XID is.
#[must_use]
pub fn describe(_xid: u64) -> &'static str {
    "unknown XID"
}

/// What an operator does about an XID.
#[must_use]
pub fn remedy(_xid: u64) -> &'static str {
    "see NVIDIA's XID catalogue"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn application_faults_leave_the_device_alone() {
        for xid in [
            8, 11, 13, 31, 32, 37, 43, 44, 45, 63, 68, 69, 92, 94, 109, 141, 9999,
        ] {
            assert_eq!(classify(xid), XidClass::Application, "XID {xid}");
        }
    }

    #[test]
    fn faults_of_the_device_do_not() {
        for xid in [
            46, 48, 62, 64, 74, 79, 95, 110, 119, 120, 140, 143, 149, 158,
        ] {
            assert_eq!(classify(xid), XidClass::Device, "XID {xid}");
        }
    }
}
