//! A look at one place for all files of one driver.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::capabilities::{Capabilities, Capability};
use super::catalog::{self, ALIASES, ITEMS, Item, NEUTRAL, REQUIRED, Sort, Version};
use super::elf::{ElfError, ElfFile};
use super::files::{DriverFile, DriverFiles, FileKind, FromImage, Missing};
use super::layout::{self, Architecture};
use super::left_out::{LeftOut, Reason};
use super::names::LibraryName;
use super::resolver::{Nowhere, Resolver, joined};
use super::search::Place;

/// Smaller than this, a libcuda or libnvidia-ml is CUDA's stub: the least of the
/// real ones has a megabyte.
const SMALLEST_REAL: u64 = 512 * 1024;

/// Loaders that images have. NixOS's and Talos's programs ask for others.
const INTERPRETERS: &[&str] = &[
    "/lib64/ld-linux-x86-64.so.2",
    "/lib/ld-linux-aarch64.so.1",
    "/lib/ld-linux-x86-64.so.2",
];

/// A file that will do.
struct Found {
    item: &'static Item,
    file: DriverFile,
    needed: Vec<String>,
}

/// What is to be left out, with the capability that it would have been for.
struct Refused {
    capability: Capability,
    reason: Reason,
}

pub(super) struct Look<'a> {
    place: &'a Place,
    architecture: Architecture,
    version: &'a str,
    found: Vec<Found>,
    refused: BTreeMap<PathBuf, Refused>,
    /// What was looked at already: links lead to the same file.
    seen: BTreeSet<(&'static str, OsString)>,
    /// The folder of the driver's libcuda, real and relative to the root.
    libcuda: Option<PathBuf>,
}

impl<'a> Look<'a> {
    pub(super) fn new(place: &'a Place, architecture: Architecture, version: &'a str) -> Self {
        Self {
            place,
            architecture,
            version,
            found: Vec::new(),
            refused: BTreeMap::new(),
            seen: BTreeSet::new(),
            libcuda: None,
        }
    }

    pub(super) fn files(mut self, capabilities: &Capabilities) -> DriverFiles {
        let by_place = |item: &Item| {
            matches!(
                item.sort,
                Sort::Library(Version::DriverOrOwn) | Sort::Beside(_)
            )
        };
        self.libraries(|item, name| !by_place(item) || name.driver_version().is_some());
        let libcuda = self
            .found
            .iter()
            .find(|found| found.file.name == REQUIRED[0]);
        self.libcuda = libcuda
            .and_then(|found| found.file.here.parent())
            .and_then(|folder| folder.strip_prefix(self.place.root().here()).ok())
            .map(Path::to_path_buf);
        // What does not have the driver's version is this one's where it lies beside it.
        self.libraries(|item, _| by_place(item));
        self.programs();
        self.fixed();
        self.firmware();
        self.neutral();
        self.chosen(capabilities)
    }

    // === Libraries ===

    fn libraries(&mut self, which: impl Fn(&Item, LibraryName<'_>) -> bool) {
        let place = self.place;
        for folder in &place.folders {
            for sub in ["", "vdpau", "gbm", "nvidia/wine"] {
                let folder = folder.join(sub);
                for name in place.resolver.names(&folder).iter() {
                    let library = LibraryName::parse(name).unwrap_or_default();
                    if let Some(item) = below_the_loaders(name, sub)
                        && which(item, library)
                    {
                        self.consider(item, &joined(&folder, name.as_ref()));
                    }
                }
            }
        }
    }

    /// Takes in the file that `path` leads to, or notes why not. The file's own
    /// name counts, not the link's: a link is what goes stale.
    fn consider(&mut self, item: &'static Item, path: &Path) {
        let real = match self.resolver().follow(path) {
            Ok(real) => real,
            Err(nowhere) => return self.unresolved(item, path, nowhere),
        };
        if !self.is_new(item, &real) {
            return;
        }
        match self.judge(item, path, &real) {
            Ok((name, needed)) => self.take(item, name, &real, needed),
            Err(reason) => self.refuse(item, &real, reason),
        }
    }

    fn resolver(&self) -> &'a Resolver {
        &self.place.resolver
    }

