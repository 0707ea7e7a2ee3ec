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

/// The high bit of each byte whose low seven bits are at least `low`; the high bits of `word` do not matter.
#[inline(always)]
pub(super) const fn at_least(word: u64, low: u8) -> u64 {
    ((word & !HIGH) + (0x80 - low as u64) * ONES) & HIGH
}

/// The index of the first marked byte; `marks` has only high bits, and one at least.
#[inline(always)]
pub(super) const fn first(marks: u64) -> u32 {
    let lowest = marks & marks.wrapping_neg();
    (((lowest - 1) & ONES).wrapping_mul(ONES) >> 56) as u32 - 1
}

/// Marks what may not stand in a value or target: control characters and DEL. Bytes from 0x80 on may.
#[inline(always)]
pub(super) const fn control(word: u64) -> u64 {
    (!at_least(word, 0x20) | at_least(word, 0x7f)) & !word & HIGH
}

/// Marks what is neither a letter, a digit, `-` nor `_`.
#[inline(always)]
pub(super) const fn not_name(word: u64) -> u64 {
    let lower = word | common::LOWER;
    let letter = at_least(lower, b'a') & !at_least(lower, b'z' + 1);
    let digit = at_least(lower, b'0') & !at_least(lower, b'9' + 1);
    // Made small, `_` is 0x7f, and so is DEL; control characters became `-` and the like.
    let dash = at_least(lower, b'-') & !at_least(lower, b'-' + 1);
    let underscore = at_least(lower, 0x7f) & !at_least(word, 0x7f);
    (!(letter | digit | dash | underscore) | !at_least(word, b'-') | word) & HIGH
}
