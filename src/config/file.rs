//! The configuration file, as NVIDIA's plugin has it (`version: v1`), with keys
//! of our own beside theirs.
//!
//! What it says of a flag stays text here, and goes through the flag's own check
//! with what the command line and the environment say. What is wrong with the
//! file itself is told all at once, but for what is no YAML: there the reader
//! stops.

mod keys;
mod node;
mod sharing;
mod walk;

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File as OpenFile;
use std::io::Read;
use std::path::Path;

use serde::Deserialize;
use serde_saphyr::{DuplicateKeyPolicy, NonFiniteFloatPolicy, Options, Spanned};

use crate::config::sharing::Sharing;
use crate::health::class::Class;

pub use self::keys::{flags_with_a_key, keys};
pub(crate) use self::node::{Content, Node};
use self::walk::Walk;

/// A larger file is refused: no configuration comes near it.
pub const LARGEST: u64 = 1 << 20;

/// Deeper than any key of ours, and shallow for a thread's stack.
const DEEPEST: usize = 16;

/// Of what the YAML reader says, in characters: it may quote the file.
const LONGEST_WORDS: usize = 300;

/// What a configuration file says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// The values of flags, by the flag's ID (its name with underscores).
    pub flags: BTreeMap<&'static str, Setting>,
    /// The classes of XIDs, where they are not the built-in ones.
    pub xids: BTreeMap<u64, Class>,
    /// What is shared.
    pub sharing: Sharing,
    /// Keys of NVIDIA's that do nothing here.
    pub idle: Vec<Idle>,
}

/// The value of a flag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// As the flag would take it.
    pub text: String,
    /// Where it stands.
    pub place: Place,
}

/// A key that does nothing here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Idle {
    /// The key's path, such as `flags.failOnInitError`.
    pub key: String,
    /// Why.
    pub why: &'static str,
}

/// Where something stands in the file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// From 1; 0 where it is not known.
    pub line: u64,
    /// The key's path, such as `flags.plugin.deviceListStrategy`; empty for the
    /// file as a whole.
    pub key: String,
}

/// One thing that is wrong with the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Where.
    pub place: Place,
    /// What, and what to do about it.
    pub what: String,
}

impl Place {
    /// The place as people look for it, such as `/etc/a.yaml:3: flags.logLevel`.
    #[must_use]
    pub fn within(&self, file: &Path) -> String {
        format!("{}{self}", file.display())
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.line > 0 {
            write!(f, ":{}", self.line)?;
        }
        if self.key.is_empty() {
            return Ok(());
        }
        write!(f, ": {}", self.key)
    }
}

impl Fault {
    /// The fault on one line.
    #[must_use]
    pub fn within(&self, file: &Path) -> String {
        format!("{}: {}", self.place.within(file), self.what)
    }
}

/// Reads a file's bytes, and no more than it may have.
///
/// # Errors
///
/// In words: it cannot be read, is no regular file (which could keep a reader
/// waiting for ever), or is too large.
pub fn read(path: &Path) -> Result<Vec<u8>, String> {
    let failed = |error: std::io::Error| format!("cannot be read: {error}");
    // Looked at before it is opened: to open a pipe is to wait for its writer.
    if !path.metadata().map_err(failed)?.is_file() {
        return Err("is not a regular file".into());
    }
    let mut bytes = Vec::new();
    let file = OpenFile::open(path).map_err(failed)?;
    file.take(LARGEST + 1)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    Ok(bytes)
}

/// What a file with these bytes says.
///
/// # Errors
///
/// Every fault, in the order of the file.
pub fn parse(bytes: &[u8]) -> Result<Settings, Vec<Fault>> {
    let (settings, faults) = survey(bytes);
    if faults.is_empty() {
        Ok(settings)
    } else {
        Err(faults)
    }
}

