//! Reads the heads of requests and answers, eight bytes a step.
//!
//! **The invariant**: what is [`Verdict::Clean`] here is no match for the agent's parser, and it finds the same ends.
//! So this is stricter than the parser in everything: what is unusual is [`Verdict::Undecided`], and the agent looks at
//! it itself. The agent's differential fuzzer runs this very program against the parser.
//!
//! One bounded loop over a copy of the packet's bytes; the position in the grammar (RFC 9112 §§3, 5) is kept in a per-CPU
//! map, because the verifier would follow every value of what stands on the stack.

use aya_ebpf::helpers::generated::bpf_loop;
use sluice_ebpf_common::{
    self as common,
    insertion::{self as abi, Asked, CARRY, Local, WINDOW},
};

use self::{
    answer::{beyond, end_of_whole, feed, size, status},
    lines::{exact, header, length, name, token, value},
    request::{method, target},
    words::word,
};
use super::maps::Scratch;

mod answer;
mod lines;
mod request;
mod words;

pub(crate) use self::answer::answer_head;

/// Steps of one scan: two for each word of a window are more than any head needs.
const STEPS: u32 = 1024;
const MASK: u32 = WINDOW as u32 - 1;
/// Most request heads of one packet.
const MAX_HEADS: u32 = 16;
/// Longest body that is skipped without the agent: half of what sequence numbers can tell apart, with room.
const MAX_LENGTH: u64 = 1 << 30;
/// Longest header name that is read.
const MAX_NAME: u32 = 64;

/// The names that matter in an answer.
const FRAMING: [u64; 2] = {
    let (mut bitmap, mut n) = ([0; 2], 0);
    while n < abi::FRAMING.len() {
        let name = abi::FRAMING[n].as_bytes();
        let bit = common::name_bit(common::word_of(name), name.len() as u32);
        bitmap[(bit >> 6) as usize] |= 1 << (bit & 63);
        n += 1;
    }
    bitmap
};

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
    /// The bytes end in a chunk of an answer; [`Scan::next`] is where its data ends.
    Chunks = 5,
    /// It goes on behind the window, at [`Scan::next`].
    More = 6,
}

/// Position in the grammar. A number, as the kernel's memory has no enums.
mod at {
    pub(super) const METHOD: u32 = 0;
    pub(super) const TARGET: u32 = 1;
    pub(super) const LINE: u32 = 3;
    pub(super) const NAME: u32 = 4;
    pub(super) const VALUE: u32 = 5;
    pub(super) const EXACT: u32 = 6;
    pub(super) const LENGTH: u32 = 7;
    pub(super) const STATUS: u32 = 8;
    pub(super) const SIZE: u32 = super::abi::AT_SIZE;
    pub(super) const TOKEN: u32 = 10;
    /// Behind a carriage return that ended the packet before.
    pub(super) const FEED: u32 = 11;
    /// Behind the data of a chunk.
    pub(super) const DATA_END: u32 = 12;
}

/// State of a scan, in and out.
#[repr(C)]
pub(crate) struct Scan {
    hash: u64,
    asked: Asked,
    // What belongs to one head, from a word's beginning on and side by side: so it is forgotten in a few instructions.
    length: u64,
    has_length: u32,
    is_head: u32,
    status: u32,
    /// The end of the answer is not told by a length.
    open: u32,
    /// A line with the size of a chunk is at its end, or being passed over.
    sized: u32,
    /// The lines are trailers.
    trailer: u32,
    /// The last byte was a carriage return, of a blank line where it is 2, behind a chunk's data where it is 3.
    cr: u32,
    mode: u32,
    // The same of a packet.
    /// In: a request that may fit is one that is copied, and is read on. Out, in `fits`: there was one.
    pub(crate) fits: u32,
    /// Requests or whole answers that were found.
    pub(crate) found: u32,
    /// The last request says that it is the last.
    pub(crate) last: u32,
    /// A body runs to the end of the connection, or until only the agent knows.
    pub(crate) unknown: u32,
    // And of a window.
    /// Bytes at the end of the packet that are the beginning of a line.
    carried: u32,
    /// Where the next head begins, from the window's beginning; may lie behind the packet.
    pub(crate) next: u32,
    verdict: u32,
    pos: u32,
    /// Where the line begins.
    line: u32,
    /// Bytes in the window.
    len: u32,
    /// Bytes of the packet from the window's beginning.
    total: u32,
    /// Bytes of the name or value so far.
    text: u32,
    port: u32,
    answers: u32,
    /// For answers, in: which of the owed ones are for `HEAD`. For requests, out: which are `HEAD`.
    pub(crate) heads: u32,
    /// See `fits`.
    copies: u32,
}

/// What a step is given; the verifier follows pointers only where they are on the stack.
struct Step {
    scratch: *mut Scratch,
}

