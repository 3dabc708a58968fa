//! How a GPU is: its [`Vitals`], in as few calls of NVML as it takes.
//!
//! Polls never end, so each call that tells nothing is spared: what a GPU has
//! refused is [remembered](Memory), and not for long. A session ends with the
//! driver that it was opened with, and every enumeration forgets, because what a
//! driver refuses can change under it, with MIG for example. Fields are asked for
//! whether refused or not: all of them are one call.
//!
//! What the GPU or its driver does not tell is absent from the answer. An error of
//! a part is an error of the whole only where it is about the GPU or the session:
//! a GPU that is well, and whose driver answers an odd question with an odd error,
//! stays in service.

use std::collections::BTreeMap;

use nvml_wrapper::Device;
use nvml_wrapper::enum_wrappers::device::TemperatureSensor;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::sys_exports::field_id::{
    NVML_FI_DEV_ECC_DBE_VOL_TOTAL as UNCORRECTABLE_ECC,
    NVML_FI_DEV_GET_GPU_RECOVERY_ACTION as RECOVERY_ACTION,
    NVML_FI_DEV_NVLINK_GET_STATE as NVLINK_STATE, NVML_FI_DEV_NVLINK_LINK_COUNT as NVLINK_COUNT,
    NVML_FI_DEV_REMAPPED_COR as REMAPPED_CORRECTABLE,
    NVML_FI_DEV_REMAPPED_FAILURE as REMAPPED_FAILURE,
    NVML_FI_DEV_REMAPPED_PENDING as REMAPPED_PENDING,
    NVML_FI_DEV_REMAPPED_UNC as REMAPPED_UNCORRECTABLE,
    NVML_FI_DEV_RETIRED_DBE as RETIRED_DOUBLE_BIT, NVML_FI_DEV_RETIRED_PENDING as RETIRED_PENDING,
    NVML_FI_DEV_RETIRED_SBE as RETIRED_SINGLE_BIT,
};
use nvml_wrapper_sys::bindings::{NVML_NVLINK_MAX_LINKS, NVML_NVLINK_STATE_INACTIVE};

use super::error::{failed, supported};
use super::raw::{self, Field};
use super::{ErrorKind, Fabric, LibraryError, RemappedRows, RetiredPages, Vitals};

/// The fields of a GPU as a whole. Uncorrectable ECC errors are those of all its
/// memories, DRAM and SRAM, since the driver was loaded; the field is the total
/// that `nvmlDeviceGetTotalEccErrors` tells as uncorrected and volatile.
const FIELDS: [u32; 9] = [
    RECOVERY_ACTION,
    REMAPPED_CORRECTABLE,
    REMAPPED_UNCORRECTABLE,
    REMAPPED_PENDING,
    REMAPPED_FAILURE,
    RETIRED_SINGLE_BIT,
    RETIRED_DOUBLE_BIT,
    RETIRED_PENDING,
    UNCORRECTABLE_ECC,
];

/// A GPU has up to so many, and all are asked for before it has said how many: each
/// call for fields goes to the GPU, and takes 0.4 ms of an H100, for 1 field or for 19.
const LINKS: u32 = NVML_NVLINK_MAX_LINKS;
/// The driver's own masks of links have so many bits.
const MOST_LINKS: u64 = 64;

/// One way to ask, and the C function that it calls.
type Way<T> = (&'static str, fn(&Device<'_>) -> Result<T, NvmlError>);

const SRAM: [Way<bool>; 1] = [(
    "nvmlDeviceGetSramEccErrorStatus",
    raw::sram_threshold_exceeded,
)];
const FABRIC: [Way<Fabric>; 3] = [
    ("nvmlDeviceGetGpuFabricInfoV", raw::fabric_v3),
    ("nvmlDeviceGetGpuFabricInfoV", raw::fabric_v2),
    ("nvmlDeviceGetGpuFabricInfo", raw::fabric_v1),
];
const CLOCKS: [Way<u64>; 2] = [
    (
        "nvmlDeviceGetCurrentClocksEventReasons",
        raw::clocks_event_reasons,
    ),
    (
        "nvmlDeviceGetCurrentClocksThrottleReasons",
        raw::clocks_throttle_reasons,
    ),
];

