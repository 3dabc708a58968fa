//! Giving devices to pods: pkg/kubelet/cm/devicemanager, manager.go, for a
//! node with topology manager policy "none" and pods without init containers.

use std::sync::Arc;
use std::time::Duration;

use gpu_device_plugin::api::v1beta1::{
    AllocateRequest, ContainerAllocateRequest, ContainerAllocateResponse,
    ContainerPreferredAllocationRequest, PreStartContainerRequest, PreferredAllocationRequest,
};

use super::clients::go_error;
use super::devices::{Endpoint, Held, Ids, Manager};
use super::events::{Event, Violation};
use super::life::{Life, PodSpec};
use super::{CONTAINER, link};

/// KubeletPreStartContainerRPCTimeoutInSecs; the other calls have no limit.
const PRE_START_LIMIT: Duration = Duration::from_secs(30);

/// What a pod's container runs with.
#[derive(Debug, Clone, PartialEq)]
pub struct Allocation {
    pub pod: String,
    /// In order.
    pub ids: Vec<String>,
    pub response: ContainerAllocateResponse,
}

/// Why a pod does not run, or not as its author meant.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AllocateError {
    #[error("the kubelet is not running")]
    KubeletDown,
    #[error("there is no pod {0}")]
    NoSuchPod(String),
    /// The kubelet strips requests for resources it never heard of, and the
    /// pod runs without devices (lifecycle/predicate.go).
    #[error("{resource} is not a device plugin's: pod {pod} is admitted without devices")]
    Stripped { pod: String, resource: String },
    /// Admission fails (cm/admission/errors.go): the pod is rejected for good.
    #[error("Allocate failed due to {0}, which is unexpected")]
    UnexpectedAdmission(String),
    /// The container waits and is tried again (kuberuntime_container.go).
    #[error("CreateContainerConfigError: {0}")]
    ContainerConfig(String),
}

/// What devicesToAllocate comes to before the plugin is asked.
enum Plan {
    Nothing,
    Choose { available: Ids },
}

impl Life {
    /// allocateContainerResources. `Ok(None)`: a resource nobody manages.
    pub(super) async fn allocate_container(
        self: &Arc<Self>,
        pod: &str,
        spec: &PodSpec,
        running: bool,
    ) -> Result<Option<Allocation>, String> {
        let resource = spec.resource.as_str();
        if !self.manager().is_device_plugin_resource(resource) {
            return Ok(None);
        }
        self.free_inactive();
        let ids = self.devices_to_allocate(pod, spec, running).await?;
        if ids.is_empty() {
            return Ok(Some(self.held(pod)));
        }
        let response = self.allocate_rpc(resource, &ids).await?;
        let mut manager = self.manager();
        let per_numa = manager.per_numa(resource, &ids);
        let resource = resource.to_owned();
        manager.pods.insert(
            pod.to_owned(),
            Held {
                resource,
                per_numa,
                response,
            },
        );
        self.write_checkpoint(&manager);
        drop(manager);
        Ok(Some(self.held(pod)))
    }

    /// What the pod holds now, from the kubelet's memory.
    pub(super) fn held(&self, pod: &str) -> Allocation {
        let held = self.manager().pods.get(pod).cloned();
        let ids = held.as_ref().map(Held::ids).unwrap_or_default();
        Allocation {
            pod: pod.to_owned(),
            ids: ids.into_iter().collect(),
            response: held.map(|held| held.response).unwrap_or_default(),
        }
    }

    /// devicesToAllocate. The manager is free while the plugin answers.
    async fn devices_to_allocate(
        &self,
        pod: &str,
        spec: &PodSpec,
        running: bool,
    ) -> Result<Ids, String> {
        let (resource, needed) = (spec.resource.as_str(), spec.count);
        let plan = self.manager().plan(pod, spec, running)?;
        let Plan::Choose { available } = plan else {
            return Ok(Ids::new());
        };
        let preferred = self.preferred(resource, &available, needed).await?;
        let wanted = preferred.intersection(&available).cloned();
        let mut order = self.shared.shuffled(wanted);
        // Whatever the plugin did not choose, the kubelet chooses at random.
        order.extend(
            self.shared
                .shuffled(available.difference(&preferred).cloned()),
        );
        let chosen: Ids = order.into_iter().take(needed).collect();
        let mut manager = self.manager();
        manager
            .allocated
            .entry(resource.to_owned())
            .or_default()
            .extend(chosen.iter().cloned());
        Ok(chosen)
    }

    /// callGetPreferredAllocationIfAvailable. Nothing is ever pre-chosen here,
    /// so that must_include stays empty.
    async fn preferred(&self, resource: &str, available: &Ids, size: usize) -> Result<Ids, String> {
        let endpoint = self.endpoint(resource)?;
        if !endpoint
            .options
            .is_some_and(|o| o.get_preferred_allocation_available)
        {
            return Ok(Ids::new());
        }
        let failed = |why: String| {
            format!("device plugin GetPreferredAllocation rpc failed with err: {why}")
        };
        let channel = endpoint.channel(resource).map_err(failed)?;
        let ids = self.shared.shuffled(available.iter().cloned());
        let (resource, available) = (resource.to_owned(), ids.clone());
        self.emit(Event::PreferredCalled {
            resource,
            available,
            size,
        });
        let request = ContainerPreferredAllocationRequest {
            available_device_i_ds: ids,
            must_include_device_i_ds: Vec::new(),
            allocation_size: i32::try_from(size).unwrap_or(i32::MAX),
        };
        let request = PreferredAllocationRequest {
            container_requests: vec![request],
        };
        let answer = link::client(channel)
            .get_preferred_allocation(request)
            .await;
        let answer = answer
            .map_err(|status| failed(go_error(&status)))?
            .into_inner();
        let first = answer.container_responses.into_iter().next();
        Ok(first
            .map(|first| first.device_i_ds.into_iter().collect())
            .unwrap_or_default())
    }

