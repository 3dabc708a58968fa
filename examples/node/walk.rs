//! The steps.

use std::fmt::Display;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use gpu_device_plugin::api::v1beta1::{
    AllocateRequest, AllocateResponse, ContainerAllocateRequest, Device,
};
use tonic::Status;

use super::answer;
use super::common::kubelet::{Allocation, Event, KubeletPeer, Options, Record};
use super::common::nvml::SimulatedNode;
use super::common::plugin::{PluginProcess, http_get};
use super::print::{Failure, Printer, Step, ensure};
use super::stage::Stage;

const RESOURCE: &str = "nvidia.com/gpu";
/// How long anything may take before its step has failed.
const LIMIT: Duration = Duration::from_secs(10);
/// An illegal access to memory: a fault of the program that ran.
const XID_OF_APPLICATION: u64 = 31;
/// The GPU has fallen off the bus.
const XID_OF_DEVICE: u64 = 79;

type Checked<T = Step> = Result<T, Failure>;

/// The node, its kubelet, the plugin, and what the steps so far left behind.
pub(crate) struct Walk {
    program: PathBuf,
    stage: Stage,
    printer: Printer,
    kubelet: KubeletPeer,
    plugin: Option<PluginProcess>,
    /// The file name of the plugin's socket.
    endpoint: String,
    /// The first pod's.
    allocation: Option<Allocation>,
    /// The position of a GPU that no pod holds.
    spare: usize,
    /// Where the kubelet's log was when an application failed.
    mark: usize,
}

impl Walk {
    pub(crate) fn new(program: PathBuf, stage: Stage, printer: Printer) -> Self {
        let kubelet = KubeletPeer::new(stage.device_plugin_dir(), Options::default());
        Self {
            program,
            stage,
            printer,
            kubelet,
            plugin: None,
            endpoint: String::new(),
            allocation: None,
            spare: 0,
            mark: 0,
        }
    }

    /// Takes the steps one after the other, to the first that does not hold.
    pub(crate) async fn all_steps(&mut self) -> bool {
        let walked = self.steps().await;
        match walked {
            Ok(()) => println!("\nEvery step held."),
            Err(Stopped) => println!("\nThe walk ends at the step that failed."),
        }
        walked.is_ok()
    }

    async fn steps(&mut self) -> Result<(), Stopped> {
        let step = self.start().await;
        self.tell("the plugin starts and registers", step)?;
        let step = self.list();
        self.tell("the kubelet knows its devices", step)?;
        let step = self.allocate().await;
        self.tell("a pod asks for one GPU", step)?;
        let (application, bus, refused) = (
            "a program in a pod fails (XID 31): no fault of the GPU",
            "a GPU falls off the bus: it is Unhealthy",
            "it is given to no pod",
        );
        if self.simulated().is_some() {
            let step = self.application_fails().await;
            self.tell(application, step)?;
            let step = self.lose().await;
            self.tell(bus, step)?;
            let step = self.refuse().await;
            self.tell(refused, step)?;
        } else {
            self.skip(&[application, bus, refused]);
        }
        let step = self.restart_kubelet().await;
        self.tell("the kubelet restarts: registered again", step)?;
        let (back, xid) = (
            "the GPU is back: it is Healthy",
            "a GPU reports XID 79: it is Unhealthy",
        );
        if self.simulated().is_some() {
            let step = self.restore().await;
            self.tell(back, step)?;
            let step = self.xid().await;
            self.tell(xid, step)?;
        } else {
            self.skip(&[back, xid]);
        }
        let step = self.terminate().await;
        self.tell("the plugin is told to end (SIGTERM): exit code 0", step)
    }

    fn tell(&self, title: &str, step: Checked) -> Result<(), Stopped> {
        match step {
            Ok(step) => {
                self.printer.held(title, &step);
                Ok(())
            }
            Err(failure) => {
                let log = self.plugin.as_ref().map(PluginProcess::log);
                self.printer
                    .failed(title, &failure, &log.unwrap_or_default());
                Err(Stopped)
            }
        }
    }

    fn skip(&self, titles: &[&str]) {
        titles.iter().for_each(|title| self.printer.skipped(title));
    }

    // === Steps ===