/// What one GPU's answers have taught: what not to ask it again until the next
/// enumeration.
#[derive(Clone, Debug, Default)]
pub(super) struct Memory {
    links: Option<Links>,
    /// How many of the ways of [`SRAM`] it has refused, from the first on; of
    /// [`FABRIC`] and [`CLOCKS`] likewise.
    sram: usize,
    fabric: usize,
    clocks: usize,
}

/// The NVLinks that answer, and to what.
#[derive(Clone, Debug)]
pub(super) enum Links {
    /// To the field of their state: all of them in the call for all fields.
    Fields(Vec<u32>),
    /// To `nvmlDeviceGetNvLinkState` only, as on older GPUs and drivers. As that
    /// is a call each, these states are as old as the memory.
    Calls(BTreeMap<u32, bool>),
}

/// Asks a GPU how it is, in calls of which at least one reaches the device.
///
/// # Errors
///
/// The GPU is lost, needs a reset or does not answer in the driver's time, or the
/// session is gone: whichever call says so.
pub(super) fn read(device: &Device<'_>, memory: &mut Memory) -> Result<Vitals, LibraryError> {
    // The driver may know the rest by heart; this sensor sits on the GPU.
    let temperature = device.temperature(TemperatureSensor::Gpu);
    supported("nvmlDeviceGetTemperature", temperature)?;
    let fields = ask_for(device, &wanted(memory.links.as_ref()))?;
    let nvlinks = match &memory.links {
        Some(Links::Fields(_)) => fields.links(),
        Some(Links::Calls(states)) => states.clone(),
        None => {
            let (links, states) = find_links(device, &fields)?;
            memory.links = Some(links);
            states
        }
    };
    Ok(Vitals {
        sram_threshold_exceeded: ask(&SRAM, &mut memory.sram, device)?,
        fabric: ask(&FABRIC, &mut memory.fabric, device)?,
        clocks_event_reasons: ask(&CLOCKS, &mut memory.clocks, device)?,
        nvlinks,
        ..fields.vitals()
    })
}

/// The fields that one call asks for, the state of known NVLinks among them.
fn wanted(links: Option<&Links>) -> Vec<Field> {
    let whole = |id| Field { id, scope: 0 };
    let mut wanted: Vec<_> = FIELDS.into_iter().map(whole).collect();
    match links {
        None => wanted.extend(any_links()),
        Some(Links::Fields(links)) => wanted.extend(links.iter().copied().map(state_of)),
        Some(Links::Calls(_)) => {}
    }
    wanted
}

/// What [`find_links`] goes by.
pub(super) fn any_links() -> impl Iterator<Item = Field> {
    let count = Field {
        id: NVLINK_COUNT,
        scope: 0,
    };
    std::iter::once(count).chain((0..LINKS).map(state_of))
}

fn state_of(link: u32) -> Field {
    Field {
        id: NVLINK_STATE,
        scope: link,
    }
}

/// The fields that were told.
#[derive(Debug, Default)]
pub(super) struct Fields(BTreeMap<Field, u64>);

impl Fields {
    /// Of the GPU as a whole.
    pub(super) fn get(&self, id: u32) -> Option<u64> {
        self.get_of(id, 0)
    }

    /// Of one of its parts.
    pub(super) fn get_of(&self, id: u32, scope: u32) -> Option<u64> {
        self.0.get(&Field { id, scope }).copied()
    }

    fn is_set(&self, id: u32) -> Option<bool> {
        self.get(id).map(|value| value != 0)
    }

    fn count(&self, id: u32) -> Option<u32> {
        let count = self.get(id)?;
        Some(count.try_into().unwrap_or(u32::MAX))
    }

    fn vitals(&self) -> Vitals {
        Vitals {
            recovery_action: self.count(RECOVERY_ACTION),
            remapped_rows: self.remapped_rows(),
            retired_pages: self.retired_pages(),
            uncorrectable_ecc: self.get(UNCORRECTABLE_ECC),
            ..Vitals::default()
        }
    }

    /// A driver that tells of a failure alone is heard as well.
    fn remapped_rows(&self) -> Option<RemappedRows> {
        let (pending, failure) = (self.is_set(REMAPPED_PENDING), self.is_set(REMAPPED_FAILURE));
        pending.or(failure)?;
        Some(RemappedRows {
            correctable: self.get(REMAPPED_CORRECTABLE).unwrap_or_default(),
            uncorrectable: self.get(REMAPPED_UNCORRECTABLE).unwrap_or_default(),
            pending: pending.unwrap_or_default(),
            failure: failure.unwrap_or_default(),
        })
    }

