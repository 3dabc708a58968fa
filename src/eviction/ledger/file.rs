//! The record's file: whole or as it was before, of one process at a time.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::Ledger;
use crate::files;

/// The record's name in the state folder.
pub const FILE: &str = "evictions.json";

/// Held by the process that evicts: in a rolling update there are two.
pub const LOCK: &str = "evictions.lock";
/// A record that was not understood.
pub const DAMAGED: &str = "evictions.json.damaged";

/// Nobody else's matter.
const MODE: u32 = 0o600;

/// Far more than a record that we write, in bytes.
const LONGEST: u64 = 4 << 20;

/// Another number, another meaning.
const VERSION: u32 = 1;

#[derive(Serialize)]
struct Written<'a> {
    version: u32,
    boot: &'a str,
    #[serde(flatten)]
    ledger: &'a Ledger,
}

#[derive(Deserialize)]
struct Head {
    version: u32,
    boot: String,
}

/// A state folder that no other process evicts by. Cheap to clone; the folder is
/// let go with the last clone.
#[derive(Clone, Debug)]
pub struct Store {
    folder: PathBuf,
    _lock: Arc<File>,
}

/// What a state folder had.
#[derive(Debug)]
pub struct Loaded {
    /// The record, empty where there was none of this boot.
    pub ledger: Ledger,
    /// What was wrong with the file that was there, and what became of it.
    pub damage: Option<String>,
}

