//! What was made ready for the snapshot that was last answered from.

use std::sync::{Arc, Mutex, PoisonError};

use super::ways::Prepared;
use crate::device::DeviceSnapshot;
use crate::seen::Seen;

#[derive(Debug, Default)]
struct Last {
    /// The snapshot, and what its answers have in common.
    ready: Option<(Arc<DeviceSnapshot>, Arc<Prepared>)>,
    /// Its files.
    seen: Seen,
}

/// What the answers from one snapshot have in common, and its files. Cheap to clone;
/// all clones are one.
#[derive(Clone, Debug, Default)]
pub struct Cache(Arc<Mutex<Last>>);

impl Cache {
    /// What answers from `snapshot` have in common; and whether every file that one
    /// could name exists for certain. False says nothing.
    pub fn ready(&self, snapshot: &Arc<DeviceSnapshot>) -> (Arc<Prepared>, bool) {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &last.ready {
            Some((of, prepared)) if Arc::ptr_eq(of, snapshot) => {
                let prepared = prepared.clone();
                let exist = last.seen.still_there() || last.seen.look(snapshot.files());
                (prepared, exist)
            }
            _ => {
                let prepared = Arc::new(Prepared::of(&snapshot.common));
                last.ready = Some((snapshot.clone(), prepared.clone()));
                (prepared, last.seen.look(snapshot.files()))
            }
        }
    }
}
