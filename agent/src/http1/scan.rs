//! Says, byte by byte as they arrive, whether the beginning of a request head can still become one.
//!
//! A head that arrives whole never comes here; one that arrives in pieces does, so that a protocol that is not HTTP
//! is passed on with its first impossible byte instead of waiting for a blank line that never comes, and so that a
//! head in 64 thousand segments costs 64 thousand steps, not their square. Stricter than [`super::head`] in nothing
//! that it accepts whole: the parser has the last word on a complete head.

use super::Doubt;

/// Longest method that is taken for one. The longest registered has 17 letters.
const MAX_METHOD: usize = 32;

const VERSION: &[u8] = b"HTTP/1.";

/// Position in the grammar of a request head (RFC 9112 §§3, 5), kept between segments.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct HeadScan {
    state: State,
    /// Bytes looked at so far.
    seen: usize,
}

/// What is known after some bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scanned {
    /// All of them fit; the head goes on.
    Partial,
    /// The blank line is in.
    Complete,
    /// No head begins like this.
    Doubt(Doubt),
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum State {
    /// Before the method: empty lines are skipped (RFC 9112 §2.2).
    #[default]
    Start,
    StartLf,
    Method(usize),
    TargetFirst,
    Target,
    Version(u8),
    Minor,
    LineCr,
    LineLf,
    LineStart,
    Name,
    Value,
    EndLf,
    Done,
}

// === impl HeadScan ===

impl HeadScan {
    /// Looks at the bytes of `head` that came since the last call; `head` is all of it from its first byte.
    pub(super) fn advance(&mut self, head: &[u8]) -> Scanned {
        let mut state = self.state;
        for &byte in head.get(self.seen..).unwrap_or_default() {
            self.seen += 1;
            state = match step(state, byte) {
                Ok(State::Done) => return Scanned::Complete,
                Ok(next) => next,
                Err(doubt) => return Scanned::Doubt(doubt),
            };
        }
        self.state = state;
        Scanned::Partial
    }
}

fn step(state: State, byte: u8) -> Result<State, Doubt> {
    Ok(match (state, byte) {
        (State::Start, b'\r') => State::StartLf,
        (State::StartLf, b'\n') => State::Start,
        (State::Start, _) if is_method_byte(byte) => State::Method(1),
        (State::Method(_), b' ') => State::TargetFirst,
        (State::Method(n), _) if is_method_byte(byte) && n < MAX_METHOD => State::Method(n + 1),
        (State::Start | State::StartLf | State::Method(_), _) => return Err(Doubt::NotHttp),
        (State::TargetFirst | State::Target, 0x21..=0x7e | 0x80..) => State::Target,
        (State::Target, b' ') => State::Version(0),
        (State::Version(n), _) if VERSION.get(usize::from(n)) == Some(&byte) => {
            if usize::from(n) + 1 == VERSION.len() {
                State::Minor
            } else {
                State::Version(n + 1)
            }
        }
        (State::Minor, b'0' | b'1') => State::LineCr,
        (State::TargetFirst | State::Target | State::Version(_) | State::Minor, _) => return Err(Doubt::NotHttp),
        (State::LineCr, b'\r') => State::LineLf,
        (State::LineLf, b'\n') => State::LineStart,
        (State::LineStart, b'\r') => State::EndLf,
        (State::LineStart | State::Name, _) if super::head::is_token(byte) => State::Name,
        (State::Name, b':') => State::Value,
        (State::Value, b'\r') => State::LineLf,
        (State::Value, b'\t' | 0x20..=0x7e | 0x80..) => State::Value,
        (State::EndLf, b'\n') => State::Done,
        _ => return Err(Doubt::Grammar),
    })
}

/// Methods are tokens, but every registered one is capital letters and hyphens: another beginning is another protocol.
pub(super) fn is_method(method: &str) -> bool {
    method.len() <= MAX_METHOD && method.bytes().all(is_method_byte)
}

fn is_method_byte(byte: u8) -> bool {
    byte.is_ascii_uppercase() || byte == b'-' || byte == b'_'
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &[u8] = b"\r\nGET /a?b HTTP/1.1\r\nHost: x\r\nX-\xc3\xa9: no\r\n\r\n";

    fn whole(head: &[u8]) -> Scanned {
        HeadScan::default().advance(head)
    }

    #[test]
    fn the_same_answer_however_it_is_split() {
        let good = b"\r\nGET /a?b HTTP/1.1\r\nHost: x\r\nEmpty:\r\nV: \xc3\xa9 \t\r\n\r\n";
        for at in 0..good.len() {
            let mut scan = HeadScan::default();
            assert_eq!(scan.advance(&good[..at]), Scanned::Partial, "{at}");
            assert_eq!(scan.advance(good), Scanned::Complete, "{at}");
        }
    }

    #[test]
    fn what_cannot_become_a_head_is_said_at_its_first_impossible_byte() {
        assert_eq!(whole(HEAD), Scanned::Doubt(Doubt::Grammar), "a name is a token");
        for text in [
            &b"\x16\x03\x01"[..],
            b"*1\r\n$4",
            b"PING\r",
            b"SET key value",
            b"EHLO me\r",
            b"SSH-2.0",
            b"get /",
            b"GET  /",
            b"GET /\r\n",
            b"GET / HTTP/2",
            b"PRI * HTTP/2.0",
            b"\n",
            b"\0\0\0\x08\x04\xd2\x16\x2f",
        ] {
            assert_eq!(whole(text), Scanned::Doubt(Doubt::NotHttp), "{:?}", String::from_utf8_lossy(text));
        }
        for text in [
            &b"GET / HTTP/1.1\n"[..],
            b"GET / HTTP/1.1\r\n a",
            b"GET / HTTP/1.1\r\na :",
            b"GET / HTTP/1.1\r\na: b\n",
            b"GET / HTTP/1.1\r\na: \0",
            b"GET / HTTP/1.1\r\n:",
            b"GET / HTTP/1.1\r\na: b\r\r",
        ] {
            assert_eq!(whole(text), Scanned::Doubt(Doubt::Grammar), "{:?}", String::from_utf8_lossy(text));
        }
        assert_eq!(whole(b"HELLO"), Scanned::Partial);
    }
}
