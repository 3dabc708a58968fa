//! What clients ask, whether it is right or wrong, and a judge of each answer.

use std::collections::BTreeSet;
use std::time::Instant;

use gpu_device_plugin::api::v1beta1::{
    ContainerPreferredAllocationRequest, Empty, PreferredAllocationRequest,
};
use tokio::time::timeout;
use tonic::{Code, Status};

use super::expect::{self, Known, Request};
use super::plan::{Ask, Id};
use super::rig::{ANSWERED, Outcome, Soak};
use crate::common::running::allocate;

/// What became of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answered {
    Given,
    /// In these words.
    Refused(String),
    /// There was no plugin to ask, which the kubelet's doings explain.
    Unheard,
}

impl Soak {
    pub(crate) async fn ask(&self, ask: &Ask) -> Outcome {
        match ask {
            Ask::Allocate {
                resource,
                containers,
            } => self.ask_planned(*resource, containers).await.map(drop),
            Ask::Preferred {
                resource,
                available,
                must,
                size,
            } => self.ask_preferred(*resource, available, *must, *size).await,
            Ask::Options(resource) => self.ask_options(*resource).await,
        }
        .map_err(|fault| format!("{ask:?}: {fault}"))
    }

    async fn ask_planned(&self, resource: usize, containers: &[Vec<Id>]) -> Outcome<Answered> {
        let (name, devices) = self.resource(resource);
        let mut request = Request::default();
        let mut ids = Vec::new();
        for container in containers {
            let (mut known, mut named) = (Vec::new(), Vec::new());
            for id in container {
                match *id {
                    Id::Device(number) => known.push(&devices[number % devices.len()]),
                    Id::Unknown(number) => named.push(format!("GPU-{number:08x}")),
                    Id::Foreign(number) => named.push(self.foreign(resource, number)),
                }
            }
            request.is_wrong |= container.is_empty() || !named.is_empty();
            named.extend(known.iter().map(|known| known.id.clone()));
            request.containers.push(known);
            ids.push(named);
        }
        self.ask_allocate(name, ids, &request).await
    }

    /// An ID of another resource; where there is none, nobody's.
    fn foreign(&self, resource: usize, number: usize) -> String {
        let (_, devices) = self.resource((resource + 1) % self.resources.len());
        if self.resources.len() == 1 {
            return format!("{}::99", devices[number % devices.len()].id);
        }
        devices[number % devices.len()].id.clone()
    }

    /// Asks Allocate, and judges what comes of it.
    pub(crate) async fn ask_allocate(
        &self,
        resource: &str,
        ids: Vec<Vec<String>>,
        request: &Request<'_>,
    ) -> Outcome<Answered> {
        let begun = Instant::now();
        let before = self.truth.now();
        let call = async {
            let client = self.running.kubelet.client(resource).await;
            let mut client = client.map_err(|error| Status::unavailable(error.to_string()))?;
            allocate(&mut client, ids).await
        };
        let outcome = timeout(ANSWERED, call).await;
        let outcome = outcome.map_err(|_| format!("no answer within {ANSWERED:?}"))?;
        if self.is_cut(begun, outcome.as_ref().err()) {
            self.journal.count("requests cut");
            return Ok(Answered::Unheard);
        }
        let after = self.truth.now();
        let certain = |known: &Known| before.until(&after, known.gpu);
        let (node, kind) = (&self.running.node, self.plan.kind);
        expect::judge(request, certain, outcome.as_ref(), node, kind)?;
        Ok(match outcome {
            Ok(_) => {
                self.journal.count("requests answered");
                Answered::Given
            }
            Err(status) => {
                self.journal.count("requests refused");
                Answered::Refused(status.message().to_owned())
            }
        })
    }

    /// Whether the connection is to blame, and that the kubelet's doings explain it.
    fn is_cut(&self, begun: Instant, error: Option<&Status>) -> bool {
        const OF_CONNECTIONS: [Code; 4] = [
            Code::Unavailable,
            Code::Unknown,
            Code::Cancelled,
            Code::Internal,
        ];
        error.is_some_and(|status| OF_CONNECTIONS.contains(&status.code()))
            && self.unrest.since(begun)
    }

