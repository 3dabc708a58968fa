//! The kubelet as the plugins' client: pkg/kubelet/cm/devicemanager/plugin/
//! v1beta1, handler.go and client.go, with their races.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use gpu_device_plugin::api::v1beta1::{DevicePluginOptions, Empty};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::devices::Endpoint;
use super::events::Event;
use super::faults::RegisterFault;
use super::life::Life;
use super::{link, lock};

/// How the kubelet treats a resource that registers while it has a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Takeover {
    /// Kubernetes 1.36: one client a name. The replaced one stays connected,
    /// and when its stream ends the newer one is disconnected.
    #[default]
    ByName,
    /// Upstream since kubernetes/kubernetes#135437: one client a name and
    /// socket. Both stay connected; the end of one does not touch the other
    /// unless they share the socket's name.
    BySocket,
    /// A kubelet that closes the connection it replaces.
    ClosesReplaced,
}

/// client.go, client: one registration's connection to its plugin.
pub(super) struct Client {
    pub(super) id: u64,
    pub(super) resource: String,
    pub(super) socket: PathBuf,
    /// Cancelled by Disconnect, which closes the connection.
    closed: CancellationToken,
    /// Cancelled to end only the stream.
    stream: CancellationToken,
    /// Kept until the kubelet's death, so that a connection which the kubelet
    /// forgot to close stays open, as it does there.
    channel: Mutex<Option<Channel>>,
}

/// handler.go's map of clients, and what the peer must remember besides.
#[derive(Default)]
pub(super) struct Clients {
    registered: BTreeMap<String, Vec<Arc<Client>>>,
    streams: BTreeMap<String, BTreeSet<u64>>,
    all: Vec<Arc<Client>>,
}

impl Clients {
    fn register(&mut self, takeover: Takeover, client: &Arc<Client>) {
        let of_name = self.registered.entry(client.resource.clone()).or_default();
        if takeover != Takeover::BySocket {
            let replaced = std::mem::take(of_name);
            if takeover == Takeover::ClosesReplaced {
                replaced.iter().for_each(|client| client.closed.cancel());
            }
        }
        of_name.push(Arc::clone(client));
        self.all.push(Arc::clone(client));
    }

    fn deregister(&mut self, takeover: Takeover, client: &Client) {
        if let Some(of_name) = self.registered.get_mut(&client.resource) {
            of_name.retain(|other| !takeover.same(other, client));
        }
    }

    /// getClient: whoever is registered *now* where this client was.
    fn get(&self, takeover: Takeover, client: &Client) -> Option<Arc<Client>> {
        let of_name = self.registered.get(&client.resource)?;
        of_name
            .iter()
            .find(|other| takeover.same(other, client))
            .cloned()
    }

    pub(super) fn streams(&self, resource: &str) -> usize {
        self.streams.get(resource).map_or(0, BTreeSet::len)
    }

    /// Ends every open stream of the resource, not the connections.
    pub(super) fn cancel_streams(&self, resource: &str) {
        let open = self.streams.get(resource);
        let open = |id| open.is_some_and(|open| open.contains(&id));
        self.all
            .iter()
            .filter(|c| open(c.id))
            .for_each(|c| c.stream.cancel());
    }
}

impl Takeover {
    fn same(self, a: &Client, b: &Client) -> bool {
        match self {
            Self::ByName => true,
            Self::BySocket => a.socket == b.socket,
            Self::ClosesReplaced => a.id == b.id,
        }
    }
}

impl Life {
    /// handler.go, connectClient. `rpc` ends with the Register call.
    pub(super) async fn connect_client(
        self: Arc<Self>,
        resource: String,
        endpoint: String,
        fault: Option<RegisterFault>,
        rpc: CancellationToken,
    ) -> Result<(), String> {
        let takeover = self.shared.options.takeover;
        let client = self.new_client(&resource, &endpoint);
        if let Err(reason) = self.connect(&client, &endpoint, &rpc).await {
            lock(&self.clients).deregister(takeover, &client);
            return Err(reason);
        }
        self.emit(Event::Registered { resource, endpoint });
        match fault {
            Some(RegisterFault::NoStream) => {}
            fault => {
                let cancel = fault == Some(RegisterFault::CancelStream);
                tokio::spawn(self.run_client(client, cancel));
            }
        }
        Ok(())
    }

    /// NewPluginClient and registerClient: known before it is connected.
    fn new_client(&self, resource: &str, endpoint: &str) -> Arc<Client> {
        let mut clients = lock(&self.clients);
        let client = Arc::new(Client {
            id: clients.all.len() as u64,
            resource: resource.to_owned(),
            socket: self.shared.folder.join(endpoint),
            closed: self.token.child_token(),
            stream: self.token.child_token(),
            channel: Mutex::default(),
        });
        clients.register(self.shared.options.takeover, &client);
        client
    }

