//! A control plane of the real programs, in a temporary folder: etcd and the API
//! server; a controller manager and a scheduler where pods have to be made and
//! placed.
//!
//! Not a part of `common`, whose every user would have to build it.

#![allow(dead_code, unreachable_pub, reason = "each test uses a part of it")]
#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "without it there is no test"
)]

#[path = "control_plane/certificates.rs"]
pub mod certificates;
#[path = "control_plane/door.rs"]
pub mod door;

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;

use certificates::Certificates;
use door::Door;
use serde_json::Value;

use crate::common::daemon::Daemon;
use crate::common::plugin::http_get;
use crate::common::system::on_path;
use crate::common::wait::eventually;

const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// The first address of the services' network, which the API server wants for its
/// own. Nobody listens there: there is no kube-proxy.
const SERVICES: &str = "10.0.0.0/24";

/// A program that the environment names, or why it does not.
pub fn named(variable: &str) -> Result<PathBuf, String> {
    let program = env::var_os(variable).ok_or_else(|| format!("{variable} is not set"))?;
    let program = PathBuf::from(program);
    if program.is_file() {
        Ok(program)
    } else {
        Err(format!("{variable}: {} is no file", program.display()))
    }
}

/// What it takes to have an API server.
#[derive(Clone, Debug)]
pub struct Programs {
    etcd: PathBuf,
    api_server: PathBuf,
}

impl Programs {
    /// Those that the environment names, or what is missing.
    pub fn find() -> Result<Self, String> {
        let api_server = named("KUBE_APISERVER")?;
        let etcd = match env::var_os("ETCD") {
            Some(_) => named("ETCD")?,
            None => on_path("etcd").ok_or("no etcd on PATH, and ETCD is not set")?,
        };
        on_path("openssl").ok_or("no openssl on PATH")?;
        Ok(Self { etcd, api_server })
    }
}

/// What it takes beside to have pods made and placed.
#[derive(Clone, Debug)]
pub struct Controllers {
    manager: PathBuf,
    scheduler: PathBuf,
}

impl Controllers {
    /// Those that the environment names, or what is missing.
    pub fn find() -> Result<Self, String> {
        Ok(Self {
            manager: named("KUBE_CONTROLLER_MANAGER")?,
            scheduler: named("KUBE_SCHEDULER")?,
        })
    }
}

/// Dropped, it is killed: nothing of it is kept.
pub struct ControlPlane {
    /// What depends on others comes before them.
    daemons: Vec<Daemon>,
    folder: PathBuf,
    certificates: Certificates,
    port: u16,
    /// Who may do everything.
    pub admin: Door,
}

impl ControlPlane {
    /// etcd and an API server, in `folder`.
    pub async fn start(programs: &Programs, folder: &Path) -> Self {
        let certificates = Certificates::make(&folder.join("certificates"));
        certificates.server("api-server", "/CN=kube-apiserver", &[LOCALHOST]);
        certificates.client("admin", "/O=system:masters/CN=admin");
        let port = free_port();
        let admin = Door::of(&certificates.kubeconfig("admin", &server(port)));
        let etcd = free_port();
        let mut control_plane = Self {
            daemons: Vec::new(),
            folder: folder.into(),
            certificates,
            port,
            admin,
        };
        control_plane.start_etcd(&programs.etcd, etcd).await;
        control_plane
            .start_api_server(&programs.api_server, etcd)
            .await;
        control_plane
    }

