//! Header lines (RFC 9112 §5): names are looked up, and values read where they matter.

use core::ptr::read_volatile;

use sluice_ebpf_common::{
    self as common,
    insertion::{Interest, NameKey},
};

use super::{
    CRLF, MASK, MAX_LENGTH, MAX_NAME, Verdict, answer, at, end_of_head,
    words::{Block, byte_of, control, first, lowest, not_name, pair, word},
};
use crate::maps::{NAMES, Scratch, VALUES};

const CONTENT_LENGTH: u64 = common::name_hash(b"content-length");
const CONNECTION: u64 = common::name_hash(b"connection");
const TRANSFER_ENCODING: u64 = common::name_hash(b"transfer-encoding");
const UPGRADE: u64 = common::name_hash(b"upgrade");
const EXPECT: u64 = common::name_hash(b"expect");

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

/// A line of a head that begins at `pos`, or the blank one behind it. Most are whole and of no interest, with a short name and
/// nothing unusual: those are read here at one go, and all others in pieces, as [`pieces`] begins.
#[inline(always)]
pub(super) fn header(scratch: &mut Scratch, pos: u32) -> Verdict {
    let block = Block::at(scratch, pos);
    let begin = block.word(0);
    if begin as u16 == CRLF {
        return end_of_head(scratch, pos + 2);
    }
    let (mut bytes, mut before, mut hash) = (begin, 0, common::NAME_SEED);
    let mut stop = not_name(begin);
    // Of the name's first eight bytes.
    let mut inside = (lowest(stop) >> 7).wrapping_sub(1);
    if stop == 0 {
        inside = u64::MAX;
        hash = common::mix(hash, begin | common::LOWER);
        bytes = block.word(8);
        stop = not_name(bytes);
        before = 8;
        if stop == 0 {
            hash = common::mix(hash, bytes | common::LOWER);
            bytes = block.word(16);
            stop = not_name(bytes);
            before = 16;
        }
    }
    let last = lowest(stop);
    if inside == 0 || (bytes ^ COLONS) & byte_of(last) != 0 || stop == 0 {
        return pieces(scratch, pos);
    }
    let bit = common::name_bit_of((begin | common::LOWER) & inside);
    let from = pos + before;
    // A trailer says nothing about framing, whatever it is (RFC 9110 §6.5.1).
    if half(&scratch.scan.asked.bitmap, bit) >> (bit & 63) & 1 != 0 && scratch.scan.trailer == 0 {
        let rest = first(stop);
        let text = before + rest;
        let pos = behind_colon(scratch, from + rest + 1);
        let last = common::first_bytes(bytes | common::LOWER, rest);
        return named(scratch, pos, common::finish(common::mix(hash, last), text));
    }
    let block = Block::at(scratch, from);
    // Behind the colon.
    let mut marks = control(bytes) & !((last << 1).wrapping_sub(1));
    let mut at = 0;
    while marks == 0 {
        at += 8;
        if at == VALUE_BYTES {
            scratch.scan.mode = at::VALUE;
            scratch.scan.pos = from + at;
            return Verdict::Running;
        }
        marks = control(block.word(at));
    }
    let end = from + at + first(marks);
    if pair(scratch, end) != CRLF {
        return pieces(scratch, pos);
    }
    line(scratch, end + 2)
}

const COLONS: u64 = u64::from_le_bytes([b':'; 8]);
/// Bytes from a name's last word on that are read at one go.
const VALUE_BYTES: u32 = 56;

/// The first piece.
#[inline(always)]
fn pieces(scratch: &mut Scratch, pos: u32) -> Verdict {
    if pos + 1 == scratch.scan.len && scratch.bytes[(pos & MASK) as usize] == b'\r' {
        // Of the blank line only the first half is here.
        scratch.scan.cr = 2;
        return answer::beyond(&mut scratch.scan, at::LINE, pos + 1);
    }
    scratch.scan.mode = at::NAME;
    scratch.scan.hash = common::NAME_SEED;
    scratch.scan.text = 0;
    scratch.scan.pos = pos;
    Verdict::Running
}

/// Where the value begins, whose name's colon is before `pos`.
#[inline(always)]
fn behind_colon(scratch: &mut Scratch, pos: u32) -> u32 {
    let blank = scratch.bytes[(pos & MASK) as usize] == b' ';
    let pos = pos + blank as u32;
    scratch.scan.pos = pos;
    scratch.scan.mode = at::VALUE;
    pos
}

