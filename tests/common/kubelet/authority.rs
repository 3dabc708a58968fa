//! Callers that name the socket's path as the HTTP/2 authority.
//!
//! gRPC for Go and its C core do so, percent-encoded, when they are given a
//! path to dial. The kubelet does not look at it; the server under this one
//! resets such a call. So the first header block of a connection, which is the
//! only place where the name is spelt out (later ones refer to it), gets
//! another name before the server reads it.

use std::io;
use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::UnixStream;

/// RFC 9113, 3.4: what a client says before its first frame.
const PREFACE: usize = 24;
/// RFC 9113, 4.1: length (3), type, flags, stream (4).
const FRAME_HEAD: usize = 9;
const TYPE_HEADERS: u8 = 1;
const FLAG_END_HEADERS: u8 = 0x4;
const FLAG_PADDED: u8 = 0x8;
const FLAG_PRIORITY: u8 = 0x20;
const PRIORITY: usize = 5;
/// RFC 7541, appendix A: `:authority` in the static table.
const AUTHORITY: usize = 1;
/// As a header block spells it: the length, and no Huffman code.
const LOCALHOST: &[u8] = b"\x09localhost";

/// Renames the authority in what a stream reads.
#[derive(Default)]
pub(super) struct Rename {
    preface_passed: bool,
    /// Read, and not yet a whole frame.
    pending: Vec<u8>,
    /// To be read from here.
    ready: Vec<u8>,
    /// The rest passes as it is.
    done: bool,
}

impl Rename {
    pub(super) fn poll_read(
        &mut self,
        stream: &mut UnixStream,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.ready.is_empty() && !self.done {
            let mut bytes = [0; 1024];
            let mut read = ReadBuf::new(&mut bytes);
            ready!(Pin::new(&mut *stream).poll_read(cx, &mut read))?;
            if read.filled().is_empty() {
                self.pass_pending();
            }
            self.pending.extend(read.filled());
            self.pass_frames();
        }
        if self.ready.is_empty() {
            return Pin::new(stream).poll_read(cx, buf);
        }
        let count = buf.remaining().min(self.ready.len());
        buf.put_slice(&self.ready[..count]);
        self.ready.drain(..count);
        Poll::Ready(Ok(()))
    }

    fn pass_pending(&mut self) {
        self.ready.append(&mut self.pending);
        self.done = true;
    }

    /// Passes whole frames on, up to the first header block.
    fn pass_frames(&mut self) {
        while !self.done {
            let length = match (self.preface_passed, self.pending.as_slice()) {
                (false, _) => PREFACE,
                (true, [a, b, c, ..]) => FRAME_HEAD + u32::from_be_bytes([0, *a, *b, *c]) as usize,
                (true, _) => return,
            };
            if self.pending.len() < length {
                return;
            }
            let frame: Vec<_> = self.pending.drain(..length).collect();
            let headers = self.preface_passed && frame.get(3) == Some(&TYPE_HEADERS);
            self.preface_passed = true;
            if headers {
                self.ready.extend(renamed(&frame).unwrap_or(frame));
                self.pass_pending();
            } else {
                self.ready.extend(frame);
            }
        }
    }
}

/// A HEADERS frame with another authority. None: it has none that could be
/// changed.
fn renamed(frame: &[u8]) -> Option<Vec<u8>> {
    let flags = *frame.get(4)?;
    if flags & FLAG_PADDED != 0 || flags & FLAG_END_HEADERS == 0 {
        return None;
    }
    let priority = if flags & FLAG_PRIORITY != 0 {
        PRIORITY
    } else {
        0
    };
    let begin = FRAME_HEAD + priority;
    let value = authority(frame.get(begin..)?)?;
    let before = frame.get(..begin + value.start)?;
    let after = frame.get(begin + value.end..)?;
    let mut renamed = [before, LOCALHOST, after].concat();
    let length = u32::try_from(renamed.len() - FRAME_HEAD)
        .ok()?
        .to_be_bytes();
    renamed.get_mut(..3)?.copy_from_slice(&length[1..]);
    Some(renamed)
}

/// Where a header block (RFC 7541, 6) has the value of `:authority`.
fn authority(block: &[u8]) -> Option<Range<usize>> {
    let mut at = 0;
    loop {
        let first = *block.get(at)?;
        let prefix = match first {
            // Indexed, and a new size of the table: no strings.
            0x80.. => 7,
            0x20..0x40 => 5,
            // Literals, to be remembered or not.
            0x40..0x80 => 6,
            _ => 4,
        };
        let (index, mut next) = integer(block, at, prefix)?;
        if matches!(prefix, 5 | 7) {
            at = next;
            continue;
        }
        if index == 0 {
            next = string_end(block, next)?;
        }
        let end = string_end(block, next)?;
        if index == AUTHORITY {
            return Some(next..end);
        }
        at = end;
    }
}

/// RFC 7541, 5.1: a number, and where the next thing begins.
fn integer(block: &[u8], at: usize, prefix: u32) -> Option<(usize, usize)> {
    let mask = (1 << prefix) - 1;
    let mut value = usize::from(*block.get(at)?) & mask;
    let mut next = at + 1;
    if value < mask {
        return Some((value, next));
    }
    let mut shift = 0;
    loop {
        let byte = usize::from(*block.get(next)?);
        value = value.checked_add((byte & 0x7f).checked_shl(shift)?)?;
        next += 1;
        shift += 7;
        if byte & 0x80 == 0 {
            return Some((value, next));
        }
    }
}

/// RFC 7541, 5.2: where the string that begins here ends.
fn string_end(block: &[u8], at: usize) -> Option<usize> {
    let (length, begin) = integer(block, at, 7)?;
    begin.checked_add(length)
}