    /// Whether this was not looked at for that yet.
    fn is_new(&mut self, item: &'static Item, real: &Path) -> bool {
        self.seen.insert((item.name, real.into()))
    }

    /// The name that the file goes by, and what it needs.
    fn judge(
        &self,
        item: &Item,
        path: &Path,
        real: &Path,
    ) -> Result<(String, Vec<String>), Reason> {
        let file_name = |path: &Path| {
            path.file_name()
                .map(|name| name.to_string_lossy().into_owned())
        };
        let (link, own) = (file_name(path), file_name(real));
        let (link, own) = (link.unwrap_or_default(), own.unwrap_or_default());
        if let Sort::Beside(_) = item.sort {
            self.judge_place(item, real)?;
            return Ok((link, Vec::new()));
        }
        let name = LibraryName::parse(&own).ok_or(Reason::NoVersion)?;
        let version = name.driver_version();
        if let Some(other) = version.filter(|version| *version != self.version) {
            return Err(Reason::OtherVersion(other.into()));
        }
        let file = self.elf(real)?;
        if version.is_none() {
            self.judge_place(item, real)?;
        }
        if !file.is_library() {
            return Err(Reason::NotElf("no shared library".into()));
        }
        let fitting = file.soname.as_deref().filter(|soname| {
            soname.starts_with(&format!("{}.so.", item.name)) && !soname.contains('/')
        });
        match (item.sort, fitting) {
            (Sort::Library(_), None) => Err(Reason::OtherName(file.soname)),
            (_, Some(soname)) => Ok((soname.to_owned(), file.needed)),
            // Loaded by path: as the driver's own folder has it.
            (_, None) => Ok((format!("{}.so", item.name), file.needed)),
        }
    }

    /// Whether it is this driver's, of which its name says nothing.
    fn judge_place(&self, item: &Item, real: &Path) -> Result<(), Reason> {
        let folder = real.parent().unwrap_or(real);
        if folder.ends_with("stubs") || is_small_stub(item, real) {
            return Err(Reason::Stub);
        }
        let is_below = |sub: &str| {
            let libcuda = self.libcuda.as_deref();
            let folder = folder.strip_prefix(self.place.root().here()).ok();
            // Joined to nothing, a path ends with a slash; compared, it does not.
            folder.is_some() && folder == libcuda.map(|libcuda| libcuda.join(sub)).as_deref()
        };
        match item.sort {
            Sort::Library(Version::Own) | Sort::Fixed { .. } => Ok(()),
            Sort::Library(Version::DriverOrOwn) if is_below("") => Ok(()),
            Sort::Beside(sub) if is_below(sub) => Ok(()),
            _ => Err(Reason::NoVersion),
        }
    }

    fn elf(&self, real: &Path) -> Result<ElfFile, Reason> {
        let file = ElfFile::open(real).map_err(|error| match error {
            ElfError::LinkerScript => Reason::LinkerScript,
            ElfError::Script => Reason::Script,
            ElfError::Bits32 => Reason::Bits32,
            ElfError::Io(error) => Reason::Unreadable(error.to_string()),
            other => Reason::NotElf(other.to_string()),
        })?;
        if file.machine != self.architecture.machine() {
            return Err(Reason::Architecture(file.machine.0));
        }
        Ok(file)
    }

    /// Libraries that look like the driver's and are everybody's.
    fn neutral(&mut self) {
        let place = self.place;
        for folder in &place.folders {
            for name in place.resolver.names(folder).iter() {
                let library = LibraryName::parse(name);
                if library.is_none_or(|library| !NEUTRAL.contains(&library.stem)) {
                    continue;
                }
                let Ok(real) = place.resolver.resolve(&folder.join(name)) else {
                    continue;
                };
                // NVIDIA's installer links libGLX_indirect to a library of its own.
                if !self.found.iter().any(|found| found.file.here == real) {
                    self.refuse_for(Capability::Graphics, &real, Reason::OtherVendor);
                }
            }
        }
    }

    // === Everything else ===

