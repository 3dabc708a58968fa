//! Pods that come, restart and go.

use std::sync::atomic::Ordering;

use super::allocation::{AllocateError, Allocation};
use super::life::PodSpec;
use super::{KubeletPeer, lock};

impl KubeletPeer {
    /// Admits a new pod that asks for `count` devices.
    pub async fn allocate(
        &self,
        resource: &str,
        count: usize,
    ) -> Result<Allocation, AllocateError> {
        let pod = format!("pod-{}", self.pods_made.fetch_add(1, Ordering::Relaxed));
        self.admit(&pod, resource, count).await
    }

    /// Admits the pod of that name: new, or again after a reboot.
    pub async fn admit(
        &self,
        pod: &str,
        resource: &str,
        count: usize,
    ) -> Result<Allocation, AllocateError> {
        let spec = PodSpec {
            resource: resource.to_owned(),
            count,
        };
        lock(&self.shared.pods).insert(pod.to_owned(), spec.clone());
        self.handle_addition(pod, &spec, false).await
    }

    /// Admits a pod whose container kept running while the kubelet restarted:
    /// nothing is asked of anybody.
    pub async fn readmit_running(&self, pod: &str) -> Result<Allocation, AllocateError> {
        let spec = self.spec(pod)?;
        self.handle_addition(pod, &spec, true).await
    }

    async fn handle_addition(
        &self,
        pod: &str,
        spec: &PodSpec,
        running: bool,
    ) -> Result<Allocation, AllocateError> {
        let _turn = self.sync_loop.lock().await;
        let life = self.running().ok_or(AllocateError::KubeletDown)?;
        match life.allocate_container(pod, spec, running).await {
            Ok(allocation) => allocation.ok_or_else(|| stripped(pod, spec)),
            Err(reason) => {
                lock(&self.shared.pods).remove(pod);
                Err(AllocateError::UnexpectedAdmission(reason))
            }
        }
    }

    /// Starts the pod's container again.
    pub async fn restart_container(&self, pod: &str) -> Result<Allocation, AllocateError> {
        let spec = self.spec(pod)?;
        let life = self.running().ok_or(AllocateError::KubeletDown)?;
        let options = life.container_options(pod, &spec).await;
        options
            .map_err(AllocateError::ContainerConfig)?
            .ok_or_else(|| stripped(pod, &spec))
    }

    /// Deletes the pod. A kubelet frees its devices at the next admission at
    /// the latest; a running peer frees them now.
    pub fn free(&self, pod: &str) {
        lock(&self.shared.pods).remove(pod);
        if let Some(life) = self.running() {
            life.free_inactive();
        }
    }

    fn spec(&self, pod: &str) -> Result<PodSpec, AllocateError> {
        let spec = lock(&self.shared.pods).get(pod).cloned();
        spec.ok_or_else(|| AllocateError::NoSuchPod(pod.to_owned()))
    }
}

fn stripped(pod: &str, spec: &PodSpec) -> AllocateError {
    AllocateError::Stripped {
        pod: pod.to_owned(),
        resource: spec.resource.clone(),
    }
}
