//! Frames of HTTP/2 (RFC 9113 §4), as far as the load generator and its ceiling need them.

use std::io;

use anyhow::{Result, ensure};
use tokio::{io::AsyncReadExt as _, net::TcpStream};

/// What a client sends first.
pub(in crate::bench) const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The last frame of its stream in this direction.
pub(in crate::bench) const END_STREAM: u8 = 0x01;

/// The last frame of its header block.
pub(in crate::bench) const END_HEADERS: u8 = 0x04;

/// Of settings and pings.
pub(in crate::bench) const ACK: u8 = 0x01;

const HEADER: usize = 9;

/// Bytes read at once.
const READ: usize = 64 << 10;

/// The type of a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::bench) struct Kind(u8);

/// A whole frame.
#[derive(Clone, Copy, Debug)]
pub(in crate::bench) struct Frame<'a> {
    pub(in crate::bench) kind: Kind,
    pub(in crate::bench) flags: u8,
    pub(in crate::bench) stream: u32,
    pub(in crate::bench) payload: &'a [u8],
}

/// Takes frames out of what is read.
#[derive(Debug)]
pub(in crate::bench) struct Reader {
    buffer: Vec<u8>,
    /// Of the buffer, what holds bytes and has not been taken.
    at: usize,
    end: usize,
}

// === impl Kind ===

impl Kind {
    pub(in crate::bench) const DATA: Self = Self(0);
    pub(in crate::bench) const HEADERS: Self = Self(1);
    pub(in crate::bench) const SETTINGS: Self = Self(4);
    pub(in crate::bench) const PING: Self = Self(6);
    pub(in crate::bench) const WINDOW_UPDATE: Self = Self(8);
}

/// Appends a frame.
pub(in crate::bench) fn write(to: &mut Vec<u8>, kind: Kind, flags: u8, stream: u32, payload: &[u8]) {
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    to.extend_from_slice(&length.to_be_bytes()[1..]);
    to.extend_from_slice(&[kind.0, flags]);
    to.extend_from_slice(&stream.to_be_bytes());
    to.extend_from_slice(payload);
}

// === impl Reader ===

impl Default for Reader {
    fn default() -> Self {
        Self { buffer: vec![0; READ], at: 0, end: 0 }
    }
}

impl Reader {
    /// Reads once; 0 is the end of the stream.
    pub(in crate::bench) async fn fill(&mut self, stream: &mut TcpStream) -> io::Result<usize> {
        self.buffer.copy_within(self.at..self.end, 0);
        self.end -= self.at;
        self.at = 0;
        if self.end == self.buffer.len() {
            return Err(io::Error::other("a frame that is too large"));
        }
        let read = stream.read(&mut self.buffer[self.end..]).await?;
        self.end += read;
        Ok(read)
    }

    /// The next frame that is there as a whole.
    pub(in crate::bench) fn next(&mut self) -> Option<Frame<'_>> {
        let (&[a, b, c, kind, flags, d, e, f, g], rest) =
            self.buffer[self.at..self.end].split_first_chunk::<HEADER>()?;
        let length = usize::try_from(u32::from_be_bytes([0, a, b, c])).ok()?;
        let payload = rest.get(..length)?;
        self.at += HEADER + length;
        Some(Frame { kind: Kind(kind), flags, stream: u32::from_be_bytes([d & 0x7f, e, f, g]), payload })
    }
}

/// A header block that fills the other side's table, and the one that means the same from then on (RFC 7541 §2.3.2).
#[derive(Clone, Debug)]
pub(in crate::bench) struct HeaderBlocks {
    pub(in crate::bench) first: Vec<u8>,
    pub(in crate::bench) later: Vec<u8>,
}

// === impl HeaderBlocks ===

impl HeaderBlocks {
    /// Encodes these fields, pseudo headers first.
    pub(in crate::bench) fn new(fields: &[(&str, &str)]) -> Result<Self> {
        /// First index of the dynamic table, which holds the newest entry.
        const DYNAMIC: u8 = 62;
        /// Longest string whose length is one byte.
        const LONGEST: usize = 126;
        let mut first = Vec::new();
        for &(name, value) in fields {
            first.push(0x40); // literal, with its name, to be indexed
            for text in [name, value] {
                ensure!(text.len() <= LONGEST, "{text:?} is too long");
                first.push(u8::try_from(text.len())?);
                first.extend_from_slice(text.as_bytes());
            }
        }
        let count = u8::try_from(fields.len())?;
        ensure!(count <= 0x7e - DYNAMIC, "too many fields");
        let later = (0..count).map(|index| 0x80 | (DYNAMIC + count - 1 - index)).collect();
        Ok(Self { first, later })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_field_is_the_newest_entry() {
        let blocks = HeaderBlocks::new(&[(":method", "GET"), ("a", "b")]).unwrap();
        assert_eq!(blocks.first, b"\x40\x07:method\x03GET\x40\x01a\x01b");
        assert_eq!(blocks.later, [0x80 | 63, 0x80 | 62]);
    }

    #[test]
    fn frames_are_taken_whole() {
        let mut bytes = Vec::new();
        write(&mut bytes, Kind::DATA, END_STREAM, 0x0102_0304, b"abc");
        write(&mut bytes, Kind::PING, 0, 0, &[7; 8]);
        let mut reader = Reader::default();
        let mut frames = Vec::new();
        for &byte in &bytes {
            reader.buffer[reader.end] = byte;
            reader.end += 1;
            if let Some(frame) = reader.next() {
                frames.push((frame.kind, frame.flags, frame.stream, frame.payload.to_vec()));
            }
        }
        assert_eq!(frames, [(Kind::DATA, END_STREAM, 0x0102_0304, b"abc".to_vec()), (Kind::PING, 0, 0, vec![7; 8])]);
    }
}
