//! The few facts of an ELF file that decide whether it is wanted.

mod paged;

use std::fs::{self, File};
use std::io::{self, Read, Seek};
use std::ops::Range;
use std::path::Path;

use object::LittleEndian;
use object::elf;
use object::read::elf::{FileHeader, ProgramHeader};
use object::read::{ReadCache, ReadCacheOps, ReadRef};

use self::paged::Paged;

type Header = elf::FileHeader64<LittleEndian>;
type Segment = elf::ProgramHeader64<LittleEndian>;

/// Most that is read in one piece. A driver's dynamic segment takes about a
/// kilobyte, and its libraries up to a hundred megabytes.
const MAX_READ: u64 = 64 * 1024;

/// Longest name of a file on Linux.
const MAX_NAME: u64 = 255;

/// Most libraries that one is taken to need. The driver's need up to fourteen.
const MAX_NEEDED: usize = 64;

/// A 64-bit, little-endian ELF file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ElfFile {
    pub(super) machine: elf::Machine,
    pub(super) kind: elf::FileType,
    pub(super) soname: Option<String>,
    /// The SONAMEs of the libraries that are loaded before it.
    pub(super) needed: Vec<String>,
    /// The loader that a program asks for.
    pub(super) interpreter: Option<String>,
}

/// Why a file is not read as ELF.
#[derive(Debug, thiserror::Error)]
pub(super) enum ElfError {
    #[error("cannot be read: {0}")]
    Io(#[from] io::Error),
    #[error("not a regular file")]
    NotAFile,
    #[error("a linker script")]
    LinkerScript,
    #[error("a script")]
    Script,
    #[error("for 32-bit programs")]
    Bits32,
    #[error("not a 64-bit little-endian ELF file, or a damaged one: {0}")]
    Header(#[from] object::Error),
    #[error("the dynamic segment points outside the file")]
    Dynamic,
}

impl ElfFile {
    /// Reads the file at `path`, following links as the system does.
    pub(super) fn open(path: &Path) -> Result<Self, ElfError> {
        // Before opening it: a named pipe would wait for a writer.
        let metadata = fs::metadata(path)?;
        if !metadata.is_file() {
            return Err(ElfError::NotAFile);
        }
        Self::read(Paged::new(File::open(path)?, metadata.len()))
    }

    /// Reads headers, the dynamic segment and a few strings: some kilobytes,
    /// whatever the file's size and whatever it claims.
    fn read(file: impl Read + Seek) -> Result<Self, ElfError> {
        let cache = ReadCache::new(file);
        let data = Bounded(&cache);
        foreign(data)?;
        let header = Header::parse(data)?;
        let endian = header.endian()?;
        let segments = header.program_headers(endian, data)?;
        let dynamic = Dynamic::read(segments, data)?;
        Ok(Self {
            machine: header.e_machine(endian),
            kind: header.e_type(endian),
            soname: dynamic.soname,
            needed: dynamic.needed,
            interpreter: interpreter(segments, data),
        })
    }

    /// Whether it is a shared library.
    pub(super) fn is_library(&self) -> bool {
        self.kind == elf::ET_DYN
    }

    /// Whether it can be run.
    pub(super) fn is_program(&self) -> bool {
        self.kind == elf::ET_EXEC || self.kind == elf::ET_DYN
    }
}

/// Knows what stands in a library's place on many machines.
fn foreign<'data, R: ReadRef<'data>>(data: R) -> Result<(), ElfError> {
    const BEGINNING: u64 = 512;
    const CLASS: usize = 4;
    let length = data.len().unwrap_or(0).min(BEGINNING);
    let start = data.read_bytes_at(0, length).unwrap_or_default();
    if start.starts_with(&elf::ELFMAG) {
        let class = start.get(CLASS).copied();
        return if class == Some(elf::ELFCLASS32.0) {
            Err(ElfError::Bits32)
        } else {
            Ok(())
        };
    }
    if start.starts_with(b"#!") {
        return Err(ElfError::Script);
    }
    let text = String::from_utf8_lossy(start);
    let words = ["GNU ld script", "INPUT", "GROUP"];
    if words.iter().any(|word| text.contains(word)) {
        return Err(ElfError::LinkerScript);
    }
    Ok(())
}

/// What the dynamic segment says. Taken from the segments, which the loader
/// goes by, not from the sections, which a stripped file may lack.
struct Dynamic {
    soname: Option<String>,
    needed: Vec<String>,
}

impl Dynamic {
    fn read<'data, R: ReadRef<'data>>(
        segments: &'data [Segment],
        data: R,
    ) -> Result<Self, ElfError> {
        let (mut soname, mut strings, mut needed) = (None, None, Vec::new());
        for (tag, value) in dynamic_entries(segments, data)? {
            match tag {
                elf::DT_SONAME => soname = Some(value),
                elf::DT_STRTAB => strings = Some(value),
                elf::DT_NEEDED if needed.len() < MAX_NEEDED => needed.push(value),
                _ => {}
            }
        }
        let text = |offset: u64| -> Result<String, ElfError> {
            let strings = strings.ok_or(ElfError::Dynamic)?;
            string_at(segments, data, strings, offset).ok_or(ElfError::Dynamic)
        };
        Ok(Self {
            soname: match (soname, strings) {
                (Some(offset), Some(_)) => Some(text(offset)?),
                _ => None,
            },
            needed: needed.into_iter().map(text).collect::<Result<_, _>>()?,
        })
    }
}

fn interpreter<'data, R: ReadRef<'data>>(segments: &[Segment], data: R) -> Option<String> {
    let segment = segments
        .iter()
        .find(|segment| segment.p_type(LittleEndian) == elf::PT_INTERP)?;
    let start = segment.p_offset(LittleEndian);
    text_at(data, start)
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
    text_at(data, file_offset(segments, address.checked_add(offset)?)?)
}

/// The text that begins here in the file and ends with a zero.
fn text_at<'data, R: ReadRef<'data>>(data: R, start: u64) -> Option<String> {
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
            needed: Vec::new(),
            interpreter: None,
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
    fn the_libraries_that_it_needs_are_read() {
        let elf = Elf {
            needed: vec!["libc.so.6".into(), "libnvidia-glsi.so.1".into()],
            ..Elf::library("libcuda.so.1")
        };
        let (file, _) = read(elf.bytes());
        assert_eq!(file.unwrap().needed, elf.needed);
    }

    /// This very test program, as a real linker made it.
    #[test]
    fn a_real_program_names_its_loader_and_its_c_library() {
        let file = ElfFile::open(&std::env::current_exe().unwrap()).unwrap();
        assert!(file.is_program());
        assert!(Path::new(&file.interpreter.unwrap()).exists());
        assert!(file.needed.iter().any(|name| name == "libc.so.6"));
    }

    #[test]
    fn other_formats_are_refused() {
        let big_endian = Elf {
            data: 2,
            ..Elf::library("libcuda.so.1")
        }
        .bytes();
        let cut = Elf::library("libcuda.so.1").bytes()[..80].to_vec();
        for bytes in [Vec::new(), b"text".to_vec(), big_endian, cut] {
            assert!(matches!(read(bytes).0, Err(ElfError::Header(_))));
        }
        let linker_script = b"/* GNU ld script */ INPUT(libcuda.so.1)".to_vec();
        assert!(matches!(read(linker_script).0, Err(ElfError::LinkerScript)));
        let script = b"#!/bin/sh\nexec /opt/nvidia-smi".to_vec();
        assert!(matches!(read(script).0, Err(ElfError::Script)));
        let narrow = Elf {
            class: 1,
            ..Elf::library("libcuda.so.1")
        };
        assert!(matches!(read(narrow.bytes()).0, Err(ElfError::Bits32)));
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