    async fn start(&mut self) -> Checked {
        expect("a kubelet", self.kubelet.start().await)?;
        let arguments = self.stage.plugin_arguments();
        let begin = Instant::now();
        let plugin = PluginProcess::spawn(&self.program, arguments, &[]);
        self.plugin = Some(expect("a running plugin", plugin)?);
        let list = self.next_list(0, "the plugin's first list", |_| true);
        let list = list.await?;
        let registered = self.events(0).find_map(|event| match event {
            Event::Registered { endpoint, .. } => Some(endpoint),
            _ => None,
        });
        self.endpoint = expect("a registration", registered.ok_or("none"))?;
        let mut step = Step::took(list.at.duration_since(begin))
            .detail("from the start of the process to its list at the kubelet");
        step.details.extend(self.resident_memory());
        Ok(step)
    }

    fn list(&mut self) -> Checked {
        let devices = self.kubelet.devices(RESOURCE);
        let healthy = devices.iter().filter(|d| is_healthy(d)).count();
        let came = format!("{} devices, {healthy} of them Healthy", devices.len());
        let expected = self.stage.gpus().unwrap_or(healthy.max(1));
        ensure(
            healthy == expected && devices.len() == expected,
            &format!("{expected} devices, all Healthy"),
            &came,
        )?;
        let lines = devices.iter().map(|device| {
            let numa = numa_node(device).map_or("no NUMA node".to_owned(), |node| {
                format!("NUMA node {node}")
            });
            format!("{}  {}  {numa}", device.id, device.health)
        });
        Ok(Step {
            time: None,
            details: lines.collect(),
        })
    }

    async fn allocate(&mut self) -> Checked {
        let allocation = self.kubelet.allocate(RESOURCE, 1).await;
        let allocation = expect("one device for the pod", allocation)?;
        ensure(
            !allocation.response.devices.is_empty() && !allocation.response.mounts.is_empty(),
            "device nodes and the driver's files in the answer",
            format!("{:?}", allocation.response),
        )?;
        // The pod's time has the kubelet's checkpoint in it, which is on disk.
        let (time, again) = self.ask_for(&allocation.ids).await?;
        let again = expect("the same answer again", again)?;
        ensure(
            again.container_responses == [allocation.response.clone()],
            "the same answer when asked again",
            format!("{again:?}"),
        )?;
        let listed = self.kubelet.devices(RESOURCE);
        let spare = listed
            .iter()
            .position(|device| !allocation.ids.contains(&device.id));
        // Without a spare GPU no step needs one.
        self.spare = spare.unwrap_or_default();
        let details = answer::describe(&allocation);
        self.allocation = Some(allocation);
        Ok(Step {
            time: Some(time),
            details,
        })
    }

    async fn application_fails(&mut self) -> Checked {
        self.mark = self.kubelet.mark();
        let (node, plugin) = (self.node()?, self.process()?);
        let held = self.pod()?.ids.first().cloned().unwrap_or_default();
        node.xid(&held, XID_OF_APPLICATION);
        let begin = node.changed_at();
        let heard = plugin.wait_for_line("XID event", LIMIT).await;
        let heard = expect("the XID in the log", heard)?;
        let address = expect("the address of /metrics in the log", http_address(plugin))?;
        let metrics = expect("/metrics", http_get(address, "/metrics").await)?.1;
        let wanted = [
            format!(
                "gpu_device_plugin_xids_total{{uuid=\"{held}\",xid=\"{XID_OF_APPLICATION}\"}} 1"
            ),
            format!(
                "gpu_device_plugin_devices{{resource=\"{RESOURCE}\",health=\"Healthy\"}} {}",
                node.state().gpus.len()
            ),
        ];
        for line in &wanted {
            ensure(metrics.lines().any(|other| other == line), line, &metrics)?;
        }
        Ok(Step::took(heard.at.duration_since(begin))
            .detail(format!("/metrics counts it for {held}"))
            .detail("the device stays Healthy, and the kubelet hears nothing"))
    }

    async fn lose(&mut self) -> Checked {
        let (node, gpus) = (self.node()?, self.gpus()?);
        let uuid = node.uuid(self.spare);
        node.lose(self.spare);
        let begin = node.changed_at();
        let what = format!("a list with {uuid} Unhealthy");
        let list = self.next_list(self.mark, &what, |_| true).await?;
        let (devices, at) = (listed(&list), list.at);
        // The first list since the application's failure, which sent none.
        let sick: Vec<_> = devices.iter().filter(|d| !is_healthy(d)).collect();
        ensure(
            devices.len() == gpus && sick.len() == 1 && sick[0].id == uuid,
            &format!("{what}, and no other"),
            format!("{devices:?}"),
        )?;
        self.counted((gpus - 1, gpus)).await?;
        Ok(Step::took(at.duration_since(begin)).detail(format!(
            "seen by the poll of its health, every 100 ms here; allocatable is {}/{gpus}",
            gpus - 1
        )))
    }

