//! What a pod is told, as an event on it.

use std::fmt::Write;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::names::DeviceName;
use super::rules::{EVICTION, SYSTEM_NAMESPACE, Spared};
use super::sick::Sick;

/// What a pod is told of an incident, each once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Notice {
    /// It is going to be evicted.
    Planned,
    /// It would be evicted now, were evictions switched on.
    WouldEvict,
    /// It is static.
    Static,
    /// It is a DaemonSet's.
    DaemonSet,
    /// It is the cluster's own.
    System,
    /// It has opted out.
    OptedOut,
    /// An annotation of it is not understood.
    BadAnnotation,
    /// Too many GPUs of the node are sick.
    ShareExceeded,
    /// A PodDisruptionBudget holds its eviction up.
    HeldByBudget,
}

impl Notice {
    /// Of a pod that stays.
    #[must_use]
    pub fn of(spared: &Spared) -> Self {
        match spared {
            Spared::Static => Self::Static,
            Spared::DaemonSet => Self::DaemonSet,
            Spared::System => Self::System,
            Spared::OptedOut => Self::OptedOut,
            Spared::BadAnnotation { .. } => Self::BadAnnotation,
        }
    }

    /// The event's reason.
    #[must_use]
    pub fn reason(self) -> &'static str {
        match self {
            Self::Planned => "WillEvict",
            Self::WouldEvict => "WouldEvict",
            Self::Static | Self::DaemonSet | Self::System | Self::OptedOut => "NotEvicted",
            Self::BadAnnotation => "BadEvictionAnnotation",
            Self::ShareExceeded => "TooManySickGPUs",
            Self::HeldByBudget => "EvictionHeldByBudget",
        }
    }

    /// The event's action: what is done about it.
    #[must_use]
    pub fn action(self) -> &'static str {
        match self {
            Self::Planned => "Evicting",
            Self::WouldEvict => "Reporting",
            Self::Static
            | Self::DaemonSet
            | Self::System
            | Self::OptedOut
            | Self::BadAnnotation => "Keeping",
            Self::ShareExceeded | Self::HeldByBudget => "Waiting",
        }
    }

    /// The word in metrics; none where it decides nothing.
    #[must_use]
    pub fn outcome(self) -> Option<&'static str> {
        match self {
            Self::Planned | Self::HeldByBudget => None,
            Self::WouldEvict => Some("would_evict"),
            Self::Static => Some("static"),
            Self::DaemonSet => Some("daemon_set"),
            Self::System => Some("system"),
            Self::OptedOut => Some("opted_out"),
            Self::BadAnnotation => Some("bad_annotation"),
            Self::ShareExceeded => Some("share_exceeded"),
        }
    }
}

