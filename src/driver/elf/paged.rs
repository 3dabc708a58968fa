//! A file that is read in pages.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;

const PAGE: u64 = 4096;

/// A file of which the page that was read last is kept: what is small and lies side by
/// side, as headers and names do, is one call of the system.
pub(super) struct Paged {
    file: File,
    length: u64,
    position: u64,
    page: Box<[u8]>,
    /// Where in the file the page begins, and how much of it there is.
    start: u64,
    filled: usize,
}

impl Paged {
    /// A file of this length.
    pub(super) fn new(file: File, length: u64) -> Self {
        Self {
            file,
            length,
            position: 0,
            page: vec![0; PAGE as usize].into_boxed_slice(),
            start: 0,
            filled: 0,
        }
    }

    /// What is kept of the file from the position on, which is nothing at its end.
    fn kept(&mut self) -> io::Result<&[u8]> {
        let is_kept = self
            .position
            .checked_sub(self.start)
            .is_some_and(|within| within < self.filled as u64);
        if !is_kept {
            self.start = self.position - self.position % PAGE;
            self.filled = 0;
            self.filled = self.file.read_at(&mut self.page, self.start)?;
        }
        let within = usize::try_from(self.position - self.start).unwrap_or(usize::MAX);
        Ok(self.page.get(within..self.filled).unwrap_or_default())
    }
}

impl Read for Paged {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = if buffer.len() as u64 > PAGE {
            self.file.read_at(buffer, self.position)?
        } else {
            self.kept()?.read(buffer)?
        };
        self.position += read as u64;
        Ok(read)
    }
}

impl Seek for Paged {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(position) => Some(position),
            SeekFrom::End(offset) => self.length.checked_add_signed(offset),
            SeekFrom::Current(offset) => self.position.checked_add_signed(offset),
        };
        self.position = position.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.position)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use proptest::collection::vec as several;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn reads_as_any_file_does(
            length in 0..3 * PAGE as usize,
            steps in several((0..14_000_u64, 0..9_000_usize), 1..20),
        ) {
            let bytes: Vec<_> = (0..length).map(|place| (place * 7 % 251) as u8).collect();
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), &bytes).unwrap();
            let file = File::open(file.path()).unwrap();
            let mut paged = Paged::new(file, length as u64);
            let mut usual = Cursor::new(&bytes);
            prop_assert_eq!(paged.seek(SeekFrom::End(0)).unwrap(), length as u64);
            for (place, size) in steps {
                paged.seek(SeekFrom::Start(place)).unwrap();
                usual.set_position(place);
                let (mut ours, mut theirs) = (vec![0; size], vec![0; size]);
                let (one, other) = (paged.read_exact(&mut ours), usual.read_exact(&mut theirs));
                prop_assert_eq!(one.is_ok(), other.is_ok());
                if one.is_ok() {
                    prop_assert_eq!(ours, theirs);
                }
            }
        }
    }
}
