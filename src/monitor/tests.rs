use std::sync::Mutex;
use std::sync::mpsc::{Receiver, channel};

use super::*;
use crate::config::{
    AllocationOptions, ClusterOptions, DriverOptions, EvictionOptions, HealthOptions, HostFolder,
    HostPaths, MigStrategy, VolumeMode, sharing::Sharing,
};
use crate::device::Health;
use crate::driver::DriverRoot;
use crate::driver::capabilities::Capabilities;
use crate::driver::nodes::DevRoot;
use crate::gpu::topology::{Place, Topology};
use crate::gpu::{EventSource, Gpu, GpuUuid, Reading, Vitals, XidEvent};

/// One GPU, whose driver tells its version when it is let.
struct SlowDriver(Mutex<Receiver<()>>);

impl GpuLibrary for SlowDriver {
    fn driver_version(&self) -> Result<String, LibraryError> {
        let released = self.0.lock().unwrap().recv();
        Ok(released.map(|()| "580.159.04".into()).unwrap())
    }

    fn count(&self) -> Result<u32, LibraryError> {
        Ok(1)
    }

    fn read(&self, index: u32) -> Reading {
        Reading::Gpu(Gpu {
            uuid: "GPU-a".into(),
            index,
            minor_number: 0,
            pci_bus_id: "00000000:3B:00.0".into(),
            numa_node: None,
            memory_bytes: None,
            compute_capability: None,
            product_name: "NVIDIA H200".into(),
            mig_enabled: false,
            mig_devices: Vec::new(),
        })
    }

    fn probe(&self, _uuid: &GpuUuid) -> Result<Vitals, LibraryError> {
        Ok(Vitals::default())
    }

    fn topology(&self, gpus: Vec<Place>) -> Topology {
        Topology::unlinked(gpus)
    }

    fn events(self: Arc<Self>, _gpus: &[GpuUuid]) -> Result<Box<dyn EventSource>, LibraryError> {
        Ok(Box::new(Silence))
    }
}

struct Silence;

impl EventSource for Silence {
    fn wait(&mut self, timeout: Duration) -> Result<Option<XidEvent>, LibraryError> {
        // Blocks as NVML does; nobody wakes it.
        std::thread::park_timeout(timeout);
        Ok(None)
    }
}

fn config(root: &std::path::Path) -> Config {
    Config {
        paths: HostPaths {
            device_plugin_dir: root.into(),
            nvml_library: None,
            driver_root: DriverRoot::new(root, root),
            dev_root: DevRoot::new(root, root),
            state_dir: HostFolder::below(root, "/state"),
            cdi_root: HostFolder::below(root, "/cdi"),
            pod_resources: HostFolder::below(root, "/pod-resources"),
            kmsg: root.join("kmsg"),
            host_root: root.into(),
            sysfs: root.into(),
            procfs: root.into(),
        },
        resource_name: "nvidia.com/gpu".into(),
        mig_strategy: MigStrategy::None,
        sharing: Sharing::default(),
        http_listen: ([127, 0, 0, 1], 0).into(),
        poll_interval: Duration::from_millis(100),
        driver: DriverOptions {
            capabilities: Capabilities::default(),
            volume: VolumeMode::Never,
            volume_grace: Duration::from_secs(600),
            make_device_nodes: false,
        },
        allocation: AllocationOptions::default(),
        health: HealthOptions::default(),
        eviction: EvictionOptions::default(),
        cluster: ClusterOptions::default(),
    }
}

#[tokio::test]
async fn the_first_list_waits_for_the_driver_too() {
    let root = tempfile::tempdir().unwrap();
    let (release, held) = channel();
    let library: Arc<dyn GpuLibrary> = Arc::new(SlowDriver(Mutex::new(held)));
    let readiness = Readiness::default();
    let monitor = Monitor::new(
        config(root.path()),
        Arc::new(move || Ok(library.clone())),
        Vec::new(),
        Arc::default(),
        readiness.clone(),
        Arc::default(),
        watch::channel(HealthOptions::default()).1,
    );
    let mut snapshots = monitor.resources().borrow()["nvidia.com/gpu"].clone();
    let running = tokio::spawn(monitor.run());
    while readiness.list().iter().any(|line| line.starts_with(GPUS)) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(!snapshots.borrow().complete, "enumerated, and not told yet");

    release.send(()).unwrap();
    let first = snapshots.wait_for(|snapshot| snapshot.complete).await;
    let health = first.unwrap().devices[0].health.clone();
    // There are no files in this root, which is an answer.
    let reason = matches!(health, Health::Unhealthy(UnhealthyReason::NoDriverFiles(_)));
    assert!(reason, "{health:?}");
    running.abort();
}
