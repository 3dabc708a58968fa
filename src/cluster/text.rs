//! Words within bounds.

use std::error::Error;

/// The longest name of an object (RFC 1123's for a domain).
const LONGEST_NAME: usize = 253;
/// Stands where something was cut off.
const CUT: &str = "...";

/// `text`, of `limit` bytes at most; where it was cut, three dots say so.
pub(super) fn cut(text: &str, limit: usize) -> String {
    if text.len() <= limit {
        return text.into();
    }
    let room = limit.saturating_sub(CUT.len());
    let mut text = start(text, room).to_owned();
    text.push_str(&CUT[..CUT.len().min(limit)]);
    text
}

/// As much of `text` from its start as `limit` bytes hold, in whole letters.
pub(super) fn start(text: &str, limit: usize) -> &str {
    let mut ends = (0..=limit.min(text.len())).rev();
    let end = ends.find(|end| text.is_char_boundary(*end));
    &text[..end.unwrap_or_default()]
}

/// An error and what it comes from, which libraries leave out of its own words.
pub(super) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let more = error.to_string();
        if !text.ends_with(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        source = error.source();
    }
    text
}

/// Whether an object of Kubernetes can be called so: a DNS subdomain in lower
/// case. A name goes into a path.
pub(super) fn is_name(name: &str) -> bool {
    let is_label = |label: &str| {
        let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        !label.is_empty()
            && label.bytes().all(inner)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    name.len() <= LONGEST_NAME && name.split('.').all(is_label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_cut_between_letters() {
        assert_eq!(cut("abc", 3), "abc");
        assert_eq!(cut("abcd", 3), "...");
        assert_eq!(cut("abcdef", 5), "ab...");
        assert_eq!(cut("äöüäöü", 8), "äö...");
        assert_eq!(cut("abcd", 1), ".");
        for limit in 0..40 {
            assert!(cut("Grüße aus dem Rechenzentrum", limit).len() <= limit);
        }
    }

    #[test]
    fn a_chain_says_each_thing_once() {
        #[derive(Debug, thiserror::Error)]
        #[error("outer")]
        struct Outer(#[source] Middle);
        #[derive(Debug, thiserror::Error)]
        #[error("middle: inner")]
        struct Middle(#[source] Inner);
        #[derive(Debug, thiserror::Error)]
        #[error("inner")]
        struct Inner;
        assert_eq!(chain(&Outer(Middle(Inner))), "outer: middle: inner");
    }

    #[test]
    fn names_are_dns_subdomains() {
        for name in ["a", "node-1.example", "0", "a.b.c"] {
            assert!(is_name(name), "{name}");
        }
        let long = "a".repeat(254);
        for name in [
            "", ".", "..", "a..b", "A", "a/b", "a_b", "-a", "a-", "a.", "ä", &long,
        ] {
            assert!(!is_name(name), "{name}");
        }
    }
}
