//! Writes shared objects: nothing in them, yet the loader of their machine
//! takes them, and a reader finds SONAME, needed libraries, class and machine.

use std::path::Path;

/// The processor that a shared object is for; its class follows from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Machine {
    /// 64 bits.
    X86_64,
    /// 64 bits.
    Aarch64,
    /// 32 bits.
    I386,
}

impl Machine {
    /// The machine that the tests run on.
    pub const HERE: Self = if cfg!(target_arch = "aarch64") {
        Self::Aarch64
    } else {
        Self::X86_64
    };

    fn number(self) -> u16 {
        match self {
            Self::I386 => 3,
            Self::X86_64 => 62,
            Self::Aarch64 => 183,
        }
    }

    fn is_64_bit(self) -> bool {
        self != Self::I386
    }
}

/// A shared object to write.
#[derive(Debug, Clone)]
pub struct SharedObject {
    machine: Machine,
    soname: Option<String>,
    needed: Vec<String>,
}

impl SharedObject {
    /// A library for this machine that needs no other.
    pub fn named(soname: &str) -> Self {
        Self {
            soname: Some(soname.to_owned()),
            ..Self::nameless()
        }
    }

    /// As [`SharedObject::named`], without a SONAME.
    pub fn nameless() -> Self {
        Self {
            machine: Machine::HERE,
            soname: None,
            needed: Vec::new(),
        }
    }

    /// For another machine.
    pub fn on(mut self, machine: Machine) -> Self {
        self.machine = machine;
        self
    }

    /// With `DT_NEEDED` entries, in this order.
    pub fn needs<S: AsRef<str>>(mut self, libraries: impl IntoIterator<Item = S>) -> Self {
        let libraries = libraries.into_iter();
        self.needed
            .extend(libraries.map(|name| name.as_ref().to_owned()));
        self
    }

    /// Writes the file.
    pub fn write(&self, path: &Path) {
        std::fs::write(path, self.bytes()).expect("write a shared object");
    }

    /// The file's content.
    pub fn bytes(&self) -> Vec<u8> {
        let sizes = Sizes::of(self.machine);
        let (strings, entries) = self.dynamic();
        let places = Places::lay_out(&sizes, &strings, entries.len() + DYNAMIC_TAIL);
        let mut out = Bytes::new(sizes.word);
        self.write_header(&mut out, &sizes, &places);
        write_segments(&mut out, &places);
        write_content(&mut out, &places, &strings, &entries, sizes.symbol);
        write_sections(&mut out, &places, sizes.symbol);
        out.bytes
    }

    /// The dynamic string table, and the dynamic entries that refer to it.
    fn dynamic(&self) -> (Vec<u8>, Vec<(u64, u64)>) {
        let mut strings = vec![0];
        let mut entries = Vec::new();
        let soname = self.soname.iter().map(|name| (DT_SONAME, name));
        for (tag, name) in soname.chain(self.needed.iter().map(|name| (DT_NEEDED, name))) {
            entries.push((tag, strings.len() as u64));
            strings.extend_from_slice(name.as_bytes());
            strings.push(0);
        }
        (strings, entries)
    }

    fn write_header(&self, out: &mut Bytes, sizes: &Sizes, places: &Places) {
        let class = if self.machine.is_64_bit() { 2 } else { 1 };
        let (little_endian, version) = (1, 1);
        out.raw(&[0x7f, b'E', b'L', b'F', class, little_endian, version]);
        out.raw(&[0; 9]);
        out.half(ET_DYN);
        out.half(self.machine.number());
        out.int(version.into());
        out.word(0); // No entry point.
        out.word(sizes.header); // The program headers follow.
        out.word(places.sections);
        out.int(0);
        out.half(sizes.header as u16);
        out.half(sizes.segment as u16);
        out.half(SEGMENTS as u16);
        out.half(sizes.section as u16);
        out.half(SECTIONS.len() as u16);
        out.half(SECTIONS.len() as u16 - 1);
    }
}

const ET_DYN: u16 = 3;
const DT_NULL: u64 = 0;
const DT_NEEDED: u64 = 1;
const DT_HASH: u64 = 4;
const DT_STRTAB: u64 = 5;
const DT_SYMTAB: u64 = 6;
const DT_STRSZ: u64 = 10;
const DT_SYMENT: u64 = 11;
const DT_SONAME: u64 = 14;
/// Entries after SONAME and NEEDED: where the tables are, and the end.
const DYNAMIC_TAIL: usize = 6;

const PT_LOAD: u32 = 1;
const PT_DYNAMIC: u32 = 2;
/// Without it, the loader assumes that the stack must be executable.
const PT_GNU_STACK: u32 = 0x6474_e551;
const SEGMENTS: u64 = 3;
const READ_WRITE: u32 = 6;
/// The largest page of any machine.
const PAGE: u64 = 0x1_0000;

/// One bucket, one chain, no symbol.
const EMPTY_HASH: [u32; 4] = [1, 1, 0, 0];
const SHF_WRITE_ALLOC: u64 = 3;
const SECTIONS: [&str; 6] = ["", ".hash", ".dynsym", ".dynstr", ".dynamic", ".shstrtab"];

/// Sizes of the structures of a class.
struct Sizes {
    word: u64,
    header: u64,
    segment: u64,
    section: u64,
    symbol: u64,
}

