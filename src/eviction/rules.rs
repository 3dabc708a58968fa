//! What is done about one pod on a sick GPU, by what it is and what its owner
//! wrote on it.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::cluster::api::PodFacts;

/// The annotation that keeps a pod from being evicted: `"false"`. `"true"` is
/// the same as none.
pub const EVICTION: &str = "gpu-device-plugin/eviction";

/// The annotation with a pod's own grace, such as `90s`, `10m` or `1h30m`.
pub const EVICTION_GRACE: &str = "gpu-device-plugin/eviction-grace";

/// The namespace of the cluster's own pods.
pub const SYSTEM_NAMESPACE: &str = "kube-system";

/// What is done about a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is evicted so long after its device turned sick.
    Evict {
        /// The pod's own grace, or the node's.
        grace: Duration,
    },
    /// It is told that its device is sick, and stays.
    Spare(Spared),
}

/// Why a pod stays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Spared {
    /// It is the kubelet's own, which starts it again from its file.
    Static,
    /// Its DaemonSet would put the next one on the same node.
    DaemonSet,
    /// It is the cluster's own: of [`SYSTEM_NAMESPACE`], whose pods our admission
    /// policy does not let a plugin evict either.
    System,
    /// Its owner wants it so.
    OptedOut,
    /// Its owner wants something that is not understood: it may be that.
    BadAnnotation {
        /// Which of ours.
        key: &'static str,
        /// What stands there.
        value: String,
    },
}

/// What is done about `pod`, where the node's grace is `grace`.
#[must_use]
pub fn judge(pod: &PodFacts, grace: Duration) -> Verdict {
    let by_kind = match (pod.is_static, pod.is_daemon_set) {
        (true, _) => Err(Spared::Static),
        (_, true) => Err(Spared::DaemonSet),
        _ if pod.namespace == SYSTEM_NAMESPACE => Err(Spared::System),
        _ => Ok(()),
    };
    let wanted = by_kind
        .and_then(|()| opted_in(&pod.annotations))
        .and_then(|()| own_grace(&pod.annotations));
    match wanted {
        Ok(own) => Verdict::Evict {
            grace: own.unwrap_or(grace),
        },
        Err(spared) => Verdict::Spare(spared),
    }
}

fn opted_in(annotations: &BTreeMap<String, String>) -> Result<(), Spared> {
    match annotations.get(EVICTION).map(String::as_str) {
        None | Some("true") => Ok(()),
        Some("false") => Err(Spared::OptedOut),
        Some(value) => Err(bad(EVICTION, value)),
    }
}

fn own_grace(annotations: &BTreeMap<String, String>) -> Result<Option<Duration>, Spared> {
    let Some(value) = annotations.get(EVICTION_GRACE) else {
        return Ok(None);
    };
    let grace = duration(value).ok_or_else(|| bad(EVICTION_GRACE, value));
    grace.map(Some)
}

fn bad(key: &'static str, value: &str) -> Spared {
    /// An annotation may have 256 KiB, an event has one.
    const SHOWN: usize = 40;
    let value = value.chars().take(SHOWN).collect();
    Spared::BadAnnotation { key, value }
}

/// Whole numbers with units, one after another, as Go writes durations.
fn duration(text: &str) -> Option<Duration> {
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let (number, after) = split_where(rest, |byte| !byte.is_ascii_digit());
        let (unit, next) = split_where(after, |byte| byte.is_ascii_digit());
        let number: u32 = number.parse().ok()?;
        total = total.saturating_add(length(unit)?.saturating_mul(number));
        rest = next;
    }
    (!text.is_empty()).then_some(total)
}

fn length(unit: &str) -> Option<Duration> {
    match unit {
        "ms" => Some(Duration::from_millis(1)),
        "s" => Some(Duration::from_secs(1)),
        "m" => Some(Duration::from_secs(60)),
        "h" => Some(Duration::from_secs(3600)),
        _ => None,
    }
}

/// At the first byte that fits; the bytes in question are ASCII or their
/// neighbours, so that no letter is cut.
fn split_where(text: &str, fits: impl Fn(u8) -> bool) -> (&str, &str) {
    let place = text.bytes().position(fits).unwrap_or(text.len());
    text.split_at(place)
}

#[cfg(test)]
mod tests {
    use super::super::fixture::pod;
    use super::*;

    const NODES: Duration = Duration::from_secs(60);

    fn with(annotations: &[(&str, &str)]) -> Verdict {
        let annotations = annotations.iter();
        let annotations = annotations.map(|&(key, value)| (key.into(), value.into()));
        let pod = PodFacts {
            annotations: annotations.collect(),
            ..pod("a", "a")
        };
        judge(&pod, NODES)
    }

    #[test]
    fn a_pod_says_whether_and_when() {
        let evict = |seconds| Verdict::Evict {
            grace: Duration::from_secs(seconds),
        };
        assert_eq!(with(&[]), evict(60));
        assert_eq!(with(&[(EVICTION, "true")]), evict(60));
        assert_eq!(
            with(&[(EVICTION, "false"), (EVICTION_GRACE, "1h")]),
            Verdict::Spare(Spared::OptedOut)
        );
        for (grace, seconds) in [
            ("10m", 600),
            ("90s", 90),
            ("1h30m", 5400),
            ("0s", 0),
            ("2000ms", 2),
        ] {
            assert_eq!(with(&[(EVICTION_GRACE, grace)]), evict(seconds), "{grace}");
        }
    }

    #[test]
    fn what_is_not_understood_spares_the_pod() {
        for value in ["False", "no", "", "0"] {
            let verdict = with(&[(EVICTION, value)]);
            let wrong = Spared::BadAnnotation {
                key: EVICTION,
                value: value.into(),
            };
            assert_eq!(verdict, Verdict::Spare(wrong), "{value:?}");
        }
        for value in [
            "",
            "10",
            "10 m",
            "-1s",
            "1.5h",
            "m",
            "10min",
            "1d",
            "é5s",
            "5é",
            "99999999999s",
        ] {
            let verdict = with(&[(EVICTION_GRACE, value)]);
            assert!(
                matches!(verdict, Verdict::Spare(Spared::BadAnnotation { key, .. }) if key == EVICTION_GRACE),
                "{value:?}: {verdict:?}"
            );
        }
    }

    #[test]
    fn a_pod_that_would_come_back_to_this_node_stays() {
        let facts = |is_static, is_daemon_set| PodFacts {
            is_static,
            is_daemon_set,
            ..pod("a", "a")
        };
        assert_eq!(
            judge(&facts(true, true), NODES),
            Verdict::Spare(Spared::Static)
        );
        assert_eq!(
            judge(&facts(false, true), NODES),
            Verdict::Spare(Spared::DaemonSet)
        );
    }

    #[test]
    fn the_clusters_own_pods_stay() {
        let system = PodFacts {
            namespace: SYSTEM_NAMESPACE.into(),
            ..pod("a", "a")
        };
        assert_eq!(judge(&system, NODES), Verdict::Spare(Spared::System));
    }

    #[test]
    fn the_annotations_have_keys_that_kubernetes_takes() {
        for key in [EVICTION, EVICTION_GRACE] {
            let (domain, name) = key.split_once('/').unwrap();
            let letter = |byte: u8| byte.is_ascii_lowercase() || byte == b'-';
            assert!(domain.bytes().all(letter) && name.bytes().all(letter));
            assert!(name.len() <= 63);
        }
    }
}
