//! Records of the kernel log: processes name themselves in them.

#![no_main]

use gpu_device_plugin::health::kmsg::{KernelXid, parse};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|record: &[u8]| {
    if let Some(told) = parse(record) {
        assert!(told.xid > 0);
        assert!(told.recovery_action.is_none() || told.xid == 154);
        assert_eq!(parse(rendered(&told).as_bytes()), Some(told));
    }
});

/// The shortest record that tells the same.
fn rendered(told: &KernelXid) -> String {
    let instance = |key: &str, id: Option<u32>| id.map(|id| format!(" {key}:{id:02}"));
    let gpu = instance("GPU-I", told.gpu_instance_id).unwrap_or_default();
    let compute = instance("GPU-CI", told.compute_instance_id).unwrap_or_default();
    let action = told.recovery_action;
    let action = action.map(|to| format!("GPU recovery action changed from 0x0 to 0x{to:x}"));
    let (seq, at, pci, xid) = (told.seq, told.at.as_micros(), told.pci, told.xid);
    let said = action.unwrap_or_default();
    format!("0,{seq},{at},-;NVRM: Xid (PCI:{pci}{gpu}{compute}): {xid}, {said}")
}