#[inline(always)]
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
    let pos = behind_colon(scratch, pos + rest + 1);
    let bit = common::name_bit(word(scratch, scratch.scan.line), text);
    // A trailer says nothing about framing, whatever it is (RFC 9110 §6.5.1).
    if half(&scratch.scan.asked.bitmap, bit) >> (bit & 63) & 1 == 0 || scratch.scan.trailer != 0 {
        return value(scratch, pos);
    }
    let last = common::first_bytes(bytes | common::LOWER, rest);
    named(scratch, pos, common::finish(common::mix(hash, last), text))
}

/// One of the two words of a bitmap.
#[inline(always)]
#[expect(unsafe_code, reason = "an index without a branch, which nobody could predict")]
fn half(bitmap: &[u64; 2], bit: u32) -> u64 {
    // SAFETY: the index is 0 or 1. Volatile, or LLVM would make a branch of it.
    unsafe { read_volatile(bitmap.as_ptr().add((bit >> 6 & 1) as usize)) }
}

/// A header whose name may matter; its value begins at `pos`.
#[inline(always)]
#[expect(unsafe_code, reason = "map values are shared with user space")]
fn named(scratch: &mut Scratch, pos: u32, hash: u64) -> Verdict {
    scratch.scan.text = 0;
    if hash == CONTENT_LENGTH {
        scratch.scan.mode = at::LENGTH;
        // Digits of a line that was cut are read again.
        scratch.scan.length = 0;
        // Twice is once too often.
        return if scratch.scan.has_length == 0 { Verdict::Running } else { Verdict::Undecided };
    }
    if hash == CONNECTION {
        return connection(scratch, pos);
    }
    if scratch.scan.answers != 0 {
        // What rules ask for is nothing in an answer.
        return if hash == TRANSFER_ENCODING { coding(scratch, pos) } else { Verdict::Running };
    }
    if hash == TRANSFER_ENCODING || hash == UPGRADE || hash == EXPECT {
        return Verdict::Undecided;
    }
    if hash != scratch.scan.asked.name {
        // SAFETY: one aligned word; user space replaces it as a whole.
        let Some(interest) = (unsafe { NAMES.get(&NameKey::new(hash, scratch.scan.port as u16)) }) else {
            return Verdict::Running;
        };
        if *interest != Interest::Exact as u32 {
            return fits(scratch);
        }
    }
    scratch.scan.mode = at::EXACT;
    scratch.scan.hash = hash;
    Verdict::Running
}

/// A request that may fit a rule. What is copied anyway is read to its end.
#[inline(always)]
fn fits(scratch: &mut Scratch) -> Verdict {
    scratch.scan.fits = 1;
    if scratch.scan.copies != 0 { Verdict::Running } else { Verdict::Undecided }
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
    if pos >= scratch.scan.len {
        return answer::beyond(&mut scratch.scan, at::VALUE, pos);
    }
    if pos + 1 == scratch.scan.len && scratch.bytes[(pos & MASK) as usize] == b'\r' {
        scratch.scan.cr = 1;
        return answer::beyond(&mut scratch.scan, at::VALUE, pos + 1);
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
    let only = scratch.scan.asked.value;
    let is_asked_for = if only == 0 {
        // SAFETY: only whether it is there matters.
        unsafe { VALUES.get(&NameKey::new(hash, scratch.scan.port as u16)) }.is_some()
    } else {
        hash == only
    };
    line(scratch, end + 2);
    if is_asked_for { fits(scratch) } else { Verdict::Running }
}

/// Digits of a length that are read in one step.
const LENGTH_DIGITS: u32 = 6;

/// The digits of a `Content-Length`.
#[inline(always)]
pub(super) fn length(scratch: &mut Scratch, pos: u32) -> Verdict {
    let (mut pos, mut length, mut text) = (pos, scratch.scan.length, scratch.scan.text);
    let mut digits = 0;
    loop {
        let byte = scratch.bytes[(pos & MASK) as usize];
        if !byte.is_ascii_digit() {
            break;
        }
        length = length * 10 + (byte - b'0') as u64;
        text += 1;
        pos += 1;
        digits += 1;
        if digits == LENGTH_DIGITS {
            scratch.scan.length = length;
            scratch.scan.text = text;
            scratch.scan.pos = pos;
            return if length > MAX_LENGTH || text > 12 { Verdict::Undecided } else { Verdict::Running };
        }
    }
    if pos >= scratch.scan.len {
        // The rest of the digits may be behind the window.
        return answer::beyond(&mut scratch.scan, at::LENGTH, pos);
    }
    if text == 0 || text > 12 || length > MAX_LENGTH || pair(scratch, pos) != CRLF {
        return Verdict::Undecided;
    }
    scratch.scan.length = length;
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
