//! NVML, initialised, and its library, which stays loaded from one session to the next.

#![allow(unsafe_code)]

use std::ffi::{OsStr, OsString};
use std::mem::ManuallyDrop;
use std::ops::Deref;
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use libloading::Library;
use nvml_wrapper::Nvml;
use nvml_wrapper::error::{NvmlError, nvml_sym, nvml_try};

/// Loads NVML, and keeps it loaded while the next session would load the same.
///
/// NVML leaves a file open (an eventfd; seen with 580.159.04) when it is unloaded after a
/// session, however well that was shut down. A driver whose sessions begin and then fail
/// is tried every few seconds, for days: it would cost this process all of its files. What
/// was never initialised leaves nothing, and is unloaded at once.
#[derive(Default)]
pub struct Loader {
    kept: Mutex<Option<Kept>>,
}

/// So often `nvmlInit_v2` may fail in turn before it is another library's turn.
const TRIES: u32 = 10;

/// A library that had a session.
struct Kept {
    path: OsString,
    /// Another one comes with another driver, whose library may have the same path.
    module: Option<String>,
    /// Whether a session could not be shut down: what is left of it goes with the
    /// library only.
    tainted: Arc<AtomicBool>,
    failures: u32,
    _library: Library,
}

impl Kept {
    /// Holds what a session has just loaded from `path`.
    fn new(path: &OsStr, module: Option<&str>) -> Option<Self> {
        // SAFETY: it is loaded and has run its initialisers: this counts one more user.
        let library = unsafe { Library::new(path) }.ok()?;
        Some(Self {
            path: path.to_owned(),
            module: module.map(str::to_owned),
            tainted: Arc::default(),
            failures: 0,
            _library: library,
        })
    }

    /// Whether it is what would be loaded now, and nothing speaks against it. A module
    /// that is not known, or not loaded, may be the same again.
    fn serves(&self, path: &OsStr, module: Option<&str>) -> bool {
        let same_module = module.is_none() || self.module.as_deref() == module;
        self.path == path && same_module && !self.tainted.load(Ordering::Acquire)
    }

    /// What is kept once it could not be initialised again.
    fn failed(mut self, error: &NvmlError) -> Option<Self> {
        self.failures += 1;
        let other_driver = matches!(error, NvmlError::LibRmVersionMismatch);
        (!other_driver && self.failures < TRIES).then_some(self)
    }
}

impl Loader {
    /// Initialises the library at `path`, or of that name where the loader has it;
    /// `module` is the loaded kernel module's version, if it is known.
    ///
    /// # Errors
    ///
    /// It cannot be loaded, or `nvmlInit_v2` fails.
    pub(super) fn init(&self, path: &OsStr, module: Option<&str>) -> Result<Session, NvmlError> {
        // Taken out: the call may hang, and nobody is to wait for it here.
        let kept = self.kept().take();
        let kept = kept.filter(|kept| kept.serves(path, module));
        let nvml = match Nvml::builder().lib_path(path).init() {
            Ok(nvml) => nvml,
            Err(error) => {
                *self.kept() = kept.and_then(|kept| kept.failed(&error));
                return Err(error);
            }
        };
        let mut kept = kept.or_else(|| Kept::new(path, module));
        let mut tainted = Arc::default();
        if let Some(kept) = &mut kept {
            kept.failures = 0;
            tainted = kept.tainted.clone();
        }
        *self.kept() = kept;
        Ok(Session {
            nvml: ManuallyDrop::new(nvml),
            tainted,
        })
    }

    fn kept(&self) -> MutexGuard<'_, Option<Kept>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// NVML between `nvmlInit_v2` and `nvmlShutdown`, which is called once: NVML counts, and
/// nvml-wrapper calls it again where it failed, which would end another session that has
/// begun meanwhile.
pub(super) struct Session {
    nvml: ManuallyDrop<Nvml>,
    tainted: Arc<AtomicBool>,
}

impl Deref for Session {
    type Target = Nvml;

    fn deref(&self) -> &Nvml {
        &self.nvml
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let library = self.nvml.lib();
        let shut_down = nvml_sym(library.nvmlShutdown.as_ref()).and_then(|shut_down| {
            // SAFETY: this session's `nvmlInit_v2` has not been undone yet.
            nvml_try(unsafe { shut_down() })
        });
        match shut_down {
            Ok(()) | Err(NvmlError::Uninitialized) => {}
            Err(_) => self.tainted.store(true, Ordering::Release),
        }
        // SAFETY: `nvml` itself is never dropped, so this is the library's only owner.
        drop(unsafe { ptr::read(library) });
    }
}