    fn retired_pages(&self) -> Option<RetiredPages> {
        let (single_bit, double_bit) = (
            self.count(RETIRED_SINGLE_BIT),
            self.count(RETIRED_DOUBLE_BIT),
        );
        let pending = self.is_set(RETIRED_PENDING);
        if single_bit.or(double_bit).is_none() && pending.is_none() {
            return None;
        }
        Some(RetiredPages {
            single_bit: single_bit.unwrap_or_default(),
            double_bit: double_bit.unwrap_or_default(),
            pending: pending.unwrap_or_default(),
        })
    }

    /// A link that sleeps to save power is up.
    fn links(&self) -> BTreeMap<u32, bool> {
        let states = self.0.iter().filter(|(field, _)| field.id == NVLINK_STATE);
        states
            .map(|(field, state)| (field.scope, *state != u64::from(NVML_NVLINK_STATE_INACTIVE)))
            .collect()
    }
}

/// Asks for fields in one call.
pub(super) fn ask_for(device: &Device<'_>, fields: &[Field]) -> Result<Fields, LibraryError> {
    const CALL: &str = "nvmlDeviceGetFieldValues";
    let Some(values) = supported(CALL, raw::field_values(device, fields))? else {
        return Ok(Fields::default());
    };
    let mut answers = BTreeMap::new();
    for (field, value) in fields.iter().zip(values) {
        if let Some(value) = told(CALL, value)? {
            answers.insert(*field, value);
        }
    }
    Ok(Fields(answers))
}

/// The NVLinks of a GPU, and whether each is up, from what it told of [`any_links`].
pub(super) fn find_links(
    device: &Device<'_>,
    told: &Fields,
) -> Result<(Links, BTreeMap<u32, bool>), LibraryError> {
    let count = told
        .get(NVLINK_COUNT)
        .map(|count| count.min(MOST_LINKS) as u32);
    let count = count.unwrap_or(LINKS);
    let mut states = told.links();
    if count > LINKS {
        let more: Vec<_> = (LINKS..count).map(state_of).collect();
        states.append(&mut ask_for(device, &more)?.links());
    }
    states.retain(|link, _| *link < count);
    if count == 0 || !states.is_empty() {
        return Ok((Links::Fields(states.keys().copied().collect()), states));
    }
    let states = links_by_calls(device, count)?;
    Ok((Links::Calls(states.clone()), states))
}

/// Numbers are given without a gap: past a link that is refused there is none.
fn links_by_calls(device: &Device<'_>, count: u32) -> Result<BTreeMap<u32, bool>, LibraryError> {
    let mut states = BTreeMap::new();
    for link in 0..count {
        let active = device.link_wrapper_for(link).is_active();
        let Some(active) = told("nvmlDeviceGetNvLinkState", active)? else {
            break;
        };
        states.insert(link, active);
    }
    Ok(states)
}

/// Asks in the first way that is not refused.
fn ask<T>(
    ways: &[Way<T>],
    refused: &mut usize,
    device: &Device<'_>,
) -> Result<Option<T>, LibraryError> {
    while let Some((call, way)) = ways.get(*refused) {
        if let Some(answer) = told(call, way(device))? {
            return Ok(Some(answer));
        }
        *refused += 1;
    }
    Ok(None)
}

/// What a call tells, and none where it tells nothing: the GPU or its driver does
/// not know, or does not say. An error is one of the GPU or of the session.
pub(super) fn told<T>(
    call: &'static str,
    answer: Result<T, NvmlError>,
) -> Result<Option<T>, LibraryError> {
    let error = match answer {
        Ok(value) => return Ok(Some(value)),
        // Of a library beside NVML, which only this call has a use for.
        Err(NvmlError::LibraryNotFound) => return Ok(None),
        Err(error) => failed(call, error),
    };
    match error.kind {
        ErrorKind::GpuLost | ErrorKind::ResetRequired | ErrorKind::Timeout | ErrorKind::Session => {
            Err(error)
        }
        ErrorKind::NotFound | ErrorKind::NotSupported | ErrorKind::Other => Ok(None),
    }
}
