//! What the devices of the simulated node are, and what a right answer about them
//! is: told by the node itself, and by nothing that the plugin said.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use gpu_device_plugin::api::v1beta1::{AllocateResponse, ContainerAllocateResponse};
use tonic::{Code, Status};

use super::plan::Kind;
use crate::common::nvml::{Gpu, SimulatedNode, capability_minor};
use crate::common::running::RESOURCE;

/// How often each GPU is advertised where they are shared.
pub(crate) const REPLICAS: usize = 4;
/// What every container gets beside its GPUs.
const COMMON_NODES: [&str; 3] = ["/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools"];

/// One device as the kubelet should know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Known {
    pub(crate) id: String,
    /// The GPU that it is, or is a part of, by position.
    pub(crate) gpu: usize,
    /// Its own device nodes, as a container sees them.
    nodes: BTreeSet<String>,
    /// What runtimes call it.
    name: String,
}

/// The devices of each resource, in the order in which they are listed.
pub(crate) type Resources = BTreeMap<String, Vec<Known>>;

/// A node of this kind.
pub(crate) fn node(kind: Kind) -> SimulatedNode {
    let node = SimulatedNode::new(kind.gpus());
    if kind == Kind::Mig {
        node.enable_mig(0, &["1g.18gb", "1g.18gb", "3g.71gb"]);
        node.enable_mig(1, &["1g.18gb", "3g.71gb"]);
    }
    node
}

/// Every device of a node of this kind.
pub(crate) fn resources(node: &SimulatedNode, kind: Kind) -> Resources {
    let mut resources = Resources::new();
    for (position, gpu) in node.state().gpus.iter().enumerate() {
        for (resource, known) in devices_of(kind, position, gpu) {
            resources.entry(resource).or_default().push(known);
        }
    }
    for devices in resources.values_mut() {
        devices.sort_by(|a, b| a.id.cmp(&b.id));
    }
    resources
}

fn devices_of(kind: Kind, position: usize, gpu: &Gpu) -> Vec<(String, Known)> {
    let node = format!("/dev/nvidia{}", gpu.minor_number);
    let known = |id: String, nodes: Vec<String>, name: &String| Known {
        id,
        gpu: position,
        nodes: nodes.into_iter().collect(),
        name: name.clone(),
    };
    let uuid = &gpu.uuid;
    match kind {
        Kind::Shared => (0..REPLICAS)
            .map(|number| {
                let id = format!("{uuid}::{number}");
                (RESOURCE.to_owned(), known(id, vec![node.clone()], uuid))
            })
            .collect(),
        Kind::Mig if gpu.mig.enabled => {
            let device = |mig: &crate::common::nvml::MigInstance| {
                let minor = capability_minor(gpu.minor_number, mig.gpu_instance_id);
                let minors = [minor, minor + 1 + mig.compute_instance_id];
                let caps = minors.map(|minor| format!("/dev/nvidia-caps/nvidia-cap{minor}"));
                let nodes = [std::slice::from_ref(&node), &caps].concat();
                let resource = format!("nvidia.com/mig-{}", mig.profile);
                (resource, known(mig.uuid.clone(), nodes, &mig.uuid))
            };
            gpu.mig.instances.iter().map(device).collect()
        }
        Kind::Whole | Kind::Mig => {
            vec![(RESOURCE.to_owned(), known(uuid.clone(), vec![node], uuid))]
        }
    }
}

/// What is wrong with an answer about these devices, one list a container.
pub(crate) fn check(
    answer: &AllocateResponse,
    asked: &[Vec<&Known>],
    node: &SimulatedNode,
    kind: Kind,
) -> Result<(), String> {
    let answers = &answer.container_responses;
    if answers.len() != asked.len() {
        let (got, wanted) = (answers.len(), asked.len());
        return Err(format!("{got} answers for {wanted} containers"));
    }
    let mut pairs = answers.iter().zip(asked);
    pairs.try_for_each(|(answer, asked)| check_container(answer, asked, node, kind))
}

/// The same for one container.
pub(crate) fn check_container(
    answer: &ContainerAllocateResponse,
    asked: &[&Known],
    node: &SimulatedNode,
    kind: Kind,
) -> Result<(), String> {
    let own = asked.iter().flat_map(|known| &known.nodes).cloned();
    let wanted: BTreeSet<String> = own.chain(COMMON_NODES.map(str::to_owned)).collect();
    let got = answer.devices.iter();
    let got: BTreeSet<_> = got.map(|device| device.container_path.clone()).collect();
    if got != wanted || answer.devices.len() != wanted.len() {
        return Err(format!(
            "wrong device nodes: {:?}, not {wanted:?}",
            answer.devices
        ));
    }
    let root = node.dev_root().display().to_string();
    for device in &answer.devices {
        let host = format!("{root}{}", device.container_path);
        if device.host_path != host || device.permissions != "rw" {
            return Err(format!("{device:?} is not {host}, rw"));
        }
    }
    for mount in &answer.mounts {
        let host = Path::new(&mount.host_path);
        if !mount.read_only || !host.starts_with(node.volumes()) || !host.exists() {
            return Err(format!("a wrong mount: {mount:?}"));
        }
    }
    check_names(answer, asked, kind)
}

