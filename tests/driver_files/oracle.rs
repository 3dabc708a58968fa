//! What a file says of itself by way of its sections, as a linker reads it,
//! where the plugin goes by the segments.

use std::fs::File;
use std::path::Path;

use gpu_device_plugin::driver::{DriverFile, DriverFiles, FileKind, Missing};
use object::LittleEndian;
use object::elf::{DT_NEEDED, DT_SONAME, EM_AARCH64, EM_X86_64, FileHeader64, Machine};
use object::read::elf::{FileHeader, SectionTable};
use object::read::{ReadCache, ReadRef};

use crate::kit::Kit;
use crate::tree::Tree;

type Header = FileHeader64<LittleEndian>;

const HERE: Machine = if cfg!(target_arch = "aarch64") {
    EM_AARCH64
} else {
    EM_X86_64
};

#[derive(Debug, Default)]
pub struct Elf {
    /// Whether it is of 64 bits and this machine's architecture.
    pub fits: bool,
    pub soname: Option<String>,
    pub needed: Vec<String>,
}

impl Elf {
    /// Nothing, of a file that is no such one.
    pub fn read(path: &Path) -> Self {
        let cache = ReadCache::new(File::open(path).unwrap());
        let Ok(header) = Header::parse(&cache) else {
            return Self::default();
        };
        let sections = header.sections(LittleEndian, &cache).unwrap();
        Self {
            fits: header.e_machine(LittleEndian) == HERE,
            soname: strings(&sections, &cache, DT_SONAME).pop(),
            needed: strings(&sections, &cache, DT_NEEDED),
        }
    }
}

fn strings<'data, R: ReadRef<'data>>(
    sections: &SectionTable<'data, Header, R>,
    data: R,
    tag: object::elf::DynamicTag,
) -> Vec<String> {
    let Ok(dynamic) = sections.dynamic_table(LittleEndian, data) else {
        return Vec::new();
    };
    let entries = dynamic.iter().filter(|entry| entry.tag == tag);
    let strings = entries.map(|entry| {
        let text = dynamic.string(entry).unwrap();
        String::from_utf8(text.to_vec()).unwrap()
    });
    strings.collect()
}

/// Holds the files that were found to what they say of themselves, and to what
/// the plugin says of them.
pub fn check(tree: &Tree, kit: &Kit, files: &DriverFiles) {
    assert_eq!(files.version, kit.version);
    for file in &files.files {
        let name = &file.name;
        assert!(
            file.here.starts_with(tree.here()),
            "{}",
            file.here.display()
        );
        assert_eq!(files.root.to_host(&file.here).as_ref(), Some(&file.host));
        let left_out = files.left_out.iter().find(|left| left.host == file.host);
        assert_eq!(left_out, None, "{name} is both taken and left out");
        let metadata = file.here.symlink_metadata().unwrap();
        assert!(metadata.is_file(), "{name}");
        assert_eq!(metadata.len(), file.size, "{name}");
    }
    let elves: Vec<_> = files
        .files
        .iter()
        .filter(|file| !is_data(file))
        .map(|file| (file, Elf::read(&file.here)))
        .collect();
    for (file, elf) in &elves {
        assert!(elf.fits, "{}", file.host.display());
        if file.kind == FileKind::Library {
            assert_eq!(elf.soname.as_ref(), Some(&file.name));
            is_of_the_version(&file.here, kit);
        }
        for needed in &elf.needed {
            let brought = files.from_image.iter().find(|it| it.name == *needed);
            let by_image = brought.is_some_and(|it| it.needed_by.contains(&file.name));
            let inside = files.library(needed).is_some();
            let of_libc = OF_THE_C_LIBRARY.contains(&needed.as_str());
            let cost = format!("{} does not load", file.name);
            let told = |it: &Missing| it.name == *needed && it.cost == cost;
            let missing = files.missing.iter().any(told);
            let ways = [by_image, inside, of_libc, missing];
            assert_eq!(
                ways.iter().filter(|way| **way).count(),
                1,
                "{} needs {needed}: of the image, the driver, the C library, missing: {ways:?}",
                file.name
            );
        }
    }
    for library in &files.from_image {
        for by in &library.needed_by {
            let needs = elves
                .iter()
                .any(|(file, elf)| file.name == *by && elf.needed.contains(&library.name));
            assert!(needs, "{by} does not need {}", library.name);
        }
    }
}

/// What every image of a program has that is linked to the C library.
const OF_THE_C_LIBRARY: &[&str] = &[
    "ld-linux-x86-64.so.2",
    "ld-linux-aarch64.so.1",
    "libc.so.6",
    "libdl.so.2",
    "libgcc_s.so.1",
    "libm.so.6",
    "libpthread.so.0",
    "librt.so.1",
    "libutil.so.1",
];

fn is_data(file: &DriverFile) -> bool {
    let ends = [".bin", ".conf", ".dll", ".icd", ".json"];
    ends.iter().any(|end| file.name.ends_with(end))
}

/// A library has its driver's version, but for those with one of their own.
fn is_of_the_version(path: &Path, kit: &Kit) {
    const OWN: &[&str] = &[
        "libnvidia-api.",
        "libnvidia-egl-",
        "libnvidia-nvvm.so.4.0.0",
    ];
    let name = path.file_name().unwrap().to_str().unwrap();
    let own = OWN.iter().any(|start| name.starts_with(start));
    assert!(
        own || name.ends_with(&format!(".so.{}", kit.version)),
        "{name}"
    );
}
