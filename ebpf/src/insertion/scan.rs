//! Reads the heads of requests and answers, eight bytes a step.
//!
//! **The invariant**: what is [`Verdict::Clean`] here is no match for the agent's parser, and it finds the same ends.
//! So this is stricter than the parser in everything: what is unusual is [`Verdict::Undecided`], and the agent looks at
//! it itself. The agent's differential fuzzer runs this very program against the parser.
//!
//! One bounded loop over a copy of the packet's bytes; the position in the grammar (RFC 9112 §§3, 5) is kept in a per-CPU
//! map, because the verifier would follow every value of what stands on the stack.

use core::ptr::read_volatile;

use aya_ebpf::helpers::generated::bpf_loop;
use sluice_ebpf_common::{
    self as common,
    insertion::{self as abi, Interest, NameKey, WINDOW},
};

use super::maps::{NAMES, Scratch, VALUES};

/// Steps of one scan: two for each word of a window are more than any head needs.
const STEPS: u32 = 1024;
const MASK: u32 = WINDOW as u32 - 1;
/// Most request heads of one packet.
const MAX_HEADS: u32 = 16;
/// Longest body that is skipped without the agent: half of what sequence numbers can tell apart, with room.
const MAX_LENGTH: u64 = 1 << 30;
/// Longest header name that is read.
const MAX_NAME: u32 = 64;

const ONES: u64 = 0x0101_0101_0101_0101;
const HIGH: u64 = 0x8080_8080_8080_8080;
const CRLF: u16 = u16::from_le_bytes(*b"\r\n");

/// What is known at the end of a scan.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Verdict {
    /// Not at the end.
    Running = 0,
    /// Heads as they should be; requests that fit no rule.
    Clean = 1,
    /// Anything else.
    Undecided = 2,
    /// No request begins like this.
    NotHttp = 3,
    /// The bytes end with a line of an answer's head.
    Lines = 4,
    /// The bytes end in a chunked answer; [`Scan::next`] is where its next chunk begins.
    Chunks = 5,
    /// It goes on behind the window, at [`Scan::next`].
    More = 6,
}

/// Position in the grammar. A number, as the kernel's memory has no enums.
mod at {
    pub(super) const METHOD: u32 = 0;
    pub(super) const TARGET: u32 = 1;
    pub(super) const VERSION: u32 = 2;
    pub(super) const LINE: u32 = 3;
    pub(super) const NAME: u32 = 4;
    pub(super) const VALUE: u32 = 5;
    pub(super) const EXACT: u32 = 6;
    pub(super) const LENGTH: u32 = 7;
    pub(super) const STATUS: u32 = 8;
    pub(super) const SIZE: u32 = 9;
    pub(super) const TOKEN: u32 = 10;
}

/// State of a scan, in and out.
#[repr(C)]
pub(crate) struct Scan {
    hash: u64,
    name: u64,
    length: u64,
    bitmap: [u64; 2],
    mode: u32,
    pos: u32,
    /// Bytes in the window.
    len: u32,
    /// Bytes of the packet from the window's beginning.
    total: u32,
    /// Bytes of the name or value so far.
    text: u32,
    /// Where the line begins.
    line: u32,
    port: u32,
    has_length: u32,
    is_head: u32,
    status: u32,
    /// The end of the answer is not told by a length.
    open: u32,
    answers: u32,
    /// A line with the size of a chunk is at its end, or being passed over.
    sized: u32,
    /// The lines are trailers.
    trailer: u32,
    /// For answers, in: which of the owed ones are for `HEAD`. For requests, out: which are `HEAD`.
    pub(crate) heads: u32,
    /// Requests or whole answers that were found.
    pub(crate) found: u32,
    /// The last request says that it is the last.
    pub(crate) last: u32,
    /// A body runs to the end of the connection, or until only the agent knows.
    pub(crate) unknown: u32,
    /// Where the next head begins, from the window's beginning; may lie behind the packet.
    pub(crate) next: u32,
    verdict: u32,
}

/// What a step is given; the verifier follows pointers only where they are on the stack.
struct Step {
    scratch: *mut Scratch,
}