/// Whether runtimes are told the right devices, or nothing where that is not asked
/// for.
fn check_names(
    answer: &ContainerAllocateResponse,
    asked: &[&Known],
    kind: Kind,
) -> Result<(), String> {
    let names: BTreeSet<_> = asked.iter().map(|known| known.name.as_str()).collect();
    let names: Vec<_> = names.into_iter().collect();
    let (mut envs, mut cdi) = (Vec::new(), Vec::new());
    if kind == Kind::Shared {
        envs.push(("NVIDIA_VISIBLE_DEVICES", names.join(",")));
        let qualified = names
            .iter()
            .map(|name| format!("gpu-device-plugin/gpu={name}"));
        cdi.extend(qualified);
    }
    let got = answer.envs.iter();
    let got: Vec<_> = got
        .map(|(key, value)| (key.as_str(), value.clone()))
        .collect();
    let got_cdi = answer.cdi_devices.iter();
    let got_cdi: Vec<_> = got_cdi.map(|device| device.name.clone()).collect();
    if got != envs || got_cdi != cdi || answer.mounts.is_empty() {
        return Err(format!(
            "{names:?} are told as {got:?} and {got_cdi:?}, with {} mounts",
            answer.mounts.len()
        ));
    }
    Ok(())
}

/// What is known of a device's health for the whole time of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Certain {
    /// Nothing has happened to it.
    Well,
    /// The plugin has said so, and what makes it sick holds on.
    Sick,
    /// Either may be right.
    Nothing,
}

/// What a request comes to.
#[derive(Clone, Debug, Default)]
pub(crate) struct Request<'a> {
    pub(crate) containers: Vec<Vec<&'a Known>>,
    /// It names what is not of the resource, or nothing at all.
    pub(crate) is_wrong: bool,
}

/// What is wrong with an outcome, given what is certain of each device in the
/// request.
pub(crate) fn judge(
    request: &Request<'_>,
    certain: impl Fn(&Known) -> Certain,
    outcome: Result<&AllocateResponse, &Status>,
    node: &SimulatedNode,
    kind: Kind,
) -> Result<(), String> {
    let devices = || request.containers.iter().flatten();
    let any = |wanted| devices().any(|known| certain(known) == wanted);
    let all_well = !any(Certain::Sick) && !any(Certain::Nothing);
    match outcome.map_err(Status::code) {
        Ok(_) if request.is_wrong => Err("a wrong request is answered".into()),
        Ok(_) if any(Certain::Sick) => Err("a sick device is given".into()),
        Ok(answer) => check(answer, &request.containers, node, kind),
        Err(Code::InvalidArgument) if request.is_wrong => Ok(()),
        Err(Code::FailedPrecondition) if !all_well => Ok(()),
        Err(_) => Err(format!("refused, and wrongly so: {outcome:?}")),
    }
}

#[cfg(test)]
mod tests {
    use gpu_device_plugin::api::v1beta1::DeviceSpec;

    use super::*;

    fn refused(code: Code) -> Result<AllocateResponse, Status> {
        Err(Status::new(code, "no"))
    }

    #[test]
    fn the_right_status_depends_on_what_is_certain() {
        use Certain::{Nothing, Sick, Well};
        use Code::{FailedPrecondition, InvalidArgument, Unavailable};
        let node = node(Kind::Whole);
        let resources = resources(&node, Kind::Whole);
        let known = &resources[RESOURCE][0];
        for (is_wrong, certain, code, is_right) in [
            (false, Well, FailedPrecondition, false),
            (false, Well, InvalidArgument, false),
            (false, Nothing, FailedPrecondition, true),
            (false, Sick, FailedPrecondition, true),
            (false, Sick, InvalidArgument, false),
            (true, Well, InvalidArgument, true),
            (true, Well, FailedPrecondition, false),
            (true, Sick, FailedPrecondition, true),
            (true, Nothing, Unavailable, false),
        ] {
            let containers = vec![vec![known]];
            let request = Request {
                containers,
                is_wrong,
            };
            let outcome = refused(code);
            let outcome = outcome.as_ref();
            let verdict = judge(&request, |_| certain, outcome, &node, Kind::Whole);
            assert_eq!(verdict.is_ok(), is_right, "{is_wrong} {certain:?} {code:?}");
        }
    }

    #[test]
    fn an_answer_with_another_gpus_node_is_wrong() {
        let node = node(Kind::Whole);
        let resources = resources(&node, Kind::Whole);
        let spec = |container: &str| DeviceSpec {
            container_path: container.into(),
            host_path: format!("{}{container}", node.dev_root().display()),
            permissions: "rw".into(),
        };
        let answer = |own: &[&str]| ContainerAllocateResponse {
            devices: own
                .iter()
                .chain(&COMMON_NODES)
                .map(|node| spec(node))
                .collect(),
            ..ContainerAllocateResponse::default()
        };
        let asked = [&resources[RESOURCE][2]];
        let check = |own: &[&str]| check_container(&answer(own), &asked, &node, Kind::Whole);
        let fault = |own: &[&str]| check(own).unwrap_err();
        for own in [
            &["/dev/nvidia1"][..],
            &[],
            &["/dev/nvidia2", "/dev/nvidia1"],
        ] {
            assert!(fault(own).starts_with("wrong device nodes"), "{own:?}");
        }
        // The nodes are right, and mounts are missing.
        assert!(fault(&["/dev/nvidia2"]).contains("0 mounts"));
    }
}