/// The same, with what is right in a file that has faults: that may be wrong by
/// the checks of flags, and is to be told with the rest.
#[must_use]
pub fn survey(bytes: &[u8]) -> (Settings, Vec<Fault>) {
    match tree(bytes) {
        Ok(node) => Walk::over(&node),
        Err(fault) => (Settings::default(), vec![fault]),
    }
}

fn tree(bytes: &[u8]) -> Result<Node, Fault> {
    tree_or(bytes, |error| {
        ours(error).map_or_else(|| without_place(error), str::to_owned)
    })
}

/// The tree of a file that has secrets, which no word of a fault quotes.
pub(crate) fn secret_tree(bytes: &[u8]) -> Result<Node, Fault> {
    tree_or(bytes, |error| {
        ours(error).unwrap_or("is no YAML").to_owned()
    })
}

fn tree_or(
    bytes: &[u8],
    words: impl FnOnce(&serde_saphyr::Error) -> String,
) -> Result<Node, Fault> {
    let whole = |what: &str| Fault {
        place: Place::default(),
        what: what.into(),
    };
    if bytes.len() as u64 > LARGEST {
        return Err(whole("is larger than 1 MiB"));
    }
    let Ok(text) = std::str::from_utf8(bytes) else {
        return Err(whole("is not UTF-8"));
    };
    let mut node: Node =
        serde_saphyr::from_str_with_options(text, options()).map_err(|error| Fault {
            place: Place {
                line: error.location().map_or(0, |location| location.line()),
                key: String::new(),
            },
            what: words(innermost(&error)),
        })?;
    node.settle(text);
    Ok(node)
}

/// Nothing of it is needed by a configuration; without it a small file could
/// make a large tree.
fn options() -> Options {
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_documents: 2,
            max_depth: DEEPEST,
            flow_nesting_limit: DEEPEST,
            max_events: 100_000,
            max_nodes: 50_000,
            max_anchors: 100,
            max_aliases: 100,
            max_merge_keys: 100,
            max_recorded_anchor_events: 10_000,
        },
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: 10_000,
            max_replay_stack_depth: 8,
        },
        // They are told with the other faults.
        duplicate_keys: DuplicateKeyPolicy::PassThrough,
        // `mode: off` is a word, not `false`.
        strict_booleans: true,
        leading_zero_numbers_as_strings: true,
        underscored_numbers_as_strings: true,
        non_finite_float_policy: NonFiniteFloatPolicy::AsString,
        with_snippet: false,
    }
}

/// What stopped the reader, in our words where its own are for programmers.
fn ours(error: &serde_saphyr::Error) -> Option<&'static str> {
    use serde_saphyr::Error;
    match error {
        Error::MultipleDocuments { .. } => Some("has more than one document"),
        Error::RecursiveReferencesRequireWeakTypes { .. } => Some("has an alias within itself"),
        Error::Budget { .. }
        | Error::AliasReplayLimitExceeded { .. }
        | Error::AliasReplayStackDepthExceeded { .. } => {
            Some("is larger or deeper than any configuration")
        }
        _ => None,
    }
}

/// What an alias stands for is what is wrong.
fn innermost(error: &serde_saphyr::Error) -> &serde_saphyr::Error {
    match error {
        serde_saphyr::Error::AliasError { error, .. } => innermost(error),
        error => error,
    }
}

/// The reader's words, without the place, which stands before them here.
fn without_place(error: &serde_saphyr::Error) -> String {
    let mut text = error.to_string();
    if let Some(place) = error.location() {
        let place = format!(" at line {}, column {}", place.line(), place.column());
        text = text.replace(&place, "");
    }
    let words: Vec<_> = text.split_whitespace().collect();
    words.join(" ").chars().take(LONGEST_WORDS).collect()
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let node = Spanned::<Content>::deserialize(deserializer)?;
        let defined = node.defined.span();
        Ok(Self {
            line: node.referenced.line(),
            start: defined.byte_offset().unwrap_or_default(),
            length: defined.byte_len().unwrap_or_default(),
            content: node.value,
        })
    }
}

#[cfg(test)]
mod tests;
