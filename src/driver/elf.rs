//! The few facts of an ELF file that decide whether it is wanted.

use std::fs::{self, File};
use std::io::{self, Read, Seek};
use std::ops::Range;
use std::path::Path;

use object::LittleEndian;
use object::elf;
use object::read::elf::{FileHeader, ProgramHeader};
use object::read::{ReadCache, ReadCacheOps, ReadRef};

type Header = elf::FileHeader64<LittleEndian>;
type Segment = elf::ProgramHeader64<LittleEndian>;

/// Most that is read in one piece. A driver's dynamic segment takes about a
/// kilobyte, and its libraries up to a hundred megabytes.
const MAX_READ: u64 = 64 * 1024;

/// Longest name of a file on Linux.
const MAX_NAME: u64 = 255;

/// A 64-bit, little-endian ELF file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ElfFile {
    pub(super) machine: elf::Machine,
    pub(super) kind: elf::FileType,
    pub(super) soname: Option<String>,
}

/// Why a file is not read as ELF.
#[derive(Debug, thiserror::Error)]
pub(super) enum ElfError {
    #[error("cannot be read: {0}")]
    Io(#[from] io::Error),
    #[error("not a regular file")]
    NotAFile,
    #[error("not a 64-bit little-endian ELF file, or a damaged one: {0}")]
    Header(#[from] object::Error),
    #[error("the dynamic segment points outside the file")]
    Dynamic,
}

impl ElfFile {
    /// Reads the file at `path`, following links as the system does.
    pub(super) fn open(path: &Path) -> Result<Self, ElfError> {
        // Before opening it: a named pipe would wait for a writer.
        if !fs::metadata(path)?.is_file() {
            return Err(ElfError::NotAFile);
        }
        Self::read(File::open(path)?)
    }

    /// Reads headers, the dynamic segment and one string: a few kilobytes,
    /// whatever the file's size and whatever it claims.
    fn read(file: impl Read + Seek) -> Result<Self, ElfError> {
        let cache = ReadCache::new(file);
        let data = Bounded(&cache);
        let header = Header::parse(data)?;
        let endian = header.endian()?;
        let segments = header.program_headers(endian, data)?;
        Ok(Self {
            machine: header.e_machine(endian),
            kind: header.e_type(endian),
            soname: soname(segments, data)?,
        })
    }
}

/// What the file asks to be loaded as. Taken from the segments, which the
/// loader goes by, not from the sections, which a stripped file may lack.
fn soname<'data, R: ReadRef<'data>>(
    segments: &'data [Segment],
    data: R,
) -> Result<Option<String>, ElfError> {
    let mut name = None;
    let mut strings = None;
    for (tag, value) in dynamic_entries(segments, data)? {
        match tag {
            elf::DT_SONAME => name = Some(value),
            elf::DT_STRTAB => strings = Some(value),
            _ => {}
        }
    }
    let (Some(name), Some(strings)) = (name, strings) else {
        return Ok(None);
    };
    string_at(segments, data, strings, name)
        .ok_or(ElfError::Dynamic)
        .map(Some)
}

fn dynamic_entries<'data, R: ReadRef<'data>>(
    segments: &'data [Segment],
    data: R,
) -> Result<impl Iterator<Item = (elf::DynamicTag, u64)>, ElfError> {
    let dynamic = segments
        .iter()
        .find(|segment| segment.p_type(LittleEndian) == elf::PT_DYNAMIC);
    let entries = match dynamic {
        Some(segment) => segment.dynamic(LittleEndian, data)?.unwrap_or_default(),
        None => &[],
    };
    let entries = entries
        .iter()
        .map(|d| (d.d_tag.get(LittleEndian), d.d_val.get(LittleEndian)));
    Ok(entries.take_while(|(tag, _)| *tag != elf::DT_NULL))
}

/// The string `offset` bytes into the table that is loaded at `address`.
fn string_at<'data, R: ReadRef<'data>>(
    segments: &[Segment],
    data: R,
    address: u64,
    offset: u64,
) -> Option<String> {
    let start = file_offset(segments, address.checked_add(offset)?)?;
    let end = start.saturating_add(MAX_NAME + 1).min(data.len().ok()?);
    let bytes = data.read_bytes_at_until(start..end, 0).ok()?;
    String::from_utf8(bytes.to_vec()).ok()
}

/// Where in the file the byte is that gets loaded at `address`.
fn file_offset(segments: &[Segment], address: u64) -> Option<u64> {
    segments
        .iter()
        .filter(|segment| segment.p_type(LittleEndian) == elf::PT_LOAD)
        .find_map(|segment| {
            let within = address.checked_sub(segment.p_vaddr(LittleEndian))?;
            let loaded = within < segment.p_filesz(LittleEndian);
            loaded.then(|| segment.p_offset(LittleEndian).checked_add(within))?
        })
}

/// Refuses what no sane header asks for: the cache below would allocate any
/// size that fits into the file.
struct Bounded<'a, R: ReadCacheOps>(&'a ReadCache<R>);

impl<R: ReadCacheOps> Clone for Bounded<'_, R> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<R: ReadCacheOps> Copy for Bounded<'_, R> {}

impl<'a, R: ReadCacheOps> ReadRef<'a> for Bounded<'a, R> {
    fn len(self) -> Result<u64, ()> {
        self.0.len()
    }

