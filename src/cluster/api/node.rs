//! This node: its condition, its taints.

use std::time::SystemTime;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::cluster::condition::{CONDITION_TYPE, Condition};
use crate::cluster::time::rfc3339;

/// The key of our taint.
pub const TAINT_KEY: &str = "gpu-device-plugin/unhealthy";
/// Its value.
pub const TAINT_VALUE: &str = "all-gpus";
/// Its effect: nothing new comes, and what is there stays.
pub const TAINT_EFFECT: &str = "NoSchedule";

/// A node, as far as it concerns us.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct NodeFacts {
    metadata: Metadata,
    #[serde(default)]
    spec: Spec,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    resource_version: String,
}

/// Taints are kept as they came: a list is written whole, with what others have
/// put into theirs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
struct Spec {
    #[serde(default)]
    taints: Vec<Value>,
}

impl NodeFacts {
    /// Whether it has our taint.
    #[must_use]
    pub fn is_tainted(&self) -> bool {
        self.spec.taints.iter().any(is_ours)
    }

    /// A merge patch of this very state of the node that leaves it with our
    /// taint, or without. Nothing where it is so, or where the taint's place is
    /// taken by somebody else's: a key and an effect are there once.
    pub(super) fn taint_patch(&self, wanted: bool) -> Option<Value> {
        let taints = self.spec.taints.iter();
        let taints: Vec<_> = if wanted {
            if self.spec.taints.iter().any(has_our_place) {
                return None;
            }
            taints.cloned().chain([our_taint()]).collect()
        } else {
            if !self.is_tainted() {
                return None;
            }
            taints.filter(|taint| !is_ours(taint)).cloned().collect()
        };
        Some(json!({
            "metadata": { "resourceVersion": self.metadata.resource_version },
            "spec": { "taints": taints },
        }))
    }
}

fn our_taint() -> Value {
    json!({ "key": TAINT_KEY, "value": TAINT_VALUE, "effect": TAINT_EFFECT })
}

fn has_our_place(taint: &Value) -> bool {
    taint["key"] == TAINT_KEY && taint["effect"] == TAINT_EFFECT
}

fn is_ours(taint: &Value) -> bool {
    has_our_place(taint) && taint["value"] == TAINT_VALUE
}

/// A strategic merge patch: conditions are merged by their type, and those of
/// others are left alone.
pub(super) fn condition_patch(condition: &Condition, since: SystemTime, now: SystemTime) -> Value {
    json!({ "status": { "conditions": [{
        "type": CONDITION_TYPE,
        "status": condition.status.name(),
        "reason": condition.reason,
        "message": condition.message,
        "lastTransitionTime": rfc3339(since),
        "lastHeartbeatTime": rfc3339(now),
    }] } })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(taints: &Value) -> NodeFacts {
        let node = json!({
            "metadata": { "name": "n1", "resourceVersion": "7" },
            "spec": { "podCIDR": "10.0.0.0/24", "taints": taints },
        });
        serde_json::from_value(node).unwrap()
    }

    #[test]
    fn a_node_without_taints_gets_ours() {
        let bare = json!({ "metadata": { "resourceVersion": "7" } });
        let bare: NodeFacts = serde_json::from_value(bare).unwrap();
        for node in [bare, node(&json!([]))] {
            assert!(!node.is_tainted());
            assert_eq!(node.taint_patch(false), None);
            let patch = node.taint_patch(true).unwrap();
            assert_eq!(patch["metadata"]["resourceVersion"], "7");
            assert_eq!(patch["spec"]["taints"], json!([our_taint()]));
        }
    }

    #[test]
    fn the_taints_of_others_stay_as_they_are() {
        let other = json!({
            "key": "node.kubernetes.io/unreachable", "effect": "NoExecute",
            "timeAdded": "2026-01-01T00:00:00Z", "invented": { "later": true },
        });
        let patch = node(&json!([other])).taint_patch(true).unwrap();
        assert_eq!(patch["spec"]["taints"], json!([other, our_taint()]));
        let node = node(&json!([our_taint(), other]));
        assert!(node.is_tainted());
        assert_eq!(node.taint_patch(true), None);
        let patch = node.taint_patch(false).unwrap();
        assert_eq!(patch["spec"]["taints"], json!([other]));
    }

    #[test]
    fn a_taint_with_our_key_that_is_not_ours_stays() {
        let others = json!([{ "key": TAINT_KEY, "value": "by hand", "effect": TAINT_EFFECT }]);
        let node = node(&others);
        assert!(!node.is_tainted());
        assert_eq!(node.taint_patch(true), None);
        assert_eq!(node.taint_patch(false), None);
    }

    #[test]
    fn with_another_effect_there_is_room_for_both() {
        let other = json!({ "key": TAINT_KEY, "value": TAINT_VALUE, "effect": "NoExecute" });
        let node = node(&json!([other]));
        assert!(!node.is_tainted());
        let patch = node.taint_patch(true).unwrap();
        assert_eq!(patch["spec"]["taints"], json!([other, our_taint()]));
    }
}
