//! What of a health report concerns the pods.

use std::collections::BTreeMap;

use super::names::{DeviceName, Incident};
use crate::health::report::{HealthReport, Sickness};

/// The sick devices of a node and how many GPUs they are of.
#[derive(Clone, Debug)]
pub(super) struct Sick<'a> {
    pub(super) devices: BTreeMap<DeviceName, &'a Sickness>,
    gpus: usize,
    sick_gpus: usize,
}

impl<'a> Sick<'a> {
    pub(super) fn of(report: &'a HealthReport) -> Self {
        let devices = report.gpus.iter().flat_map(|gpu| &gpu.devices);
        let devices = devices.filter_map(|device| {
            let sickness = device.sickness.as_ref()?;
            let name = DeviceName {
                resource: device.resource.clone(),
                id: device.id.as_str().into(),
            };
            sickness.class.acts().then_some((name, sickness))
        });
        Self {
            devices: devices.collect(),
            gpus: report.gpus.len(),
            sick_gpus: report.sick().count(),
        }
    }

    /// The sickness of one of `held` that began first.
    pub(super) fn first(&self, held: &[DeviceName]) -> Option<Incident> {
        held.iter().filter_map(|name| self.incident(name)).min()
    }

    /// The same of those whose cause is not gone: what only waits for the end
    /// of its quiet time moves nobody any more.
    pub(super) fn first_acting(&self, held: &[DeviceName]) -> Option<Incident> {
        let acting = held.iter().filter(|name| self.acts(name));
        acting.filter_map(|name| self.incident(name)).min()
    }

    pub(super) fn acts(&self, name: &DeviceName) -> bool {
        let sickness = self.devices.get(name);
        sickness.is_some_and(|sickness| sickness.recovering_until.is_none())
    }

    /// Whether this sickness goes on.
    pub(super) fn has(&self, incident: &Incident) -> bool {
        self.incident(&incident.device).as_ref() == Some(incident)
    }

    pub(super) fn incidents(&self) -> impl Iterator<Item = Incident> {
        self.devices.keys().filter_map(|name| self.incident(name))
    }

    fn incident(&self, name: &DeviceName) -> Option<Incident> {
        let since = self.devices.get(name)?.since;
        let device = name.clone();
        Some(Incident { since, device })
    }

    /// Whether so many GPUs are sick that it is more likely the node. One sick
    /// GPU is always one GPU's matter: it would be all of a node that has one.
    pub(super) fn is_beyond(&self, max_percent: u32) -> bool {
        let allowed = (max_percent as usize).saturating_mul(self.gpus);
        self.sick_gpus > 1 && self.sick_gpus.saturating_mul(100) > allowed
    }

    /// In words.
    pub(super) fn share(&self) -> String {
        format!("{} of {} GPUs are sick", self.sick_gpus, self.gpus)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::fixture::{report, sick_at};
    use super::*;

    #[test]
    fn the_share_is_of_gpus_and_one_sick_gpu_never_exceeds_it() {
        for (gpus, sick, percent, beyond) in [
            (1, 1, 50, false),
            (8, 1, 0, false),
            (2, 2, 50, true),
            (2, 2, 100, false),
            (8, 4, 50, false),
            (8, 5, 50, true),
            (8, 8, 100, false),
            (3, 2, 66, true),
            (3, 2, 67, false),
        ] {
            let sicknesses = (0..gpus).map(|gpu| (gpu < sick).then(|| sick_at(5)));
            let report = report(sicknesses);
            assert_eq!(
                Sick::of(&report).is_beyond(percent),
                beyond,
                "{sick} of {gpus} at {percent} %"
            );
        }
    }

    #[test]
    fn a_device_that_recovers_is_sick_and_does_not_act() {
        let mut recovering = sick_at(5);
        recovering.recovering_until = Some(Duration::from_secs(65));
        let report = report([Some(recovering), Some(sick_at(7)), None]);
        let sick = Sick::of(&report);
        let names: Vec<_> = sick.devices.keys().cloned().collect();
        assert_eq!(names.len(), 2);
        let first = sick.first(&names).unwrap();
        assert_eq!(first.since, Duration::from_secs(5));
        assert_eq!(sick.first_acting(&names).unwrap().device, names[1]);
        assert!(sick.has(&first));
    }
}
