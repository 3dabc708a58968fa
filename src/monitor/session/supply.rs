//! What containers get of the session's driver: made ready beside the session,
//! and looked at again while it lasts.

use std::time::Duration;

use tokio::time::Instant;

use super::Session;
use crate::driver::kernel_module_version;
use crate::driver::supply::{InPlace, Origin, Supply, SupplyError};
use crate::gpu::calls::{Calls, Outcome};
use crate::gpu::{ErrorKind, LibraryError};

/// Time between two tries to make a volume.
const VOLUME_RETRY: Duration = Duration::from_secs(60);

/// What is made ready for containers, by the driver's version. It outlives a
/// session, as copying a driver may take longer than one.
pub(in crate::monitor) type Supplies = Calls<String, Result<Supply, SupplyError>>;

impl Session<'_> {
    /// Another module was loaded under this session, or before it. A library of
    /// this version does not work with that, whether or not it has noticed.
    pub(super) fn other_module(&mut self, library: &str) -> Option<LibraryError> {
        let paths = &self.monitor.config.paths;
        let module = kernel_module_version(&paths.procfs, &paths.sysfs)?;
        if module == library {
            return None;
        }
        let error = LibraryError {
            call: "nvmlSystemGetDriverVersion",
            kind: ErrorKind::Session,
            message: format!("the library is of driver {library}, the kernel module of {module}"),
        };
        self.monitor.driver_changed(&error);
        Some(error)
    }

    /// Files may be replaced under a session that lives on, and a volume that
    /// could not be made may be possible now: that takes writing to learn.
    pub(super) fn supply_due(&self) -> bool {
        let retry = self.no_volume.map(|at| at.elapsed() >= VOLUME_RETRY);
        let is_current = |supply: &Supply| self.monitor.supplier.is_current(supply);
        match self.monitor.node.driver() {
            Ok(supply) => retry.unwrap_or_default() || !is_current(supply),
            Err(_) => retry.unwrap_or(true),
        }
    }

    /// Has the driver's files made ready for containers.
    pub(super) fn ask_supply(&mut self) {
        if let Some(version) = self.version.clone() {
            let supplier = self.monitor.supplier.clone();
            let of = version.clone();
            self.supplies.start(version, move || supplier.supply(&of));
        }
    }

    /// Takes in what became of making the driver's files ready.
    pub(super) fn supplied(&mut self, outcome: Outcome<String, Result<Supply, SupplyError>>) {
        let (version, supply) = match outcome {
            Outcome::Returned(version, supply) => (version, Some(supply)),
            Outcome::Overdue(version) | Outcome::Panicked(version) => (version, None),
        };
        // Of an earlier session's driver.
        if self.version.as_ref() != Some(&version) {
            return self.ask_supply();
        }
        self.driver_told = true;
        match supply {
            Some(supply) => {
                self.supplied = true;
                let failed = match &supply {
                    Ok(supply) => matches!(supply.from, Origin::InPlace(InPlace::NoVolume(_))),
                    Err(error) => matches!(error, SupplyError::Volume(_)),
                };
                self.no_volume = failed.then(Instant::now);
                self.monitor.driver_found(&version, supply);
            }
            None => self.monitor.no_supply_yet(),
        }
        self.publish();
    }
}