    /// The Allocate call, and what becomes of the devices when it fails: they
    /// are free again, except when the answer was empty.
    async fn allocate_rpc(
        &self,
        resource: &str,
        ids: &Ids,
    ) -> Result<ContainerAllocateResponse, String> {
        let restore = |reason: String| {
            self.manager().restore_allocated();
            reason
        };
        let endpoint = self.manager().endpoints.get(resource).cloned();
        let endpoint =
            endpoint.ok_or_else(|| restore(format!("unknown Device Plugin {resource}")))?;
        let channel = endpoint.channel(resource).map_err(restore)?;
        let devices_ids = self.shared.shuffled(ids.iter().cloned());
        let (named, ids) = (resource.to_owned(), devices_ids.clone());
        self.emit(Event::AllocateCalled {
            resource: named,
            ids,
        });
        let container_requests = vec![ContainerAllocateRequest { devices_ids }];
        let answer = link::client(channel)
            .allocate(AllocateRequest { container_requests })
            .await;
        let answer = answer
            .map_err(|status| restore(go_error(&status)))?
            .into_inner();
        let responses = answer.container_responses.len();
        if responses != 1 {
            let resource = resource.to_owned();
            self.violation(Violation::NotOneResponse {
                resource,
                responses,
            });
        }
        let first = answer.container_responses.into_iter().next();
        first.ok_or_else(|| "no containers return in allocation response".to_owned())
    }

    /// GetDeviceRunContainerOptions, for a container that starts again: the
    /// answer comes from memory, whatever the devices' health is now.
    pub(super) async fn container_options(
        self: &Arc<Self>,
        pod: &str,
        spec: &PodSpec,
    ) -> Result<Option<Allocation>, String> {
        let resource = spec.resource.as_str();
        if spec.count == 0 || !self.manager().is_device_plugin_resource(resource) {
            return Ok(None);
        }
        self.pre_start(pod, resource).await?;
        if self.manager().pods.contains_key(pod) {
            return Ok(Some(self.held(pod)));
        }
        self.allocate_container(pod, spec, false).await
    }

    /// callPreStartContainerIfNeeded.
    async fn pre_start(&self, pod: &str, resource: &str) -> Result<(), String> {
        let endpoint = self.endpoint(resource)?;
        if !endpoint
            .options
            .is_some_and(|options| options.pre_start_required)
        {
            return Ok(());
        }
        let held = self.manager().pods.get(pod).map(Held::ids);
        let ids = held.ok_or_else(|| {
            format!(
                "no devices found allocated in local cache for pod {pod}, \
                 container {CONTAINER}, resource {resource}"
            )
        })?;
        let failed =
            |why: String| format!("device plugin PreStartContainer rpc failed with err: {why}");
        let mut api = link::client(endpoint.channel(resource).map_err(failed)?);
        let devices_ids = self.shared.shuffled(ids);
        let (resource, ids) = (resource.to_owned(), devices_ids.clone());
        self.emit(Event::PreStartCalled { resource, ids });
        let call = api.pre_start_container(PreStartContainerRequest { devices_ids });
        match tokio::time::timeout(PRE_START_LIMIT, call).await {
            Ok(answer) => answer.map(drop).map_err(|status| failed(go_error(&status))),
            Err(_) => Err(failed(
                "rpc error: code = DeadlineExceeded desc = context deadline exceeded".to_owned(),
            )),
        }
    }

    fn endpoint(&self, resource: &str) -> Result<Endpoint, String> {
        self.manager()
            .endpoints
            .get(resource)
            .cloned()
            .ok_or_else(|| {
                format!("endpoint not found in cache for a registered resource: {resource}")
            })
    }
}

impl Manager {
    /// devicesToAllocate up to its first question to the plugin: the order of
    /// the checks is the kubelet's, and decides which error a pod shows.
    fn plan(&self, pod: &str, spec: &PodSpec, running: bool) -> Result<Plan, String> {
        let PodSpec {
            resource,
            count: required,
        } = spec;
        let held = self.pods.get(pod).map(Held::ids);
        let had = held.as_ref().map_or(0, Ids::len);
        if held.is_some() && had != *required {
            return Err(format!(
                "pod \"{pod}\" container \"{CONTAINER}\" changed request for resource \
                 \"{resource}\" from {had} to {required}"
            ));
        }
        if running {
            return Ok(Plan::Nothing);
        }
        let Some(healthy) = self.healthy.get(resource) else {
            return Err(format!("cannot allocate unregistered device {resource}"));
        };
        if healthy.is_empty() {
            return Err(format!(
                "no healthy devices present; cannot allocate unhealthy devices {resource}"
            ));
        }
        if held.as_ref().is_some_and(|held| !held.is_subset(healthy)) {
            return Err(format!(
                "previously allocated devices are no longer healthy; \
                 cannot allocate unhealthy devices {resource}"
            ));
        }
        if held.is_some() || *required == 0 {
            return Ok(Plan::Nothing);
        }
        let in_use = self.allocated.get(resource).cloned().unwrap_or_default();
        let available: Ids = healthy.difference(&in_use).cloned().collect();
        if available.len() < *required {
            return Err(format!(
                "requested number of devices unavailable for {resource}. \
                 Requested: {required}, Available: {}",
                available.len()
            ));
        }
        Ok(Plan::Choose { available })
    }
}
