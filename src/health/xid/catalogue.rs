//! NVIDIA's catalogue of XIDs: what each says, and what is to be done at once.
//!
//! Numbers and immediate actions are those of the catalogue for Ampere and later
//! (<https://docs.nvidia.com/deploy/xid-errors/analyzing-xid-catalog.html>, which
//! ends at 172), the names are ours. What the catalogue calls unused is named
//! after the driver's symbol, as older GPUs have it.

use Action::{
    AskRecoveryAction, CheckPower, CheckUvm, ContactSupport, EccWorkflow, FollowOther, Ignore,
    NvlinkWorkflow, RebootNode, ResetGpu, RestartApplication, Unassigned, UpdateSoftware,
};

use crate::health::class::Class;

/// What NVIDIA has one do at once when an XID comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// The catalogue names none, or calls the XID unused.
    Unassigned,
    /// `IGNORE`.
    Ignore,
    /// `RESTART_APP`.
    RestartApplication,
    /// `RESET_GPU`.
    ResetGpu,
    /// `RESTART_BM`, the bare machine, and `RESTART_VM`: of a guest it is the node.
    RebootNode,
    /// `CHECK_MECHANICALS`, which is a power cable.
    CheckPower,
    /// `CHECK_UVM`: errors of the unified memory driver that came with it.
    CheckUvm,
    /// `UPDATE_SWFW`.
    UpdateSoftware,
    /// `CONTACT_SUPPORT`, of an XID that is in use.
    ContactSupport,
    /// `WORKFLOW_XID_45`: what another XID asks for.
    FollowOther,
    /// `WORKFLOW_XID_48`: reset, and replace if the SRAM's threshold is exceeded.
    EccWorkflow,
    /// `WORKFLOW_NVLINK_ERR` and, since Blackwell, `WORKFLOW_NVLINK5_ERR`: the
    /// details tell whether a reset helps.
    NvlinkWorkflow,
    /// `XID_154`: what the driver's recovery action says.
    AskRecoveryAction,
}

impl Action {
    /// The class of an XID with this action, exceptions apart.
    pub const fn class(self) -> Class {
        match self {
            Unassigned | Ignore | RestartApplication | UpdateSoftware => Class::Application,
            // Another XID, or the driver's own word, says what is needed.
            FollowOther | CheckUvm | AskRecoveryAction => Class::Application,
            ResetGpu | EccWorkflow | NvlinkWorkflow => Class::Reset,
            // A GPU without its power, or with a fault that only NVIDIA can judge,
            // is not one to start work on. Neither says that the node has to boot:
            // the driver's recovery action ends it.
            CheckPower | ContactSupport => Class::Reset,
            RebootNode => Class::Reboot,
        }
    }

    /// What an administrator is to do, in a few words.
    pub const fn remedy(self) -> &'static str {
        match self {
            Unassigned => "none is published: see what the kernel log has beside it",
            Ignore => "none is needed",
            RestartApplication => "restart the program that ran, and look for its fault",
            ResetGpu => "stop what uses the GPU and reset it: nvidia-smi --gpu-reset",
            RebootNode => "reboot the node; if it comes back, contact NVIDIA's support",
            CheckPower => "check the power cables of the GPU",
            CheckUvm => "see the errors of nvidia-uvm in the kernel log; alone, report it",
            UpdateSoftware => "update the driver and the firmware",
            ContactSupport => "contact NVIDIA's support",
            FollowOther => "follow the XID before it; alone, restart the Fabric Manager",
            EccWorkflow => "reset the GPU; replace it if its SRAM error threshold is exceeded",
            NvlinkWorkflow => "reset the GPU; if it comes back, check the links and their peers",
            AskRecoveryAction => "do what the recovery action in nvidia-smi -q says",
        }
    }
}

/// One XID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The XID.
    pub xid: u64,
    /// What it says, in a few words.
    pub name: &'static str,
    /// What NVIDIA has one do at once.
    pub action: Action,
    /// What it is here.
    pub class: Class,
}

/// What the catalogue has of an XID; none if it does not list it.
pub fn of(xid: u64) -> Option<&'static Entry> {
    let at = CATALOGUE.binary_search_by_key(&xid, |entry| entry.xid);
    CATALOGUE.get(at.ok()?)
}

const fn xid(xid: u64, name: &'static str, action: Action) -> Entry {
    classed(xid, name, action, action.class())
}

/// Another class than that of its action: the tests hold the list and the reasons.
const fn classed(xid: u64, name: &'static str, action: Action, class: Class) -> Entry {
    Entry {
        xid,
        name,
        action,
        class,
    }
}