    async fn refuse(&mut self) -> Checked {
        let (node, gpus) = (self.node()?, self.gpus()?);
        let uuid = node.uuid(self.spare);
        let (one_too_many, all) = (gpus - 1, gpus - 2);
        let refused = self.kubelet.allocate(RESOURCE, one_too_many).await;
        let refused = match refused {
            Err(error) => error.to_string(),
            Ok(given) => {
                return Err(Failure::new(
                    format!("no pod with {one_too_many} GPUs"),
                    given.ids.join(", "),
                ));
            }
        };
        if all > 0 {
            let given = self.kubelet.allocate(RESOURCE, all).await;
            let given = expect("all other GPUs for another pod", given)?;
            ensure(
                !given.ids.contains(&uuid),
                &format!("a pod without {uuid}"),
                given.ids.join(", "),
            )?;
            self.kubelet.free(&given.pod);
        }
        let (time, answer) = self.ask_for(std::slice::from_ref(&uuid)).await?;
        let status = match answer {
            Err(status) if status.message().contains(&uuid) => status,
            other => {
                let expected = format!("an error that names {uuid}");
                return Err(Failure::new(expected, format!("{other:?}")));
            }
        };
        let status = format!("{:?}: {}", status.code(), status.message());
        Ok(Step::took(time)
            .detail(format!(
                "{all} GPUs are left for pods; one that wants {one_too_many}: {refused}"
            ))
            .detail(format!(
                "asked for it all the same, the plugin answers: {status}"
            )))
    }

    /// Allocate without the kubelet's own look at the devices' health.
    async fn ask_for(
        &self,
        ids: &[String],
    ) -> Checked<(Duration, Result<AllocateResponse, Status>)> {
        let client = self.kubelet.client(RESOURCE).await;
        let mut client = expect("a connection to the plugin", client)?;
        let request = AllocateRequest {
            container_requests: vec![ContainerAllocateRequest {
                devices_ids: ids.to_vec(),
            }],
        };
        let begin = Instant::now();
        let answer = client.allocate(request).await;
        Ok((begin.elapsed(), answer.map(tonic::Response::into_inner)))
    }

    async fn restart_kubelet(&mut self) -> Checked {
        let pod = self.pod()?.clone();
        let before = self.kubelet.counts(RESOURCE);
        let mark = self.kubelet.mark();
        expect("a new kubelet", self.kubelet.restart().await)?;
        let list = self.next_list(mark, "a list at the new kubelet", |_| true);
        let list = list.await?;
        let accepting = self
            .kubelet
            .events()
            .into_iter()
            .skip(mark)
            .find(|record| matches!(record.event, Event::SocketAccepting { .. }));
        let accepting = expect("a kubelet that accepts", accepting.ok_or("none"))?.at;
        self.counted((before.allocatable, before.capacity)).await?;
        let kept = self.kubelet.readmit_running(&pod.pod).await;
        let kept = expect("the pod as it was", kept)?;
        ensure(kept == pod, &format!("{pod:?}"), format!("{kept:?}"))?;
        Ok(Step::took(list.at.duration_since(accepting))
            .detail("from the kubelet's first accept to the list; no restart of the plugin")
            .detail(format!("{} still holds {}", pod.pod, pod.ids.join(", "))))
    }

    async fn restore(&mut self) -> Checked {
        let (node, gpus) = (self.node()?, self.gpus()?);
        let mark = self.kubelet.mark();
        node.restore(self.spare);
        let begin = node.changed_at();
        let list = self.next_list(mark, "a list of Healthy devices", |devices| {
            devices.iter().all(is_healthy)
        });
        let list = list.await?;
        self.counted((gpus, gpus)).await?;
        Ok(Step::took(list.at.duration_since(begin))
            .detail(format!("allocatable is {gpus}/{gpus} again")))
    }