    async fn start_etcd(&mut self, program: &Path, port: u16) {
        let clients = format!("http://127.0.0.1:{port}");
        let peers = format!("http://127.0.0.1:{}", free_port());
        let mut command = Command::new(program);
        command
            .arg(flag("data-dir", self.folder.join("etcd")))
            .args(["--name=test", "--log-level=warn", "--unsafe-no-fsync"])
            .arg(flag("listen-client-urls", &clients))
            .arg(flag("advertise-client-urls", &clients))
            .arg(flag("listen-peer-urls", &peers))
            .arg(flag("initial-advertise-peer-urls", &peers))
            .arg(flag("initial-cluster", format!("test={peers}")));
        let daemon = self.start_daemon("etcd", &mut command);
        eventually("etcd is healthy", async || {
            daemon.assert_running();
            match http_get((LOCALHOST, port).into(), "/health").await {
                Ok((200, _)) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
    }

    async fn start_api_server(&mut self, program: &Path, etcd: u16) {
        let file = |name: &str| self.certificates.file(name);
        let mut command = Command::new(program);
        command
            .arg(flag("etcd-servers", format!("http://127.0.0.1:{etcd}")))
            .args(["--bind-address=127.0.0.1", "--advertise-address=127.0.0.1"])
            .arg(flag("secure-port", self.port.to_string()))
            .arg("--endpoint-reconciler-type=none")
            .arg(flag("cert-dir", self.folder.join("api-server")))
            .arg(flag("tls-cert-file", file("api-server.crt")))
            .arg(flag("tls-private-key-file", file("api-server.key")))
            .arg(flag("client-ca-file", file("ca.crt")))
            .arg("--service-account-issuer=https://kubernetes.default.svc")
            .arg(flag("service-account-key-file", file("accounts.pub")))
            .arg(flag(
                "service-account-signing-key-file",
                file("accounts.key"),
            ))
            .arg(flag("service-cluster-ip-range", SERVICES))
            .args(["--authorization-mode=Node,RBAC", "--allow-privileged=true"])
            .arg("--enable-admission-plugins=NodeRestriction");
        let admin = self.admin.clone();
        let daemon = self.start_daemon("kube-apiserver", &mut command);
        eventually("the API server is ready", async || {
            daemon.assert_running();
            admin.text("/readyz").await
        })
        .await;
    }

    fn start_daemon(&mut self, name: &'static str, command: &mut Command) -> &mut Daemon {
        self.daemons
            .insert(0, Daemon::start(name, command, &self.folder));
        &mut self.daemons[0]
    }

    /// Those who make pods and who place them, and wait until there can be one.
    pub async fn start_controllers(&mut self, controllers: &Controllers) {
        for name in ["controller-manager", "scheduler"] {
            let subject = format!("/CN=system:kube-{name}");
            self.certificates.client(name, &subject);
        }
        let common = |program: &Path, kubeconfig: PathBuf| {
            let mut command = Command::new(program);
            command
                .arg(flag("kubeconfig", kubeconfig))
                .args(["--secure-port=0", "--leader-elect=false"]);
            command
        };
        let mut command = common(&controllers.manager, self.kubeconfig("controller-manager"));
        let file = |name: &str| self.certificates.file(name);
        command
            .arg(flag(
                "service-account-private-key-file",
                file("accounts.key"),
            ))
            .arg(flag("root-ca-file", file("ca.crt")))
            .arg("--use-service-account-credentials=true")
            .arg("--allocate-node-cidrs=false");
        self.start_daemon("kube-controller-manager", &mut command);
        let mut command = common(&controllers.scheduler, self.kubeconfig("scheduler"));
        self.start_daemon("kube-scheduler", &mut command);
        let account = "/api/v1/namespaces/default/serviceaccounts/default";
        eventually("pods have an account", async || {
            self.admin.get(account).await
        })
        .await;
    }

    /// Ends those who make pods anew.
    pub fn end_controllers(&mut self) {
        let first = self.daemons.len().saturating_sub(2);
        self.daemons.drain(..first);
    }

    /// Ends all of it at once.
    pub fn kill(&mut self) {
        self.daemons.clear();
    }

    /// The kubeconfig of a node's kubelet.
    pub fn kubelet(&self, node: &str) -> PathBuf {
        let subject = format!("/O=system:nodes/CN=system:node:{node}");
        self.certificates.client("kubelet", &subject);
        self.kubeconfig("kubelet")
    }

    /// Writes the kubeconfig of a client that has a certificate, such as `admin`.
    pub fn kubeconfig(&self, name: &str) -> PathBuf {
        let file = self.certificates.file(&format!("{name}.kubeconfig"));
        let kubeconfig = self.certificates.kubeconfig(name, &server(self.port));
        // JSON is YAML.
        fs::write(&file, kubeconfig.to_string()).expect("write a kubeconfig");
        file
    }

    /// The port of the API server, on this machine's own address.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The kubeconfig of a user with a token of its own.
    pub fn with_token(&self, token: &str) -> Value {
        let server = server(self.port);
        self.certificates.kubeconfig_with_token(token, &server)
    }

    /// Applies all manifests of a file in deploy/.
    pub async fn apply(&self, file: &str) {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy");
        let manifests = fs::read_to_string(folder.join(file)).expect("a file of deploy/");
        for object in door::objects(&manifests) {
            let applied = self.admin.apply(&object).await;
            applied.unwrap_or_else(|refusal| panic!("{}: {refusal}", door::path_of(&object)));
        }
    }

    /// The ends of the logs.
    pub fn logs(&self) -> String {
        let logs = self.daemons.iter().map(Daemon::tail);
        logs.collect::<Vec<_>>().join("\n---\n")
    }
}

fn server(port: u16) -> String {
    format!("https://127.0.0.1:{port}")
}

fn flag(name: &str, value: impl AsRef<OsStr>) -> std::ffi::OsString {
    let mut flag = std::ffi::OsString::from(format!("--{name}="));
    flag.push(value);
    flag
}

/// One that was free a moment ago: these programs do not say which one they took.
fn free_port() -> u16 {
    let listener = TcpListener::bind((LOCALHOST, 0)).expect("a free port");
    listener.local_addr().expect("its address").port()
}