/// Every XID of the catalogue, in order.
pub const CATALOGUE: &[Entry] = &[
    xid(1, "corrupt push buffer: FIFO method", Unassigned),
    xid(2, "corrupt push buffer: software method", Unassigned),
    xid(3, "corrupt push buffer: unknown method", Unassigned),
    xid(4, "corrupt push buffer: channel busy", Unassigned),
    xid(5, "push buffer overflow", Unassigned),
    xid(6, "corrupt push buffer: not to be parsed", Unassigned),
    xid(7, "bad address of a push buffer", Unassigned),
    xid(8, "a channel does not become idle", RestartApplication),
    xid(9, "the driver programmed the GPU wrongly", Unassigned),
    xid(10, "single step of the graphics engine", Unassigned),
    xid(11, "bad push buffer: missing hardware", RestartApplication),
    xid(12, "the driver mishandled an exception", Unassigned),
    xid(13, "graphics engine exception", RestartApplication),
    xid(14, "made-up error", Ignore),
    xid(15, "display scanline timeout", Unassigned),
    xid(16, "display engine hangs", Unassigned),
    xid(17, "bad parameter of a channel", Unassigned),
    xid(18, "PCI bus mastering is off", Unassigned),
    xid(19, "display engine missed a notifier", Unassigned),
    xid(20, "corrupt push buffer of the MPEG engine", Unassigned),
    xid(21, "corrupt push buffer of motion estimation", Unassigned),
    xid(22, "corrupt push buffer of the video processor", Unassigned),
    xid(23, "logging of channel errors is on", Unassigned),
    xid(24, "GPU semaphore timeout", Unassigned),
    xid(25, "illegal push buffer", RestartApplication),
    xid(26, "framebuffer timeout", Unassigned),
    xid(27, "video processor exception", Unassigned),
    xid(28, "second video processor exception", Unassigned),
    xid(29, "bitstream processor exception", Unassigned),
    xid(30, "bad access to a GPU semaphore", Unassigned),
    xid(31, "GPU memory page fault", RestartApplication),
    xid(32, "corrupt push buffer: PBDMA", RestartApplication),
    xid(33, "security engine exception", Unassigned),
    xid(34, "video decoder exception: MSVLD", Unassigned),
    xid(35, "video decoder exception: MSPDEC", Unassigned),
    xid(36, "video decoder exception: MSPPP", Unassigned),
    xid(37, "firmware method that is not there", Ignore),
    xid(38, "firmware watchdog timeout", Ignore),
    xid(39, "copy engine 0 exception", RestartApplication),
    xid(40, "copy engine 1 exception", RestartApplication),
    xid(41, "copy engine 2 exception", RestartApplication),
    xid(42, "video image compositor exception", Unassigned),
    xid(43, "channel reset after a program's fault", Ignore),
    xid(44, "graphics engine fault at a context switch", Ignore),
    xid(45, "channel removed after an earlier fault", FollowOther),
    xid(46, "GPU timeout", ResetGpu),
    xid(47, "NVENC 0 exception", Unassigned),
    xid(48, "uncorrectable ECC error", EccWorkflow),
    xid(49, "clocks held down by the registry", Unassigned),
    xid(50, "clocks changed after a channel error", Unassigned),
    xid(51, "clocks changed after a stress test", Unassigned),
    xid(52, "clocks changed as temperature rose", Unassigned),
    xid(53, "clocks reduced by temperature", Unassigned),
    xid(54, "auxiliary power is not connected", CheckPower),
    xid(55, "temperature cannot be read", Unassigned),
    xid(56, "display channel exception", Unassigned),
    xid(57, "video memory link training failed", Unassigned),
    xid(58, "video memory interface error", Unassigned),
    xid(59, "PMU error", Unassigned),
    xid(60, "SEC2 exception", RestartApplication),
    xid(61, "PMU breakpoint", Unassigned),
    xid(62, "PMU halt", ResetGpu),
    xid(63, "memory row remapped or page retired", Ignore),
    xid(64, "memory row could not be remapped", ResetGpu),
    xid(65, "NVENC 1 exception", Unassigned),
    xid(66, "illegal register access by the driver", Ignore),
    xid(67, "illegal access by the driver", Ignore),
    xid(68, "NVDEC 0 exception", RestartApplication),
    xid(69, "graphics engine class error", RestartApplication),
    xid(70, "copy engine 3 exception", RestartApplication),
    xid(71, "copy engine 4 exception", RestartApplication),
    xid(72, "copy engine 5 exception", RestartApplication),
    xid(73, "NVENC 2 exception", Unassigned),
    xid(74, "NVLink error", NvlinkWorkflow),
    xid(75, "copy engine 6 exception", RestartApplication),
    xid(76, "copy engine 7 exception", RestartApplication),
    xid(77, "copy engine 8 exception", RestartApplication),
    xid(78, "vGPU could not start", UpdateSoftware),
    xid(79, "GPU has fallen off the bus", RebootNode),
    xid(80, "push buffer checksum mismatch", RestartApplication),
    xid(81, "VGA subsystem error", Unassigned),
    xid(82, "NVJPG 0 exception", RestartApplication),
    xid(83, "NVDEC 1 exception", RestartApplication),
    xid(84, "NVDEC 2 exception", RestartApplication),
    xid(85, "copy engine 9 exception", RestartApplication),
    xid(86, "OFA 0 exception", RestartApplication),
    xid(87, "telemetry report of the driver", Unassigned),
    xid(88, "NVDEC 3 exception", RestartApplication),
    xid(89, "NVDEC 4 exception", RestartApplication),
    xid(90, "L2 cache error", Unassigned),
    xid(91, "reserved", Unassigned),
    xid(92, "many single-bit ECC errors", Ignore),
    xid(93, "InfoROM erased too often", Ignore),
    xid(94, "contained memory error", RestartApplication),
    xid(95, "uncontained memory error", ResetGpu),
    xid(96, "NVDEC 5 exception", RestartApplication),
    xid(97, "NVDEC 6 exception", RestartApplication),
    xid(98, "NVDEC 7 exception", RestartApplication),
    xid(99, "NVJPG 1 exception", RestartApplication),
    xid(100, "NVJPG 2 exception", RestartApplication),
    xid(101, "NVJPG 3 exception", RestartApplication),
    xid(102, "NVJPG 4 exception", RestartApplication),
    xid(103, "NVJPG 5 exception", RestartApplication),
    xid(104, "NVJPG 6 exception", RestartApplication),
    xid(105, "NVJPG 7 exception", RestartApplication),
    xid(106, "SMBPBI test message", Ignore),
    xid(107, "silent SMBPBI test message", Ignore),
    xid(108, "NVLink remote translation error", Ignore),
    classed(109, "context switch timeout", ResetGpu, Class::Application),
    xid(110, "security fault", ResetGpu),
    xid(111, "display bundle error", Unassigned),
    xid(112, "display supervisor error", Unassigned),
    xid(113, "DisplayPort link training failed", Unassigned),
    xid(114, "display pipeline underflow", Unassigned),
    xid(115, "display core channel error", Unassigned),
    xid(116, "display window channel error", Unassigned),
    xid(117, "display cursor channel error", Unassigned),
    xid(118, "display head error", Unassigned),
    xid(119, "GSP does not answer", ResetGpu),
    xid(120, "GSP error", ResetGpu),
    xid(121, "C2C link error", Ignore),
    xid(122, "SPI flash could not be read", Unassigned),
    xid(123, "SPI flash could not be written", Unassigned),
    xid(124, "SPI flash could not be erased", Unassigned),
    xid(125, "InfoROM file system error", Unassigned),
    xid(126, "copy engine 10 exception", RestartApplication),
    xid(127, "copy engine 11 exception", RestartApplication),
    xid(128, "copy engine 12 exception", RestartApplication),
    xid(129, "copy engine 13 exception", RestartApplication),
    xid(130, "copy engine 14 exception", RestartApplication),
    xid(131, "copy engine 15 exception", RestartApplication),
    xid(132, "copy engine 16 exception", RestartApplication),
    xid(133, "copy engine 17 exception", RestartApplication),
    xid(134, "copy engine 18 exception", RestartApplication),
    xid(135, "copy engine 19 exception", RestartApplication),
    xid(136, "NVLink training failed", ResetGpu),
    xid(137, "NVLink access without privilege", Ignore),
    xid(138, "DLA error", Unassigned),
    xid(139, "OFA 1 exception", RestartApplication),
    xid(140, "ECC error without recovery", ResetGpu),
    xid(141, "CUDA fast path error", Ignore),
    xid(142, "NVENC 3 exception", ContactSupport),
    xid(143, "GPU initialization error", ResetGpu),
    xid(144, "NVLink 5 error: SAW", NvlinkWorkflow),
    xid(145, "NVLink 5 error: RLW", NvlinkWorkflow),
    xid(146, "NVLink 5 error: TLW", NvlinkWorkflow),
    xid(147, "NVLink 5 error: TREX", NvlinkWorkflow),
    xid(148, "NVLink 5 error: NVLPW_CTRL", NvlinkWorkflow),
    xid(149, "NVLink 5 error: NETIR", NvlinkWorkflow),
    xid(150, "NVLink 5 error: MSE", NvlinkWorkflow),
    xid(151, "key rotation error", RebootNode),
    xid(152, "DLA SMMU error", Ignore),
    xid(153, "DLA timeout", Ignore),
    xid(154, "recovery action changed", AskRecoveryAction),
    xid(155, "NVLink error found by software", ResetGpu),
    xid(156, "resource to be retired", ResetGpu),
    xid(157, "resource could not be retired", Ignore),
    xid(158, "fatal timeout of the GPU", ResetGpu),
    xid(159, "CHI error other than of data", CheckUvm),
    xid(160, "memory channel retired", Ignore),
    xid(161, "memory channel could not be retired", Ignore),
    xid(162, "power smoothing is on again", Unassigned),
    xid(163, "power smoothing is off", Unassigned),
    xid(164, "power smoothing nears its end of life", Unassigned),
    xid(165, "power smoothing is at its end of life", Unassigned),
    xid(166, "NVLink traffic before its encryption", Unassigned),
    xid(167, "fatal PCIe timeout", Unassigned),
    xid(168, "GPU memory capacity reduced", Unassigned),
    xid(169, "SEC2 halt", Unassigned),
    xid(170, "NVLink interrupt while encrypted", Unassigned),
    xid(171, "uncorrectable DRAM error, detail of 48", Unassigned),
    xid(172, "uncorrectable SRAM error, detail of 48", Unassigned),
];

