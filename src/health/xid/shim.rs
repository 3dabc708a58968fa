//! The names that callers still use. To be removed when none is left: this file,
//! and its two lines in `xid.rs`.

use super::catalogue::{Action, of};

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
    match of(xid) {
        Some(entry) if entry.class.acts() => XidClass::Device,
        Some(entry) if entry.action == Action::AskRecoveryAction => XidClass::RecoveryAction,
        _ => XidClass::Application,
    }
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

    #[test]
    fn a_changed_recovery_action_is_asked_for() {
        assert_eq!(classify(154), XidClass::RecoveryAction);
    }
}
