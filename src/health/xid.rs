//! What an XID says of the GPU it came from, and what the administrator says of it.

pub mod catalogue;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::class::Class;

/// NVIDIA's variable for XIDs that are not to act.
pub const DISABLE_VARIABLE: &str = "DP_DISABLE_HEALTHCHECKS";
/// NVIDIA's variable for XIDs that are to act whatever else is said.
pub const ENABLE_VARIABLE: &str = "DP_ENABLE_HEALTHCHECKS";

/// The driver's recommended recovery action has changed: it says so when nothing
/// is needed any more, too.
const RECOVERY_ACTION_CHANGED: u64 = 154;

/// The class of each XID. The first of these that speaks of an XID decides, as
/// environment variables go before the configuration file elsewhere:
///
/// 1. `DP_ENABLE_HEALTHCHECKS`: it acts, as [`Class::Reset`] where 3 and 4 have
///    it as an application's. Beside a disabled `all` too, which NVIDIA's plugin
///    promises and does not do.
/// 2. `DP_DISABLE_HEALTHCHECKS`: it is an application's.
/// 3. The overrides of the configuration file.
/// 4. The [`catalogue`]. An XID that it does not list is an application's:
///    counted and logged, and not acted on.
///
/// An `all` of `DP_ENABLE_HEALTHCHECKS` is without 154, which also comes when
/// nothing is needed any more; whoever wants it names it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct XidPolicy {
    overrides: BTreeMap<u64, Class>,
    disabled: XidList,
    enabled: XidList,
}

impl XidPolicy {
    /// From the values of [`DISABLE_VARIABLE`] and [`ENABLE_VARIABLE`]: XIDs, or
    /// `all` or `xids` in any case, separated by commas; nothing where a variable
    /// is not set. An error is every fault of both, each with its remedy: NVIDIA's
    /// plugin passes over what it cannot read, so that a typing error takes a
    /// health check away.
    pub fn from_lists(disable: &str, enable: &str) -> Result<Self, Vec<String>> {
        let mut faults = Vec::new();
        let policy = Self {
            overrides: BTreeMap::new(),
            disabled: XidList::parse(DISABLE_VARIABLE, disable, &mut faults),
            enabled: XidList::parse(ENABLE_VARIABLE, enable, &mut faults),
        };
        if faults.is_empty() {
            Ok(policy)
        } else {
            Err(faults)
        }
    }

    /// With the configuration file's classes of XIDs.
    #[must_use]
    pub fn with_overrides(self, overrides: BTreeMap<u64, Class>) -> Self {
        Self { overrides, ..self }
    }

    /// The class of an XID.
    pub fn class(&self, xid: u64) -> Class {
        let class = self.overrides.get(&xid).copied();
        let class = class.unwrap_or_else(|| built_in(xid));
        if self.enables(xid) {
            class.max(Class::Reset)
        } else if self.disabled.all || self.disabled.xids.contains(&xid) {
            Class::Application
        } else {
            class
        }
    }

    /// Whether a device may become Unhealthy by what is polled, such as its
    /// recovery action: not when `all` is disabled, which in NVIDIA's plugin is
    /// every health check.
    pub fn acts_on_polls(&self) -> bool {
        self.enabled.all || !self.disabled.all
    }

    fn enables(&self, xid: u64) -> bool {
        let by_all = self.enabled.all && xid != RECOVERY_ACTION_CHANGED;
        by_all || self.enabled.xids.contains(&xid)
    }
}

/// After other flags, nothing where all is as it is built in: the variables, and
/// the configuration file's key.
impl fmt::Display for XidPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lists = [
            (DISABLE_VARIABLE, &self.disabled),
            (ENABLE_VARIABLE, &self.enabled),
        ];
        for (variable, list) in lists.into_iter().filter(|(_, list)| !list.is_empty()) {
            write!(f, " {variable}={list}")?;
        }
        if !self.overrides.is_empty() {
            let classes = self.overrides.iter();
            let classes = classes.map(|(xid, class)| format!("{xid}:{}", class.name()));
            write!(f, " health.xids={}", classes.collect::<Vec<_>>().join(","))?;
        }
        Ok(())
    }
}

fn built_in(xid: u64) -> Class {
    catalogue::of(xid).map_or(Class::Application, |entry| entry.class)
}

/// The value of one of NVIDIA's variables.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct XidList {
    all: bool,
    xids: BTreeSet<u64>,
}

impl XidList {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// `xids` is `all`, as NVIDIA's plugin has no other health checks. What stands
    /// between two commas may be nothing.
    fn parse(variable: &str, value: &str, faults: &mut Vec<String>) -> Self {
        let mut list = Self::default();
        for word in value.split(',').map(str::trim) {
            if word.eq_ignore_ascii_case("all") || word.eq_ignore_ascii_case("xids") {
                list.all = true;
            } else if let Some(xid) = number(word) {
                list.xids.insert(xid);
            } else if !word.is_empty() {
                faults.push(format!(
                    "{variable}: {word:?} is not an XID; write XIDs such as 48,79, or all"
                ));
            }
        }
        list
    }
}

