//! What a kubelet asks of a runtime, over its socket: the few messages of
//! runtime.v1 that it takes to run a container, and of them the fields in use.
//! Numbers are those of k8s.io/cri-api's pkg/apis/runtime/v1/api.proto.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use gpu_device_plugin::api::v1beta1::ContainerAllocateResponse;
use http::uri::PathAndQuery;
use hyper_util::rt::TokioIo;
use prost::Message;
use tokio::net::UnixStream;
use tonic::client::Grpc;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};
use tonic_prost::ProstCodec;
use tower::service_fn;

use crate::runtime::Setting;

/// `NamespaceMode.NODE`.
const OF_THE_NODE: i32 = 2;
/// `ContainerState.CONTAINER_EXITED`.
const EXITED: i32 = 2;

#[derive(Clone, PartialEq, Message)]
pub struct PodSandboxMetadata {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    uid: String,
    #[prost(string, tag = "3")]
    namespace: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct NamespaceOption {
    #[prost(int32, tag = "1")]
    network: i32,
}

#[derive(Clone, PartialEq, Message)]
pub struct SandboxSecurityContext {
    #[prost(message, optional, tag = "1")]
    namespace_options: Option<NamespaceOption>,
}

#[derive(Clone, PartialEq, Message)]
pub struct LinuxPodSandboxConfig {
    #[prost(message, optional, tag = "2")]
    security_context: Option<SandboxSecurityContext>,
}

#[derive(Clone, PartialEq, Message)]
pub struct PodSandboxConfig {
    #[prost(message, optional, tag = "1")]
    metadata: Option<PodSandboxMetadata>,
    #[prost(string, tag = "3")]
    log_directory: String,
    #[prost(message, optional, tag = "8")]
    linux: Option<LinuxPodSandboxConfig>,
}

#[derive(Clone, PartialEq, Message)]
pub struct RunPodSandboxRequest {
    #[prost(message, optional, tag = "1")]
    config: Option<PodSandboxConfig>,
}

/// The ID of a sandbox or a container is the first field of all messages that
/// hold nothing else of use here.
#[derive(Clone, PartialEq, Message)]
pub struct Id {
    #[prost(string, tag = "1")]
    id: String,
}

/// An answer that tells nothing.
#[derive(Clone, PartialEq, Message)]
pub struct Nothing {}

#[derive(Clone, PartialEq, Message)]
pub struct ContainerMetadata {
    #[prost(string, tag = "1")]
    name: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct ImageSpec {
    #[prost(string, tag = "1")]
    image: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct KeyValue {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(string, tag = "2")]
    value: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct Mount {
    #[prost(string, tag = "1")]
    container_path: String,
    #[prost(string, tag = "2")]
    host_path: String,
    #[prost(bool, tag = "3")]
    readonly: bool,
}

#[derive(Clone, PartialEq, Message)]
pub struct Device {
    #[prost(string, tag = "1")]
    container_path: String,
    #[prost(string, tag = "2")]
    host_path: String,
    #[prost(string, tag = "3")]
    permissions: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct CdiDevice {
    #[prost(string, tag = "1")]
    name: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct Capability {
    #[prost(string, repeated, tag = "2")]
    drop_capabilities: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Int64Value {
    #[prost(int64, tag = "1")]
    value: i64,
}

#[derive(Clone, PartialEq, Message)]
pub struct SecurityContext {
    #[prost(message, optional, tag = "1")]
    capabilities: Option<Capability>,
    #[prost(message, optional, tag = "3")]
    namespace_options: Option<NamespaceOption>,
    #[prost(message, optional, tag = "5")]
    run_as_user: Option<Int64Value>,
    #[prost(bool, tag = "7")]
    readonly_rootfs: bool,
    #[prost(bool, tag = "11")]
    no_new_privs: bool,
    #[prost(message, optional, tag = "12")]
    run_as_group: Option<Int64Value>,
}

#[derive(Clone, PartialEq, Message)]
pub struct LinuxContainerConfig {
    #[prost(message, optional, tag = "2")]
    security_context: Option<SecurityContext>,
}

#[derive(Clone, PartialEq, Message)]
pub struct ContainerConfig {
    #[prost(message, optional, tag = "1")]
    metadata: Option<ContainerMetadata>,
    #[prost(message, optional, tag = "2")]
    image: Option<ImageSpec>,
    #[prost(string, repeated, tag = "3")]
    command: Vec<String>,
    #[prost(message, repeated, tag = "6")]
    envs: Vec<KeyValue>,
    #[prost(message, repeated, tag = "7")]
    mounts: Vec<Mount>,
    #[prost(message, repeated, tag = "8")]
    devices: Vec<Device>,
    #[prost(btree_map = "string, string", tag = "10")]
    annotations: BTreeMap<String, String>,
    #[prost(string, tag = "11")]
    log_path: String,
    #[prost(message, optional, tag = "15")]
    linux: Option<LinuxContainerConfig>,
    #[prost(message, repeated, tag = "17")]
    cdi_devices: Vec<CdiDevice>,
}

#[derive(Clone, PartialEq, Message)]
pub struct CreateContainerRequest {
    #[prost(string, tag = "1")]
    pod_sandbox_id: String,
    #[prost(message, optional, tag = "2")]
    config: Option<ContainerConfig>,
    #[prost(message, optional, tag = "3")]
    sandbox_config: Option<PodSandboxConfig>,
}

#[derive(Clone, PartialEq, Message)]
pub struct ContainerStatus {
    #[prost(int32, tag = "3")]
    state: i32,
    #[prost(string, tag = "10")]
    reason: String,
    #[prost(string, tag = "11")]
    message: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct ContainerStatusResponse {
    #[prost(message, optional, tag = "1")]
    status: Option<ContainerStatus>,
}

/// What a kubelet makes of Allocate's answer
/// (Kubernetes' pkg/kubelet/cm/devicemanager/pod_devices.go).
pub fn container(
    answer: &ContainerAllocateResponse,
    image: &str,
    command: Vec<String>,
    Setting { user, read_only }: Setting,
) -> ContainerConfig {
    let id = || Int64Value {
        value: user.id().into(),
    };
    let mounts = answer.mounts.iter().map(|mount| Mount {
        container_path: mount.container_path.clone(),
        host_path: mount.host_path.clone(),
        readonly: mount.read_only,
    });
    let devices = answer.devices.iter().map(|device| Device {
        container_path: device.container_path.clone(),
        host_path: device.host_path.clone(),
        permissions: device.permissions.clone(),
    });
    let pairs = |(key, value): (&String, &String)| (key.clone(), value.clone());
    let envs = answer.envs.iter().map(pairs);
    let names = answer.cdi_devices.iter();
    let security_context = SecurityContext {
        capabilities: Some(Capability {
            drop_capabilities: user.dropped().map(str::to_owned).into_iter().collect(),
        }),
        namespace_options: Some(NamespaceOption {
            network: OF_THE_NODE,
        }),
        run_as_user: Some(id()),
        run_as_group: Some(id()),
        readonly_rootfs: read_only,
        no_new_privs: true,
    };
    ContainerConfig {
        metadata: Some(ContainerMetadata {
            name: "probe".into(),
        }),
        image: Some(ImageSpec {
            image: image.into(),
        }),
        command,
        envs: envs.map(|(key, value)| KeyValue { key, value }).collect(),
        mounts: mounts.collect(),
        devices: devices.collect(),
        annotations: answer.annotations.iter().map(pairs).collect(),
        log_path: LOG.into(),
        linux: Some(LinuxContainerConfig {
            security_context: Some(security_context),
        }),
        cdi_devices: names
            .map(|device| CdiDevice {
                name: device.name.clone(),
            })
            .collect(),
    }
}

/// A container's log, below its pod's folder.
const LOG: &str = "probe.log";

/// A runtime's side for kubelets.
pub struct Runtime {
    grpc: Grpc<Channel>,
}

/// A pod without containers.
pub struct Pod {
    id: String,
    config: PodSandboxConfig,
}

impl Pod {
    /// The log of its only container.
    pub fn log(&self) -> PathBuf {
        Path::new(&self.config.log_directory).join(LOG)
    }
}

impl Runtime {
    pub async fn connect(socket: PathBuf) -> Self {
        let connect = service_fn(move |_| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        });
        // The address is of no use but has to be one.
        let endpoint = Endpoint::from_static("http://runtime.invalid");
        let channel = endpoint.connect_with_connector(connect).await;
        Self {
            grpc: Grpc::new(channel.expect("connect to the runtime")),
        }
    }

    async fn ask<Q, A>(&mut self, method: &str, question: Q) -> Result<A, Status>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        let path = format!("/runtime.v1.RuntimeService/{method}");
        let path = PathAndQuery::try_from(path).expect("a path");
        let ready = self.grpc.ready().await;
        ready.map_err(|error| Status::unavailable(error.to_string()))?;
        let codec = ProstCodec::<Q, A>::default();
        let answer = self.grpc.unary(Request::new(question), path, codec);
        answer.await.map(tonic::Response::into_inner)
    }

    /// Whether it is ready to be asked.
    pub async fn version(&mut self) -> Result<(), Status> {
        let Nothing {} = self.ask("Version", Nothing {}).await?;
        Ok(())
    }

    /// Runs a pod on the node's network, with a folder for its log.
    pub async fn run_pod(&mut self, name: &str, log_directory: &Path) -> Pod {
        let namespaces = NamespaceOption {
            network: OF_THE_NODE,
        };
        let config = PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: name.into(),
                uid: name.into(),
                namespace: "default".into(),
            }),
            log_directory: log_directory.display().to_string(),
            linux: Some(LinuxPodSandboxConfig {
                security_context: Some(SandboxSecurityContext {
                    namespace_options: Some(namespaces),
                }),
            }),
        };
        let request = RunPodSandboxRequest {
            config: Some(config.clone()),
        };
        let pod: Result<Id, _> = self.ask("RunPodSandbox", request).await;
        let id = pod.expect("a pod").id;
        Pod { id, config }
    }

    pub async fn create(&mut self, pod: &Pod, config: ContainerConfig) -> Result<String, Status> {
        let request = CreateContainerRequest {
            pod_sandbox_id: pod.id.clone(),
            config: Some(config),
            sandbox_config: Some(pod.config.clone()),
        };
        let created: Id = self.ask("CreateContainer", request).await?;
        Ok(created.id)
    }

    pub async fn start(&mut self, id: &str) -> Result<(), Status> {
        let Nothing {} = self.ask("StartContainer", Id { id: id.into() }).await?;
        Ok(())
    }

    /// Whether the container has ended; else its state.
    pub async fn ended(&mut self, id: &str) -> Result<(), String> {
        let status = self.ask("ContainerStatus", Id { id: id.into() }).await;
        let status: ContainerStatusResponse = status.map_err(|status| status.to_string())?;
        let status = status.status.unwrap_or_default();
        if status.state == EXITED {
            return Ok(());
        }
        Err(format!("{status:?}"))
    }

    /// Ends a pod with all that is in it.
    pub async fn remove_pod(&mut self, pod: Pod) {
        for method in ["StopPodSandbox", "RemovePodSandbox"] {
            let done: Result<Nothing, _> = self.ask(method, Id { id: pod.id.clone() }).await;
            done.expect(method);
        }
    }
}