/// Reads requests to a port in the first `len` bytes of the scratch buffer, which begins at a head; the packet has `total`
/// bytes.
#[inline(always)]
pub(crate) fn requests(scratch: &mut Scratch, local: &Local, len: u32, total: u32) -> Verdict {
    let scan = &mut scratch.scan;
    scan.answers = 0;
    scan.heads = 0;
    scan.mode = at::METHOD;
    scan.asked = local.asked;
    scan.port = local.port as u32;
    scan.copies = (local.active == abi::ACTIVE_COPY) as u32;
    begin(scan);
    run(scratch, 0, len, total)
}

/// As [`requests`], for answers to requests of which those in the bits of `heads` are `HEAD`. `resumed`: what
/// [`answer_head`] said of the packet before, 0 where an answer begins here.
#[inline(always)]
pub(crate) fn answers(
    scratch: &mut Scratch,
    heads: u32,
    (resumed, length): (u32, u32),
    len: u32,
    total: u32,
) -> Verdict {
    let scan = &mut scratch.scan;
    scan.answers = 1;
    scan.heads = heads;
    scan.mode = at::STATUS;
    scan.asked.bitmap = FRAMING;
    begin(scan);
    let mut pos = 0;
    if resumed == CHUNKS {
        scan.mode = at::DATA_END;
    } else if resumed != 0 {
        answer::resume(scan, resumed, length);
        let carried = carried(resumed);
        if carried != 0 {
            pos = CARRY as u32 - carried;
        }
    }
    run(scratch, pos, len, total)
}

/// How many bytes of a line that began in the packet before belong before the next packet's: at the end of the first
/// [`CARRY`] bytes of the window, where there are any. From what [`answer_head`] says.
#[inline(always)]
pub(crate) fn carried(resumed: u32) -> u32 {
    if resumed == CHUNKS { 0 } else { answer::carried(resumed) }
}

/// The line that the window's end cuts, from its beginning on. Word by word, as the stack has no room for it.
#[inline(always)]
pub(crate) fn get_carry(scratch: &Scratch, carry: &mut [u64; CARRY / 8]) {
    for (n, kept) in carry.iter_mut().enumerate() {
        *kept = word(scratch, scratch.scan.line.wrapping_add(n as u32 * 8));
    }
}

/// Puts `carried` bytes of it, at most [`CARRY`], before those of the next packet, which overwrite what is behind them.
#[inline(always)]
#[expect(unsafe_code, reason = "words of a buffer of bytes")]
pub(crate) fn put_carry(scratch: &mut Scratch, carry: &[u64; CARRY / 8], carried: u32) {
    let at = (CARRY as u32).wrapping_sub(carried) & (CARRY as u32 - 1);
    for (n, word) in carry.iter().enumerate() {
        // SAFETY: less than twice as far into the window, which is longer than that.
        unsafe { scratch.bytes.as_mut_ptr().add(at as usize + n * 8).cast::<u64>().write_unaligned(*word) };
    }
}

/// In place of what [`answer_head`] says: the data of a chunk has ended.
pub(crate) const CHUNKS: u32 = u32::MAX;

/// Goes on in the next `len` bytes of a packet that has `total` from there on, after [`Verdict::More`].
#[inline(always)]
pub(crate) fn more(scratch: &mut Scratch, len: u32, total: u32) -> Verdict {
    read(scratch, 0, len, total)
}

#[inline(always)]
fn run(scratch: &mut Scratch, pos: u32, len: u32, total: u32) -> Verdict {
    let scan = &mut scratch.scan;
    scan.fits = 0;
    scan.found = 0;
    scan.last = 0;
    scan.unknown = 0;
    read(scratch, pos, len, total)
}

#[inline(always)]
#[expect(unsafe_code, reason = "a helper of the kernel, and a word of a buffer of bytes")]
fn read(scratch: &mut Scratch, pos: u32, len: u32, total: u32) -> Verdict {
    // What an earlier packet has left behind the end must not complete what is here: nothing goes on with a NUL.
    if len <= WINDOW as u32 {
        // SAFETY: there is room for a word behind the window.
        unsafe { scratch.bytes.as_mut_ptr().add(len as usize).cast::<u64>().write_unaligned(0) };
    }
    let scan = &mut scratch.scan;
    scan.pos = pos;
    scan.line = pos;
    scan.carried = 0;
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
        _ => answer::carry(scratch),
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
    scan.cr = 0;
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
    if mode == at::LINE {
        return header(scratch, pos);
    }
    if mode == at::VALUE {
        return value(scratch, pos);
    }
    if mode == at::NAME {
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
    if mode == at::DATA_END {
        return answer::data_end(scratch, pos);
    }
    if mode == at::FEED {
        return feed(scratch, pos);
    }
    if mode == at::TOKEN {
        return token(scratch, pos);
    }
    if mode == at::TARGET {
        return target(scratch, pos);
    }
    if mode == at::METHOD {
        return method(scratch, pos);
    }
    status(scratch, pos)
}

/// Behind the blank line, which ends at `pos`.
#[inline(always)]
fn end_of_head(scratch: &mut Scratch, pos: u32) -> Verdict {
    let scan = &mut scratch.scan;
    if scan.trailer != 0 {
        return end_of_whole(scan, pos);
    }
    if scan.answers != 0 {
        return answer::end_of_answer(scan, pos);
    }
    request::end_of_request(scan, pos)
}
