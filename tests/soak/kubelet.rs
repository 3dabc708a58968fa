//! The kubelet that comes, goes and misbehaves.

use std::fs;
use std::time::Duration;

use super::plan::KubeletAction;
use super::rig::{Outcome, REGISTERED, Soak};
use crate::common::kubelet::{RegisterFault, Times};

/// How long a kubelet that took a registration has for asking for the list.
const STREAM_DEADLINE: Duration = Duration::from_secs(10);
/// The pauses after failures double, so that what failed for this long is tried
/// again within as much again and a second.
const AGAIN: Duration = Duration::from_secs(1);

impl Soak {
    /// Does it, and sees that the plugin is registered again within its bound.
    pub(crate) async fn kubelet(&self, action: &KubeletAction) -> Outcome {
        use KubeletAction as A;
        self.journal.action("kubelet actions", action);
        let kubelet = &self.running.kubelet;
        // Until it is registered again, connections may be cut.
        let _busy = self.unrest.begin();
        let within = match *action {
            A::Restart
            | A::Away(_)
            | A::InARow(_)
            | A::StaleSocket(_)
            | A::SocketRemoved
            | A::FolderGone(_)
            | A::FolderReplaced
            | A::SlowStart(_) => {
                let mark = self.come_and_go(action).await?;
                return self.registered(mark, REGISTERED).await;
            }
            A::Refuses(times) => {
                let fault = RegisterFault::Error("not now".into());
                kubelet.fault(fault, Times::N(times));
                REGISTERED + AGAIN
            }
            A::RefusesFor(time) => {
                return self.faulty(RegisterFault::Error("no".into()), time).await;
            }
            A::Slow(time) => {
                kubelet.fault(RegisterFault::Slow(time), Times::N(1));
                REGISTERED + time
            }
            A::Hangs(time) => return self.faulty(RegisterFault::Hang, time).await,
            A::NoStream => {
                kubelet.fault(RegisterFault::NoStream, Times::N(1));
                REGISTERED + STREAM_DEADLINE
            }
            A::CancelsStreams => {
                let mark = kubelet.mark();
                for resource in self.resources.keys() {
                    kubelet.cancel_streams(resource);
                }
                return self.registered(mark, REGISTERED).await;
            }
            A::PluginSocketsRemoved => {
                let mark = kubelet.mark();
                for socket in self.running.sockets() {
                    // The plugin may have removed it itself.
                    drop(fs::remove_file(socket));
                }
                return self.registered(mark, REGISTERED).await;
            }
        };
        let mark = self.stop_and_start().await?;
        self.registered(mark, within).await?;
        // Some are for one registration, and there are several resources.
        kubelet.clear_faults();
        Ok(())
    }

    /// A new kubelet that answers no Register well for a while.
    async fn faulty(&self, fault: RegisterFault, time: Duration) -> Outcome {
        let kubelet = &self.running.kubelet;
        let _busy = self.unrest.begin();
        kubelet.fault(fault, Times::UntilCleared);
        let mark = self.stop_and_start().await?;
        self.hold(time).await;
        kubelet.clear_faults();
        self.registered(mark, REGISTERED + AGAIN + time).await
    }

    /// The kubelet ends and is there again. A place in its events from which on
    /// there is only the new one.
    async fn come_and_go(&self, action: &KubeletAction) -> Outcome<usize> {
        use KubeletAction as A;
        let kubelet = &self.running.kubelet;
        match *action {
            A::InARow(times) => kubelet.recreate(times as usize).await.map_err(text)?,
            A::Away(time) => {
                kubelet.stop().await;
                self.hold(time).await;
            }
            A::StaleSocket(time) => {
                kubelet.leave_stale_socket().await.map_err(text)?;
                self.hold(time).await;
            }
            A::SocketRemoved => kubelet.remove_socket().map_err(text)?,
            A::FolderGone(time) => {
                kubelet.stop().await;
                self.running.remove_folder();
                self.hold(time).await;
            }
            A::FolderReplaced => {
                kubelet.stop().await;
                self.running.remove_folder();
                // The plugin may have been faster, with a folder for its socket.
                fs::create_dir_all(kubelet.folder()).map_err(text)?;
            }
            A::SlowStart(time) => {
                kubelet.stop().await;
                let mark = kubelet.mark();
                kubelet.bind_only().await.map_err(text)?;
                self.hold(time).await;
                kubelet.listen_only().await.map_err(text)?;
                self.hold(time).await;
                kubelet.start().await.map_err(text)?;
                return Ok(mark);
            }
            _ => {}
        }
        self.stop_and_start().await
    }

    pub(crate) async fn stop_and_start(&self) -> Outcome<usize> {
        let kubelet = &self.running.kubelet;
        kubelet.stop().await;
        let mark = kubelet.mark();
        kubelet.start().await.map_err(text)?;
        self.journal.count("kubelets");
        Ok(mark)
    }

    /// How long something holds is a part of the load.
    pub(crate) async fn hold(&self, time: Duration) {
        tokio::time::sleep(time).await;
    }
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "made for map_err, which gives a value"
)]
fn text(error: std::io::Error) -> String {
    format!("the kubelet itself failed: {error}")
}
