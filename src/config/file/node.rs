//! A file as a tree, before anything is known of its keys.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};

/// A value or a key.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Node {
    /// From 1; 0 where it is not known.
    pub(crate) line: u64,
    /// Where it is spelled, in bytes of the file.
    pub(super) start: u64,
    pub(super) length: u64,
    pub(crate) content: Content,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Content {
    /// Nothing, `~` or `null`.
    Nothing,
    Text(String),
    /// A number or a truth value: its own spelling, once it is settled.
    Literal(String),
    List(Vec<Node>),
    Map(Vec<(Node, Node)>),
}

impl Node {
    /// Gives numbers back as they were written, as a node's name may look like one,
    /// and lets a section begin with its key.
    pub(super) fn settle(&mut self, source: &str) {
        match &mut self.content {
            Content::Literal(text) => {
                let spelled = slice(source, self.start, self.length);
                if let Some(spelled) = spelled.filter(|spelled| is_literal(spelled)) {
                    spelled.clone_into(text);
                }
            }
            Content::List(items) => {
                for item in items {
                    item.settle(source);
                }
            }
            Content::Map(entries) => {
                for (key, value) in entries {
                    key.settle(source);
                    value.settle(source);
                    if value.text().is_none() {
                        value.line = key.line;
                    }
                }
            }
            Content::Nothing | Content::Text(_) => {}
        }
    }

    /// The text of a value that is one.
    pub(crate) fn text(&self) -> Option<&str> {
        match &self.content {
            Content::Text(text) | Content::Literal(text) => Some(text),
            _ => None,
        }
    }

    /// Whether it says nothing, however deep.
    pub(super) fn is_empty(&self) -> bool {
        match &self.content {
            Content::Nothing => true,
            Content::Text(_) | Content::Literal(_) => false,
            Content::List(items) => items.iter().all(Self::is_empty),
            Content::Map(entries) => entries.iter().all(|(_, value)| value.is_empty()),
        }
    }

    /// What it is, for people.
    pub(crate) fn kind(&self) -> &'static str {
        match self.content {
            Content::Nothing => "nothing",
            Content::Text(_) | Content::Literal(_) => "one value",
            Content::List(_) => "a list",
            Content::Map(_) => "a section with keys of its own",
        }
    }
}

fn slice(source: &str, start: u64, length: u64) -> Option<&str> {
    let start = usize::try_from(start).ok()?;
    let end = start.checked_add(usize::try_from(length).ok()?)?;
    source.get(start..end)
}

fn is_literal(text: &str) -> bool {
    !text.is_empty()
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte))
}

impl<'de> Deserialize<'de> for Content {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ContentVisitor)
    }
}

struct ContentVisitor;

impl<'de> Visitor<'de> for ContentVisitor {
    type Value = Content;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value, a list or a section")
    }

    fn visit_unit<E>(self) -> Result<Content, E> {
        Ok(Content::Nothing)
    }

    fn visit_none<E>(self) -> Result<Content, E> {
        Ok(Content::Nothing)
    }

    fn visit_str<E>(self, text: &str) -> Result<Content, E> {
        Ok(Content::Text(text.into()))
    }

    fn visit_bool<E>(self, value: bool) -> Result<Content, E> {
        Ok(Content::Literal(value.to_string()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Content, E> {
        Ok(Content::Literal(value.to_string()))
    }

    fn visit_i128<E>(self, value: i128) -> Result<Content, E> {
        Ok(Content::Literal(value.to_string()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Content, E> {
        Ok(Content::Literal(value.to_string()))
    }

    fn visit_u128<E>(self, value: u128) -> Result<Content, E> {
        Ok(Content::Literal(value.to_string()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Content, E> {
        Ok(Content::Literal(value.to_string()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Content, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Content::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Content, A::Error> {
        let mut map = Vec::new();
        while let Some(entry) = entries.next_entry()? {
            map.push(entry);
        }
        Ok(Content::Map(map))
    }
}
