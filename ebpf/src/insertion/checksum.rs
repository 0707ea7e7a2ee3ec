//! Whether a packet that is kept from the app is one that the app's TCP would have taken.
//!
//! These programs run before anybody has looked at a packet's checksum. Of what passes the app's TCP judges itself, but what
//! is held is put into a socket by hand.

use aya_ebpf::helpers::generated::{bpf_csum_diff, bpf_csum_level, bpf_loop, bpf_skb_load_bytes};

use super::{
    maps::{Scratch, bounded},
    packet::{IPPROTO_TCP, Packet},
};

/// `BPF_CSUM_LEVEL_QUERY`.
const QUERY: u64 = 0;
/// Bytes that are summed up in one step: no more than the helper takes at once.
const PIECE: u32 = 512;
/// Steps for the longest packet.
const PIECES: u32 = 136;

/// How far the sum has come. In the scratch buffer, like the scanner's state and for the same reason.
#[repr(C)]
pub(crate) struct Sum {
    /// Of the packet's segment: header and data.
    offset: u32,
    length: u32,
    sum: u32,
    failed: u32,
}

/// What a step is given.
struct Step {
    scratch: *mut Scratch,
    packet: *const Packet,
}

/// Whether the checksum holds (RFC 9293 §3.1), has been found to hold by a device, or is not there yet because the packet has
/// never left this machine.
#[inline(always)]
#[expect(unsafe_code, reason = "helpers of the kernel")]
pub(crate) fn holds(packet: &Packet, scratch: &mut Scratch) -> bool {
    // SAFETY: only asks.
    if unsafe { bpf_csum_level(packet.skb(), QUERY) } >= 0 {
        return true;
    }
    let length = packet.segment();
    let pseudo = pseudo_header(packet, length);
    if packet.checksum() as u32 == folded(pseudo) {
        // What is filled in where a device is to do the rest.
        return true;
    }
    scratch.sum = Sum { offset: 0, length, sum: 0, failed: 0 };
    let mut step = Step { scratch, packet };
    // SAFETY: the callback has the signature that the kernel calls, and its context outlives the loop.
    unsafe { bpf_loop(PIECES, piece as *mut _, (&raw mut step).cast(), 0) };
    let Sum { offset, sum, failed, .. } = scratch.sum;
    failed == 0 && offset >= length && folded(pseudo + folded(sum) as u64) == 0xffff
}

/// One piece. Returns 1 to stop.
#[inline(never)]
#[expect(unsafe_code, reason = "called by the kernel with the pointers that `holds` gave it")]
extern "C" fn piece(_index: u64, step: *mut Step) -> u64 {
    // SAFETY: `holds` gave them, and only one step runs at a time.
    let (scratch, packet) = unsafe { (&mut *(*step).scratch, &*(*step).packet) };
    let Sum { offset, length, sum, .. } = scratch.sum;
    if offset >= length {
        return 1;
    }
    let wanted = bounded(length - offset, PIECE);
    // The helper sums up words of four bytes; what is behind the end counts as zeros.
    scratch.bytes[((wanted - 1) & (PIECE - 1)) as usize + 1] = 0;
    scratch.bytes[((wanted - 1) & (PIECE - 1)) as usize + 2] = 0;
    scratch.bytes[((wanted - 1) & (PIECE - 1)) as usize + 3] = 0;
    let to = scratch.bytes.as_mut_ptr();
    // SAFETY: the window has room for `wanted` bytes.
    if unsafe { bpf_skb_load_bytes(packet.skb().cast(), packet.segment_at() + offset, to.cast(), wanted) } != 0 {
        scratch.sum.failed = 1;
        return 1;
    }
    let words = wanted.div_ceil(4) * 4;
    // SAFETY: as many bytes are there.
    let sum = unsafe { bpf_csum_diff(core::ptr::null_mut(), 0, to.cast(), words & (2 * PIECE - 1), sum) };
    scratch.sum.sum = sum.cast_unsigned() as u32;
    scratch.sum.offset = offset + wanted;
    0
}

/// The sum of the pseudo-header (RFC 9293 §3.1, RFC 8200 §8.1), as the processor reads its words.
#[inline(always)]
fn pseudo_header(packet: &Packet, length: u32) -> u64 {
    let mut sum = length.to_be() as u64 + (IPPROTO_TCP as u32).to_be() as u64;
    let first = if packet.v6 { 0 } else { 3 };
    for n in 0..4 {
        if n >= first {
            sum += packet.source[n] as u64 + packet.destination[n] as u64;
        }
    }
    sum
}

/// In 16 bits, with the carries added (RFC 1071).
#[inline(always)]
fn folded(sum: impl Into<u64>) -> u32 {
    let sum: u64 = sum.into();
    let sum = (sum >> 32) + (sum & 0xffff_ffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    ((sum >> 16) + (sum & 0xffff)) as u32
}