impl Store {
    /// Takes the folder; none where another process has it. Makes it where it is
    /// not there. Blocks.
    ///
    /// # Errors
    ///
    /// What the system says of the first thing that it refuses.
    pub fn take(folder: &Path) -> io::Result<Option<Self>> {
        fs::create_dir_all(folder)?;
        let mut options = OpenOptions::new();
        let lock = options.write(true).create(true).truncate(false).mode(MODE);
        let lock = lock.open(folder.join(LOCK))?;
        match lock.try_lock() {
            Ok(()) => Ok(Some(Self {
                folder: folder.into(),
                _lock: Arc::new(lock),
            })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    /// What is recorded of the boot of this ID. A file that cannot be understood
    /// is put aside. Blocks.
    #[must_use]
    pub fn load(&self, boot: &str) -> Loaded {
        let path = self.folder.join(FILE);
        let damage = match read(&path) {
            Ok(None) => None,
            Ok(Some(bytes)) => match parse(&bytes, boot) {
                Ok(ledger) => {
                    return Loaded {
                        ledger,
                        damage: None,
                    };
                }
                Err(error) => Some(error),
            },
            Err(error) => Some(error.to_string()),
        };
        let damage = damage.map(|error| {
            let aside = self.folder.join(DAMAGED);
            match fs::rename(&path, &aside) {
                Ok(()) => format!("{error}; kept as {}", aside.display()),
                Err(kept) => format!("{error}; cannot be put aside: {kept}"),
            }
        });
        Loaded {
            ledger: Ledger::default(),
            damage,
        }
    }

    /// Makes `ledger` the record of the boot of this ID; it is on disk when this
    /// returns. Blocks.
    ///
    /// # Errors
    ///
    /// What the system says of the first thing that it refuses.
    pub fn save(&self, boot: &str, ledger: &Ledger) -> io::Result<()> {
        let path = self.folder.join(FILE);
        files::replace(&path, &bytes(boot, ledger)?, MODE)?;
        // The new name, too, has to outlast a crash of the node.
        File::open(&self.folder)?.sync_all()
    }
}

/// The record as it is in its file.
///
/// # Errors
///
/// It has no form in JSON; none of ours is known to.
pub fn bytes(boot: &str, ledger: &Ledger) -> io::Result<Vec<u8>> {
    let version = VERSION;
    let written = Written {
        version,
        boot,
        ledger,
    };
    Ok(serde_json::to_vec_pretty(&written)?)
}

fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut bytes = Vec::new();
    file.take(LONGEST + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > LONGEST {
        return Err(io::Error::other("is longer than any record"));
    }
    Ok(Some(bytes))
}

/// The record of `boot` in `bytes`; an empty one where it is of another boot,
/// whose pods are all gone.
///
/// # Errors
///
/// Why they are no record of ours.
pub fn parse(bytes: &[u8], boot: &str) -> Result<Ledger, String> {
    let head: Head = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    if head.version != VERSION {
        return Err(format!("has version {}, and not {VERSION}", head.version));
    }
    let ledger: Ledger = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    Ok(if head.boot == boot {
        ledger
    } else {
        Ledger::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eviction::fixture::{incident, pod};
    use crate::eviction::notice::Notice;

    fn ledger() -> Ledger {
        let mut ledger = Ledger::default();
        let (first, second) = (pod("a", "uid-a"), pod("b", "uid-b"));
        ledger.tell(&first, &incident(5, 0), Notice::Planned);
        ledger.intend(&first, &incident(5, 0), std::time::Duration::from_nanos(7));
        ledger.tell(&second, &incident(6, 1), Notice::DaemonSet);
        ledger
    }

    fn take(folder: &Path) -> Store {
        Store::take(folder).unwrap().expect("nobody has it")
    }

    #[test]
    fn what_is_saved_is_loaded_in_the_same_boot_only() {
        let root = tempfile::tempdir().unwrap();
        let store = take(&root.path().join("state"));
        let none = store.load("boot");
        assert_eq!((none.ledger, none.damage), (Ledger::default(), None));
        store.save("boot", &ledger()).unwrap();
        let same = store.load("boot");
        assert_eq!((same.ledger, same.damage), (ledger(), None));
        let other = store.load("another");
        assert_eq!((other.ledger, other.damage), (Ledger::default(), None));
    }

    #[test]
    fn a_folder_is_one_process_until_its_last_clone_is_gone() {
        let root = tempfile::tempdir().unwrap();
        let store = take(root.path());
        assert!(Store::take(root.path()).unwrap().is_none());
        let clone = store.clone();
        drop(store);
        assert!(Store::take(root.path()).unwrap().is_none());
        drop(clone);
        take(root.path());
    }

    #[test]
    fn what_is_no_record_is_put_aside_and_told_of_once() {
        let good = String::from_utf8(bytes("boot", &ledger()).unwrap()).unwrap();
        let foreign = good.replacen("\"version\": 1", "\"version\": 2", 1);
        assert_ne!(foreign, good);
        let cut = &good[..good.len() / 2];
        let long = " ".repeat(usize::try_from(LONGEST).unwrap()) + &good;
        for text in ["", "{}", "[]", cut, &foreign, &long] {
            let root = tempfile::tempdir().unwrap();
            std::fs::write(root.path().join(FILE), text).unwrap();
            let store = take(root.path());
            let loaded = store.load("boot");
            assert_eq!(loaded.ledger, Ledger::default());
            assert!(loaded.damage.is_some(), "{text:.40}");
            let aside = std::fs::read_to_string(root.path().join(DAMAGED)).unwrap();
            assert!(aside == text, "{text:.40}");
            assert_eq!(store.load("boot").damage, None);
        }
    }

    #[test]
    fn what_cannot_be_put_aside_is_told_of_and_stands_in_the_way() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join(FILE)).unwrap();
        std::fs::create_dir_all(root.path().join(DAMAGED).join("full")).unwrap();
        let store = take(root.path());
        let damage = store.load("boot").damage.unwrap();
        assert!(damage.contains("cannot be put aside"), "{damage}");
        assert!(store.save("boot", &ledger()).is_err());
    }

    proptest::proptest! {
        #[test]
        fn no_file_is_too_much(
            cut in proptest::prelude::any::<proptest::sample::Index>(),
            byte: u8,
        ) {
            let mut text = bytes("boot", &ledger()).unwrap();
            let place = cut.index(text.len());
            text[place] = byte;
            let _either = parse(&text, "boot");
            let _either = parse(&text[..place], "boot");
        }
    }
}