    fn read_bytes_at(self, offset: u64, size: u64) -> Result<&'a [u8], ()> {
        if size > MAX_READ {
            return Err(());
        }
        self.0.read_bytes_at(offset, size)
    }

    fn read_bytes_at_until(self, range: Range<u64>, delimiter: u8) -> Result<&'a [u8], ()> {
        self.0.read_bytes_at_until(range, delimiter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::fixture::{Elf, PROGRAM_HEADERS};
    use proptest::collection::vec;
    use proptest::prelude::*;
    use std::cell::Cell;
    use std::io::{Cursor, SeekFrom};
    use std::rc::Rc;

    /// Counts what is asked of it.
    struct Counting {
        bytes: Cursor<Vec<u8>>,
        asked: Rc<Cell<usize>>,
    }

    impl Read for Counting {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.asked.set(self.asked.get() + buffer.len());
            Read::read(&mut self.bytes, buffer)
        }
    }

    impl Seek for Counting {
        fn seek(&mut self, position: SeekFrom) -> io::Result<u64> {
            Seek::seek(&mut self.bytes, position)
        }
    }

    fn read(bytes: Vec<u8>) -> (Result<ElfFile, ElfError>, usize) {
        let asked = Rc::new(Cell::new(0));
        let file = Counting {
            bytes: Cursor::new(bytes),
            asked: Rc::clone(&asked),
        };
        (ElfFile::read(file), asked.get())
    }

    #[test]
    fn reads_what_decides_and_no_more() {
        let mut bytes = Elf::library("libcuda.so.1").bytes();
        bytes.resize(8 << 20, 0);
        let (file, asked) = read(bytes);
        let expected = ElfFile {
            machine: elf::EM_X86_64,
            kind: elf::ET_DYN,
            soname: Some("libcuda.so.1".to_owned()),
        };
        assert_eq!(file.unwrap(), expected);
        assert!(asked < 4096, "{asked} bytes");
    }

    #[test]
    fn a_library_may_have_no_soname() {
        let (file, _) = read(
            Elf {
                soname: None,
                ..Elf::library("")
            }
            .bytes(),
        );
        assert_eq!(file.unwrap().soname, None);
    }

    #[test]
    fn other_formats_are_refused() {
        let linker_script =
            b"/* GNU ld script */ INPUT(libcuda.so.1) /* and so on, long enough */".to_vec();
        let narrow = Elf {
            class: 1,
            ..Elf::library("libcuda.so.1")
        }
        .bytes();
        let big_endian = Elf {
            data: 2,
            ..Elf::library("libcuda.so.1")
        }
        .bytes();
        let cut = Elf::library("libcuda.so.1").bytes()[..80].to_vec();
        for bytes in [Vec::new(), linker_script, narrow, big_endian, cut] {
            assert!(matches!(read(bytes).0, Err(ElfError::Header(_))));
        }
    }

    #[test]
    fn a_soname_outside_the_file_is_an_error() {
        for offset in [1 << 20, u64::MAX] {
            let elf = Elf {
                soname_offset: Some(offset),
                ..Elf::library("libcuda.so.1")
            };
            assert!(matches!(read(elf.bytes()).0, Err(ElfError::Dynamic)));
        }
    }

    #[test]
    fn a_huge_dynamic_segment_is_not_read() {
        let mut bytes = Elf::library("libcuda.so.1").bytes();
        bytes.resize(8 << 20, 0);
        // The second program header's p_filesz.
        let at = PROGRAM_HEADERS + 56 + 32;
        bytes[at..at + 8].copy_from_slice(&(4u64 << 20).to_le_bytes());
        let (file, asked) = read(bytes);
        assert!(matches!(file, Err(ElfError::Header(_))));
        assert!(asked < 4096, "{asked} bytes");
    }

    #[test]
    fn what_is_no_file_is_not_opened() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(ElfFile::open(dir.path()), Err(ElfError::NotAFile)));
        assert!(matches!(
            ElfFile::open(&dir.path().join("gone")),
            Err(ElfError::Io(_))
        ));
    }

    fn check(bytes: Vec<u8>) -> Result<(), TestCaseError> {
        let (file, asked) = read(bytes);
        prop_assert!(asked as u64 <= 4 * MAX_READ, "{} bytes", asked);
        if let Ok(ElfFile {
            soname: Some(name), ..
        }) = file
        {
            prop_assert!(name.len() as u64 <= MAX_NAME && !name.contains('\0'));
        }
        Ok(())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2048))]

        #[test]
        fn damaged_files_do_no_harm(
            damage in vec((any::<prop::sample::Index>(), any::<u8>()), 1..12),
            padding in prop_oneof![Just(0usize), Just(1 << 20)],
            cut in proptest::option::of(any::<prop::sample::Index>()),
        ) {
            let mut bytes = Elf::library("libnvidia-ml.so.1").bytes();
            for (at, value) in damage {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
            bytes.resize(bytes.len() + padding, 0xff);
            if let Some(cut) = cut {
                bytes.truncate(cut.index(bytes.len()));
            }
            check(bytes)?;
        }

        #[test]
        fn extreme_fields_do_no_harm(
            at in any::<prop::sample::Index>(),
            value in prop_oneof![Just(u64::MAX), Just(u64::MAX / 2), Just(0), any::<u64>()],
        ) {
            let mut bytes = Elf::library("libnvidia-ml.so.1").bytes();
            let at = at.index(bytes.len() / 8) * 8;
            bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
            check(bytes)?;
        }

        #[test]
        fn noise_does_no_harm(noise in vec(any::<u8>(), 0..512)) {
            let mut bytes = b"\x7fELF\x02\x01\x01".to_vec();
            bytes.extend(noise);
            check(bytes)?;
        }
    }
}