    async fn xid(&mut self) -> Checked {
        let (node, gpus) = (self.node()?, self.gpus()?);
        let uuid = node.uuid(self.spare);
        let mark = self.kubelet.mark();
        node.xid(self.spare, XID_OF_DEVICE);
        let begin = node.changed_at();
        let what = format!("a list with {uuid} Unhealthy");
        let list = self.next_list(mark, &what, |devices| {
            devices.iter().any(|d| d.id == uuid && !is_healthy(d))
        });
        let list = list.await?;
        self.counted((gpus - 1, gpus)).await?;
        Ok(Step::took(list.at.duration_since(begin)).detail(
            "told by the driver's event, not by a poll; of class reboot, so it is out until \
             the node has booted",
        ))
    }

    async fn terminate(&mut self) -> Checked {
        let begin = Instant::now();
        expect("a signal to the plugin", self.process()?.terminate())?;
        let plugin = self.plugin.as_mut();
        let plugin = plugin.ok_or_else(|| Failure::new("a running plugin", "none"))?;
        let status = expect("its end", plugin.wait(LIMIT).await)?;
        let time = begin.elapsed();
        ensure(status.code() == Some(0), "exit code 0", status)?;
        let socket = self.kubelet.folder().join(&self.endpoint);
        ensure(
            !socket.exists(),
            "its socket gone",
            format!("{} is still there", socket.display()),
        )?;
        let violations = self.kubelet.violations();
        ensure(
            violations.is_empty(),
            "nothing that the kubelet would take amiss",
            format!("{violations:?}\n{}", self.kubelet.history()),
        )?;
        Ok(Step::took(time).detail("its socket is gone"))
    }

    // === What steps need ===

    fn simulated(&self) -> Option<&SimulatedNode> {
        match &self.stage {
            Stage::Simulated(node) => Some(node),
            Stage::Real(_) => None,
        }
    }

    fn node(&self) -> Checked<&SimulatedNode> {
        let missing = || Failure::new("a simulated node", "this machine");
        self.simulated().ok_or_else(missing)
    }

    fn gpus(&self) -> Checked<usize> {
        Ok(self.node()?.state().gpus.len())
    }

    fn process(&self) -> Checked<&PluginProcess> {
        let missing = || Failure::new("a running plugin", "none");
        self.plugin.as_ref().ok_or_else(missing)
    }

    fn pod(&self) -> Checked<&Allocation> {
        let missing = || Failure::new("a pod with a GPU", "none");
        self.allocation.as_ref().ok_or_else(missing)
    }

    fn events(&self, mark: usize) -> impl Iterator<Item = Event> {
        let records = self.kubelet.events().into_iter();
        records.skip(mark).map(|record| record.event)
    }

    /// The first list since `mark` that is as wanted.
    async fn next_list(
        &self,
        mark: usize,
        what: &str,
        wanted: impl Fn(&[Device]) -> bool,
    ) -> Checked<Record> {
        let list = self.kubelet.wait_event(
            what,
            mark,
            LIMIT,
            |event| matches!(event, Event::ListReceived { devices, .. } if wanted(devices)),
        );
        list.await.map_err(|error| Failure::new(what, error))
    }

    async fn counted(&self, counts: (usize, usize)) -> Checked<()> {
        let counted = self.kubelet.wait_counts(RESOURCE, counts, LIMIT).await;
        expect(&format!("allocatable {}/{}", counts.0, counts.1), counted)
    }

    /// A line, where the system tells.
    fn resident_memory(&self) -> Option<String> {
        let pid = self.plugin.as_ref()?.pid()?;
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))?;
        let kilobytes: f64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
        Some(format!("resident memory: {:.1} MiB", kilobytes / 1024.0))
    }
}

/// A step failed, and was told.
struct Stopped;

fn expect<T>(expected: &str, result: Result<T, impl Display>) -> Checked<T> {
    result.map_err(|error| Failure::new(expected, error))
}

fn is_healthy(device: &Device) -> bool {
    device.health == "Healthy"
}

fn numa_node(device: &Device) -> Option<i64> {
    let topology = device.topology.as_ref()?;
    topology.nodes.first().map(|node| node.id)
}

fn listed(record: &Record) -> &[Device] {
    match &record.event {
        Event::ListReceived { devices, .. } => devices,
        _ => &[],
    }
}

/// From the line that tells where HTTP is served.
fn http_address(plugin: &PluginProcess) -> Result<SocketAddr, String> {
    let log = plugin.log();
    let address = log
        .split_whitespace()
        .find_map(|word| word.strip_prefix("address="));
    let address = address.and_then(|address| address.parse().ok());
    address.ok_or(log)
}