/// Reads requests in the first `len` bytes of the scratch buffer, which begins at a head; the packet has `total` bytes.
#[inline(always)]
pub(crate) fn requests(scratch: &mut Scratch, port: u16, bitmap: [u64; 2], len: u32, total: u32) -> Verdict {
    let scan = &mut scratch.scan;
    scan.answers = 0;
    scan.heads = 0;
    scan.mode = at::METHOD;
    scan.bitmap = bitmap;
    begin(scan);
    run(scratch, port, len, total)
}

/// As [`requests`], for answers to requests of which those in the bits of `heads` are `HEAD`. `resumed`: what
/// [`answer_head`] said of the packet before, 0 where an answer begins here.
#[inline(always)]
pub(crate) fn answers(
    scratch: &mut Scratch,
    port: u16,
    bitmap: [u64; 2],
    heads: u32,
    (resumed, length): (u32, u32),
    len: u32,
    total: u32,
) -> Verdict {
    let scan = &mut scratch.scan;
    scan.answers = 1;
    scan.heads = heads;
    scan.mode = if resumed == 0 { at::STATUS } else { at::LINE };
    scan.bitmap = bitmap;
    begin(scan);
    if resumed == CHUNKS {
        begin_size(scan);
    } else if resumed != 0 {
        scan.status = resumed & 0xffff;
        scan.has_length = (resumed & abi::HEAD_LENGTH != 0) as u32;
        scan.open = (resumed & abi::HEAD_OPEN != 0) as u32;
        scan.length = length as u64;
    }
    run(scratch, port, len, total)
}

/// In place of what [`answer_head`] says: a chunk of an answer begins.
pub(crate) const CHUNKS: u32 = u32::MAX;

/// Goes on in the next `len` bytes of a packet that has `total` from there on, after [`Verdict::More`].
#[inline(always)]
pub(crate) fn more(scratch: &mut Scratch, len: u32, total: u32) -> Verdict {
    read(scratch, len, total)
}

/// What is known of the head of an answer that goes on in another packet, and the length in it.
#[inline(always)]
pub(crate) fn answer_head(scan: &Scan) -> (u32, u32) {
    let length = if scan.has_length != 0 { abi::HEAD_LENGTH } else { 0 };
    let open = if scan.open != 0 { abi::HEAD_OPEN } else { 0 };
    (scan.status | length | open, scan.length as u32)
}

#[inline(always)]
fn run(scratch: &mut Scratch, port: u16, len: u32, total: u32) -> Verdict {
    let scan = &mut scratch.scan;
    scan.port = port as u32;
    scan.found = 0;
    scan.last = 0;
    scan.unknown = 0;
    read(scratch, len, total)
}

#[inline(always)]
#[expect(unsafe_code, reason = "a helper of the kernel")]
fn read(scratch: &mut Scratch, len: u32, total: u32) -> Verdict {
    let scan = &mut scratch.scan;
    scan.pos = 0;
    scan.line = 0;
    scan.len = len;
    scan.total = total;
    scan.next = 0;
    scan.verdict = Verdict::Running as u32;
    let mut step_context = Step { scratch };
    // SAFETY: the callback has the signature that the kernel calls, and its context outlives the loop.
    unsafe { bpf_loop(STEPS, step as *mut _, (&raw mut step_context).cast(), 0) };
    match scratch.scan.verdict {
        1 => Verdict::Clean,
        3 => Verdict::NotHttp,
        4 => Verdict::Lines,
        5 => Verdict::Chunks,
        6 => Verdict::More,
        _ => Verdict::Undecided,
    }
}

/// Forgets the head before.
#[inline(always)]
fn begin(scan: &mut Scan) {
    scan.length = 0;
    scan.has_length = 0;
    scan.is_head = 0;
    scan.open = 0;
    scan.status = 0;
    scan.sized = 0;
    scan.trailer = 0;
}

/// A line with the size of a chunk begins.
#[inline(always)]
fn begin_size(scan: &mut Scan) {
    scan.mode = at::SIZE;
    scan.text = 0;
    scan.length = 0;
    scan.sized = 0;
}

