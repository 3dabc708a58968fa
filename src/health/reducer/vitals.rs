//! What a GPU answered to what is amiss with it.

use std::collections::{BTreeMap, BTreeSet};

use crate::gpu::{Fabric, RetiredPages, Vitals};
use crate::health::cause::Cause;
use crate::health::signals::Kind;

/// A GPU can retire 64 pages; with so many NVIDIA is reported to take it back.
const MOST_RETIRED_PAGES: u32 = 60;

/// `NVML_GPU_FABRIC_STATE_*`.
const NOT_STARTED: u8 = 1;
const IN_PROGRESS: u8 = 2;
const COMPLETED: u8 = 3;

/// `nvmlClocksEventReason…`: slowdown for heat by hardware in general, by
/// software, and by hardware.
const THERMAL: u64 = 0x20 | 0x40;
const HW_SLOWDOWN: u64 = 0x8;
/// The power supply's brake. A software power cap is how a busy GPU works.
const POWER_BRAKE: u64 = 0x80;

/// What is acted on, and what is reported only. `links_up` are the NVLinks that
/// were ever up.
pub(super) fn read(vitals: &Vitals, links_up: &BTreeSet<u32>) -> (BTreeSet<Cause>, BTreeSet<Kind>) {
    let mut causes = BTreeSet::new();
    if let Some(action) = vitals.recovery_action.filter(|action| *action != 0) {
        causes.insert(Cause::RecoveryAction(action));
    }
    if vitals.remapped_rows.is_some_and(|rows| rows.failure) {
        causes.insert(Cause::RowRemapFailure);
    }
    if vitals.sram_threshold_exceeded == Some(true) {
        causes.insert(Cause::SramThreshold);
    }
    causes.extend(vitals.retired_pages.and_then(retired));
    // Contained errors are no reason to withdraw a GPU, as a driver that names a
    // recovery action knows.
    if let (None, Some(errors @ 1..)) = (vitals.recovery_action, vitals.uncorrectable_ecc) {
        causes.insert(Cause::UncorrectableEcc(errors));
    }
    if let Some(fabric) = vitals.fabric {
        causes.extend(incomplete(fabric).map(Cause::Fabric));
        causes.extend(down(&vitals.nvlinks, links_up));
    }
    (causes, notes(vitals))
}

fn retired(pages: RetiredPages) -> Option<Cause> {
    let count = pages.single_bit.saturating_add(pages.double_bit);
    if count >= MOST_RETIRED_PAGES {
        return Some(Cause::RetiredPages(count));
    }
    pages.pending.then_some(Cause::RetirementPending)
}

/// A link that was never up may have no other end.
fn down(links: &BTreeMap<u32, bool>, links_up: &BTreeSet<u32>) -> Option<Cause> {
    let down = links
        .iter()
        .filter(|(link, up)| !**up && links_up.contains(link));
    let down: Vec<_> = down.map(|(link, _)| *link).collect();
    (!down.is_empty()).then_some(Cause::NvLinkDown(down))
}

fn incomplete(fabric: Fabric) -> Option<String> {
    match fabric.state {
        NOT_STARTED => Some("registration has not started".into()),
        IN_PROGRESS => Some("registration is in progress".into()),
        COMPLETED if fabric.status != 0 => Some(format!(
            "registration failed (NVML return code {})",
            fabric.status
        )),
        COMPLETED => unhealthy(fabric.health_mask).map(str::to_owned),
        _ => None,
    }
}

/// A field of `NVML_GPU_FABRIC_HEALTH_MASK_*`, at its shift; 1 is true.
fn statement(mask: u32, shift: u32) -> u32 {
    mask >> shift & 0x3
}

fn unhealthy(mask: u32) -> Option<&'static str> {
    // 0 and 1 are "not told" and "none".
    let incorrect = mask >> 8 & 0xf;
    match mask {
        _ if statement(mask, 2) == 1 => Some("routes are being recovered"),
        _ if statement(mask, 4) == 1 => Some("a route is unhealthy"),
        _ if statement(mask, 6) == 1 => Some("an access timed out and is being recovered"),
        _ if incorrect > 1 => Some("its configuration is incorrect"),
        _ => None,
    }
}

fn notes(vitals: &Vitals) -> BTreeSet<Kind> {
    let reasons = vitals.clocks_event_reasons.unwrap_or(0);
    let bandwidth = vitals
        .fabric
        .map_or(0, |fabric| statement(fabric.health_mask, 0));
    // The general bit comes with the brake's too.
    let hot = reasons & THERMAL != 0 || reasons & (HW_SLOWDOWN | POWER_BRAKE) == HW_SLOWDOWN;
    let all = [
        (
            vitals.remapped_rows.is_some_and(|rows| rows.pending),
            Kind::RemapPending,
        ),
        (hot, Kind::ThermalSlowdown),
        (reasons & POWER_BRAKE != 0, Kind::PowerSlowdown),
        (bandwidth == 1, Kind::FabricDegraded),
    ];
    let held = all.into_iter().filter(|(holds, _)| *holds);
    held.map(|(_, kind)| kind).collect()
}
