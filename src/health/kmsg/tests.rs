use proptest::option;
use proptest::prelude::*;

use super::*;

/// A record of the kernel with this text, as `/dev/kmsg` has it.
fn record(text: &str) -> Vec<u8> {
    format!("4,1207,981220114,-;{text}\n").into_bytes()
}

fn xid(text: &str) -> Option<KernelXid> {
    parse(&record(text))
}

/// Domain, bus, device; XID; GPU instance; compute instance; recovery action.
type Facts = (u32, u8, u8, u64, Option<u32>, Option<u32>, Option<u32>);

fn facts(text: &str) -> Option<Facts> {
    let told = xid(text)?;
    let KernelXid { pci, xid, .. } = told;
    let (gpu, compute) = (told.gpu_instance_id, told.compute_instance_id);
    let (domain, bus, device) = (pci.domain, pci.bus, pci.device);
    Some((domain, bus, device, xid, gpu, compute, told.recovery_action))
}

/// The whole GPU's.
fn whole(domain: u32, bus: u8, device: u8, xid: u64) -> Option<Facts> {
    Some((domain, bus, device, xid, None, None, None))
}

#[test]
fn lines_of_all_branches_are_understood() {
    for (text, told) in [
        // Of old, without a word before the address.
        (
            "NVRM: Xid (0000:0a:00): 14, Channel 00000004",
            whole(0, 10, 0, 14),
        ),
        (
            "NVRM: Xid (PCI:0000:02:00): 32, Channel ID 00000001 intr 00004000",
            whole(0, 2, 0, 32),
        ),
        // R460 and before: a process has no name.
        (
            "NVRM: Xid (PCI:0000:3e:00): 43, pid=4711, Ch 00000008",
            whole(0, 0x3e, 0, 43),
        ),
        // Up to R565 a process may be unknown.
        (
            "NVRM: Xid (PCI:0000:65:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus.",
            whole(0, 0x65, 0, 79),
        ),
        (
            "NVRM: Xid (PCI:0000:ca:00): 31, pid=99, name=python3.11, Ch 00000010, intr 00000000. \
             MMU Fault: ENGINE GRAPHICS GPCCLIENT_T1_3 faulted @ 0x7f11_30000000. \
             Fault is of type FAULT_PDE ACCESS_TYPE_VIRT_WRITE",
            whole(0, 0xca, 0, 31),
        ),
        (
            "NVRM: Xid (PCI:0000:9d:00): 119, pid=31337, name=cache_mgr_main, Timeout after 45s of \
             waiting for RPC response from GPU3 GSP! Expected function 76 (GSP_RM_CONTROL) (0x20802a02 0x4).",
            whole(0, 0x9d, 0, 119),
        ),
        // Since R570 it is left out then.
        (
            "NVRM: Xid (PCI:0000:19:00): 79, GPU has fallen off the bus.",
            whole(0, 0x19, 0, 79),
        ),
        (
            "NVRM: Xid (PCI:0000:dd:00): 45, pid=181, name=ray::Worker, Ch 0000000c caused by previous Xid 145",
            whole(0, 0xdd, 0, 45),
        ),
        // Hosts of Grace have a domain for each GPU; guests have GPUs on bus 0.
        (
            "NVRM: Xid (PCI:0019:01:00): 149, NETIR_LINK_EVT  Fatal   XC0 i0 Link 07 \
             (0x004505c6 0x00000000 0x00000000 0x00000000 0x00000000 0x00000000)",
            whole(0x19, 1, 0, 149),
        ),
        (
            "NVRM: Xid (PCI:0000:00:1e): 94, pid=7, name=a, Contained: SM (0x1). RST: No, D-RST: No",
            whole(0, 0, 0x1e, 94),
        ),
        // Virtual machines and VMD have domains of more than four digits.
        (
            "NVRM: Xid (PCI:10001:01:00): 62, 2027(c99e) 00000000 00000000",
            whole(0x10001, 1, 0, 62),
        ),
        (
            "NVRM: Xid (PCI:fffff:c1:00): 64, Row remapping failed",
            whole(0xf_ffff, 0xc1, 0, 64),
        ),
        // A function, an end without a comma, or nothing to say.
        (
            "NVRM: Xid (PCI:0000:00:08.0): 145, RLW_REMAP Nonfatal XC1 i0 Link 10",
            whole(0, 0, 8, 145),
        ),
        ("NVRM: Xid (PCI:0000:3f:00): 46", whole(0, 0x3f, 0, 46)),
        ("NVRM: Xid (PCI:0000:3f:00): 79, ", whole(0, 0x3f, 0, 79)),
    ] {
        assert_eq!(facts(text), told, "{text}");
    }
}