#[inline(always)]
#[expect(unsafe_code, reason = "eight bytes at any address")]
fn word(scratch: &Scratch, pos: u32) -> u64 {
    // SAFETY: the mask keeps it in the window, and behind the window are as many bytes as a word has. Not aligned: the
    // architectures that the kernel lets do this can. Volatile, or LLVM would make bytes of it.
    unsafe { read_volatile(scratch.bytes.as_ptr().add((pos & MASK) as usize).cast::<u64>()) }
}

#[inline(always)]
#[expect(unsafe_code, reason = "two bytes at any address")]
fn pair(scratch: &Scratch, pos: u32) -> u16 {
    // SAFETY: as in `word`.
    unsafe { read_volatile(scratch.bytes.as_ptr().add((pos & MASK) as usize).cast::<u16>()) }
}

/// The high bit of each byte whose low seven bits are at least `low`; the high bits of `word` do not matter.
#[inline(always)]
const fn at_least(word: u64, low: u8) -> u64 {
    ((word & !HIGH) + (0x80 - low as u64) * ONES) & HIGH
}

/// The index of the first marked byte; `marks` has only high bits, and one at least.
#[inline(always)]
const fn first(marks: u64) -> u32 {
    let lowest = marks & marks.wrapping_neg();
    (((lowest - 1) & ONES).wrapping_mul(ONES) >> 56) as u32 - 1
}

/// Marks what may not stand in a value or target: control characters and DEL. Bytes from 0x80 on may.
#[inline(always)]
const fn control(word: u64) -> u64 {
    (!at_least(word, 0x20) | at_least(word, 0x7f)) & !word & HIGH
}

/// Marks what is neither a letter, a digit, `-` nor `_`.
#[inline(always)]
const fn not_name(word: u64) -> u64 {
    let lower = word | common::LOWER;
    let letter = at_least(lower, b'a') & !at_least(lower, b'z' + 1);
    let digit = at_least(lower, b'0') & !at_least(lower, b'9' + 1);
    // Made small, `_` is 0x7f, and so is DEL; control characters became `-` and the like.
    let dash = at_least(lower, b'-') & !at_least(lower, b'-' + 1);
    let underscore = at_least(lower, 0x7f) & !at_least(word, 0x7f);
    (!(letter | digit | dash | underscore) | !at_least(word, b'-') | word) & HIGH
}

/// One step. Returns 1 to stop.
#[inline(never)]
#[expect(unsafe_code, reason = "called by the kernel with the pointer that `run` gave it")]
extern "C" fn step(_index: u64, context: *mut Step) -> u64 {
    // SAFETY: `run` gave it, and only one step runs at a time.
    let scratch = unsafe { &mut *(*context).scratch };
    let verdict = advance(scratch);
    if verdict == Verdict::Running {
        return 0;
    }
    scratch.scan.verdict = verdict as u32;
    1
}

#[inline(always)]
fn advance(scratch: &mut Scratch) -> Verdict {
    let pos = scratch.scan.pos;
    let mode = scratch.scan.mode;
    if pos >= scratch.scan.len {
        return beyond(&mut scratch.scan, mode, pos);
    }
    if mode == at::VALUE {
        return value(scratch, pos);
    }
    if mode == at::NAME {
        return name(scratch, pos);
    }
    if mode == at::LINE {
        if scratch.scan.sized != 0 {
            return end_of_size(scratch, pos);
        }
        if pair(scratch, pos) == CRLF {
            return end_of_head(scratch, pos + 2);
        }
        scratch.scan.mode = at::NAME;
        scratch.scan.hash = common::NAME_SEED;
        scratch.scan.text = 0;
        return name(scratch, pos);
    }
    if mode == at::EXACT {
        return exact(scratch, pos);
    }
    if mode == at::LENGTH {
        return length(scratch, pos);
    }
    if mode == at::SIZE {
        return size(scratch, pos);
    }
    if mode == at::TOKEN {
        return token(scratch, pos);
    }
    if mode == at::TARGET {
        return target(scratch, pos);
    }
    if mode == at::VERSION {
        if word(scratch, pos) != u64::from_le_bytes(*b"HTTP/1.1") || pair(scratch, pos + 8) != CRLF {
            return Verdict::Undecided;
        }
        return line(scratch, pos + 10);
    }
    if mode == at::METHOD {
        return method(scratch, pos);
    }
    status(scratch, pos)
}

