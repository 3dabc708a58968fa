//! The loader's cache, `etc/ld.so.cache`: where else libraries are.
//!
//! The format is glibc's (sysdeps/generic/dl-cache.h): a header, an entry a
//! library, then the strings that the entries point to. An older format may
//! stand before it, and is skipped.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::layout::Architecture;

const OLD_MAGIC: &[u8] = b"ld.so-1.7.0\0";
const MAGIC: &[u8] = b"glibc-ld.so.cache1.1";
const OLD_HEADER: usize = 16;
const OLD_ENTRY: usize = 12;
const HEADER: usize = 48;
const ENTRY: usize = 24;

/// Longest cache that is read. One with 4,000 libraries takes 300 kB.
const MAX_SIZE: u64 = 16 << 20;

/// The folders that hold libraries whose name `wanted` knows, as the cache
/// names them, for this architecture. Empty where there is no cache, or none
/// that can be read.
pub(super) fn folders(
    cache: &Path,
    architecture: Architecture,
    wanted: impl Fn(&str) -> bool,
) -> BTreeSet<PathBuf> {
    let mut bytes = Vec::new();
    let read = File::open(cache).and_then(|file| file.take(MAX_SIZE).read_to_end(&mut bytes));
    if read.is_err() {
        return BTreeSet::new();
    }
    let libraries = libraries(&bytes, flags(architecture)).unwrap_or_default();
    libraries
        .into_iter()
        .filter(|(name, _)| wanted(name))
        .filter_map(|(_, path)| Path::new(path).parent().map(Path::to_path_buf))
        .collect()
}

/// What an entry's flags are for a library of glibc 2 for this architecture.
fn flags(architecture: Architecture) -> u32 {
    match architecture {
        Architecture::X86_64 => 0x0303,
        Architecture::Aarch64 => 0x0a03,
    }
}

/// Name and path of each library with these flags. None: not a cache.
fn libraries(bytes: &[u8], flags: u32) -> Option<Vec<(&str, &str)>> {
    let cache = bytes.get(start(bytes)?..)?;
    if !cache.starts_with(MAGIC) {
        return None;
    }
    let count = word(cache, MAGIC.len())? as usize;
    let entries = cache.get(HEADER..)?.chunks_exact(ENTRY).take(count);
    let libraries = entries.filter_map(|entry| {
        let text = |at| string(cache, word(entry, at)? as usize);
        (word(entry, 0)? == flags).then(|| Some((text(4)?, text(8)?)))?
    });
    Some(libraries.collect())
}

/// Where the format of today begins: 8-byte aligned after the older one.
fn start(bytes: &[u8]) -> Option<usize> {
    if !bytes.starts_with(OLD_MAGIC) {
        return Some(0);
    }
    let count = word(bytes, OLD_MAGIC.len())? as usize;
    let end = count.checked_mul(OLD_ENTRY)?.checked_add(OLD_HEADER)?;
    end.checked_next_multiple_of(8)
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let word = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_le_bytes(word.try_into().ok()?))
}

fn string(bytes: &[u8], at: usize) -> Option<&str> {
    let rest = bytes.get(at..)?;
    let end = rest.iter().position(|byte| *byte == 0)?;
    std::str::from_utf8(&rest[..end]).ok()
}

/// A cache of one library for x86-64.
#[cfg(test)]
pub(super) fn of(name: &str, path: &str) -> Vec<u8> {
    tests::cache(&[(tests::X86_64, name, path)], false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(super) const X86_64: u32 = 0x0303;
    const I386: u32 = 0x0003;

    /// A cache of these libraries, as ldconfig would write it.
    pub(super) fn cache(libraries: &[(u32, &str, &str)], old: bool) -> Vec<u8> {
        let mut strings = Vec::new();
        let mut entries = Vec::new();
        let texts = HEADER + libraries.len() * ENTRY;
        for (flags, name, path) in libraries {
            let name_at = u32::try_from(texts + strings.len()).unwrap();
            strings.extend(name.bytes().chain([0]));
            let path_at = u32::try_from(texts + strings.len()).unwrap();
            strings.extend(path.bytes().chain([0]));
            for word in [*flags, name_at, path_at, 0, 0, 0] {
                entries.extend(word.to_le_bytes());
            }
        }
        let mut bytes = Vec::new();
        if old {
            bytes.extend(OLD_MAGIC);
            bytes.extend(1u32.to_le_bytes());
            bytes.resize(32, 0);
        }
        bytes.extend(MAGIC);
        bytes.extend(u32::try_from(libraries.len()).unwrap().to_le_bytes());
        bytes.extend(u32::try_from(strings.len()).unwrap().to_le_bytes());
        bytes.extend([0; 20]);
        bytes.extend(entries);
        bytes.extend(strings);
        bytes
    }

    #[test]
    fn libraries_of_the_architecture_are_read_after_the_older_format_too() {
        for old in [false, true] {
            let bytes = cache(
                &[
                    (
                        X86_64,
                        "libcuda.so.1",
                        "/usr/local/nvidia/lib64/libcuda.so.1",
                    ),
                    (I386, "libcuda.so.1", "/usr/lib32/libcuda.so.1"),
                ],
                old,
            );
            let found = libraries(&bytes, X86_64).unwrap();
            assert_eq!(
                found,
                [("libcuda.so.1", "/usr/local/nvidia/lib64/libcuda.so.1")]
            );
        }
    }

    /// The cache of this machine, if it has one, as its own tools wrote it.
    #[test]
    fn a_real_cache_names_the_c_library() {
        let path = Path::new("/etc/ld.so.cache");
        let Ok(bytes) = std::fs::read(path) else {
            return;
        };
        let libraries = libraries(&bytes, flags(Architecture::HERE)).unwrap();
        let libc = libraries.iter().find(|(name, _)| *name == "libc.so.6");
        assert!(Path::new(libc.unwrap().1).exists());
        let folders = folders(path, Architecture::HERE, |name| name == "libc.so.6");
        assert_eq!(folders.len(), 1);
    }

    #[test]
    fn no_cache_is_no_folder() {
        let none = folders(Path::new("/nowhere"), Architecture::X86_64, |_| true);
        assert!(none.is_empty());
        assert_eq!(libraries(b"", X86_64), None);
        assert_eq!(libraries(b"ld.so-1.7.0\0\xff\xff\xff\xff", X86_64), None);
    }

    proptest! {
        #[test]
        fn damage_does_no_harm(
            old in any::<bool>(),
            damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
            cut in proptest::option::of(any::<prop::sample::Index>()),
        ) {
            let mut bytes = cache(&[(X86_64, "libcuda.so.1", "/a/libcuda.so.1"), (X86_64, "b", "/c/b")], old);
            for (at, value) in damage {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
            if let Some(cut) = cut {
                bytes.truncate(cut.index(bytes.len()));
            }
            let _libraries = libraries(&bytes, X86_64);
        }
    }
}
