//! Header lines (RFC 9112 §5): names are looked up, and values read where they matter.

use sluice_ebpf_common::{
    self as common,
    insertion::{Interest, NameKey},
};

use super::{
    CRLF, MASK, MAX_LENGTH, MAX_NAME, Verdict, answer, at,
    words::{control, first, not_name, pair, word},
};
use crate::maps::{NAMES, Scratch, VALUES};

/// Words of a name that are read in one step; most names are shorter.
const NAME_WORDS: u32 = 3;
/// The same of a value.
const VALUE_WORDS: u32 = 6;

#[inline(always)]
pub(super) fn line(scratch: &mut Scratch, pos: u32) -> Verdict {
    scratch.scan.mode = at::LINE;
    scratch.scan.pos = pos;
    scratch.scan.line = pos;
    Verdict::Running
}

#[inline(always)]
#[expect(unsafe_code, reason = "map values are shared with user space")]
pub(super) fn name(scratch: &mut Scratch, pos: u32) -> Verdict {
    let (mut pos, mut hash, mut before) = (pos, scratch.scan.hash, scratch.scan.text);
    let mut words = 0;
    let (bytes, stop) = loop {
        let bytes = word(scratch, pos);
        let stop = not_name(bytes);
        if stop != 0 {
            break (bytes, stop);
        }
        hash = common::mix(hash, bytes | common::LOWER);
        before += 8;
        pos += 8;
        words += 1;
        if words == NAME_WORDS {
            scratch.scan.hash = hash;
            scratch.scan.text = before;
            scratch.scan.pos = pos;
            return if before > MAX_NAME { Verdict::Undecided } else { Verdict::Running };
        }
    };
    let lower = bytes | common::LOWER;
    let rest = first(stop);
    let text = before + rest;
    if pos + rest >= scratch.scan.len {
        // What is behind the end is none of it.
        return answer::beyond(&mut scratch.scan, at::NAME, pos);
    }
    if (bytes >> ((rest & 7) * 8)) as u8 != b':' {
        // A name that no rule the kernel decides has, nor any that frames a message.
        scratch.scan.mode = at::TOKEN;
        scratch.scan.text = text;
        scratch.scan.pos = pos + rest;
        return Verdict::Running;
    }
    if text == 0 {
        return Verdict::Undecided;
    }
    let hash = common::finish(common::mix(hash, common::first_bytes(lower, rest)), text);
    let mut pos = pos + rest + 1;
    if scratch.bytes[(pos & MASK) as usize] == b' ' {
        pos += 1;
    }
    scratch.scan.pos = pos;
    scratch.scan.mode = at::VALUE;
    let half = if hash & 0x40 == 0 { scratch.scan.bitmap[0] } else { scratch.scan.bitmap[1] };
    // A trailer says nothing about framing, whatever it is (RFC 9110 §6.5.1).
    if half >> (hash & 0x3f) & 1 == 0 || scratch.scan.trailer != 0 {
        return value(scratch, pos);
    }
    let key = NameKey::new(hash, scratch.scan.port as u16);
    // SAFETY: one aligned word; user space replaces it as a whole.
    let Some(interest) = (unsafe { NAMES.get(&key) }) else { return Verdict::Running };
    let interest = *interest;
    scratch.scan.text = 0;
    if interest == Interest::Length as u32 {
        scratch.scan.mode = at::LENGTH;
        // Twice is once too often.
        return if scratch.scan.has_length == 0 { Verdict::Running } else { Verdict::Undecided };
    }
    if interest == Interest::Connection as u32 {
        return connection(scratch, pos);
    }
    if scratch.scan.answers != 0 {
        // What rules ask for is nothing in an answer.
        return if interest == Interest::Coding as u32 { coding(scratch, pos) } else { Verdict::Running };
    }
    if interest == Interest::Exact as u32 {
        scratch.scan.mode = at::EXACT;
        scratch.scan.name = hash;
        scratch.scan.hash = hash;
        return Verdict::Running;
    }
    Verdict::Undecided
}

/// The rest of a name with one of the rarer characters (RFC 9110 §5.6.2).
#[inline(always)]
pub(super) fn token(scratch: &mut Scratch, pos: u32) -> Verdict {
    let byte = scratch.bytes[(pos & MASK) as usize];
    scratch.scan.pos = pos + 1;
    if byte == b':' && scratch.scan.text > 0 {
        scratch.scan.mode = at::VALUE;
        return Verdict::Running;
    }
    scratch.scan.text += 1;
    // One bit for each character from `!` to `~` that may stand in a name.
    const TOKEN: u128 = token_characters();
    let index = byte.wrapping_sub(b'!') as u32;
    let half = if index & 64 == 0 { TOKEN as u64 } else { (TOKEN >> 64) as u64 };
    if index < 94 && half >> (index & 63) & 1 == 1 { Verdict::Running } else { Verdict::Undecided }
}

pub(super) const fn token_characters() -> u128 {
    let (mut set, mut byte) = (0_u128, b'!');
    while byte <= b'~' {
        let other = matches!(byte, b'(' | b')' | b',' | b'/' | b':'..=b'@' | b'[' | b'\\' | b']' | b'{' | b'}' | b'"');
        if !other {
            set |= 1 << (byte - b'!');
        }
        byte += 1;
    }
    set
}

