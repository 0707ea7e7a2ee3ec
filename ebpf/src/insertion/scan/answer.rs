//! Status lines (RFC 9112 §4), and where an answer ends: by its length, or chunk by chunk (§7.1).

use super::{
    CRLF, MASK, MAX_LENGTH, Scan, Verdict, at, begin,
    lines::line,
    words::{first, line_feed, pair, word},
};
use crate::maps::Scratch;

use sluice_ebpf_common::insertion::{self as abi, CARRY};

/// `HTTP/1.1 200 reason`.
#[inline(always)]
pub(super) fn status(scratch: &mut Scratch, pos: u32) -> Verdict {
    if pos + 13 > scratch.scan.len {
        return Verdict::Undecided;
    }
    let rest = word(scratch, pos + 8);
    let digits = [(rest >> 8) as u8, (rest >> 16) as u8, (rest >> 24) as u8];
    let all_digits = digits[0].is_ascii_digit() && digits[1].is_ascii_digit() && digits[2].is_ascii_digit();
    if word(scratch, pos) != u64::from_le_bytes(*b"HTTP/1.1") || rest as u8 != b' ' || !all_digits {
        return Verdict::Undecided;
    }
    let [a, b, c] = [(digits[0] - b'0') as u32, (digits[1] - b'0') as u32, (digits[2] - b'0') as u32];
    scratch.scan.status = 100 * a + 10 * b + c;
    let behind = (rest >> 32) as u8;
    if behind != b' ' && behind != b'\r' {
        return Verdict::Undecided;
    }
    scratch.scan.mode = at::VALUE;
    scratch.scan.pos = pos + 12;
    Verdict::Running
}

/// A line with the size of a chunk begins.
#[inline(always)]
fn begin_size(scan: &mut Scan, pos: u32) -> Verdict {
    scan.mode = at::SIZE;
    scan.text = 0;
    scan.length = 0;
    scan.sized = 0;
    scan.pos = pos;
    Verdict::Running
}

#[inline(always)]
pub(super) fn end_of_answer(scan: &mut Scan, pos: u32) -> Verdict {
    let status = scan.status;
    let mut next = pos;
    if status >= 200 {
        let bodiless = scan.heads & 1 != 0 || status == 204 || status == 304;
        if !bodiless {
            if scan.open != 0 && scan.has_length != 0 {
                // Two ends (RFC 9112 §6.3).
                return Verdict::Undecided;
            }
            if scan.open != 0 {
                return begin_size(scan, pos);
            }
            if scan.has_length == 0 {
                scan.unknown = 1;
                scan.next = pos;
                return Verdict::Clean;
            }
            next = pos + scan.length as u32;
        }
        scan.next = next;
        if next > scan.total {
            return Verdict::Clean;
        }
        return end_of_whole(scan, next);
    } else if status == 101 {
        return Verdict::Undecided;
    }
    begin_answer(scan, next)
}

/// An answer is whole, body and all.
#[inline(always)]
pub(super) fn end_of_whole(scan: &mut Scan, next: u32) -> Verdict {
    scan.found += 1;
    scan.heads >>= 1;
    begin_answer(scan, next)
}

#[inline(always)]
pub(super) fn begin_answer(scan: &mut Scan, next: u32) -> Verdict {
    scan.next = next;
    if next == scan.total {
        return Verdict::Clean;
    }
    scan.pos = next;
    scan.line = next;
    scan.mode = at::STATUS;
    begin(scan);
    Verdict::Running
}

/// The line with the size of a chunk has ended before `pos`.
#[inline(always)]
pub(super) fn end_of_size(scratch: &mut Scratch, pos: u32) -> Verdict {
    scratch.scan.sized = 0;
    if scratch.scan.length == 0 {
        scratch.scan.trailer = 1;
        return line(scratch, pos);
    }
    // Here, behind the window or in another packet.
    let scan = &mut scratch.scan;
    let end = pos + scan.length as u32;
    scan.pos = end;
    scan.mode = at::DATA_END;
    if end >= scan.total {
        scan.next = end;
        return Verdict::Chunks;
    }
    Verdict::Running
}

/// The end of the line behind a chunk's data.
#[inline(always)]
pub(super) fn data_end(scratch: &mut Scratch, pos: u32) -> Verdict {
    if pos + 1 == scratch.scan.len && scratch.bytes[(pos & MASK) as usize] == b'\r' {
        scratch.scan.cr = 3;
        return beyond(&mut scratch.scan, at::DATA_END, pos + 1);
    }
    if pair(scratch, pos) != CRLF {
        return Verdict::Undecided;
    }
    begin_size(&mut scratch.scan, pos + 2)
}

/// The size of a chunk (RFC 9112 §7.1).
#[inline(always)]
pub(super) fn size(scratch: &mut Scratch, pos: u32) -> Verdict {
    let byte = scratch.bytes[(pos & MASK) as usize];
    let lower = byte | 0x20;
    let digit = if byte.is_ascii_digit() {
        byte - b'0'
    } else if byte.is_ascii_hexdigit() {
        lower - b'a' + 10
    } else {
        if scratch.scan.text == 0 || (byte != b';' && byte != b'\r') {
            return Verdict::Undecided;
        }
        scratch.scan.sized = 1;
        scratch.scan.mode = at::VALUE;
        return Verdict::Running;
    };
    scratch.scan.length = scratch.scan.length << 4 | digit as u64;
    scratch.scan.text += 1;
    scratch.scan.pos = pos + 1;
    if scratch.scan.length > MAX_LENGTH || scratch.scan.text > 15 { Verdict::Undecided } else { Verdict::Running }
}