    async fn ask_preferred(
        &self,
        resource: usize,
        available: &[usize],
        must: usize,
        size: usize,
    ) -> Outcome {
        let (name, devices) = self.resource(resource);
        let available: BTreeSet<_> = available.iter().map(|at| at % devices.len()).collect();
        let available: Vec<_> = available
            .into_iter()
            .map(|at| devices[at].id.clone())
            .collect();
        let must = available[..must.min(available.len())].to_vec();
        let container = ContainerPreferredAllocationRequest {
            available_device_i_ds: available.clone(),
            must_include_device_i_ds: must.clone(),
            allocation_size: i32::try_from(size).unwrap_or(i32::MAX),
        };
        let begun = Instant::now();
        let call = async {
            let client = self.running.kubelet.client(name).await;
            let mut client = client.map_err(|error| Status::unavailable(error.to_string()))?;
            let request = PreferredAllocationRequest {
                container_requests: vec![container],
            };
            client.get_preferred_allocation(request).await
        };
        let answer = match timeout(ANSWERED, call).await {
            Err(_) => return Err(format!("no answer within {ANSWERED:?}")),
            Ok(Err(status)) if self.is_cut(begun, Some(&status)) => return Ok(()),
            Ok(answer) => answer.map_err(|status| format!("{status:?}"))?.into_inner(),
        };
        self.journal.count("preferences");
        let answer = answer.container_responses.into_iter().next();
        let answer = answer.map(|answer| answer.device_i_ds).unwrap_or_default();
        is_preference(&answer, &available, &must, size)
    }

    async fn ask_options(&self, resource: usize) -> Outcome {
        let (name, _) = self.resource(resource);
        let begun = Instant::now();
        let call = async {
            let client = self.running.kubelet.client(name).await;
            let mut client = client.map_err(|error| Status::unavailable(error.to_string()))?;
            client.get_device_plugin_options(Empty {}).await
        };
        match timeout(ANSWERED, call).await {
            Err(_) => Err(format!("no answer within {ANSWERED:?}")),
            Ok(Err(status)) if self.is_cut(begun, Some(&status)) => Ok(()),
            Ok(Err(status)) => Err(format!("{status:?}")),
            Ok(Ok(options)) if options.get_ref().pre_start_required => {
                Err("containers are made to wait".into())
            }
            Ok(Ok(_)) => Ok(()),
        }
    }
}

/// Nothing, or as many devices as asked for, of those that are available, with all
/// that must be in it. Where more are asked for than there are, any of these.
fn is_preference(answer: &[String], available: &[String], must: &[String], size: usize) -> Outcome {
    let set: BTreeSet<_> = answer.iter().collect();
    let fault = if answer.is_empty() {
        return Ok(());
    } else if set.len() != answer.len() {
        "a device is there twice"
    } else if !answer.iter().all(|id| available.contains(id)) {
        "a device is not available"
    } else if !must.iter().all(|id| answer.contains(id)) {
        "a device is not there that must be"
    } else if answer.len() != size && size <= available.len() {
        "the size is another"
    } else {
        return Ok(());
    };
    Err(format!(
        "{fault}: {answer:?} of {available:?} with {must:?}, {size} in all"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_preference_is_wrong_in_each_of_these_ways() {
        let ids = |ids: &[&str]| -> Vec<String> { ids.iter().map(|id| (*id).into()).collect() };
        let fault = |answer: &[&str], size| {
            let answer = is_preference(&ids(answer), &ids(&["a", "b", "c"]), &ids(&["a"]), size);
            answer.err().unwrap_or_default()
        };
        assert_eq!(fault(&[], 2), "");
        assert_eq!(fault(&["a", "c"], 2), "");
        assert_eq!(fault(&["a", "b", "c"], 4), "");
        assert!(fault(&["a", "a"], 2).starts_with("a device is there twice"));
        assert!(fault(&["a", "d"], 2).starts_with("a device is not available"));
        assert!(fault(&["b", "c"], 2).starts_with("a device is not there that must be"));
        assert!(fault(&["a"], 2).starts_with("the size is another"));
    }
}
