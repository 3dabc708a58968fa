//! Clients beside the kubelet: those who read slowly or never, those who vanish,
//! those of the HTTP endpoints, and the pods.

use std::time::Duration;

use gpu_device_plugin::api::v1beta1::{Empty, ListAndWatchResponse};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use tonic::Streaming;

use super::expect;
use super::plan::{Open, PodAction, Reader, Reload, Scrape, Text};
use super::rig::{Outcome, REGISTERED, Soak};
use crate::common::kubelet::{AllocateError, Allocation};

/// So many streams are open beside the kubelet's at a time.
const MOST: usize = 100;
/// What a slow reader has for one list.
const MOMENT: Duration = Duration::from_millis(2);

/// Clients who stay for a while.
struct Guests {
    resource: String,
    stay: usize,
    reads: bool,
    streams: Vec<Streaming<ListAndWatchResponse>>,
    _mute: Vec<UnixStream>,
}

/// The clients of one round. Dropped, they are all gone at once.
#[derive(Default)]
pub(crate) struct House(Vec<Guests>);

impl Soak {
    pub(crate) async fn open(&self, house: &mut House, open: &Open) -> Outcome {
        self.journal.action("stream actions", open);
        house.0.retain_mut(|guests| {
            guests.stay -= 1;
            guests.stay > 0
        });
        for guests in house.0.iter_mut().filter(|guests| guests.reads) {
            self.read(guests).await?;
        }
        let there: usize = house.0.iter().map(|guests| guests.streams.len()).sum();
        let guests = self.guests(open, open.count.min(MOST - there)).await;
        if open.reader != Reader::Vanishes {
            house.0.push(guests);
        }
        Ok(())
    }

    /// A plugin that cannot be reached now has no guests: whether it may be is the
    /// business of others.
    async fn guests(&self, open: &Open, count: usize) -> Guests {
        let (resource, _) = self.resource(open.resource);
        let mut guests = Guests {
            resource: resource.to_owned(),
            stay: open.stay,
            reads: open.reader == Reader::Slowly,
            streams: Vec::new(),
            _mute: Vec::new(),
        };
        if open.reader == Reader::Mute {
            for socket in self.running.sockets().into_iter().take(count) {
                if let Ok(mut stream) = UnixStream::connect(socket).await {
                    // Half of what HTTP/2 begins with.
                    drop(stream.write_all(b"PRI * HTTP/2").await);
                    guests._mute.push(stream);
                }
            }
            return guests;
        }
        let mut client = None;
        for _ in 0..count {
            let kept = client.take().filter(|_| open.one_connection);
            let mut used = match kept {
                Some(client) => client,
                None => match self.running.kubelet.client(resource).await {
                    Ok(client) => client,
                    Err(_) => return guests,
                },
            };
            let call = timeout(REGISTERED, used.list_and_watch(Empty {})).await;
            if let Ok(Ok(stream)) = call {
                guests.streams.push(stream.into_inner());
                self.journal.count("streams");
            }
            client = Some(used);
        }
        guests
    }

    /// Reads a list of each stream, where one is there; those that ended go.
    async fn read(&self, guests: &mut Guests) -> Outcome {
        let mut open = Vec::new();
        for mut stream in guests.streams.drain(..) {
            match timeout(MOMENT, stream.message()).await {
                Ok(Ok(Some(list))) => {
                    self.journal.count("lists read by others");
                    self.check_list(&guests.resource, &list.devices)?;
                    open.push(stream);
                }
                Err(_) => open.push(stream),
                Ok(Ok(None) | Err(_)) => {}
            }
        }
        guests.streams = open;
        Ok(())
    }

    // === HTTP ===

    pub(crate) async fn scrape(&self, half: &mut Vec<TcpStream>, scrape: Scrape) -> Outcome {
        self.journal.count("scrapes");
        match scrape {
            Scrape::Live => match self.get("/livez").await? {
                (200, body) if body == "ok\n" => Ok(()),
                other => Err(format!("/livez says {other:?}")),
            },
            Scrape::Ready => match self.get("/readyz").await? {
                (200 | 503, _) => Ok(()),
                other => Err(format!("/readyz says {other:?}")),
            },
            Scrape::Metrics => match self.get("/metrics").await? {
                (200, text) if text.ends_with("# EOF\n") => Ok(()),
                (status, _) => Err(format!("/metrics is not whole: {status}")),
            },
            Scrape::Half => {
                let stream = TcpStream::connect(self.running.http).await;
                let mut stream = stream.map_err(|error| format!("no connection: {error}"))?;
                // Whether it is taken is no matter.
                drop(stream.write_all(b"GET /metrics HTTP/1.1\r\nHo").await);
                half.push(stream);
                Ok(())
            }
        }
    }

