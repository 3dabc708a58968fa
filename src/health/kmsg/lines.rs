//! Bytes to lines. `/dev/kmsg` gives whole records; of a FIFO a read may end
//! anywhere.

use std::ops::Range;

/// What the kernel makes of one record at most, its `CONSOLE_EXT_LOG_MAX`. It gives
/// no record to a buffer that is too small for it.
const RECORD_BYTES: usize = 8192;

/// A buffer of bytes that came, of which lines are taken.
#[derive(Debug)]
pub(super) struct Lines {
    buffer: Box<[u8]>,
    /// What has not been taken.
    rest: Range<usize>,
    /// The line under way is longer than the buffer, and its beginning is lost.
    overlong: bool,
}

impl Default for Lines {
    fn default() -> Self {
        Self {
            buffer: vec![0; RECORD_BYTES].into(),
            rest: 0..0,
            overlong: false,
        }
    }
}

impl Lines {
    /// Whether there is a line to take.
    pub(super) fn ready(&self) -> bool {
        self.buffer[self.rest.clone()].contains(&b'\n')
    }

    /// The next line, without its end; none for what is left of an overlong one.
    pub(super) fn take(&mut self) -> Option<&[u8]> {
        let start = self.rest.start;
        let rest = &self.buffer[self.rest.clone()];
        let end = start + rest.iter().position(|byte| *byte == b'\n')?;
        self.rest.start = end + 1;
        let overlong = std::mem::take(&mut self.overlong);
        (!overlong).then(|| &self.buffer[start..end])
    }

    /// Where the next bytes go: never nowhere, once each line has been taken.
    pub(super) fn space(&mut self) -> &mut [u8] {
        self.buffer.copy_within(self.rest.clone(), 0);
        self.rest = 0..self.rest.len();
        if self.rest.len() == self.buffer.len() {
            self.overlong = true;
            self.rest = 0..0;
        }
        &mut self.buffer[self.rest.end..]
    }

    /// So many bytes came into the [`space`](Self::space).
    pub(super) fn filled(&mut self, bytes: usize) {
        self.rest.end += bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The lines of these bytes when they come in pieces.
    fn lines(bytes: &[u8], pieces: &[usize]) -> Vec<Vec<u8>> {
        let mut lines = Lines::default();
        let mut found = Vec::new();
        let mut left = bytes;
        for piece in pieces.iter().chain([&RECORD_BYTES]).cycle() {
            if left.is_empty() {
                return found;
            }
            let space = lines.space();
            let (now, later) = left.split_at((*piece).min(space.len()).min(left.len()));
            space[..now.len()].copy_from_slice(now);
            lines.filled(now.len());
            left = later;
            while lines.ready() {
                found.extend(lines.take().map(<[u8]>::to_vec));
            }
        }
        found
    }

    #[test]
    fn a_line_longer_than_a_record_is_left_out() {
        let mut bytes = b"first\n".to_vec();
        bytes.extend([b'x'; 3 * RECORD_BYTES]);
        bytes.extend(b"\nlast\nno end");
        assert_eq!(lines(&bytes, &[]), [b"first".to_vec(), b"last".to_vec()]);
    }

    #[test]
    fn a_line_of_a_whole_record_fits() {
        let mut bytes = vec![b'x'; RECORD_BYTES - 1];
        bytes.push(b'\n');
        assert_eq!(lines(&bytes, &[]).len(), 1);
    }

    proptest! {
        #[test]
        fn lines_are_the_same_in_any_pieces(
            texts in proptest::collection::vec("[a-z;]{0,99}", 0..99),
            pieces in proptest::collection::vec(1..999_usize, 0..9),
        ) {
            let bytes: String = texts.iter().map(|text| format!("{text}\n")).collect();
            let texts: Vec<Vec<u8>> = texts.into_iter().map(String::into_bytes).collect();
            prop_assert_eq!(lines(bytes.as_bytes(), &pieces), texts);
        }
    }
}
