//! XIDs in the kernel log: a witness beside NVML.
//!
//! NVRM, the kernel module, prints a line with each XID, whether or not anybody
//! has a session with NVML at that time. Records are those of `/dev/kmsg`
//! (`Documentation/ABI/testing/dev-kmsg` in the kernel's sources), lines are as
//! `krcReportXid` of NVIDIA's open kernel modules prints them, 515 to 595, and as
//! users of older branches report them.

mod lines;
mod reader;
#[cfg(test)]
mod tests;

use std::fmt;
use std::time::Duration;

pub use reader::KernelLog;

/// A line of NVRM about an XID.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelXid {
    /// The record's sequence number: one more for each record since the boot.
    pub seq: u64,
    /// When it was printed, by the kernel's monotonic clock since the boot, in
    /// microseconds.
    pub at: Duration,
    /// The GPU.
    pub pci: PciAddress,
    /// The XID.
    pub xid: u64,
    /// The GPU instance (MIG) that it names, if any.
    pub gpu_instance_id: Option<u32>,
    /// The compute instance (MIG) that it names, if any.
    pub compute_instance_id: Option<u32>,
    /// Of XID 154: the recovery action from now on, numbered as NVML's field 230.
    pub recovery_action: Option<u32>,
}

/// Where a GPU sits on the PCI bus. The function is not kept: a GPU's is 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PciAddress {
    /// Of 16 bits as a rule; Hyper-V and VMD make up larger ones.
    pub domain: u32,
    /// The bus.
    pub bus: u8,
    /// The device.
    pub device: u8,
}

impl PciAddress {
    /// From a bus ID as NVML prints it, `00000000:3B:00.0`, or sysfs, `0000:3b:00.0`.
    pub fn from_nvml(bus_id: &str) -> Option<Self> {
        let (address, function) = bus_id.split_once('.')?;
        hex(function, 1)?;
        Self::parse(address)
    }

    /// From `0000:3b:00`, in either case.
    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split(':');
        let address = Self {
            domain: hex(parts.next()?, 8)?,
            bus: hex(parts.next()?, 2)?.try_into().ok()?,
            device: hex(parts.next()?, 2)?.try_into().ok()?,
        };
        parts.next().is_none().then_some(address)
    }
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:04x}:{:02x}:{:02x}",
            self.domain, self.bus, self.device
        )
    }
}

/// The XID of which a record of `/dev/kmsg` tells; none where it tells of
/// something else, is not the kernel's own, or is not to be understood. Any bytes
/// may be given. Only the first line counts: those after it say which device the
/// record is of, and begin with a space.
pub fn parse(record: &[u8]) -> Option<KernelXid> {
    let line = record.split(|byte| *byte == b'\n').next()?;
    let (header, text) = Header::split(line)?;
    header.is_kernel().then(|| header.xid(text)).flatten()
}

/// What stands before a record's text: `prio,seq,usec,flags;`, and after the
/// flags what later kernels may add.
struct Header {
    priority: u64,
    seq: u64,
    at: Duration,
}

impl Header {
    fn split(line: &[u8]) -> Option<(Self, &str)> {
        // The kernel escapes what is not ASCII.
        let (head, text) = str::from_utf8(line).ok()?.split_once(';')?;
        let mut fields = head.split(',');
        let header = Self {
            priority: decimal(fields.next()?)?,
            seq: decimal(fields.next()?)?,
            at: Duration::from_micros(decimal(fields.next()?)?),
        };
        Some((header, text))
    }

    /// Whether the facility is the kernel's. What a process writes to `/dev/kmsg`
    /// has another: the kernel does not let it have this one.
    fn is_kernel(&self) -> bool {
        self.priority >> 3 == 0
    }

    /// The text must begin with NVRM's words: the name of a process is in it, and
    /// may be any words.
    fn xid(&self, text: &str) -> Option<KernelXid> {
        let (place, said) = text.strip_prefix("NVRM: Xid (")?.split_once("): ")?;
        let mut place = place.split(' ');
        let pci = place.next()?;
        let xid = leading_number(said)?;
        let instances: Vec<&str> = place.collect();
        Some(KernelXid {
            seq: self.seq,
            at: self.at,
            pci: pci_address(pci)?,
            xid,
            gpu_instance_id: instance(&instances, "GPU-I:"),
            compute_instance_id: instance(&instances, "GPU-CI:"),
            recovery_action: (xid == 154).then(|| recovery_action(said)).flatten(),
        })
    }
}

/// `PCI:0000:3b:00`; old drivers have no `PCI:`, and a function may follow.
fn pci_address(text: &str) -> Option<PciAddress> {
    let text = text.strip_prefix("PCI:").unwrap_or(text);
    PciAddress::from_nvml(text).or_else(|| PciAddress::parse(text))
}

/// The driver prints instances in decimal, with two digits at least.
fn instance(words: &[&str], key: &str) -> Option<u32> {
    let id = words.iter().find_map(|word| word.strip_prefix(key))?;
    decimal(id)?.try_into().ok()
}

/// The XID ends with a comma, or with the line.
fn leading_number(said: &str) -> Option<u64> {
    let number = said.split([',', ' ']).next()?;
    decimal(number).filter(|xid| *xid > 0)
}

/// `… GPU recovery action changed from 0x0 (None) to 0x1 (GPU Reset Required)`:
/// the last such words, as the process's name stands before the driver's.
fn recovery_action(said: &str) -> Option<u32> {
    let (_, changed) = said.rsplit_once("GPU recovery action changed from 0x")?;
    let (_, to) = changed.split_once(" to 0x")?;
    hex(to.split(' ').next()?, 8)
}

/// Digits only: Rust takes a sign, too.
fn decimal(digits: &str) -> Option<u64> {
    let whole = digits.bytes().all(|byte| byte.is_ascii_digit());
    whole.then(|| digits.parse().ok()).flatten()
}

fn hex(digits: &str, most: usize) -> Option<u32> {
    let whole = digits.len() <= most && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    whole
        .then(|| u32::from_str_radix(digits, 16).ok())
        .flatten()
}
