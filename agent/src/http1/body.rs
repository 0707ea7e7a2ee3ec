//! Where a message body ends, without touching its bytes (RFC 9112 §§6, 7).

use super::Doubt;

/// Most hexadecimal digits of a chunk size: 15 cannot overflow, and no real chunk needs more.
const MAX_SIZE_DIGITS: u8 = 15;

/// What is still to come of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Body {
    /// So many bytes; zero: it has ended.
    Length(u64),
    /// Chunks, a last one and trailers.
    Chunked(Chunked),
    /// All until the sender closes. Only answers have it.
    UntilClose,
}

/// Position in a chunked body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunked(State);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Size { digits: u8, size: u64 },
    Extension { size: u64 },
    SizeLf { size: u64 },
    Data { left: u64 },
    DataCr,
    DataLf,
    TrailerStart,
    Trailer,
    TrailerLf,
    EndLf,
    Done,
}

// === impl Body ===

impl Body {
    /// No body.
    pub const EMPTY: Self = Self::Length(0);

    /// A chunked body, at its beginning.
    pub const CHUNKED: Self = Self::Chunked(Chunked(State::Size { digits: 0, size: 0 }));

    /// A chunked body in the middle of a chunk, of whose data so many bytes are to come.
    #[must_use]
    pub const fn within_chunk(left: u64) -> Self {
        Self::Chunked(Chunked(if left == 0 { State::DataCr } else { State::Data { left } }))
    }

    /// Whether all of it is through.
    #[must_use]
    pub fn is_done(&self) -> bool {
        matches!(self, Self::Length(0) | Self::Chunked(Chunked(State::Done)))
    }

    /// How many of the first `bytes` belong to it; they are through then.
    ///
    /// # Errors
    /// [`Doubt::Chunk`] where the chunks break the grammar.
    pub fn take(&mut self, bytes: &[u8]) -> Result<usize, Doubt> {
        match self {
            Self::UntilClose => Ok(bytes.len()),
            Self::Length(left) => {
                let taken = at_most(*left, bytes.len());
                *left -= taken as u64;
                Ok(taken)
            }
            Self::Chunked(chunked) => chunked.take(bytes),
        }
    }
}

impl Default for Body {
    fn default() -> Self {
        Self::EMPTY
    }
}

// === impl Chunked ===

impl Chunked {
    fn take(&mut self, bytes: &[u8]) -> Result<usize, Doubt> {
        let mut at = 0;
        while at < bytes.len() && self.0 != State::Done {
            if let State::Data { left } = &mut self.0 {
                let taken = at_most(*left, bytes.len() - at);
                *left -= taken as u64;
                at += taken;
                if *left == 0 {
                    self.0 = State::DataCr;
                }
                continue;
            }
            self.0 = step(self.0, bytes[at])?;
            at += 1;
        }
        Ok(at)
    }
}

fn step(state: State, byte: u8) -> Result<State, Doubt> {
    Ok(match (state, byte) {
        (State::Size { digits, size }, _) if byte.is_ascii_hexdigit() && digits < MAX_SIZE_DIGITS => {
            let digit = char::from(byte).to_digit(16).unwrap_or_default();
            State::Size { digits: digits + 1, size: size << 4 | u64::from(digit) }
        }
        (State::Size { digits: 1.., size }, b'\r') => State::SizeLf { size },
        (State::Size { digits: 1.., size }, b';') => State::Extension { size },
        (State::Extension { size }, b'\r') => State::SizeLf { size },
        (State::Extension { size }, b'\t' | 0x20..=0x7e | 0x80..) => State::Extension { size },
        (State::SizeLf { size: 0 }, b'\n') => State::TrailerStart,
        (State::SizeLf { size }, b'\n') => State::Data { left: size },
        (State::DataCr, b'\r') => State::DataLf,
        (State::DataLf, b'\n') => State::Size { digits: 0, size: 0 },
        (State::TrailerStart, b'\r') => State::EndLf,
        // A trailer line may not begin with a blank (a folded line) nor without a name.
        (State::TrailerStart, _) if super::head::is_token(byte) => State::Trailer,
        (State::Trailer, b'\r') => State::TrailerLf,
        (State::Trailer, b'\t' | 0x20..=0x7e | 0x80..) => State::Trailer,
        (State::TrailerLf, b'\n') => State::TrailerStart,
        (State::EndLf, b'\n') => State::Done,
        _ => return Err(Doubt::Chunk),
    })
}

fn at_most(left: u64, have: usize) -> usize {
    usize::try_from(left).map_or(have, |left| left.min(have))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes `bytes` in pieces of `step`; how many belong to the body.
    fn take(mut body: Body, bytes: &[u8], step: usize) -> Result<(usize, bool), Doubt> {
        let mut taken = 0;
        for piece in bytes.chunks(step) {
            let n = body.take(piece)?;
            taken += n;
            if n < piece.len() {
                break;
            }
        }
        Ok((taken, body.is_done()))
    }

    #[test]
    fn ends_where_it_ends_however_it_is_split() {
        let next = b"GET / HTTP/1.1\r\n\r\n";
        for body in [
            &b"0\r\n\r\n"[..],
            b"5\r\nhello\r\n0\r\n\r\n",
            b"00A;x=\"y\"\r\n0123456789\r\n1\r\n\n\r\n0;last\r\nTrailer: a\r\nB:\r\n\r\n",
        ] {
            let bytes = [body, next].concat();
            for step in 1..=bytes.len() {
                assert_eq!(take(Body::CHUNKED, &bytes, step), Ok((body.len(), true)));
            }
        }
        assert_eq!(take(Body::Length(3), b"abcdef", 2), Ok((3, true)));
        assert_eq!(take(Body::Length(9), b"abcdef", 4), Ok((6, false)));
        assert_eq!(take(Body::UntilClose, b"abcdef", 4), Ok((6, false)));
        assert!(Body::EMPTY.is_done());
    }

    #[test]
    fn goes_on_anywhere_in_a_chunk() {
        let rest = b"hello\r\n0\r\n\r\n";
        for gone in 0..=5 {
            let body = Body::within_chunk(5 - gone as u64);
            assert_eq!(take(body, &rest[gone..], 3), Ok((rest.len() - gone, true)), "{gone}");
        }
        assert_eq!(take(Body::within_chunk(1), b"0\r0", 9), Err(Doubt::Chunk), "no end of a line");
    }

    #[test]
    fn doubtful_chunks_are_doubted() {
        for body in [
            &b"\r\n"[..],
            b"5\nhello",
            b"-1\r\n",
            b"0x5\r\nhello",
            b" 5\r\nhello",
            b"5 \r\nhello",
            b"5\r\nhello0\r\n\r\n",
            b"5\r\nhello\n0\r\n\r\n",
            b"0\r\n folded\r\n\r\n",
            b"0\r\n: nameless\r\n\r\n",
            b"0\r\na: b\n\r\n",
            b"0\r\n\r\r",
            b"1234567890abcdef\r\n",
            b"5;a\nhello",
        ] {
            assert_eq!(take(Body::CHUNKED, body, body.len()), Err(Doubt::Chunk), "{:?}", String::from_utf8_lossy(body));
        }
    }
}
