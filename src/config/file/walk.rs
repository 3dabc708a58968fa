//! From the tree to settings, with every fault on the way.

use std::collections::BTreeSet;

use super::keys::{Key, Means, ROOT, join, meant};
use super::node::{Content, Node};
use super::{Fault, Idle, Place, Setting, Settings};
use crate::config::sharing::Sharing;
use crate::health::class::Class;

/// More would not be read by anybody, and each quotes the file.
const MOST_FAULTS: usize = 100;

/// Of a value or key that is quoted, in characters.
const LONGEST_QUOTE: usize = 80;

#[derive(Default)]
pub(super) struct Walk {
    settings: Settings,
    faults: Vec<Fault>,
    /// All of them, also those that are not told.
    found: usize,
}

impl Walk {
    /// What the whole file says.
    pub(super) fn over(node: &Node) -> (Settings, Vec<Fault>) {
        let mut walk = Self::default();
        if node.content == Content::Nothing {
            walk.fault(
                node,
                "",
                "is empty; a file that sets nothing says version: v1",
            );
        }
        walk.section("", ROOT, node);
        if let Some(more) = walk.found.checked_sub(MOST_FAULTS).filter(|more| *more > 0) {
            let (place, what) = (Place::default(), format!("has {more} more faults"));
            walk.faults.push(Fault { place, what });
        }
        (walk.settings, walk.faults)
    }

    fn section(&mut self, path: &str, keys: &'static [Key], node: &Node) {
        let name = |name: &str| keys.iter().find(|key| key.name == name);
        self.entries(path, node, |walk, at, key, value| match name(key) {
            Some(known) => walk.value(at, known, value),
            None => walk.unknown(path, at, key, value),
        });
    }

    /// The entries of a section, each key once.
    pub(super) fn entries(
        &mut self,
        path: &str,
        node: &Node,
        mut each: impl FnMut(&mut Self, &str, &str, &Node),
    ) {
        let entries = match &node.content {
            Content::Nothing => return,
            Content::Map(entries) => entries,
            _ => return self.fault(node, path, format!("is {}, not a section", node.kind())),
        };
        let mut seen = BTreeSet::new();
        for (key, value) in entries {
            let Some(name) = key.text() else {
                self.fault(key, path, format!("has {} for a key", key.kind()));
                continue;
            };
            let at = join(path, &quoted(name));
            if seen.insert(name) {
                // A key tells its line better than a value that is a section.
                let line = if value.text().is_some() { value } else { key }.line;
                each(
                    self,
                    &at,
                    name,
                    &Node {
                        line,
                        ..value.clone()
                    },
                );
            } else {
                self.fault(key, &at, "is there twice");
            }
        }
    }

    fn unknown(&mut self, section: &str, at: &str, name: &str, value: &Node) {
        let what = match meant(section, name) {
            Some(key) => format!("is not known; did you mean {key}?"),
            None => "is not known".to_owned(),
        };
        self.fault(value, at, what);
    }

    fn value(&mut self, at: &str, key: &Key, value: &Node) {
        if value.content == Content::Nothing {
            return;
        }
        match key.means {
            Means::Section(keys) => self.section(at, keys, value),
            Means::Flag(id) => self.flag(at, id, value),
            Means::List(id) => self.list(at, id, value),
            Means::Only(values, why) => self.only(at, values, why, value),
            Means::Unbuilt(what) => self.unbuilt(at, what, value),
            Means::Idle(values, why) => self.idle(at, values, why, value),
            Means::Xids => self.xids(at, value),
            Means::TimeSlicing => self.time_slicing(at, value),
        }
    }

    fn flag(&mut self, at: &str, id: &'static str, value: &Node) {
        match value.text() {
            Some(text) => self.set(at, id, text.into(), value),
            None => self.fault(value, at, format!("is {}, not one value", value.kind())),
        }
    }

    fn list(&mut self, at: &str, id: &'static str, value: &Node) {
        let Content::List(items) = &value.content else {
            return self.flag(at, id, value);
        };
        let texts: Option<Vec<_>> = items.iter().map(Node::text).collect();
        match texts {
            Some(texts) => self.set(at, id, texts.join(","), value),
            None => self.fault(value, at, "has more than one value in an item"),
        }
    }

    fn set(&mut self, at: &str, id: &'static str, text: String, value: &Node) {
        let place = place(at, value);
        self.settings.flags.insert(id, Setting { text, place });
    }

    fn only(&mut self, at: &str, values: &[&str], why: &str, value: &Node) {
        let taken = value.text().is_some_and(|text| values.contains(&text));
        if !taken {
            let (said, taken) = (said(value), values.join(" or "));
            self.fault(value, at, format!("{said} is not {taken}: {why}"));
        }
    }

    fn unbuilt(&mut self, at: &str, what: &str, value: &Node) {
        if !value.is_empty() {
            self.fault(value, at, format!("{what} is not built; take it out"));
        }
    }

    fn idle(&mut self, at: &str, values: &[&str], why: &'static str, value: &Node) {
        if !values.is_empty() {
            self.only(at, values, why, value);
        }
        self.settings.idle.push(Idle {
            key: at.into(),
            why,
        });
    }

    fn xids(&mut self, at: &str, value: &Node) {
        self.entries(at, value, |walk, at, xid, class| {
            let number = xid.parse().ok().filter(|xid| *xid > 0);
            let named = Class::ALL
                .iter()
                .find(|one| class.text() == Some(one.name()));
            if number.is_none() {
                walk.fault(class, at, "is not an XID, which is a number from 1");
            }
            if named.is_none() {
                let (said, taken) = (said(class), "application, reset, reboot or replace");
                walk.fault(class, at, format!("{said} is not {taken}"));
            }
            let (Some(number), Some(named)) = (number, named) else {
                return;
            };
            // 48 and 048 are one.
            if walk.settings.xids.insert(number, *named).is_some() {
                walk.fault(class, at, "is there twice");
            }
        });
    }

    /// How many faults there were until now.
    pub(super) fn faults_found(&self) -> usize {
        self.found
    }

    pub(super) fn set_sharing(&mut self, sharing: Sharing) {
        self.settings.sharing = sharing;
    }

    pub(super) fn fault(&mut self, node: &Node, key: &str, what: impl Into<String>) {
        self.found += 1;
        if self.found <= MOST_FAULTS {
            let (place, what) = (place(key, node), what.into());
            self.faults.push(Fault { place, what });
        }
    }
}

fn place(key: &str, node: &Node) -> Place {
    Place {
        line: node.line,
        key: key.into(),
    }
}

/// A value as it is quoted.
fn said(value: &Node) -> String {
    match value.text() {
        Some(text) => format!("{:?}", quoted(text)),
        None => value.kind().to_owned(),
    }
}

/// A text of the file on one line, and not too long.
fn quoted(text: &str) -> String {
    let letters = text.chars().filter(|letter| !letter.is_control());
    letters.take(LONGEST_QUOTE).collect()
}