impl Sizes {
    fn of(machine: Machine) -> Self {
        if machine.is_64_bit() {
            Self {
                word: 8,
                header: 64,
                segment: 56,
                section: 64,
                symbol: 24,
            }
        } else {
            Self {
                word: 4,
                header: 52,
                segment: 32,
                section: 40,
                symbol: 16,
            }
        }
    }
}

/// Where everything is, in the file and in memory alike.
struct Places {
    hash: u64,
    symbols: u64,
    strings: u64,
    strings_size: u64,
    dynamic: u64,
    dynamic_size: u64,
    section_names: u64,
    sections: u64,
}

impl Places {
    fn lay_out(sizes: &Sizes, strings: &[u8], entries: usize) -> Self {
        let hash = (sizes.header + SEGMENTS * sizes.segment).next_multiple_of(8);
        let symbols = hash + size_of_val(&EMPTY_HASH) as u64;
        let strings_at = symbols + sizes.symbol;
        let strings_size = strings.len() as u64;
        let dynamic = (strings_at + strings_size).next_multiple_of(8);
        let dynamic_size = entries as u64 * 2 * sizes.word;
        let section_names = dynamic + dynamic_size;
        let names_size: usize = SECTIONS.iter().map(|name| name.len() + 1).sum();
        Self {
            hash,
            symbols,
            strings: strings_at,
            strings_size,
            dynamic,
            dynamic_size,
            section_names,
            sections: (section_names + names_size as u64).next_multiple_of(8),
        }
    }
}

fn write_segments(out: &mut Bytes, places: &Places) {
    out.segment(PT_LOAD, 0, places.sections, PAGE);
    out.segment(PT_DYNAMIC, places.dynamic, places.dynamic_size, out.word);
    out.segment(PT_GNU_STACK, 0, 0, 16);
}

fn write_content(
    out: &mut Bytes,
    places: &Places,
    strings: &[u8],
    entries: &[(u64, u64)],
    symbol_size: u64,
) {
    out.pad_to(places.hash);
    for word in EMPTY_HASH {
        out.int(word);
    }
    out.pad_to(places.strings); // The one symbol that every table begins with is zeros.
    out.raw(strings);
    out.pad_to(places.dynamic);
    let tail: [_; DYNAMIC_TAIL] = [
        (DT_HASH, places.hash),
        (DT_STRTAB, places.strings),
        (DT_SYMTAB, places.symbols),
        (DT_STRSZ, places.strings_size),
        (DT_SYMENT, symbol_size),
        (DT_NULL, 0),
    ];
    for &(tag, value) in entries.iter().chain(&tail) {
        out.word(tag);
        out.word(value);
    }
    for name in SECTIONS {
        out.raw(name.as_bytes());
        out.raw(&[0]);
    }
    out.pad_to(places.sections);
}

fn write_sections(out: &mut Bytes, places: &Places, symbol_size: u64) {
    const HASH: u32 = 5;
    const DYNSYM: u32 = 11;
    const STRTAB: u32 = 3;
    const DYNAMIC: u32 = 6;
    let hash_size = places.symbols - places.hash;
    let names_size = places.sections - places.section_names;
    let entry = 2 * out.word;
    // Type, place, size, the section that it refers to, size of an entry.
    let sections = [
        (0, 0, 0, 0, 0),
        (HASH, places.hash, hash_size, 2, 4),
        (DYNSYM, places.symbols, symbol_size, 3, symbol_size),
        (STRTAB, places.strings, places.strings_size, 0, 0),
        (DYNAMIC, places.dynamic, places.dynamic_size, 3, entry),
        (STRTAB, places.section_names, names_size, 0, 0),
    ];
    let mut name_at = 0;
    for (name, (kind, place, size, link, entry)) in SECTIONS.iter().zip(sections) {
        let loaded = kind != 0 && place != places.section_names;
        out.int(name_at);
        out.int(kind);
        out.word(if loaded { SHF_WRITE_ALLOC } else { 0 });
        out.word(if loaded { place } else { 0 });
        out.word(place);
        out.word(size);
        out.int(link);
        // Of a symbol table: its first global symbol, which it has not.
        out.int(u32::from(kind == DYNSYM));
        out.word(if entry == 0 { 1 } else { out.word });
        out.word(entry);
        name_at += name.len() as u32 + 1;
    }
}

/// Little-endian, with words as wide as the class has them.
struct Bytes {
    bytes: Vec<u8>,
    word: u64,
}

impl Bytes {
    fn new(word: u64) -> Self {
        Self {
            bytes: Vec::new(),
            word,
        }
    }

    fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    fn half(&mut self, value: u16) {
        self.raw(&value.to_le_bytes());
    }

    fn int(&mut self, value: u32) {
        self.raw(&value.to_le_bytes());
    }

    fn word(&mut self, value: u64) {
        self.raw(&value.to_le_bytes()[..self.word as usize]);
    }

    fn pad_to(&mut self, place: u64) {
        self.bytes.resize(place as usize, 0);
    }

    /// A program header. The two classes have its flags at different places.
    fn segment(&mut self, kind: u32, place: u64, size: u64, align: u64) {
        self.int(kind);
        if self.word == 8 {
            self.int(READ_WRITE);
        }
        for value in [place, place, place, size, size] {
            self.word(value);
        }
        if self.word == 4 {
            self.int(READ_WRITE);
        }
        self.word(align);
    }
}
