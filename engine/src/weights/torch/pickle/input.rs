//! The bytes of a pickle, read from the first to the last.

use super::value::{Read, broken};

/// A pickle, and how much of it has been read.
pub(super) struct Input<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Input<'a> {
    /// Returns the input at the beginning of a pickle.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// Returns the next `n` bytes.
    pub fn take(&mut self, n: u64) -> Read<&'a [u8]> {
        let end = usize::try_from(n).ok().and_then(|n| self.at.checked_add(n));
        match end.and_then(|end| Some((end, self.bytes.get(self.at..end)?))) {
            Some((end, slice)) => {
                self.at = end;
                Ok(slice)
            }
            None => broken("it ends too early"),
        }
    }

    /// Returns the next byte.
    pub fn byte(&mut self) -> Read<u8> {
        self.array::<1>().map(|[b]| b)
    }

    /// Returns the next `N` bytes, as an array.
    pub fn array<const N: usize>(&mut self) -> Read<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N as u64)?);
        Ok(array)
    }

    /// Returns the text up to the next line feed, which is skipped.
    pub fn line(&mut self) -> Read<&'a str> {
        let rest = &self.bytes[self.at..];
        let Some(n) = rest.iter().position(|b| *b == b'\n') else {
            return broken("it ends too early");
        };
        self.at += n + 1;
        std::str::from_utf8(&rest[..n]).or_else(|_| broken("text that is not UTF-8"))
    }
}
