//! The file in which health outlives the process: whatever it holds, what comes of
//! it can be worked with, and what is kept of that is read the same.

#![no_main]

use std::time::Duration;

use gpu_device_plugin::config::HealthOptions;
use gpu_device_plugin::gpu::Vitals;
use gpu_device_plugin::health::kept::File;
use gpu_device_plugin::health::reducer::{GpuHealth, Kept, Signal};
use libfuzzer_sys::fuzz_target;

const BOOT: &str = "boot";
const NOW: Duration = Duration::from_secs(1000);

fuzz_target!(|text: &[u8]| {
    let Ok(file) = File::parse(text, BOOT) else {
        return;
    };
    for kept in file.gpus.into_values() {
        works(kept);
    }
});

fn works(kept: Kept) {
    let options = HealthOptions::default();
    let mut health = GpuHealth::restore(kept, NOW);
    let before = health.sicknesses(&options);
    assert!(before.iter().all(|(_, sickness)| sickness.since <= NOW));
    let xid = Signal::Xid {
        xid: 48,
        instance: None,
        at: NOW,
    };
    health.apply(NOW, &xid, &options);
    assert!(health.sickness(&options).is_some());
    let well = Signal::Probed {
        asked: NOW + Duration::from_secs(1),
        answer: Ok(Vitals {
            recovery_action: Some(0),
            ..Vitals::default()
        }),
    };
    health.apply(NOW + Duration::from_secs(1), &well, &options);
    let text = serde_json::to_vec(&health.keep()).unwrap_or_default();
    let again: Kept = serde_json::from_slice(&text).unwrap_or_default();
    assert_eq!(again, health.keep(), "it reads what it wrote");
}