    fn programs(&mut self) {
        let folders = self.architecture.program_folders(self.libcuda.as_deref());
        for item in ITEMS.iter().filter(|item| item.sort == Sort::Program) {
            for folder in &folders {
                let path = joined(folder, item.name.as_ref());
                match self.resolver().follow(&path) {
                    Ok(real) => self.program(item, &real),
                    Err(nowhere) => self.unresolved(item, &path, nowhere),
                }
            }
        }
    }

    fn program(&mut self, item: &'static Item, real: &Path) {
        if !self.is_new(item, real) {
            return;
        }
        let reason = match self.judge_program(real) {
            Ok(needed) => return self.take(item, item.name.into(), real, needed),
            Err(reason) => reason,
        };
        let here = self.place.root().here();
        let unpatched = match &reason {
            Reason::Interpreter(_) => layout::unpatched(real)
                .and_then(|path| self.resolver().resolve(path.strip_prefix(here).ok()?).ok()),
            _ => None,
        };
        self.refuse(item, real, reason);
        if let Some(unpatched) = unpatched {
            self.program(item, &unpatched);
        }
    }

    fn judge_program(&self, real: &Path) -> Result<Vec<String>, Reason> {
        let file = self.elf(real)?;
        if !file.is_program() {
            return Err(Reason::NotElf("no program".into()));
        }
        match file.interpreter {
            Some(path) if !INTERPRETERS.contains(&&*path) => Err(Reason::Interpreter(path)),
            _ => Ok(file.needed),
        }
    }

    /// Modules and data, each in the first of its folders that has it.
    fn fixed(&mut self) {
        for item in ITEMS {
            let Sort::Fixed { host, .. } = item.sort else {
                continue;
            };
            let own = self
                .libcuda
                .as_deref()
                .map(|libcuda| layout::own_folders(libcuda, host));
            let usual = host.iter().map(PathBuf::from);
            // A module may be there without the link that X.Org loads it by.
            let versioned = format!("{}.{}", item.name, self.version);
            let names = match item.name.ends_with(".so") {
                true => vec![item.name, &versioned],
                false => vec![item.name],
            };
            for folder in own.into_iter().flatten().chain(usual) {
                for path in names.iter().map(|name| joined(&folder, name.as_ref())) {
                    match self.resolver().follow(&path) {
                        Ok(real) if real.is_file() => self.fixed_file(item, &real),
                        Ok(_) => {}
                        Err(nowhere) => self.unresolved(item, &path, nowhere),
                    }
                }
            }
        }
    }

    fn fixed_file(&mut self, item: &'static Item, real: &Path) {
        if !self.is_new(item, real) {
            return;
        }
        let judged = if item.name.ends_with(".so") {
            self.judge(item, Path::new(item.name), real)
                .map(|(_, needed)| needed)
        } else {
            match self.path_of_the_host(real) {
                Some(path) => Err(Reason::HostPath(path)),
                None => Ok(Vec::new()),
            }
        };
        match judged {
            Ok(needed) => self.take(item, item.name.into(), real, needed),
            Err(reason) => self.refuse(item, real, reason),
        }
    }

    /// The library that a vendor's file names by a path which containers lack:
    /// NixOS's in its store.
    fn path_of_the_host(&self, real: &Path) -> Option<String> {
        const LONGEST: u64 = 16 << 10;
        let extension = real.extension()?.to_str()?;
        if !["icd", "json"].contains(&extension) {
            return None;
        }
        let mut text = String::new();
        let file = File::open(real).ok()?;
        file.take(LONGEST).read_to_string(&mut text).ok()?;
        let mut words = text.split(|c: char| c.is_whitespace() || c == '"');
        let path = words.find(|word| word.starts_with('/') && word.contains(".so"))?;
        let folder = Path::new(path).parent()?;
        let known = self
            .architecture
            .loader_folders()
            .iter()
            .any(|it| it == folder);
        (!known).then(|| path.to_owned())
    }

    fn firmware(&mut self) {
        for folder in layout::firmware_folders(self.libcuda.as_deref(), self.version) {
            for name in self.resolver().names(&folder).iter() {
                let is_gsp = name.starts_with("gsp") && name.ends_with(".bin");
                let real = self.resolver().resolve(&folder.join(name));
                if let Ok(real) = real
                    && is_gsp
                    && self.is_new(&FIRMWARE, &real)
                {
                    self.take(&FIRMWARE, name.to_owned(), &real, Vec::new());
                }
            }
        }
    }