/// A value that nobody asked for.
#[inline(always)]
pub(super) fn value(scratch: &mut Scratch, pos: u32) -> Verdict {
    let (mut pos, mut words) = (pos, 0);
    let stop = loop {
        let stop = control(word(scratch, pos));
        if stop != 0 {
            break stop;
        }
        pos += 8;
        words += 1;
        if words == VALUE_WORDS {
            scratch.scan.pos = pos;
            return Verdict::Running;
        }
    };
    pos += first(stop);
    if pos + 1 >= scratch.scan.len {
        if pos < scratch.scan.len && scratch.bytes[(pos & MASK) as usize] == b'\r' {
            scratch.scan.cr = 1;
            return answer::beyond(&mut scratch.scan, at::VALUE, pos + 1);
        }
        return answer::beyond(&mut scratch.scan, at::VALUE, pos);
    }
    if pair(scratch, pos) == CRLF {
        return answer::end_of_line(scratch, pos + 2);
    }
    scratch.scan.pos = pos + 1;
    if scratch.bytes[(pos & MASK) as usize] == b'\t' { Verdict::Running } else { Verdict::Undecided }
}

/// A value that some rule asks for exactly: unlike all of them, or undecided.
#[inline(always)]
#[expect(unsafe_code, reason = "map values are shared with user space")]
pub(super) fn exact(scratch: &mut Scratch, pos: u32) -> Verdict {
    let bytes = word(scratch, pos);
    let stop = control(bytes);
    // Blanks around a value are no part of it: one before it has been passed over, any other is for the agent.
    if scratch.scan.text == 0 && bytes as u8 == b' ' {
        return Verdict::Undecided;
    }
    if stop == 0 {
        scratch.scan.hash = common::mix(scratch.scan.hash, bytes);
        scratch.scan.text += 8;
        scratch.scan.pos = pos + 8;
        return Verdict::Running;
    }
    let rest = first(stop);
    let text = scratch.scan.text + rest;
    let end = pos + rest;
    let blank = text > 0 && scratch.bytes[(end.wrapping_sub(1) & MASK) as usize] == b' ';
    if blank || pair(scratch, end) != CRLF {
        return Verdict::Undecided;
    }
    let hash = common::finish(common::mix(scratch.scan.hash, common::first_bytes(bytes, rest)), text);
    // SAFETY: only whether it is there matters.
    if unsafe { VALUES.get(&NameKey::new(hash, scratch.scan.port as u16)) }.is_some() {
        return Verdict::Undecided;
    }
    line(scratch, end + 2)
}

/// The digits of a `Content-Length`.
#[inline(always)]
pub(super) fn length(scratch: &mut Scratch, pos: u32) -> Verdict {
    let byte = scratch.bytes[(pos & MASK) as usize];
    if byte.is_ascii_digit() {
        scratch.scan.length = scratch.scan.length * 10 + (byte - b'0') as u64;
        scratch.scan.text += 1;
        scratch.scan.pos = pos + 1;
        return if scratch.scan.length > MAX_LENGTH || scratch.scan.text > 12 {
            Verdict::Undecided
        } else {
            Verdict::Running
        };
    }
    if scratch.scan.text == 0 || pair(scratch, pos) != CRLF {
        return Verdict::Undecided;
    }
    scratch.scan.has_length = 1;
    line(scratch, pos + 2)
}

/// `close` or `keep-alive`, and nothing else.
#[inline(always)]
pub(super) fn connection(scratch: &mut Scratch, pos: u32) -> Verdict {
    let lower = word(scratch, pos) | common::LOWER;
    if common::first_bytes(lower, 5) == common::first_bytes(u64::from_le_bytes(*b"close\0\0\0"), 5)
        && pair(scratch, pos + 5) == CRLF
    {
        scratch.scan.last = 1;
        return line(scratch, pos + 7);
    }
    // `-` keeps its value, and `\r` would become one: the other half is compared as it is.
    let rest = word(scratch, pos + 8) & 0xffff;
    if lower == u64::from_le_bytes(*b"keep-ali") && word(scratch, pos) as u32 & 0x80_80_80_80 == 0 {
        let end = (rest | 0x2020) as u16;
        if end == u16::from_le_bytes(*b"ve")
            && pair(scratch, pos + 10) == CRLF
            && scratch.bytes[((pos + 4) & MASK) as usize] == b'-'
        {
            return line(scratch, pos + 12);
        }
    }
    Verdict::Undecided
}

/// `chunked`, once.
#[inline(always)]
pub(super) fn coding(scratch: &mut Scratch, pos: u32) -> Verdict {
    let lower = common::first_bytes(word(scratch, pos) | common::LOWER, 7);
    let chunked = lower == common::first_bytes(u64::from_le_bytes(*b"chunked\0"), 7);
    if !chunked || scratch.scan.open != 0 || pair(scratch, pos + 7) != CRLF {
        return Verdict::Undecided;
    }
    scratch.scan.open = 1;
    line(scratch, pos + 9)
}