/// A line has ended before `pos` that was none of those that are read to their ends.
#[inline(always)]
pub(super) fn end_of_line(scratch: &mut Scratch, pos: u32) -> Verdict {
    if scratch.scan.sized != 0 { end_of_size(scratch, pos) } else { line(scratch, pos) }
}

/// The second half of a line's end, of which the first was in the packet before.
#[inline(always)]
pub(super) fn feed(scratch: &mut Scratch, pos: u32) -> Verdict {
    if scratch.bytes[(pos & MASK) as usize] != b'\n' {
        return Verdict::Undecided;
    }
    let cr = scratch.scan.cr;
    scratch.scan.cr = 0;
    match cr {
        2 => super::end_of_head(scratch, pos + 1),
        3 => begin_size(&mut scratch.scan, pos + 1),
        _ => end_of_line(scratch, pos + 1),
    }
}

/// Behind the bytes that are there. Where what is read may be cut at any byte it goes on from there; [`carry`] sees to the
/// rest.
#[inline(always)]
pub(super) fn beyond(scan: &mut Scan, mode: u32, pos: u32) -> Verdict {
    let anywhere = mode == at::VALUE || mode == at::LINE || mode == at::SIZE || mode == at::DATA_END;
    // Between two answers; [`begin_answer`] sees to the packet's end.
    let between = mode == at::STATUS;
    if scan.answers == 0 || !(anywhere || between) {
        // Of a request the rest is in another packet, or behind the window.
        return Verdict::Undecided;
    }
    // Words were read over the end, but what is not there has to be read yet.
    scan.next = if mode == at::VALUE && pos > scan.len { scan.len } else { pos };
    if scan.len < scan.total && scan.next < scan.total {
        if scan.cr != 0 {
            scan.mode = at::FEED;
        }
        return Verdict::More;
    }
    if scan.next <= scan.total {
        scan.mode = mode;
        return Verdict::Lines;
    }
    Verdict::Undecided
}

// What is kept of an answer that goes on in another packet: the status in the lowest bits, and the rest above.
const MODE: u32 = abi::HEAD_MODE;
const TEXT: u32 = abi::HEAD_DIGITS;
const CARRIAGE: u32 = 18;
const HAS_LENGTH: u32 = 1 << 20;
const OPEN: u32 = 1 << 21;
const SIZED: u32 = 1 << 22;
const TRAILER: u32 = 1 << 23;
/// Never 0, and never [`super::CHUNKS`].
const KEPT: u32 = 1 << 24;
/// At most [`CARRY`].
const CARRIED: u32 = 25;

/// What is known of an answer that goes on in another packet, and the length in it.
#[inline(always)]
pub(crate) fn answer_head(scan: &Scan) -> (u32, u32) {
    let flag = |set: u32, flag: u32| if set != 0 { flag } else { 0 };
    let flags = flag(scan.has_length, HAS_LENGTH)
        | flag(scan.open, OPEN)
        | flag(scan.sized, SIZED)
        | flag(scan.trailer, TRAILER)
        | KEPT;
    // Of the digits of a size only how many there are matters, and no more than 15 are read.
    let text = if scan.mode == at::SIZE { scan.text & 15 } else { 0 };
    let kept = flags
        | scan.carried << CARRIED
        | scan.cr << CARRIAGE
        | text << TEXT
        | (scan.mode & 15) << MODE
        | scan.status & 1023;
    (kept, scan.length as u32)
}

/// See [`super::carried`].
#[inline(always)]
pub(super) fn carried(kept: u32) -> u32 {
    let carried = kept >> CARRIED;
    if carried > CARRY as u32 { 0 } else { carried }
}

/// Behind a scan that has stopped: if that was within a line of which the rest is behind the window or in another packet, and
/// which began not long before, the whole line can be read then.
#[inline(always)]
pub(super) fn carry(scratch: &mut Scratch) -> Verdict {
    let Scan { answers, line, len, total, mode, sized, status, trailer, .. } = scratch.scan;
    let length = len.wrapping_sub(line);
    let of_chunk = mode == at::SIZE || mode == at::DATA_END || sized != 0;
    // Behind a carriage return that ended the packet before something else than its line feed is there: no line begins here.
    if answers == 0 || of_chunk || mode == at::FEED || length == 0 || length > CARRY as u32 {
        return Verdict::Undecided;
    }
    let mut ended = 0;
    for n in 0..CARRY as u32 / 8 {
        let at = line + n * 8;
        // Bytes behind the end may be anything.
        let marks = line_feed(word(scratch, at));
        if marks != 0 && at + first(marks) < len {
            ended = 1;
        }
    }
    if ended != 0 {
        return Verdict::Undecided;
    }
    scratch.scan.mode = if status == 0 && trailer == 0 { at::STATUS } else { at::LINE };
    scratch.scan.cr = 0;
    if len < total {
        scratch.scan.next = line;
        return Verdict::More;
    }
    scratch.scan.carried = length;
    Verdict::Lines
}

/// Goes on with what [`answer_head`] has kept.
#[inline(always)]
pub(super) fn resume(scan: &mut Scan, kept: u32, length: u32) {
    scan.status = kept & 1023;
    scan.mode = kept >> MODE & 15;
    scan.text = kept >> TEXT & 15;
    scan.cr = kept >> CARRIAGE & 3;
    scan.has_length = (kept & HAS_LENGTH != 0) as u32;
    scan.open = (kept & OPEN != 0) as u32;
    scan.sized = (kept & SIZED != 0) as u32;
    scan.trailer = (kept & TRAILER != 0) as u32;
    scan.length = length as u64;
    if scan.cr != 0 {
        scan.mode = at::FEED;
    }
}
