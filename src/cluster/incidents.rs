//! Node events: what has come and gone since they last told.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use super::api::Told;
use super::condition::{describe, name};
use crate::gpu::GpuUuid;
use crate::health::cause::Cause;
use crate::health::report::{GpuStatus, HealthReport, NodeFault, Sickness};

/// The reason of an event when a GPU, or all of the node's, cannot be used.
pub const UNHEALTHY: &str = "GPUUnhealthy";
/// The reason of an event when it can be used again.
pub const RECOVERED: &str = "GPURecovered";

/// What Node events have told so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Heard {
    /// The incidents that last.
    lasting: BTreeMap<Subject, String>,
    /// Whether anything was told before: what is found at the start may have
    /// been told by an earlier process.
    begun: bool,
}

/// What an incident is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    /// Every GPU of the node.
    Node,
    /// One of them.
    Gpu(GpuUuid),
}

/// Something that is not told yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct News {
    /// The event.
    pub told: Told,
    subject: Subject,
    /// The incident that lasts from then on, if one does.
    lasting: Option<String>,
}

impl Heard {
    /// What there is to tell of a report, one event a GPU at most; nothing while
    /// not every GPU has been looked at. `at` is when it was seen first.
    #[must_use]
    pub fn news(&self, report: &HealthReport, at: SystemTime) -> Vec<News> {
        if !report.complete {
            return Vec::new();
        }
        let node = self.of_node(report.node.as_ref(), at);
        let gpus = report.gpus.iter().filter_map(|gpu| self.of_gpu(gpu, at));
        node.into_iter().chain(gpus).collect()
    }

    /// What was news is told, or cannot be.
    pub fn hear(&mut self, news: &News) {
        match &news.lasting {
            Some(incident) => self.lasting.insert(news.subject.clone(), incident.clone()),
            None => self.lasting.remove(&news.subject),
        };
    }

    /// Nothing is left to tell: what comes from now on began in this process.
    pub fn all_told(&mut self) {
        self.begun = true;
    }

    fn of_gpu(&self, gpu: &GpuStatus, at: SystemTime) -> Option<News> {
        let subject = Subject::Gpu(gpu.uuid.clone());
        let before = self.lasting.get(&subject);
        match (before, gpu.worst()) {
            (before, Some(sickness)) => {
                let incident = incident(gpu, sickness);
                let is_news = before != Some(&incident);
                is_news.then(|| {
                    let message = describe(gpu, sickness);
                    News::sick(subject, message, incident, at)
                })
            }
            (Some(before), None) => {
                let message = format!("{} is healthy again", name(gpu));
                Some(News::well(subject, message, before, at))
            }
            (None, None) => None,
        }
    }

    fn of_node(&self, fault: Option<&NodeFault>, at: SystemTime) -> Option<News> {
        let before = self.lasting.get(&Subject::Node);
        match (before, fault) {
            (Some(before), Some(fault)) if is_of(before, fault) => None,
            (_, Some(fault)) => {
                let message = format!("no GPU can be given: {}", fault.message);
                let incident = self.incident_of_node(fault, at);
                Some(News::sick(Subject::Node, message, incident, at))
            }
            (Some(before), None) => {
                let message = "GPUs can be given again".into();
                Some(News::well(Subject::Node, message, before, at))
            }
            (None, None) => None,
        }
    }

    /// Nobody keeps since when a node has its fault. One that is found at the
    /// start is taken for the one that an earlier process has told of.
    fn incident_of_node(&self, fault: &NodeFault, at: SystemTime) -> String {
        let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
        let since = if self.begun { since.as_secs() } else { 0 };
        format!("{} {since}", fault.reason)
    }
}

/// Whether the incident is of this fault, whatever its words are now.
fn is_of(incident: &str, fault: &NodeFault) -> bool {
    let reason = incident.split(' ').next();
    reason == Some(fault.reason)
}

/// The same over restarts: the reducer keeps since when something is sick. A
/// graver cause within the same sickness is told too, once.
fn incident(gpu: &GpuStatus, sickness: &Sickness) -> String {
    let since = sickness.since.as_millis();
    let reason = sickness.cause.signal().reason;
    let xid = match sickness.cause {
        Cause::Xid(xid) => xid,
        _ => 0,
    };
    format!("{} {since} {reason} {xid}", gpu.uuid)
}

impl News {
    fn sick(subject: Subject, message: String, incident: String, at: SystemTime) -> Self {
        Self {
            told: Told {
                reason: UNHEALTHY,
                message,
                warning: true,
                action: "Reporting",
                incident: incident.clone(),
                at,
            },
            subject,
            lasting: Some(incident),
        }
    }

    fn well(subject: Subject, message: String, incident: &str, at: SystemTime) -> Self {
        Self {
            told: Told {
                reason: RECOVERED,
                message,
                warning: false,
                action: "Reporting",
                incident: incident.into(),
                at,
            },
            subject,
            lasting: None,
        }
    }
}

#[cfg(test)]
mod tests;
