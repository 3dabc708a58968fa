//! Small ELF files and driver trees for this module's tests.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use tempfile::TempDir;

use super::DriverRoot;

/// Where the program headers of an [`Elf`] begin; each takes 56 bytes.
pub(super) const PROGRAM_HEADERS: usize = 64;

const X86_64: u16 = 62;
pub(super) const AARCH64: u16 = 183;

/// A file that is nothing but headers and a dynamic segment.
#[derive(Clone)]
pub(super) struct Elf {
    pub(super) class: u8,
    pub(super) data: u8,
    pub(super) kind: u16,
    pub(super) machine: u16,
    pub(super) soname: Option<String>,
    /// In place of the right offset into the strings.
    pub(super) soname_offset: Option<u64>,
    pub(super) needed: Vec<String>,
}

impl Elf {
    pub(super) fn library(soname: &str) -> Self {
        let soname = Some(soname.to_owned());
        Self {
            class: 2,
            data: 1,
            kind: 3,
            machine: X86_64,
            soname,
            soname_offset: None,
            needed: Vec::new(),
        }
    }

    pub(super) fn program() -> Self {
        Self {
            kind: 2,
            soname: None,
            ..Self::library("")
        }
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        const LOADED_AT: u64 = 0x40_0000;
        let dynamic = PROGRAM_HEADERS as u64 + 2 * 56;
        let strings = dynamic + (3 + self.needed.len() as u64) * 16;
        let name = self.soname.clone().unwrap_or_default();
        let mut texts = [&[0], name.as_bytes(), &[0]].concat();
        let mut entries = Vec::new();
        for needed in &self.needed {
            entries.push((1, texts.len() as u64));
            texts.extend(needed.bytes().chain([0]));
        }
        let size = strings + texts.len() as u64;

        let mut bytes = vec![0x7f, b'E', b'L', b'F', self.class, self.data, 1, 0];
        let mut put = |fields: &[&[u8]]| fields.iter().for_each(|f| bytes.extend_from_slice(f));
        let long = |value: u64| value.to_le_bytes();
        // The rest of the header: no entry point, no sections.
        put(&[
            &[0; 8],
            &self.kind.to_le_bytes(),
            &self.machine.to_le_bytes(),
        ]);
        put(&[
            &1u32.to_le_bytes(),
            &long(0),
            &long(PROGRAM_HEADERS as u64),
            &long(0),
            &[0; 4],
        ]);
        put(&[&[64, 0, 56, 0, 2, 0, 64, 0, 0, 0, 0, 0]]);
        for (kind, offset, end) in [(1u32, 0, size), (2, dynamic, strings)] {
            put(&[&kind.to_le_bytes(), &4u32.to_le_bytes(), &long(offset)]);
            put(&[&long(LOADED_AT + offset), &long(LOADED_AT + offset)]);
            put(&[&long(end - offset), &long(end - offset), &long(8)]);
        }
        let tag = if self.soname.is_some() {
            14
        } else {
            0x6000_000d
        };
        let name_offset = self.soname_offset.unwrap_or(1);
        entries.extend([(tag, name_offset), (5, LOADED_AT + strings), (0, 0)]);
        for (tag, value) in entries {
            put(&[&long(tag), &long(value)]);
        }
        put(&[&texts]);
        bytes
    }
}

/// A driver root in a temporary folder, `/` on its host.
pub(super) struct Tree {
    _dir: TempDir,
    pub(super) root: DriverRoot,
}

impl Tree {
    pub(super) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = DriverRoot::new("/", dir.path().canonicalize().unwrap());
        Self { _dir: dir, root }
    }

    pub(super) fn file(&self, path: &str, bytes: &[u8]) -> &Self {
        let path = self.root.here().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
        self
    }

    pub(super) fn elf(&self, path: &str, elf: &Elf) -> &Self {
        self.file(path, &elf.bytes())
    }

    pub(super) fn link(&self, path: &str, target: impl AsRef<Path>) -> &Self {
        let path = self.root.here().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        symlink(target, path).unwrap();
        self
    }

    /// The two libraries without which no driver is found, and their links.
    pub(super) fn required(&self, folder: &str, version: &str) -> &Self {
        for library in ["libcuda", "libnvidia-ml"] {
            let file = format!("{library}.so.{version}");
            self.elf(
                &format!("{folder}/{file}"),
                &Elf::library(&format!("{library}.so.1")),
            );
            self.link(&format!("{folder}/{library}.so.1"), file);
        }
        self
    }
}