#[cfg(test)]
mod tests {
    use super::*;

    /// XIDs whose class is not that of their action, and why.
    const EXCEPTIONS: &[(u64, &str)] = &[(
        109,
        "users know it as a program's fault, NVIDIA's plugin ignores it, and the \
         recovery action tells of a GPU that needs more",
    )];

    #[test]
    fn the_catalogue_is_sorted_and_whole() {
        let xids = CATALOGUE.iter().map(|entry| entry.xid);
        assert!(xids.eq(1..=172));
        assert_eq!(of(0), None);
        assert_eq!(of(173), None);
        assert_eq!(of(u64::MAX), None);
        assert_eq!(of(79).unwrap().name, "GPU has fallen off the bus");
    }

    #[test]
    fn a_name_is_short_and_no_other_xids() {
        let mut names: Vec<&str> = CATALOGUE.iter().map(|entry| entry.name).collect();
        assert!(names.iter().all(|name| (1..=45).contains(&name.len())));
        names.sort_unstable();
        let before = names.len();
        names.dedup();
        assert_eq!(names.len(), before);
    }

    #[test]
    fn classes_follow_from_actions_but_for_the_exceptions() {
        let other = CATALOGUE.iter().filter(|e| e.class != e.action.class());
        let exceptions = EXCEPTIONS.iter().map(|(xid, _)| *xid);
        assert!(other.map(|entry| entry.xid).eq(exceptions));
    }

