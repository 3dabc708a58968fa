//! Names of functions, in words that the next build has as well.

use std::collections::BTreeSet;
use std::ops::Bound::{Included, Unbounded};

/// Longer by this, where a shorter pattern names too much.
const STEP: usize = 12;

/// Patterns that name all of `wanted` and nothing else of `all`.
pub(super) fn patterns(wanted: &BTreeSet<String>, all: &BTreeSet<String>) -> BTreeSet<String> {
    let others: BTreeSet<String> = all.difference(wanted).cloned().collect();
    let open_others: BTreeSet<String> = others.iter().map(|name| open(name)).collect();
    let mut patterns: BTreeSet<String> = BTreeSet::new();
    for name in wanted
        .iter()
        .map(|name| open(name))
        .collect::<BTreeSet<_>>()
    {
        // Sorted, one that names this too is the last before it.
        let mut before = patterns.range::<str, _>((Unbounded, Included(&*name)));
        if before.next_back().is_some_and(|last| matches(last, &name)) {
            continue;
        }
        let mut length = distinct(&name, &open_others);
        let pattern = loop {
            if length >= name.len() {
                break name;
            }
            let short = format!("{}*", name[..length].trim_end_matches('*'));
            if !names_any(&short, &others) {
                break short;
            }
            length += STEP;
        };
        patterns.insert(pattern);
    }
    patterns
}

/// A name by Rust's rules (<https://doc.rust-lang.org/rustc/symbol-mangling/v0.html>),
/// with what changes from build to build left open: the hashes of crates, and
/// references back in the name, which count its letters.
fn open(name: &str) -> String {
    let mut open = String::new();
    let mut rest = name;
    while let Some(first) = rest.chars().next() {
        let changing = [("Cs", usize::MAX), ("B", 3)]
            .into_iter()
            .find_map(|(key, most)| {
                let number = rest.strip_prefix(key)?;
                let after = number.trim_start_matches(|c: char| c.is_ascii_alphanumeric());
                let is_number = number.len() - after.len() <= most && after.starts_with('_');
                is_number.then_some((key, after))
            });
        let after = rest.strip_prefix(first).unwrap_or_default();
        let (kept, after) = match changing {
            Some((key, after)) => (format!("{key}*"), after),
            None => (first.to_string(), after),
        };
        open.push_str(&kept);
        rest = after;
    }
    open
}

/// How many letters of `name` no other begins with.
fn distinct(name: &str, others: &BTreeSet<String>) -> usize {
    let before = others
        .range::<str, _>((Unbounded, Included(name)))
        .next_back();
    let after = others.range::<str, _>((Included(name), Unbounded)).next();
    let common = |other: &String| {
        let both = name.bytes().zip(other.bytes());
        both.take_while(|(one, other)| one == other).count()
    };
    let longest = before.into_iter().chain(after).map(common).max();
    longest.unwrap_or_default() + 1
}

fn names_any(pattern: &str, names: &BTreeSet<String>) -> bool {
    let start = pattern.split('*').next().unwrap_or_default();
    let candidates = names.range::<str, _>((Included(start), Unbounded));
    let mut candidates = candidates.take_while(|name| name.starts_with(start));
    candidates.any(|name| matches(pattern, name))
}

/// As the linker matches, of whose signs `*` alone is used.
fn matches(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = name.strip_prefix(first) else {
        return false;
    };
    let mut parts = parts.peekable();
    if parts.peek().is_none() {
        return rest.is_empty();
    }
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return rest.ends_with(part);
        }
        match rest.split_once(part) {
            Some((_, after)) => rest = after,
            None => return false,
        }
    }
    true
}