/// What the event says of the pod that it is on, after what is sick.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Consequence<'a> {
    /// It goes in so long.
    In(Duration),
    WouldGo,
    Stays(&'a Spared),
    WaitsForShare,
    WaitsForBudget(&'a str),
}

/// The event's message.
pub(super) fn message(
    sick: &Sick<'_>,
    held: &[DeviceName],
    consequence: &Consequence<'_>,
) -> String {
    let mut text = sickness(sick, held);
    let rest = match consequence {
        Consequence::In(wait) if wait.is_zero() => "This pod is evicted now".to_owned(),
        Consequence::In(wait) => format!(
            "This pod is evicted in {} s, unless the device is well again by then",
            wait.as_secs_f64().ceil()
        ),
        Consequence::WouldGo => "This pod would be evicted now, with eviction switched on".into(),
        Consequence::Stays(spared) => stays(spared),
        Consequence::WaitsForShare => format!(
            "{}, more than may be acted on: this pod stays until fewer are",
            sick.share()
        ),
        Consequence::WaitsForBudget(why) => {
            format!("Its eviction is tried again until it is allowed: {why}")
        }
    };
    text.push_str(&rest);
    text
}

/// The devices that are sick, the first with its cause and what to do.
fn sickness(sick: &Sick<'_>, held: &[DeviceName]) -> String {
    let known = held
        .iter()
        .filter_map(|name| Some((name, sick.devices.get(name)?)));
    let mut known = known.collect::<Vec<_>>();
    known.sort_by_key(|(_, sickness)| sickness.recovering_until.is_some());
    let mut text = String::new();
    if let Some((name, sickness)) = known.first() {
        let (cause, remedy) = (&sickness.cause, sickness.cause.remedy());
        // Writing to a string does not fail.
        _ = write!(text, "{name} is sick: {cause}; remedy: {remedy}. ");
    }
    if known.len() > 1 {
        let others: Vec<_> = known[1..]
            .iter()
            .map(|(name, _)| name.id.as_str())
            .collect();
        _ = write!(text, "So are {}. ", others.join(", "));
    }
    text
}

fn stays(spared: &Spared) -> String {
    match spared {
        Spared::Static => "This pod is static and stays: the kubelet would start it again".into(),
        Spared::DaemonSet => {
            "This pod stays: its DaemonSet would put the next one on the same node".into()
        }
        Spared::System => {
            format!("This pod stays: pods of {SYSTEM_NAMESPACE} are the cluster's own")
        }
        Spared::OptedOut => format!("This pod stays, as its annotation {EVICTION} wants it"),
        Spared::BadAnnotation { key, value } => {
            format!("This pod stays, as its annotation {key} is not understood: {value:?}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{incident, report, sick_at};
    use super::super::rules::EVICTION_GRACE;
    use super::*;

    fn say(sick: &[usize], consequence: &Consequence<'_>) -> String {
        let sicknesses = (0..3).map(|gpu| sick.contains(&gpu).then(|| sick_at(5)));
        let report = report(sicknesses);
        let held: Vec<_> = (0..2).map(|gpu| incident(5, gpu).device).collect();
        message(&Sick::of(&report), &held, consequence)
    }

    #[test]
    fn a_message_says_what_is_sick_what_helps_and_what_comes() {
        let text = say(&[1, 2], &Consequence::In(Duration::from_millis(59_001)));
        let begin = "nvidia.com/gpu GPU-1 is sick: XID 79 (";
        assert!(text.starts_with(begin), "{text}");
        assert!(text.contains("; remedy: "), "{text}");
        let end = "This pod is evicted in 60 s, unless the device is well again by then";
        assert!(text.ends_with(end), "{text}");
        let text = say(&[0, 1], &Consequence::In(Duration::ZERO));
        assert!(
            text.ends_with("So are GPU-1. This pod is evicted now"),
            "{text}"
        );
    }

    #[test]
    fn a_message_says_what_keeps_the_pod() {
        let bad = Spared::BadAnnotation {
            key: EVICTION_GRACE,
            value: "soon".into(),
        };
        for (consequence, words) in [
            (Consequence::WouldGo, "would be evicted now"),
            (Consequence::Stays(&Spared::Static), "static"),
            (Consequence::Stays(&Spared::DaemonSet), "DaemonSet"),
            (Consequence::Stays(&Spared::System), SYSTEM_NAMESPACE),
            (Consequence::Stays(&Spared::OptedOut), EVICTION),
            (
                Consequence::Stays(&bad),
                "eviction-grace is not understood: \"soon\"",
            ),
            (Consequence::WaitsForShare, "1 of 3 GPUs are sick"),
            (Consequence::WaitsForBudget("budget x"), "budget x"),
        ] {
            let text = say(&[0], &consequence);
            assert!(text.contains(words), "{text}");
        }
    }

    #[test]
    fn reasons_are_kubernetes_reasons_and_a_word_in_the_record_is_its_own() {
        use Notice as N;
        let all = [
            N::Planned,
            N::WouldEvict,
            N::Static,
            N::System,
            N::DaemonSet,
            N::OptedOut,
            N::BadAnnotation,
            N::ShareExceeded,
            N::HeldByBudget,
        ];
        for notice in all {
            for word in [notice.reason(), notice.action()] {
                assert!(word.len() <= 128 && word.chars().all(char::is_alphabetic));
            }
            let outcome = notice.outcome().unwrap_or("planned held_by_budget");
            let word = serde_json::to_string(&notice).unwrap();
            assert!(outcome.contains(word.trim_matches('"')), "{word}");
        }
    }
}