#[test]
fn a_mig_instance_is_named_in_decimal() {
    let contained = "94, pid=712, name=a, Contained: CE User Channel (0x9). RST: No, D-RST: No";
    for (place, gpu, compute) in [
        ("PCI:0000:05:00 GPU-I:05", Some(5), None),
        ("PCI:0000:05:00 GPU-I:10 GPU-CI:00", Some(10), Some(0)),
        ("PCI:0000:05:00 GPU-I:01 GPU-CI:07 NEW:3", Some(1), Some(7)),
        ("PCI:0000:05:00 GPU-I:0a", None, None),
    ] {
        let told = Some((0, 5, 0, 94, gpu, compute, None));
        assert_eq!(
            facts(&format!("NVRM: Xid ({place}): {contained}")),
            told,
            "{place}"
        );
    }
}

#[test]
fn a_changed_recovery_action_is_the_one_from_now_on() {
    for (said, action) in [
        (
            "GPU recovery action changed from 0x0 (None) to 0x1 (GPU Reset Required)",
            Some(1),
        ),
        (
            "GPU recovery action changed from 0x0 (None) to 0x2 (Node Reboot Required)",
            Some(2),
        ),
        (
            "GPU recovery action changed from 0x4 (Drain and Reset) to 0x0 (None)",
            Some(0),
        ),
        (
            "pid=1, name=x, GPU recovery action changed from 0x0 (None) to 0x1f",
            Some(0x1f),
        ),
        (
            "pid=1, name=to 0x0 (None), GPU recovery action changed from 0x1 (Reset) to 0x3 (Drain P2P)",
            Some(3),
        ),
        ("GPU recovery action changed from 0x0 (None) to", None),
        (
            "GPU recovery action changed from 0x0 (None) to 0xfffffffff (?)",
            None,
        ),
        ("(", None),
    ] {
        let told = Some((0, 0x18, 0, 154, None, None, action));
        let text = format!("NVRM: Xid (PCI:0000:18:00): 154, {said}");
        assert_eq!(facts(&text), told, "{said}");
    }
    // Of 154 only.
    let other =
        "NVRM: Xid (PCI:0000:18:00): 13, GPU recovery action changed from 0x0 (a) to 0x1 (b)";
    assert_eq!(facts(other), whole(0, 0x18, 0, 13));
}

#[test]
fn a_record_has_its_number_and_its_time() {
    let told = xid("NVRM: Xid (PCI:0000:18:00): 48, pid=1, name=a, DBE").unwrap();
    assert_eq!(told.seq, 1207);
    assert_eq!(told.at, Duration::from_micros(981_220_114));
}

const LOST: &str = "NVRM: Xid (PCI:0000:18:00): 79, GPU has fallen off the bus.";

#[test]
fn what_a_record_may_have_beside_its_text_changes_nothing() {
    let plain = parse(format!("3,5,6,-;{LOST}\n").as_bytes());
    assert!(plain.is_some());
    for other in [
        format!("3,5,6,-;{LOST}"),
        format!("0,5,6;{LOST}\n"),
        format!("7,5,6,c;{LOST}\n"),
        format!("3,5,6,-,caller=T1234;{LOST}\n"),
        format!("3,5,6,-,a=b,c=d;{LOST}\n SUBSYSTEM=pci\n DEVICE=+pci:0000:18:00.0\n"),
    ] {
        assert_eq!(parse(other.as_bytes()), plain, "{other}");
    }
}

/// The kernel gives what a process writes to `/dev/kmsg` the facility that it
/// names, and 1 (user) where that is 0 or none is named.
#[test]
fn only_the_kernel_is_heard() {
    for level in 0..8 {
        assert!(parse(format!("{level},5,6,-;{LOST}\n").as_bytes()).is_some());
    }
    for facility in (1..24).chain([1 << 20, u64::MAX >> 3]) {
        let priority = facility << 3 | 3;
        assert_eq!(parse(format!("{priority},5,6,-;{LOST}\n").as_bytes()), None);
    }
}

#[test]
fn what_is_no_xid_is_none() {
    for text in [
        "",
        "NVRM: GPU at PCI:0000:18:00: GPU-00000000-0000-0000-0000-000000000000",
        "NVRM: GPU 0000:18:00.0: GPU has fallen off the bus.",
        "nvidia-nvswitch0: SXid (PCI:0000:c5:00.0): 12028, Non-fatal, Link 32",
        "NVRM: Xid : 32, pid=1",
        "NVRM: Xid (PCI:0000:18:00): abc, pid=1",
        "NVRM: Xid (PCI:0000:18:00): 79abc, pid=1",
        "NVRM: Xid (PCI:0000:18:00): -1, pid=1",
        "NVRM: Xid (PCI:0000:18:00): +79, pid=1",
        "NVRM: Xid (PCI:0000:18:00): 0, pid=1",
        "NVRM: Xid (PCI:0000:18:00): 18446744073709551616, pid=1",
        "NVRM: Xid (PCI:0000:18): 79, pid=1",
        "NVRM: Xid (PCI:0000:18:00:00): 79, pid=1",
        "NVRM: Xid (PCI:0000:118:00): 79, pid=1",
        "NVRM: Xid (PCI:+000:18:00): 79, pid=1",
        "NVRM: Xid (PCI:123456789:18:00): 79, pid=1",
        "NVRM: Xid (): 79, pid=1",
        "NVRM: Xid (PCI:0000:18:00)",
        // Whoever names a process after such a line.
        "audit: comm=\"NVRM: Xid (PCI:0000:18:00): 79, lost\"",
        "x\\x0aNVRM: Xid (PCI:0000:18:00): 79, lost",
    ] {
        assert_eq!(xid(text), None, "{text}");
    }
}

