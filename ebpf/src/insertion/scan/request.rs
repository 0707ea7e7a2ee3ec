//! Request lines (RFC 9112 §3), and what follows a request's head.

use super::{
    CRLF, MASK, MAX_HEADS, Scan, Verdict, at, begin,
    lines::line,
    words::{HIGH, at_least, first, pair, word},
};
use crate::maps::Scratch;

#[inline(always)]
pub(super) fn method(scratch: &mut Scratch, pos: u32) -> Verdict {
    const METHODS: [(&[u8; 8], u32); 7] = [
        (b"GET \0\0\0\0", 4),
        (b"POST \0\0\0", 5),
        (b"PUT \0\0\0\0", 4),
        (b"HEAD \0\0\0", 5),
        (b"DELETE \0", 7),
        (b"PATCH \0\0", 6),
        (b"OPTIONS ", 8),
    ];
    let bytes = word(scratch, pos);
    let mut length = 0;
    let mut index = 0;
    while index < METHODS.len() {
        let (text, bytes_of_it) = METHODS[index];
        let mask = if bytes_of_it == 8 { u64::MAX } else { (1 << (bytes_of_it * 8)) - 1 };
        if bytes & mask == u64::from_le_bytes(*text) {
            length = bytes_of_it;
            if index == 3 {
                scratch.scan.is_head = 1;
            }
        }
        index += 1;
    }
    if length == 0 {
        let byte = bytes as u8;
        // What the parser takes for the beginning of a method, or skips before it.
        let may_begin = byte.is_ascii_uppercase() || byte == b'-' || byte == b'_' || byte == b'\r';
        return if may_begin || scratch.scan.found != 0 { Verdict::Undecided } else { Verdict::NotHttp };
    }
    // No target at all is no request.
    if scratch.bytes[((pos + length) & MASK) as usize] == b' ' {
        return Verdict::Undecided;
    }
    scratch.scan.mode = at::TARGET;
    target(scratch, pos + length)
}

/// Words of a target that are read in one step.
const TARGET_WORDS: u32 = 4;

#[inline(always)]
pub(super) fn target(scratch: &mut Scratch, pos: u32) -> Verdict {
    let (mut pos, mut words) = (pos, 0);
    let stop = loop {
        let bytes = word(scratch, pos);
        // Blanks, control characters, DEL and all that is not ASCII.
        let stop = (!at_least(bytes, 0x21) | at_least(bytes, 0x7f) | bytes) & HIGH;
        if stop != 0 {
            break stop;
        }
        pos += 8;
        words += 1;
        if words == TARGET_WORDS {
            scratch.scan.pos = pos;
            return Verdict::Running;
        }
    };
    let end = pos + first(stop);
    if scratch.bytes[(end & MASK) as usize] != b' ' {
        return Verdict::Undecided;
    }
    let version = end + 1;
    if word(scratch, version) != u64::from_le_bytes(*b"HTTP/1.1") || pair(scratch, version + 8) != CRLF {
        return Verdict::Undecided;
    }
    line(scratch, version + 10)
}

/// Behind the blank line of a request, which ends at `pos`.
#[inline(always)]
pub(super) fn end_of_request(scan: &mut Scan, pos: u32) -> Verdict {
    let next = pos + scan.length as u32;
    scan.heads |= scan.is_head << (scan.found & 31);
    scan.found += 1;
    scan.next = next;
    if next >= scan.total {
        return Verdict::Clean;
    }
    if scan.last != 0 || scan.found >= MAX_HEADS {
        return Verdict::Undecided;
    }
    scan.pos = next;
    scan.mode = at::METHOD;
    begin(scan);
    Verdict::Running
}
