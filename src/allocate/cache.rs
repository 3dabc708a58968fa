//! What was made ready for the snapshot that was last answered from.

use std::sync::{Arc, Mutex, PoisonError};

use super::seen::Seen;
use super::ways::Prepared;
use crate::device::DeviceSnapshot;

#[derive(Debug)]
struct Ready {
    snapshot: Arc<DeviceSnapshot>,
    prepared: Arc<Prepared>,
    seen: Seen,
}

/// What the answers from one snapshot have in common, and its files. Cheap to clone;
/// all clones are one.
#[derive(Clone, Debug, Default)]
pub struct Cache(Arc<Mutex<Option<Ready>>>);

impl Cache {
    /// What answers from `snapshot` have in common; and whether every file that one
    /// could name exists for certain. False says nothing.
    pub fn ready(&self, snapshot: &Arc<DeviceSnapshot>) -> (Arc<Prepared>, bool) {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let same = last
            .take()
            .filter(|last| Arc::ptr_eq(&last.snapshot, snapshot));
        let mut ready = same.unwrap_or_else(|| Ready {
            snapshot: snapshot.clone(),
            prepared: Arc::new(Prepared::of(&snapshot.common)),
            seen: Seen::default(),
        });
        let mut exist = ready.seen.still_there();
        if !exist {
            ready.seen = Seen::look(snapshot.files());
            exist = ready.seen.all_there();
        }
        let prepared = ready.prepared.clone();
        *last = Some(ready);
        (prepared, exist)
    }
}