    // === What comes of it ===

    fn take(&mut self, item: &'static Item, name: String, real: &Path, needed: Vec<String>) {
        let kind = kind(item, self.version);
        let same = |found: &&Found| found.file.name == name && found.file.kind == kind;
        if let Some(taken) = self.found.iter().find(same) {
            let taken = taken.file.host.clone();
            return self.refuse(item, real, Reason::Copy(taken));
        }
        let (Some(host), Ok(metadata)) = (self.place.root().to_host(real), real.metadata()) else {
            return;
        };
        let file = DriverFile {
            name,
            capability: item.capability,
            kind,
            host,
            here: real.into(),
            size: metadata.len(),
        };
        self.found.push(Found { item, file, needed });
    }

    /// A path that leads nowhere. Most are just not there.
    fn unresolved(&mut self, item: &Item, path: &Path, nowhere: Nowhere) {
        let Nowhere { error, link } = nowhere;
        if error.kind() != io::ErrorKind::NotFound {
            let here = link.unwrap_or_else(|| self.place.root().here().join(path));
            self.refuse(item, &here, Reason::Unreadable(error.to_string()));
        } else if let Some(link) = link {
            self.refuse(item, &link, Reason::Dangling);
        }
    }

    fn refuse(&mut self, item: &Item, here: &Path, reason: Reason) {
        self.refuse_for(item.capability, here, reason);
    }

    fn refuse_for(&mut self, capability: Capability, here: &Path, reason: Reason) {
        if let Some(host) = self.place.root().to_host(here) {
            let refused = Refused { capability, reason };
            self.refused.entry(host).or_insert(refused);
        }
    }

    fn chosen(self, capabilities: &Capabilities) -> DriverFiles {
        let Self {
            place,
            version,
            found,
            refused,
            ..
        } = self;
        let wanted = |capability| capabilities.contains(capability);
        let missing = missing(&found, version, wanted);
        let left_out = refused
            .into_iter()
            .filter(|(_, refused)| wanted(refused.capability))
            .map(|(host, Refused { reason, .. })| LeftOut { host, reason });
        let left_out = left_out.collect();
        let (found, from_image, unmet) = closure(found, wanted);
        let mut files: Vec<_> = found.into_iter().map(|found| found.file).collect();
        let aliases: Vec<_> = files.iter().filter_map(alias).collect();
        files.extend(aliases);
        files.sort_by(|a, b| (&a.kind, &a.name).cmp(&(&b.kind, &b.name)));
        DriverFiles {
            version: version.to_owned(),
            root: place.root().clone(),
            folders: place.folders.clone(),
            files,
            left_out,
            missing: missing.into_iter().chain(unmet).collect(),
            from_image,
        }
    }
}

/// Firmware is found by its folder, and has no line in the catalogue.
static FIRMWARE: Item = Item {
    name: "gsp*.bin",
    capability: Capability::Utility,
    sort: Sort::Beside("firmware"),
    branches: 465..=u32::MAX,
    cost: "",
};

fn kind(item: &'static Item, version: &str) -> FileKind {
    match item.sort {
        _ if std::ptr::eq(item, &raw const FIRMWARE) => FileKind::Firmware(version.to_owned()),
        Sort::Library(_) => FileKind::Library,
        Sort::Plugin(folder) | Sort::Beside(folder) => FileKind::Beside(folder),
        Sort::Program => FileKind::Program,
        Sort::Fixed { container, .. } => FileKind::Fixed(container),
    }
}

/// The same file under its other name, if it has one.
fn alias(file: &DriverFile) -> Option<DriverFile> {
    let (_, alias) = ALIASES.iter().find(|(soname, _)| *soname == file.name)?;
    Some(DriverFile {
        name: (*alias).to_owned(),
        kind: FileKind::Alias,
        ..file.clone()
    })
}

