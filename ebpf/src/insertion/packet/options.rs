//! TCP options (RFC 9293 §3.1): found, read, overwritten.

use aya_ebpf::helpers::generated::{bpf_loop, bpf_skb_load_bytes};

use super::{OPTIONS_AT, Packet};
use crate::maps::{Scratch, bounded};

/// Kinds of TCP options.
const OPTION_END: u8 = 0;
const OPTION_NOP: u8 = 1;
const OPTION_SACK: u8 = 5;
const OPTION_TIMESTAMPS: u8 = 8;
const OPTION_MPTCP: u8 = 30;
const OPTION_FAST_OPEN: u8 = 34;
/// Most bytes of options.
const OPTIONS: usize = 40;

/// Longest option that is overwritten: MPTCP's in a SYN has at most 12 bytes, a Fast Open cookie at most 18.
const MAX_ERASED: u32 = 20;

/// An option that was found: where it begins in the window, and its length.
struct Found {
    at: u32,
    length: u32,
}

/// The search for an option. In the scratch buffer, like the scanner's state and for the same reason.
#[repr(C)]
pub(crate) struct Search {
    kind: u32,
    end: u32,
    at: u32,
    length: u32,
    found: u32,
}

/// What a step is given.
struct Step {
    scratch: *mut Scratch,
}

/// Looks at one option. Returns 1 to stop.
#[inline(never)]
#[expect(unsafe_code, reason = "called by the kernel with the pointer that `Packet::find` gave it")]
extern "C" fn next_option(_index: u64, step: *mut Step) -> u64 {
    // SAFETY: `Packet::find` gave it, and only one step runs at a time.
    let Scratch { bytes, search, .. } = unsafe { &mut *(*step).scratch };
    let at = search.at;
    let kind = bytes[(at & 63) as usize] as u32;
    if at >= search.end || kind == OPTION_END as u32 {
        return 1;
    }
    if kind == OPTION_NOP as u32 {
        search.at = at + 1;
        return 0;
    }
    let length = bytes[((at + 1) & 63) as usize] as u32;
    if length < 2 || at + length > search.end {
        return 1;
    }
    if kind == search.kind {
        search.length = length;
        search.found = 1;
        return 1;
    }
    search.at = at + length;
    0
}

/// The timestamps option (RFC 7323 §3).
#[derive(Clone, Copy, Default)]
pub(crate) struct Timestamps {
    pub(crate) present: bool,
    pub(crate) value: u32,
    pub(crate) echo: u32,
}

impl Packet {
    /// The timestamps, where they stand as every sender writes them: behind two NOPs (RFC 7323, appendix A).
    #[inline(always)]
    #[expect(unsafe_code, reason = "a helper of the kernel")]
    pub(crate) fn timestamps(&self) -> Timestamps {
        let mut option = [0_u8; 12];
        if self.header < OPTIONS_AT + 12 {
            return Timestamps::default();
        }
        // SAFETY: room for twelve.
        let failed =
            unsafe { bpf_skb_load_bytes(self.skb.cast(), self.l4 + OPTIONS_AT, option.as_mut_ptr().cast(), 12) };
        let [a, b, kind, length, v0, v1, v2, v3, e0, e1, e2, e3] = option;
        if failed != 0 || a != OPTION_NOP || b != OPTION_NOP || kind != OPTION_TIMESTAMPS || length != 10 {
            return Timestamps::default();
        }
        Timestamps {
            present: true,
            value: u32::from_be_bytes([v0, v1, v2, v3]),
            echo: u32::from_be_bytes([e0, e1, e2, e3]),
        }
    }

    /// The timestamp value of a SYN-ACK, wherever it stands.
    #[inline(always)]
    pub(crate) fn timestamp_value(&self, scratch: &mut Scratch) -> Option<u32> {
        let found = self.find(scratch, OPTION_TIMESTAMPS)?;
        let byte = |n: u32| scratch.bytes[((found.at + n) & 63) as usize];
        Some(u32::from_be_bytes([byte(2), byte(3), byte(4), byte(5)]))
    }

    /// The first option of a kind; the options are in the window then.
    #[inline(always)]
    #[expect(unsafe_code, reason = "a helper of the kernel")]
    fn find(&self, scratch: &mut Scratch, kind: u8) -> Option<Found> {
        self.load_options(scratch)?;
        scratch.search = Search { kind: kind as u32, end: self.header - OPTIONS_AT, at: 0, length: 0, found: 0 };
        let mut step = Step { scratch };
        // SAFETY: the callback has the signature that the kernel calls, and its context outlives the loop.
        unsafe { bpf_loop(OPTIONS as u32, next_option as *mut _, (&raw mut step).cast(), 0) };
        let Search { at, length, found, .. } = scratch.search;
        if found == 0 { None } else { Some(Found { at, length }) }
    }

    #[inline(always)]
    #[expect(unsafe_code, reason = "a helper of the kernel")]
    fn load_options(&self, scratch: &mut Scratch) -> Option<()> {
        if self.header <= OPTIONS_AT {
            return None;
        }
        let length = bounded(self.header - OPTIONS_AT, 64);
        // SAFETY: the window is longer.
        let failed = unsafe {
            bpf_skb_load_bytes(self.skb.cast(), self.l4 + OPTIONS_AT, scratch.bytes.as_mut_ptr().cast(), length)
        };
        if failed == 0 { Some(()) } else { None }
    }

    /// Overwrites the options of a SYN that would lead to a connection which no two sockets of ours can take over:
    /// MPTCP (RFC 8684 §3.1), so that plain TCP results, and Fast Open (RFC 7413), so that no data comes with it.
    #[inline(always)]
    pub(crate) fn plain_syn(&self, scratch: &mut Scratch) {
        for kind in [OPTION_MPTCP, OPTION_FAST_OPEN] {
            let Some(found) = self.find(scratch, kind) else { continue };
            for n in 0..MAX_ERASED {
                if n < found.length {
                    scratch.bytes[((found.at + n) & 63) as usize] = OPTION_NOP;
                }
            }
            self.store_options(scratch);
        }
    }

    #[inline(always)]
    fn store_options(&self, scratch: &mut Scratch) {
        let mut word = 0_u32;
        while word < OPTIONS as u32 / 4 {
            let offset = OPTIONS_AT + word * 4;
            if offset < self.header {
                let at = (word * 4) as usize;
                let [a, b, c, d] =
                    [scratch.bytes[at], scratch.bytes[at + 1], scratch.bytes[at + 2], scratch.bytes[at + 3]];
                self.replace(offset, u32::from_ne_bytes([a, b, c, d]));
            }
            word += 1;
        }
    }

    #[inline(always)]
    pub(super) fn shift_selective(&self, scratch: &mut Scratch, less: u32) {
        let Some(found) = self.find(scratch, OPTION_SACK) else { return };
        for edge in 0..8_u32 {
            if 2 + edge * 4 < found.length {
                let place = (found.at + 2 + edge * 4) & 63;
                let byte = |n: u32| scratch.bytes[((place + n) & 63) as usize];
                let number = u32::from_be_bytes([byte(0), byte(1), byte(2), byte(3)]);
                self.replace(OPTIONS_AT + place, number.wrapping_sub(less).to_be());
            }
        }
    }
}