impl fmt::Display for XidList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = self.all.then(|| "all".to_owned()).into_iter();
        let words = all.chain(self.xids.iter().map(u64::to_string));
        f.write_str(&words.collect::<Vec<_>>().join(","))
    }
}

/// XIDs begin at 1. NVIDIA's plugin takes a 0 for all of them, by accident.
fn number(word: &str) -> Option<u64> {
    let digits = word.bytes().all(|byte| byte.is_ascii_digit());
    let xid = word.parse().ok()?;
    (digits && xid > 0).then_some(xid)
}

/// What an XID says, in a few words.
pub fn describe(xid: u64) -> &'static str {
    catalogue::of(xid).map_or("unknown XID", |entry| entry.name)
}

/// What an administrator is to do about an XID, in a few words.
pub fn remedy(xid: u64) -> &'static str {
    const UNKNOWN: &str = "none is known here: see NVIDIA's catalogue of XIDs";
    catalogue::of(xid).map_or(UNKNOWN, |entry| entry.action.remedy())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_xid_is_described_with_its_remedy() {
        assert_eq!(describe(79), "GPU has fallen off the bus");
        assert!(remedy(79).starts_with("reboot the node"));
        assert_eq!(describe(9999), "unknown XID");
        assert!(remedy(9999).contains("catalogue"));
    }

    fn policy(disable: &str, enable: &str) -> XidPolicy {
        XidPolicy::from_lists(disable, enable).unwrap()
    }

    #[test]
    fn without_a_word_of_the_administrator_the_catalogue_decides() {
        let policy = XidPolicy::default();
        assert_eq!(policy, self::policy("", ""));
        assert_eq!(policy, self::policy(" ,, ", ","));
        for entry in catalogue::CATALOGUE {
            assert_eq!(policy.class(entry.xid), entry.class);
        }
        for unknown in [0, 173, 9999, u64::MAX] {
            assert_eq!(policy.class(unknown), Class::Application);
        }
        assert!(policy.acts_on_polls());
    }

    #[test]
    fn a_disabled_xid_is_an_applications_and_the_others_stay() {
        let policy = policy(" 48 ,94", "");
        assert_eq!(policy.class(48), Class::Application);
        assert_eq!(policy.class(94), Class::Application);
        assert_eq!(policy.class(79), Class::Reboot);
        assert!(policy.acts_on_polls());
    }

    #[test]
    fn with_all_disabled_nothing_acts_but_what_is_enabled() {
        for all in ["all", "ALL", "xids", "13, All"] {
            let policy = policy(all, "48,79");
            assert_eq!(policy.class(48), Class::Reset);
            assert_eq!(policy.class(79), Class::Reboot);
            assert_eq!(policy.class(62), Class::Application);
            assert!(!policy.acts_on_polls(), "{all}");
        }
    }

    #[test]
    fn an_enabled_xid_acts_as_a_reset_at_least() {
        let policy = policy("31,79", "13,31,79,9999");
        assert_eq!(policy.class(13), Class::Reset);
        assert_eq!(policy.class(31), Class::Reset);
        assert_eq!(policy.class(79), Class::Reboot);
        assert_eq!(policy.class(9999), Class::Reset);
    }

    #[test]
    fn with_all_enabled_everything_acts_but_a_changed_recovery_action() {
        let policy = policy("all", "all");
        assert_eq!(policy.class(13), Class::Reset);
        assert_eq!(policy.class(9999), Class::Reset);
        assert_eq!(policy.class(151), Class::Reboot);
        assert_eq!(policy.class(154), Class::Application);
        assert!(policy.acts_on_polls());
        assert_eq!(self::policy("", "154").class(154), Class::Reset);
    }

    #[test]
    fn the_file_is_heard_where_the_environment_says_nothing() {
        let overrides = BTreeMap::from([
            (13, Class::Replace),
            (48, Class::Replace),
            (64, Class::Replace),
            (79, Class::Application),
        ]);
        let policy = policy("13", "48,79").with_overrides(overrides);
        assert_eq!(policy.class(13), Class::Application);
        assert_eq!(policy.class(48), Class::Replace);
        assert_eq!(policy.class(64), Class::Replace);
        assert_eq!(policy.class(79), Class::Reset);
        assert_eq!(policy.class(62), Class::Reset);
    }

    #[test]
    fn every_fault_of_both_lists_is_named_with_its_remedy() {
        let faults = XidPolicy::from_lists("all,seven,-1", "0,+5,13.0,99999999999999999999");
        let faults = faults.unwrap_err();
        let values = ["seven", "-1", "0", "+5", "13.0", "99999999999999999999"];
        assert_eq!(faults.len(), values.len());
        for (fault, value) in faults.iter().zip(values) {
            assert!(fault.contains(&format!("HEALTHCHECKS: \"{value}\" is not an XID; write")));
        }
        assert!(faults[0].starts_with(DISABLE_VARIABLE));
        assert!(faults[2].starts_with(ENABLE_VARIABLE));
    }
}