/// What a file of this name is in a volume of the driver of this version.
pub(super) fn known(name: &str, version: &str) -> Option<(Capability, FileKind)> {
    if ALIASES.iter().any(|(_, alias)| *alias == name) {
        return Some((Capability::Compute, FileKind::Alias));
    }
    let stem = LibraryName::parse(name).map(|library| library.stem);
    let is_it = |item: &&Item| item.name == name || stem == Some(item.name);
    let firmware = name.ends_with(".bin") && name.starts_with("gsp");
    let item = if firmware {
        Some(&FIRMWARE)
    } else {
        ITEMS.iter().find(is_it)
    };
    item.map(|item| (item.capability, kind(item, version)))
}

/// What the file `name` is, in a loader's folder or in `sub` below it. Debian
/// has what goes below also beside the libraries.
fn below_the_loaders(name: &str, sub: &str) -> Option<&'static Item> {
    let stem = LibraryName::parse(name).map(|library| library.stem);
    ITEMS.iter().find(|item| match item.sort {
        Sort::Library(_) => sub.is_empty() && stem == Some(item.name),
        Sort::Plugin(folder) => (sub.is_empty() || sub == folder) && stem == Some(item.name),
        Sort::Beside(folder) => sub == folder && name == item.name,
        Sort::Program | Sort::Fixed { .. } => false,
    })
}

/// A stub need not be in a folder of that name.
fn is_small_stub(item: &Item, real: &Path) -> bool {
    let is_stubbed = ["libcuda", "libnvidia-ml"].contains(&item.name);
    is_stubbed && real.metadata().is_ok_and(|it| it.len() < SMALLEST_REAL)
}

/// What these capabilities take and this branch has, and is not there.
fn missing(found: &[Found], version: &str, wanted: impl Fn(Capability) -> bool) -> Vec<Missing> {
    let branch = catalog::branch(version);
    let lacking = ITEMS.iter().filter(|item| {
        let required = REQUIRED.iter().any(|name| name.starts_with(item.name));
        (required || wanted(item.capability))
            && item.branches.contains(&branch)
            && !item.cost.is_empty()
            && !found.iter().any(|found| std::ptr::eq(found.item, *item))
    });
    let missing = lacking.map(|item| Missing {
        name: match item.sort {
            Sort::Library(_) | Sort::Plugin(_) => format!("{}.so", item.name),
            _ => item.name.to_owned(),
        },
        capability: item.capability,
        cost: item.cost.to_owned(),
        needed_by: None,
    });
    missing.collect()
}

/// The files of the wanted capabilities with all that they need of the driver;
/// what they need of the image beside its C library; and what is nowhere.
fn closure(
    found: Vec<Found>,
    wanted: impl Fn(Capability) -> bool,
) -> (Vec<Found>, Vec<FromImage>, Vec<Missing>) {
    let chosen_at_first =
        |found: &Found| REQUIRED.contains(&&*found.file.name) || wanted(found.item.capability);
    let (mut chosen, mut rest): (Vec<_>, Vec<_>) = found.into_iter().partition(chosen_at_first);
    let mut at = 0;
    while at < chosen.len() {
        for name in chosen[at].needed.clone() {
            let is_it =
                |found: &Found| found.file.kind == FileKind::Library && found.file.name == name;
            if let Some(place) = rest.iter().position(is_it) {
                chosen.push(rest.swap_remove(place));
            }
        }
        at += 1;
    }
    let (mut image, mut unmet) = (BTreeMap::<String, Vec<String>>::new(), Vec::new());
    for found in &chosen {
        for needed in &found.needed {
            let inside = chosen.iter().any(|other| other.file.name == *needed);
            if inside || catalog::is_of_the_image(needed) {
                continue;
            }
            if catalog::is_of_the_driver(needed) {
                unmet.push(Missing {
                    name: needed.clone(),
                    capability: found.item.capability,
                    cost: format!("{} does not load", found.file.name),
                    needed_by: Some(found.file.name.clone()),
                });
            } else {
                let by = image.entry(needed.clone()).or_default();
                by.push(found.file.name.clone());
            }
        }
    }
    let from_image = image
        .into_iter()
        .map(|(name, needed_by)| FromImage { name, needed_by });
    (chosen, from_image.collect(), unmet)
}