    /// The one list to be read by whoever asks what takes a GPU away.
    #[test]
    fn these_xids_and_no_others_make_a_gpu_unhealthy() {
        let of_class = |class| {
            let entries = CATALOGUE.iter().filter(move |entry| entry.class == class);
            entries.map(|entry| entry.xid).collect::<Vec<u64>>()
        };
        assert_eq!(
            of_class(Class::Reset),
            [
                46, 48, 54, 62, 64, 74, 95, 110, 119, 120, 136, 140, 142, 143, 144, 145, 146, 147,
                148, 149, 150, 155, 156, 158
            ]
        );
        assert_eq!(of_class(Class::Reboot), [79, 151]);
        // A GPU that is to be replaced is told by its counters, not by one XID.
        assert!(of_class(Class::Replace).is_empty());
    }

    #[test]
    fn each_action_has_a_remedy_of_its_own() {
        let mut remedies: Vec<(&str, Action)> = Vec::new();
        for entry in CATALOGUE {
            let remedy = (entry.action.remedy(), entry.action);
            if !remedies.contains(&remedy) {
                remedies.push(remedy);
            }
        }
        remedies.sort_unstable_by_key(|(words, _)| *words);
        let before = remedies.len();
        remedies.dedup_by_key(|(words, _)| *words);
        assert_eq!((remedies.len(), before), (13, 13));
    }
}