    /// client.go, Connect, and manager.go, PluginConnected.
    async fn connect(
        &self,
        client: &Client,
        endpoint: &str,
        rpc: &CancellationToken,
    ) -> Result<(), String> {
        let (resource, endpoint) = (client.resource.clone(), endpoint.to_owned());
        let dialling = Event::Dialling {
            resource: resource.clone(),
            endpoint: endpoint.clone(),
        };
        self.emit(dialling);
        let limit = self.shared.options.dial_limit;
        let channel = tokio::select! {
            biased;
            () = rpc.cancelled() => Err("context canceled"),
            dialled = tokio::time::timeout(
                limit,
                link::dial(&client.socket, &client.closed, &self.connections),
            ) => dialled.map_err(|_| "context deadline exceeded"),
        };
        let channel =
            channel.map_err(|reason| format!("failed to dial device plugin: {reason}"))?;
        *lock(&client.channel) = Some(channel.clone());
        self.emit(Event::DialledBack {
            resource: resource.clone(),
            endpoint,
        });

        let options = self
            .ask_options(channel.clone(), client, rpc)
            .await
            .map_err(|status| {
                format!("failed to get device plugin options: {}", go_error(&status))
            })?;
        let connected = Endpoint::connected(client.socket.clone(), channel, options);
        self.manager().endpoints.insert(resource, connected);
        self.shared.journal.ring();
        Ok(())
    }

    async fn ask_options(
        &self,
        channel: Channel,
        client: &Client,
        rpc: &CancellationToken,
    ) -> Result<DevicePluginOptions, Status> {
        let mut api = link::client(channel);
        tokio::select! {
            biased;
            () = rpc.cancelled() => Err(Status::cancelled("context canceled")),
            () = client.closed.cancelled() => {
                Err(Status::cancelled("grpc: the client connection is closing"))
            }
            answer = api.get_device_plugin_options(Empty {}) => answer.map(|a| a.into_inner()),
        }
    }

    /// handler.go, runClient. The lookup after the stream's end is the race:
    /// it can find, and disconnect, a client that registered meanwhile.
    async fn run_client(self: Arc<Self>, client: Arc<Client>, cancel: bool) {
        let (resource, id) = (&client.resource, client.id);
        lock(&self.clients)
            .streams
            .entry(resource.clone())
            .or_default()
            .insert(id);
        self.emit(Event::StreamOpened {
            resource: resource.clone(),
            client: id,
        });
        let reason = tokio::select! {
            // The cause before its effects: a closed connection fails the RPC.
            biased;
            () = client.closed.cancelled() => "the kubelet closed the connection".to_owned(),
            () = client.stream.cancelled() => "the kubelet cancelled the stream".to_owned(),
            status = self.run(&client, cancel) => go_error(&status),
        };
        self.emit(Event::StreamEnded {
            resource: resource.clone(),
            client: id,
            reason,
        });

        let found = lock(&self.clients).get(self.shared.options.takeover, &client);
        if let Some(found) = found {
            self.disconnect_client(&found);
        }
        lock(&self.clients)
            .streams
            .entry(resource.clone())
            .or_default()
            .remove(&id);
        self.shared.journal.ring();
    }

    /// client.go, Run: until the stream ends, which it always does somehow.
    async fn run(&self, client: &Client, cancel: bool) -> Status {
        let Some(channel) = lock(&client.channel).clone() else {
            return Status::cancelled("grpc: the client connection is closing");
        };
        let mut stream = match link::client(channel).list_and_watch(Empty {}).await {
            Ok(response) => response.into_inner(),
            Err(status) => return status,
        };
        if cancel {
            return Status::cancelled("context canceled");
        }
        let mut previous = None;
        loop {
            match stream.message().await {
                Ok(Some(list)) => {
                    self.receive(client, list.devices.clone(), previous.as_deref());
                    previous = Some(list.devices);
                }
                Ok(None) => return Status::new(Code::Ok, "EOF"),
                Err(status) => return status,
            }
        }
    }

    /// handler.go, disconnectClient; client.go, Disconnect.
    fn disconnect_client(&self, client: &Client) {
        let takeover = self.shared.options.takeover;
        lock(&self.clients).deregister(takeover, client);
        // A client that is still being dialled has nothing to close, and goes
        // on to connect though the map does not know it any more.
        if lock(&client.channel).is_some() {
            client.closed.cancel();
        }
        let only = (takeover != Takeover::ByName).then_some(client.socket.as_path());
        let now = self.shared.now();
        if self.manager().disconnected(&client.resource, only, now) {
            self.emit(Event::Disconnected {
                resource: client.resource.clone(),
            });
        }
    }
}

/// A status as Go prints it, which is what ends up in pods' events.
pub(super) fn go_error(status: &Status) -> String {
    let code = match status.code() {
        Code::Ok => return status.message().to_owned(),
        Code::Cancelled => "Canceled".to_owned(),
        code => format!("{code:?}"),
    };
    format!("rpc error: code = {code} desc = {}", status.message())
}