#[test]
fn what_is_no_record_is_none() {
    let bytes: [&[u8]; 9] = [
        b"",
        b"\n",
        b";",
        b" SUBSYSTEM=pci\n",
        b"3,5;NVRM: Xid (PCI:0000:18:00): 79, lost\n",
        b" 3,5,6,-;NVRM: Xid (PCI:0000:18:00): 79, lost\n",
        b"\n3,5,6,-;NVRM: Xid (PCI:0000:18:00): 79, lost\n",
        b"3,5,99999999999999999999,-;NVRM: Xid (PCI:0000:18:00): 79, lost\n",
        b"3,5,6,-;NVRM: Xid (PCI:0000:18:00): 79, \xff\n",
    ];
    for record in bytes {
        assert_eq!(parse(record), None, "{record:?}");
    }
}

#[test]
fn an_address_is_nvmls_and_sysfss() {
    let address = PciAddress {
        domain: 0x10001,
        bus: 0x3b,
        device: 0x1f,
    };
    assert_eq!(PciAddress::from_nvml("00010001:3B:1F.0"), Some(address));
    assert_eq!(PciAddress::from_nvml("10001:3b:1f.0"), Some(address));
    assert_eq!(address.to_string(), "10001:3b:1f");
    let first = PciAddress::from_nvml("00000000:05:00.0").unwrap();
    assert_eq!(first.to_string(), "0000:05:00");
    for bus_id in [
        "",
        ".",
        "0000:05:00",
        "0000:05:00.",
        "0000:05.0",
        "0000:05:00.00",
        "::.0",
    ] {
        assert_eq!(PciAddress::from_nvml(bus_id), None, "{bus_id}");
    }
}

fn any_xid() -> impl Strategy<Value = KernelXid> {
    let pci = any::<(u32, u8, u8)>().prop_map(|(domain, bus, device)| PciAddress {
        domain,
        bus,
        device,
    });
    let instances = option::of((0..200_u32, option::of(0..200_u32)));
    let xid = prop_oneof![Just(154), 1..200_u64, 1..u64::MAX];
    let action = option::of(any::<u32>());
    let when = (any::<u64>(), any::<u64>().prop_map(Duration::from_micros));
    (when, pci, xid, instances, action).prop_map(|((seq, at), pci, xid, instances, action)| {
        KernelXid {
            seq,
            at,
            pci,
            xid,
            gpu_instance_id: instances.map(|(gpu, _)| gpu),
            compute_instance_id: instances.and_then(|(_, compute)| compute),
            recovery_action: action.filter(|_| xid == 154),
        }
    })
}

/// As the driver prints it, with `process` before what it says.
fn rendered(told: &KernelXid, process: &str) -> String {
    let mut place = format!("PCI:{}", told.pci);
    if let Some(id) = told.gpu_instance_id {
        place.push_str(&format!(" GPU-I:{id:02}"));
    }
    if let Some(id) = told.compute_instance_id {
        place.push_str(&format!(" GPU-CI:{id:02}"));
    }
    let said = match told.recovery_action {
        Some(to) => format!("GPU recovery action changed from 0x0 (None) to 0x{to:x} (Any)"),
        None => "anything".to_owned(),
    };
    let (seq, at, xid) = (told.seq, told.at.as_micros(), told.xid);
    format!("4,{seq},{at},-;NVRM: Xid ({place}): {xid}, {process}{said}\n")
}

proptest! {
    #[test]
    fn what_the_driver_prints_is_read_back(
        told in any_xid(),
        name in option::of("[ -~]{0,15}"),
    ) {
        let process = name.map(|name| format!("pid=1, name={name}, ")).unwrap_or_default();
        prop_assert_eq!(parse(rendered(&told, &process).as_bytes()), Some(told));
    }

    #[test]
    fn no_bytes_do_harm(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _xid = parse(&bytes);
    }

    #[test]
    fn no_damage_does_harm(
        told in any_xid(),
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
        cut in option::of(any::<prop::sample::Index>()),
    ) {
        let mut bytes = rendered(&told, "").into_bytes();
        for (at, value) in damage {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        let _xid = parse(&bytes);
    }
}
