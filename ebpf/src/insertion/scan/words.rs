//! Eight bytes at once: which of them are of which kind (Hacker's Delight, §6-1).

use core::ptr::read_volatile;

use sluice_ebpf_common as common;

use super::MASK;
use crate::maps::Scratch;

const ONES: u64 = 0x0101_0101_0101_0101;
pub(super) const HIGH: u64 = 0x8080_8080_8080_8080;

#[inline(always)]
#[expect(unsafe_code, reason = "eight bytes at any address")]
pub(super) fn word(scratch: &Scratch, pos: u32) -> u64 {
    // SAFETY: the mask keeps it in the window, and behind the window are as many bytes as a word has. Not aligned: the
    // architectures that the kernel lets do this can. Volatile, or LLVM would make bytes of it.
    unsafe { read_volatile(scratch.bytes.as_ptr().add((pos & MASK) as usize).cast::<u64>()) }
}

#[inline(always)]
#[expect(unsafe_code, reason = "two bytes at any address")]
pub(super) fn pair(scratch: &Scratch, pos: u32) -> u16 {
    // SAFETY: as in `word`.
    unsafe { read_volatile(scratch.bytes.as_ptr().add((pos & MASK) as usize).cast::<u16>()) }
}

/// The bytes from one on, of which those that are not far are read without asking for bounds again.
#[derive(Clone, Copy)]
pub(super) struct Block {
    begin: *const u8,
}

impl Block {
    #[inline(always)]
    #[expect(unsafe_code, reason = "an address in a buffer")]
    pub(super) fn at(scratch: &Scratch, pos: u32) -> Self {
        // SAFETY: the mask keeps it in the window.
        Self { begin: unsafe { scratch.bytes.as_ptr().add((pos & MASK) as usize) } }
    }

    /// Eight bytes from `at` on, which is at most 56.
    #[inline(always)]
    #[expect(unsafe_code, reason = "eight bytes at any address")]
    pub(super) fn word(self, at: u32) -> u64 {
        // SAFETY: behind the window are 64 bytes more. Otherwise as in the function of this name.
        unsafe { read_volatile(self.begin.add(at as usize).cast::<u64>()) }
    }
}

/// The lowest bit alone.
#[inline(always)]
pub(super) const fn lowest(bits: u64) -> u64 {
    bits & bits.wrapping_neg()
}

/// The byte of which `mark`, a bit that is alone, is the high one; nothing for nothing.
#[inline(always)]
pub(super) const fn byte_of(mark: u64) -> u64 {
    (mark << 1).wrapping_sub(mark >> 7)
}

/// The high bit of each byte whose low seven bits are at least `low`; the high bits of `word` do not matter.
#[inline(always)]
pub(super) const fn at_least(word: u64, low: u8) -> u64 {
    ((word & !HIGH) + (0x80 - low as u64) * ONES) & HIGH
}

/// The index of the first marked byte; `marks` has only high bits, and one at least.
#[inline(always)]
pub(super) const fn first(marks: u64) -> u32 {
    let below = marks.wrapping_sub(1) & !marks;
    ((below & ONES).wrapping_mul(ONES) >> 56) as u32 - 1
}

/// Marks the first line feed; what is behind it may be marked or not.
#[inline(always)]
pub(super) const fn line_feed(word: u64) -> u64 {
    let zero = word ^ (b'\n' as u64 * ONES);
    zero.wrapping_sub(ONES) & !zero & HIGH
}

/// Marks what may not stand in a value: control characters and DEL, the first of them for certain; what is behind it may
/// be marked or not. Bytes from 0x80 on may stand there.
#[inline(always)]
pub(super) const fn control(word: u64) -> u64 {
    (word.wrapping_sub(0x20 * ONES) | ((word & !HIGH) + bound(0x7f))) & !word & HIGH
}

/// What a sum with seven bits has in its high bit, if they are at least `low`.
const fn bound(low: u8) -> u64 {
    (0x80 - low as u64) * ONES
}

/// Marks what is neither a letter, a digit, `-`, `.` nor `_` (nor `^` or `~`, which may stand in a name as well).
#[inline(always)]
pub(super) const fn not_name(word: u64) -> u64 {
    // Made small: from 0x7e on `^` and `~`, `_` and DEL.
    let lower = (word | common::LOWER) & !HIGH;
    let inside = (lower + bound(b'-'))
        ^ (lower + bound(b'.' + 1))
        ^ (lower + bound(b'0'))
        ^ (lower + bound(b'9' + 1))
        ^ (lower + bound(b'a'))
        ^ (lower + bound(b'z' + 1))
        ^ (lower + bound(0x7e));
    let plain = word << 1 | word << 2;
    let delete = (word & !HIGH) + bound(0x7f);
    (!(inside & plain) | delete | word) & HIGH
}
