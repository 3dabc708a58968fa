//! What befalls GPUs and their driver.

use std::sync::atomic::Ordering;

use super::expect::Request;
use super::plan::{DriverFault, Fault, Ill, Witness, Xid};
use super::requests::Answered;
use super::rig::{AT_LAST, Outcome, Soak};
use crate::common::nvml::State;

/// So many XIDs stay in the driver's state: more than are ever unheard.
const XIDS: usize = 500;

impl Soak {
    /// One GPU is ill for a while. What every poll sees is waited for, and is
    /// certain from then on until the cause goes.
    pub(crate) async fn fault(&self, fault: &Fault) -> Outcome {
        self.journal.action("faults of a GPU", fault);
        let Fault { gpu, what, hold } = fault;
        let node = &self.running.node;
        match what {
            Ill::Lost => node.lose(*gpu),
            Ill::Vanished => node.vanish(*gpu),
            Ill::Pulled => node.pull(*gpu),
            Ill::Hangs(function) => node.hang(*gpu, &[function]),
            Ill::Fails(function, with) => node.fail(*gpu, function, *with),
            Ill::RecoveryAction => node.edit_gpu(*gpu, |gpu| gpu.recovery_action = Some(1)),
            Ill::NvLinkDown => node.edit_gpu(*gpu, |gpu| _ = gpu.nvlinks_down.insert(3)),
            Ill::FabricNotReady => node.edit_gpu(*gpu, |gpu| gpu.fabric.state = 2),
        }
        if !what.words().is_empty() {
            let said = self.refused(*gpu, |_| true).await?;
            // For another reason it may be well for a moment before this one is seen.
            if what.words().iter().any(|words| said.contains(words)) {
                self.truth.is_sick(*gpu);
                self.journal.count("sicknesses for certain");
            }
        }
        self.hold(*hold).await;
        self.truth.recovers(*gpu);
        self.heal(*gpu);
        Ok(())
    }

    /// Takes back whatever befell the GPU.
    pub(crate) fn heal(&self, gpu: usize) {
        let node = &self.running.node;
        node.restore(gpu);
        node.plug_in(gpu);
        node.edit_gpu(gpu, |gpu| {
            gpu.nvlinks_down.clear();
            gpu.fabric.state = 3;
        });
    }

    /// Waits until a device of the GPU is refused in such words.
    async fn refused(&self, gpu: usize, words: impl Fn(&str) -> bool) -> Outcome<String> {
        let devices = self.resources.iter().flat_map(|(resource, devices)| {
            devices.iter().map(move |known| (resource.as_str(), known))
        });
        let mut devices = devices.filter(|(_, known)| known.gpu == gpu);
        let (resource, known) = devices.next().ok_or("a GPU without devices")?;
        let what = format!("GPU {gpu} to be refused");
        self.eventually(&what, AT_LAST, async || {
            let request = Request {
                containers: vec![vec![known]],
                is_wrong: false,
            };
            let ids = vec![vec![known.id.clone()]];
            Ok(match self.ask_allocate(resource, ids, &request).await? {
                Answered::Refused(said) if words(&said) => Some(said),
                _ => None,
            })
        })
        .await
    }

    // === XIDs ===

    pub(crate) async fn xid(&self, xid: &Xid) -> Outcome {
        self.journal.action("XIDs", xid);
        match *xid {
            Xid::Application(gpu, xid, witness) | Xid::Reset(gpu, xid, witness) => {
                self.tell(gpu, xid, witness);
            }
            Xid::Storm(gpu, count) => {
                self.forget_xids();
                self.running.node.storm(gpu, (0..count).map(|_| 31));
            }
            Xid::Noise(number) => {
                let line = format!("eth{number}: link is not ready; NVRM: no Xid");
                self.running.node.log_in_kernel(self.next_record(), &line);
            }
            Xid::Lasting(xid) => {
                let doomed = self.plan.kind.doomed();
                self.tell(doomed, xid, Witness::Both);
                if !self.truth.knows_sick(doomed) {
                    let lasting = |said: &str| said.contains("XID 79") || said.contains("XID 151");
                    self.refused(doomed, lasting).await?;
                    self.truth.is_sick(doomed);
                }
            }
        }
        Ok(())
    }

    /// The GPU has an XID, and these tell of it.
    pub(crate) fn tell(&self, gpu: usize, xid: u64, witness: Witness) {
        let node = &self.running.node;
        if witness != Witness::KernelLog {
            self.forget_xids();
            node.xid(gpu, xid);
        }
        if witness != Witness::Nvml {
            node.xid_in_kernel_log(gpu, self.next_record(), xid, "pid=1, name=a");
        }
    }

    fn next_record(&self) -> u64 {
        self.logged.fetch_add(1, Ordering::Relaxed)
    }

    /// A state that grows for hours would be slow to read.
    fn forget_xids(&self) {
        if self.running.node.state().events.len() > XIDS {
            self.keep_xids(XIDS / 2);
        }
    }

    /// The simulated driver forgets all but the last: each change of its state is read
    /// whole, in the plugin's process, and would be the most of what it takes there.
    pub(crate) fn keep_xids(&self, count: usize) {
        self.running.node.edit(|state| {
            let old = state.events.len().saturating_sub(count);
            state.events.drain(..old);
        });
    }

    // === The driver ===

    pub(crate) async fn driver(&self, fault: &DriverFault) -> Outcome {
        self.journal.action("faults of the driver", fault);
        let node = &self.running.node;
        let hold = match fault {
            DriverFault::Hangs(function, hold) => {
                node.edit(|state| state.hang.insert((*function).to_owned()));
                hold
            }
            DriverFault::Fails(function, with, hold) => {
                node.edit(|state| state.fail.insert((*function).to_owned(), *with));
                hold
            }
        };
        self.hold(*hold).await;
        self.running.node.edit(heal_driver);
        Ok(())
    }

    /// Nothing is amiss any more, but what only a boot ends.
    pub(crate) fn heal_all(&self) {
        self.running.node.edit(heal_driver);
        (0..self.plan.kind.gpus()).for_each(|gpu| self.heal(gpu));
    }
}

fn heal_driver(state: &mut State) {
    state.hang.clear();
    state.fail.clear();
}