#[inline(always)]
fn line(scratch: &mut Scratch, pos: u32) -> Verdict {
    scratch.scan.mode = at::LINE;
    scratch.scan.pos = pos;
    scratch.scan.line = pos;
    Verdict::Running
}

#[inline(always)]
fn method(scratch: &mut Scratch, pos: u32) -> Verdict {
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
    scratch.scan.pos = pos + length;
    Verdict::Running
}

#[inline(always)]
fn target(scratch: &mut Scratch, pos: u32) -> Verdict {
    let bytes = word(scratch, pos);
    // Blanks, control characters, DEL and all that is not ASCII.
    let stop = (!at_least(bytes, 0x21) | at_least(bytes, 0x7f) | bytes) & HIGH;
    if stop == 0 {
        scratch.scan.pos = pos + 8;
        return Verdict::Running;
    }
    let end = pos + first(stop);
    if scratch.bytes[(end & MASK) as usize] != b' ' {
        return Verdict::Undecided;
    }
    scratch.scan.mode = at::VERSION;
    scratch.scan.pos = end + 1;
    Verdict::Running
}

/// `HTTP/1.1 200 reason`.
#[inline(always)]
fn status(scratch: &mut Scratch, pos: u32) -> Verdict {
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

#[inline(always)]
#[expect(unsafe_code, reason = "map values are shared with user space")]
fn name(scratch: &mut Scratch, pos: u32) -> Verdict {
    let bytes = word(scratch, pos);
    let stop = not_name(bytes);
    let lower = bytes | common::LOWER;
    if stop == 0 {
        scratch.scan.hash = common::mix(scratch.scan.hash, lower);
        scratch.scan.text += 8;
        scratch.scan.pos = pos + 8;
        return if scratch.scan.text > MAX_NAME { Verdict::Undecided } else { Verdict::Running };
    }
    let rest = first(stop);
    let text = scratch.scan.text + rest;
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
    let hash = common::finish(common::mix(scratch.scan.hash, common::first_bytes(lower, rest)), text);
    let mut pos = pos + rest + 1;
    if scratch.bytes[(pos & MASK) as usize] == b' ' {
        pos += 1;
    }
    scratch.scan.pos = pos;
    scratch.scan.mode = at::VALUE;
    if scratch.scan.trailer != 0 {
        // Says nothing about framing, whatever it is (RFC 9110 §6.5.1).
        return Verdict::Running;
    }
    let half = if hash & 0x40 == 0 { scratch.scan.bitmap[0] } else { scratch.scan.bitmap[1] };
    if half >> (hash & 0x3f) & 1 == 0 {
        return Verdict::Running;
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
fn token(scratch: &mut Scratch, pos: u32) -> Verdict {
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

const fn token_characters() -> u128 {
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
fn value(scratch: &mut Scratch, pos: u32) -> Verdict {
    let mut pos = pos;
    let mut stop = control(word(scratch, pos));
    if stop == 0 {
        pos += 8;
        stop = control(word(scratch, pos));
        if stop == 0 {
            pos += 8;
            stop = control(word(scratch, pos));
            if stop == 0 {
                scratch.scan.pos = pos + 8;
                return Verdict::Running;
            }
        }
    }
    pos += first(stop);
    if pos + 1 >= scratch.scan.len {
        return beyond(&mut scratch.scan, at::VALUE, pos);
    }
    if pair(scratch, pos) == CRLF {
        return line(scratch, pos + 2);
    }
    scratch.scan.pos = pos + 1;
    if scratch.bytes[(pos & MASK) as usize] == b'\t' { Verdict::Running } else { Verdict::Undecided }
}

/// A value that some rule asks for exactly: unlike all of them, or undecided.
#[inline(always)]
#[expect(unsafe_code, reason = "map values are shared with user space")]
fn exact(scratch: &mut Scratch, pos: u32) -> Verdict {
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
fn length(scratch: &mut Scratch, pos: u32) -> Verdict {
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
fn connection(scratch: &mut Scratch, pos: u32) -> Verdict {
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
fn coding(scratch: &mut Scratch, pos: u32) -> Verdict {
    let lower = common::first_bytes(word(scratch, pos) | common::LOWER, 7);
    let chunked = lower == common::first_bytes(u64::from_le_bytes(*b"chunked\0"), 7);
    if !chunked || scratch.scan.open != 0 || pair(scratch, pos + 7) != CRLF {
        return Verdict::Undecided;
    }
    scratch.scan.open = 1;
    line(scratch, pos + 9)
}

/// Behind the blank line, which ends at `pos`.
#[inline(always)]
fn end_of_head(scratch: &mut Scratch, pos: u32) -> Verdict {
    let scan = &mut scratch.scan;
    if pos > scan.len {
        return Verdict::Undecided;
    }
    if scan.trailer != 0 {
        return end_of_whole(scan, pos);
    }
    if scan.answers != 0 {
        return end_of_answer(scan, pos);
    }
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

#[inline(always)]
fn end_of_answer(scan: &mut Scan, pos: u32) -> Verdict {
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
                begin_size(scan);
                return goes_on(scan, pos);
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
fn end_of_whole(scan: &mut Scan, next: u32) -> Verdict {
    scan.found += 1;
    scan.heads >>= 1;
    begin_answer(scan, next)
}

#[inline(always)]
fn begin_answer(scan: &mut Scan, next: u32) -> Verdict {
    scan.next = next;
    if next == scan.total {
        return Verdict::Clean;
    }
    scan.pos = next;
    scan.mode = at::STATUS;
    begin(scan);
    Verdict::Running
}

/// The line with the size of a chunk has ended before `pos`.
#[inline(always)]
fn end_of_size(scratch: &mut Scratch, pos: u32) -> Verdict {
    scratch.scan.sized = 0;
    if scratch.scan.length == 0 {
        scratch.scan.trailer = 1;
        scratch.scan.pos = pos;
        return Verdict::Running;
    }
    let next = pos + scratch.scan.length as u32 + 2;
    // What is not here cannot be looked at; the parser would find the same place, or doubt it.
    let (first_is_here, both_are) = (next - 1 <= scratch.scan.len, next <= scratch.scan.len);
    let first = scratch.bytes[((next - 2) & MASK) as usize];
    if (first_is_here && first != b'\r') || (both_are && pair(scratch, next - 2) != CRLF) {
        return Verdict::Undecided;
    }
    begin_size(&mut scratch.scan);
    goes_on(&mut scratch.scan, next)
}

/// A chunk begins at `pos`, here, behind the window or in another packet.
#[inline(always)]
fn goes_on(scan: &mut Scan, pos: u32) -> Verdict {
    scan.pos = pos;
    if pos >= scan.total {
        scan.next = pos;
        return Verdict::Chunks;
    }
    Verdict::Running
}

/// Behind the bytes that are there.
#[inline(always)]
fn beyond(scan: &mut Scan, mode: u32, pos: u32) -> Verdict {
    if scan.answers == 0 {
        // Its end is in another packet, or behind the window.
        return Verdict::Undecided;
    }
    let boundary = mode == at::LINE || mode == at::STATUS || (mode == at::SIZE && scan.text == 0);
    scan.next = pos;
    if scan.len < scan.total && pos < scan.total {
        if mode == at::VALUE {
            // Words were read over the end, but what is not there has to be read yet.
            if pos > scan.len {
                scan.next = scan.len;
            }
            return Verdict::More;
        }
        if boundary {
            return Verdict::More;
        }
        if scan.line > 0 {
            scan.next = scan.line;
            scan.mode = at::LINE;
            return Verdict::More;
        }
        return Verdict::Undecided;
    }
    if mode == at::LINE && pos == scan.total && scan.trailer == 0 && scan.sized == 0 {
        return Verdict::Lines;
    }
    Verdict::Undecided
}

/// The size of a chunk (RFC 9112 §7.1).
#[inline(always)]
fn size(scratch: &mut Scratch, pos: u32) -> Verdict {
    let byte = scratch.bytes[(pos & MASK) as usize];
    let lower = byte | 0x20;
    let digit = if byte.is_ascii_digit() {
        byte - b'0'
    } else if lower.is_ascii_hexdigit() {
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
