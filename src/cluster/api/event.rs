//! Events, as `kubectl describe` shows them.

use std::time::SystemTime;

use serde_json::{Value, json};

use super::COMPONENT;
use crate::cluster::text::{cut, start};
use crate::cluster::time::rfc3339;
use crate::digest::Fnv1a;

/// The longest message of an event (Kubernetes'
/// pkg/apis/core/validation/events.go).
const LONGEST_MESSAGE: usize = 1024;
/// The longest name of an event, less the dot and the digits of the hash.
const LONGEST_PREFIX: usize = 253 - 17;

/// Something to be told of a pod or a node, as an event of `core/v1`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// CamelCase, 128 letters at most, such as `GPUUnhealthy`.
    pub reason: &'static str,
    /// For people; cut after 1024 bytes.
    pub message: String,
    /// `Warning`, else `Normal`.
    pub warning: bool,
    /// CamelCase: what was done about it, such as `Evicting`.
    pub action: &'static str,
    /// What this is the only event of, with its reason and its object: told
    /// twice, by a retry or after a restart, it is one event still.
    pub incident: String,
    /// When it was.
    pub at: SystemTime,
}

impl Told {
    /// The event's JSON.
    pub(super) fn event(
        &self,
        namespace: &str,
        about: &Value,
        node_name: &str,
        instance: &str,
    ) -> Value {
        let at = rfc3339(self.at);
        json!({
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": { "namespace": namespace, "name": self.name(about) },
            "involvedObject": about,
            "reason": self.reason,
            "message": cut(&self.message, LONGEST_MESSAGE),
            "type": if self.warning { "Warning" } else { "Normal" },
            "action": self.action,
            "count": 1,
            "firstTimestamp": at,
            "lastTimestamp": at,
            "source": { "component": COMPONENT, "host": node_name },
            "reportingComponent": COMPONENT,
            "reportingInstance": instance,
        })
    }

    /// The object's name and a hash of what the event is the only one of.
    fn name(&self, about: &Value) -> String {
        let text = |field: &str| about[field].as_str().unwrap_or_default();
        let mut hash = Fnv1a::default();
        for field in [text("kind"), text("namespace"), text("name"), text("uid")] {
            hash.add_field(field.as_bytes());
        }
        hash.add_field(self.reason.as_bytes());
        hash.add_field(self.incident.as_bytes());
        let name = text("name");
        // The name of an object may not have a dot or a dash before a dot.
        let name = start(name, LONGEST_PREFIX).trim_end_matches(['.', '-']);
        format!("{name}.{:016x}", hash.hash())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::cluster::text::is_name;

    fn told() -> Told {
        Told {
            reason: "GPUUnhealthy",
            message: "GPU 0".into(),
            warning: true,
            action: "Reporting",
            incident: "GPU-1 1 s".into(),
            at: SystemTime::UNIX_EPOCH + Duration::from_millis(60_900),
        }
    }

    fn node(name: &str) -> Value {
        json!({ "kind": "Node", "name": name, "uid": name })
    }

    #[test]
    fn an_event_has_what_is_shown_of_it() {
        let event = told().event("default", &node("n1"), "n1", "plugin-x");
        assert_eq!(event["involvedObject"]["name"], "n1");
        assert_eq!(event["type"], "Warning");
        assert_eq!(event["lastTimestamp"], "1970-01-01T00:01:00Z");
        assert_eq!(
            event["source"],
            json!({ "component": COMPONENT, "host": "n1" })
        );
        assert_eq!(event["reportingInstance"], "plugin-x");
        let long = Told {
            message: "x".repeat(5000),
            warning: false,
            ..told()
        };
        let event = long.event("default", &node("n1"), "n1", "");
        assert_eq!(event["message"].as_str().unwrap().len(), LONGEST_MESSAGE);
        assert_eq!(event["type"], "Normal");
    }

    #[test]
    fn one_incident_has_one_name() {
        let name = told().name(&node("n1"));
        let retold = Told {
            message: "other words".into(),
            at: SystemTime::now(),
            ..told()
        };
        assert_eq!(retold.name(&node("n1")), name);
        assert!(name.starts_with("n1."), "{name}");
        let again = Told {
            incident: "GPU-1 2 s".into(),
            ..told()
        };
        let well = Told {
            reason: "GPURecovered",
            ..told()
        };
        for other in [
            again.name(&node("n1")),
            well.name(&node("n1")),
            told().name(&node("n2")),
            told().name(&json!({ "kind": "Pod", "name": "n1", "uid": "n1" })),
            told().name(&json!({ "kind": "Node", "name": "n1", "uid": "u" })),
        ] {
            assert_ne!(other, name);
        }
    }

    #[test]
    fn every_name_is_a_name() {
        let long = format!("{}.{}", "a".repeat(LONGEST_PREFIX - 1), "b".repeat(20));
        for object in ["n1", "a.b", &long, &"c".repeat(253)] {
            let name = told().name(&node(object));
            assert!(is_name(&name), "{name}");
        }
    }
}