    // === The configuration file ===

    /// Another file; what it says holds soon, or what an earlier one said does.
    pub(crate) async fn reload(&self, reload: Reload) -> Outcome {
        self.journal.action("reloads", &reload);
        let Reload { text, hangup } = reload;
        let before = self.reloads().await?;
        let is_other = self.configure(text);
        if hangup {
            let signal = self.running.plugin.signal(libc::SIGHUP);
            signal.map_err(|error| format!("SIGHUP: {error}"))?;
        }
        // Nothing says that the same was read again, unless it was asked for.
        if !is_other && !hangup {
            return Ok(());
        }
        let what = format!("{reload:?} to be taken in");
        let result = if text.is_good() { 0 } else { 1 };
        self.eventually(&what, REGISTERED, async || {
            let now = self.reloads().await?;
            Ok((now[result] > before[result]).then_some(()))
        })
        .await?;
        if text.is_good() {
            let lenient = text == Text::Lenient;
            self.lenient
                .store(lenient, std::sync::atomic::Ordering::Relaxed);
        }
        Ok(())
    }

    /// How often the file was read well, and with faults.
    async fn reloads(&self) -> Outcome<[u64; 2]> {
        let (_, text) = self.get("/metrics").await?;
        Ok(["ok", "failed"].map(|result| {
            let name = format!("gpu_device_plugin_config_reloads_total{{result=\"{result}\"}} ");
            let mut lines = text.lines();
            let count = lines.find_map(|line| line.strip_prefix(&name)?.parse().ok());
            count.unwrap_or_default()
        }))
    }

    // === Pods ===
    pub(crate) async fn pod(&self, pods: &mut Vec<Pod>, action: PodAction) -> Outcome {
        self.journal.action("pod actions", &action);
        let kubelet = &self.running.kubelet;
        let chosen = |number: usize| pods.get(number % pods.len().max(1)).cloned();
        match action {
            PodAction::Admit { resource, count } => {
                let (resource, _) = self.resource(resource);
                let before = std::time::Instant::now();
                let given = kubelet.allocate(resource, count).await;
                if let Some(allocation) = self.judge_pod(resource, before, given)? {
                    self.journal.count("pods");
                    pods.push(Pod {
                        name: allocation.pod,
                        resource: resource.to_owned(),
                    });
                }
            }
            PodAction::RestartContainer(number) => {
                if let Some(pod) = chosen(number) {
                    let before = std::time::Instant::now();
                    let given = kubelet.restart_container(&pod.name).await;
                    self.judge_pod(&pod.resource, before, given)?;
                }
            }
            PodAction::Readmit(number) => {
                if let Some(pod) = chosen(number) {
                    // Of a running pod nothing is asked: it is for the kubelet's memory.
                    drop(kubelet.readmit_running(&pod.name).await);
                }
            }
            PodAction::Free(number) => {
                if let Some(pod) = chosen(number) {
                    kubelet.free(&pod.name);
                    pods.retain(|other| other.name != pod.name);
                }
            }
        }
        Ok(())
    }

    /// The pods of a round end with it.
    pub(crate) fn free_all(&self, pods: Vec<Pod>) {
        for pod in pods {
            self.running.kubelet.free(&pod.name);
        }
    }

    /// What a pod got, if it runs. A kubelet refuses for many good reasons of its
    /// own; the plugin's are those of any request.
    fn judge_pod(
        &self,
        resource: &str,
        before: std::time::Instant,
        given: Result<Allocation, AllocateError>,
    ) -> Outcome<Option<Allocation>> {
        let allocation = match given {
            Ok(allocation) => allocation,
            Err(error) => {
                let text = error.to_string();
                let by_plugin = text.contains("rpc error") && !text.contains("FailedPrecondition");
                if by_plugin && !self.unrest.since(before) {
                    return Err(format!("a pod is refused: {text}"));
                }
                return Ok(None);
            }
        };
        let known = &self.resources[resource];
        let asked: Vec<_> = known
            .iter()
            .filter(|known| allocation.ids.contains(&known.id))
            .collect();
        if asked.len() != allocation.ids.len() {
            return Err(format!("a pod got {:?}", allocation.ids));
        }
        // After a kubelet that lost its folder, a container has what it had, and the
        // kubelet does not know of it.
        if asked.is_empty() {
            return Ok(None);
        }
        let (node, kind) = (&self.running.node, self.plan.kind);
        expect::check_container(&allocation.response, &asked, node, kind)?;
        Ok(Some(allocation))
    }
}

/// A pod that runs.
#[derive(Clone, Debug)]
pub(crate) struct Pod {
    name: String,
    resource: String,
}
