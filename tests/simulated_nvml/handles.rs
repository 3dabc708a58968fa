//! Handles: what C code holds of a device or of an event set.

use std::ptr;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The numbers of one kind; they also keep null from being a handle.
const FIRST: usize = 0x10_0000;
/// Handles look like aligned addresses.
const STEP: usize = 0x10;

/// Gives each key one handle, for as long as the library is in use.
///
/// A handle is a number in a pointer's clothes: nothing is ever read through
/// it, so that a wild one is an invalid argument and not a crash. Tables of
/// different `KIND` share no handle.
#[derive(Debug)]
pub(crate) struct Handles<T, const KIND: usize> {
    keys: Mutex<Vec<T>>,
}

impl<T: Clone + PartialEq, const KIND: usize> Handles<T, KIND> {
    pub(crate) fn new() -> Self {
        Self {
            keys: Mutex::default(),
        }
    }

    /// The handle of `key`, the same at each call.
    pub(crate) fn handle<P>(&self, key: T) -> *mut P {
        let mut keys = self.lock();
        let known = keys.iter().position(|other| *other == key);
        let position = known.unwrap_or_else(|| {
            keys.push(key);
            keys.len() - 1
        });
        ptr::without_provenance_mut(((KIND * FIRST) + position) * STEP)
    }

    /// The key that has this handle.
    pub(crate) fn key<P>(&self, handle: *mut P) -> Option<T> {
        let number = handle
            .addr()
            .is_multiple_of(STEP)
            .then(|| handle.addr() / STEP)?;
        let position = number.checked_sub(KIND * FIRST)?;
        self.lock().get(position).cloned()
    }

    /// No handle stands for anything any more.
    pub(crate) fn forget(&self) {
        *self.lock() = Vec::new();
    }

    fn lock(&self) -> MutexGuard<'_, Vec<T>> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
