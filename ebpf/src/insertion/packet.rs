//! One TCP packet: where its parts are, what they say, and the changes to it.
//!
//! Ethernet with IPv4 without options or IPv6 without extension headers; anything else is none of ours, and connections
//! that begin like that are steered when they arrive, as the programs do not see them begin.

use aya_ebpf::{
    bindings::{__sk_buff, BPF_F_INGRESS},
    helpers::generated::{
        bpf_l4_csum_replace, bpf_redirect, bpf_skb_load_bytes, bpf_skb_pull_data, bpf_skb_store_bytes,
    },
};
use sluice_ebpf_common::{
    self as common, AddressWords,
    insertion::{CARRY, WINDOW},
};

pub(crate) use self::options::{Search, Timestamps};
use super::maps::{Scratch, bounded, of_generation};

mod options;

const L3: u32 = 14;
/// Of the IP header.
pub(crate) const IPPROTO_TCP: u8 = 6;

pub(crate) const FIN: u8 = 0x01;
pub(crate) const SYN: u8 = 0x02;
pub(crate) const RST: u8 = 0x04;
pub(crate) const ACK: u8 = 0x10;
pub(crate) const URG: u8 = 0x20;

/// Of a TCP header (RFC 9293 §3.1).
const SEQ_AT: u32 = 4;
const ACK_AT: u32 = 8;
const SUM_AT: u32 = 16;
const OPTIONS_AT: u32 = 20;

/// What a packet says.
pub(crate) struct Packet {
    skb: *mut __sk_buff,
    /// Where the TCP header begins.
    l4: u32,
    pub(crate) v6: bool,
    pub(crate) source: AddressWords,
    pub(crate) destination: AddressWords,
    /// In host byte order, like all numbers here.
    pub(crate) source_port: u16,
    pub(crate) destination_port: u16,
    pub(crate) seq: u32,
    pub(crate) ack: u32,
    pub(crate) flags: u8,
    pub(crate) window: u16,
    checksum: u16,
    /// Bytes of the TCP header.
    header: u32,
    /// Bytes of data.
    pub(crate) len: u32,
}

/// By how much the numbers of a packet change. All wrap.
#[derive(Clone, Copy)]
pub(crate) struct Shift {
    pub(crate) seq_less: u32,
    pub(crate) ack_less: u32,
    /// Of the timestamps option.
    pub(crate) value_more: u32,
    pub(crate) echo_less: u32,
}

/// The mark of a packet.
#[inline(always)]
#[expect(unsafe_code, reason = "the context is a pointer from the kernel")]
pub(crate) fn mark(skb: *mut __sk_buff) -> u32 {
    // SAFETY: the kernel calls the program with a valid context.
    unsafe { (*skb).mark }
}

/// Sets it.
#[inline(always)]
#[expect(unsafe_code, reason = "the context is a pointer from the kernel")]
pub(crate) fn set_mark(skb: *mut __sk_buff, mark: u32) {
    // SAFETY: as in `mark`.
    unsafe { (*skb).mark = mark };
}

/// Sends the packet back into its device, as if it had come from outside.
#[inline(always)]
#[expect(unsafe_code, reason = "the context is a pointer from the kernel")]
pub(crate) fn turn_back(skb: *mut __sk_buff, mark: u32) -> i32 {
    set_mark(skb, of_generation(mark));
    // SAFETY: as in `mark`.
    unsafe { bpf_redirect((*skb).ifindex, BPF_F_INGRESS as u64) as i32 }
}

#[inline(always)]
#[expect(unsafe_code, reason = "reads what `Packet::read` has found to be there")]
unsafe fn at<T: Copy>(data: usize, offset: usize) -> T {
    // SAFETY: the caller has compared with the packet's end. Not aligned, which the architectures that the kernel lets do
    // this can; volatile, or LLVM would make bytes of it.
    unsafe { core::ptr::read_volatile((data + offset) as *const T) }
}

impl Packet {
    /// Reads the headers.
    #[inline(always)]
    #[expect(unsafe_code, reason = "packet bytes are reached through pointers")]
    pub(crate) fn read(skb: *mut __sk_buff) -> Option<Self> {
        // SAFETY: the context is valid, and each read lies before `data_end`, which the verifier checks.
        unsafe {
            let (mut data, mut end) = ((*skb).data as usize, (*skb).data_end as usize);
            if data + 54 > end {
                // Headers may be anywhere in a packet of several parts.
                if bpf_skb_pull_data(skb, 54) != 0 {
                    return None;
                }
                (data, end) = ((*skb).data as usize, (*skb).data_end as usize);
                if data + 54 > end {
                    return None;
                }
            }
            let kind = u16::from_be(at::<u16>(data, 12));
            if kind == 0x0800 {
                // No options, no fragment.
                if at::<u8>(data, 14) != 0x45
                    || at::<u8>(data, 23) != IPPROTO_TCP
                    || u16::from_be(at::<u16>(data, 20)) & 0x3fff != 0
                {
                    return None;
                }
                let total = u16::from_be(at::<u16>(data, 16)) as u32;
                let total = if total == 0 { (*skb).len.wrapping_sub(L3) } else { total };
                let addresses = (at::<u32>(data, 26), at::<u32>(data, 30));
                let addresses = (common::v4_mapped_words(addresses.0), common::v4_mapped_words(addresses.1));
                return Self::tcp(skb, data + 34, 34, total.wrapping_sub(20), addresses, false);
            }
            if kind != 0x86dd || at::<u8>(data, 20) != IPPROTO_TCP {
                return None;
            }
            if data + 74 > end {
                if bpf_skb_pull_data(skb, 74) != 0 {
                    return None;
                }
                (data, end) = ((*skb).data as usize, (*skb).data_end as usize);
                if data + 74 > end {
                    return None;
                }
            }
            let total = u16::from_be(at::<u16>(data, 18)) as u32;
            let total = if total == 0 { (*skb).len.wrapping_sub(L3 + 40) } else { total };
            let source = [at::<u32>(data, 22), at::<u32>(data, 26), at::<u32>(data, 30), at::<u32>(data, 34)];
            let destination = [at::<u32>(data, 38), at::<u32>(data, 42), at::<u32>(data, 46), at::<u32>(data, 50)];
            Self::tcp(skb, data + 54, 54, total, (source, destination), true)
        }
    }

    #[inline(always)]
    #[expect(unsafe_code, reason = "packet bytes are reached through pointers")]
    unsafe fn tcp(
        skb: *mut __sk_buff,
        tcp: usize,
        l4: u32,
        total: u32,
        (source, destination): (AddressWords, AddressWords),
        v6: bool,
    ) -> Option<Self> {
        // SAFETY: the caller has found the 20 bytes of the header to be there.
        let (ports, seq, ack, header, flags, window, checksum) = unsafe {
            (
                [at::<u16>(tcp, 0), at::<u16>(tcp, 2)],
                at::<u32>(tcp, 4),
                at::<u32>(tcp, 8),
                at::<u8>(tcp, 12),
                at::<u8>(tcp, 13),
                at::<u16>(tcp, 14),
                at::<u16>(tcp, 16),
            )
        };
        let header = ((header >> 4) as u32) * 4;
        if header < OPTIONS_AT || total < header {
            return None;
        }
        Some(Self {
            skb,
            l4,
            v6,
            source,
            destination,
            source_port: u16::from_be(ports[0]),
            destination_port: u16::from_be(ports[1]),
            seq: u32::from_be(seq),
            ack: u32::from_be(ack),
            flags,
            window: u16::from_be(window),
            checksum,
            header,
            len: total - header,
        })
    }

    /// One that has nothing but data, `len` bytes from `at` on: for what is no packet.
    #[inline(always)]
    pub(crate) const fn of_data(skb: *mut __sk_buff, at: u32, len: u32) -> Self {
        Self {
            skb,
            l4: at,
            v6: false,
            source: [0; 4],
            destination: [0; 4],
            source_port: 0,
            destination_port: 0,
            seq: 0,
            ack: 0,
            flags: 0,
            window: 0,
            checksum: 0,
            header: 0,
            len,
        }
    }

    /// The packet itself.
    #[inline(always)]
    pub(crate) const fn skb(&self) -> *mut __sk_buff {
        self.skb
    }

    /// The checksum as it stands there.
    #[inline(always)]
    pub(crate) const fn checksum(&self) -> u16 {
        self.checksum
    }

    /// Where the TCP header begins.
    #[inline(always)]
    pub(crate) const fn segment_at(&self) -> u32 {
        self.l4
    }

    /// Bytes of TCP header and data.
    #[inline(always)]
    pub(crate) const fn segment(&self) -> u32 {
        self.header + self.len
    }

    /// Whether all of these flags are set.
    #[inline(always)]
    pub(crate) const fn has(&self, flags: u8) -> bool {
        self.flags & flags == flags
    }

    /// The number behind the data.
    #[inline(always)]
    pub(crate) const fn end(&self) -> u32 {
        self.seq.wrapping_add(self.len)
    }

    /// Copies data from `offset` on into the window, as much as there is or fits; how much.
    #[inline(always)]
    #[expect(unsafe_code, reason = "a helper of the kernel")]
    pub(crate) fn load(&self, scratch: &mut Scratch, offset: u32) -> Option<u32> {
        if offset >= self.len {
            return None;
        }
        let wanted = bounded(self.len - offset, WINDOW as u32);
        let from = self.l4 + self.header + offset;
        // SAFETY: the window has room for `wanted` bytes.
        let result = unsafe { bpf_skb_load_bytes(self.skb.cast(), from, scratch.bytes.as_mut_ptr().cast(), wanted) };
        if result == 0 { Some(wanted) } else { None }
    }

    /// The same, with [`CARRY`] bytes of room before them, and no more than half a window.
    #[inline(always)]
    #[expect(unsafe_code, reason = "a helper of the kernel")]
    pub(crate) fn load_behind_carry(&self, scratch: &mut Scratch, offset: u32) -> Option<u32> {
        if offset >= self.len {
            return None;
        }
        let wanted = bounded(self.len - offset, WINDOW as u32 / 2);
        let from = self.l4 + self.header + offset;
        // SAFETY: the window has room for `wanted` bytes from there.
        let result = unsafe {
            let to = scratch.bytes.as_mut_ptr().add(CARRY);
            bpf_skb_load_bytes(self.skb.cast(), from, to.cast(), wanted)
        };
        if result == 0 { Some(wanted) } else { None }
    }

    /// The last five bytes of the data.
    #[inline(always)]
    #[expect(unsafe_code, reason = "a helper of the kernel")]
    pub(crate) fn last_five(&self) -> [u8; 5] {
        let mut five = [0_u8; 5];
        if self.len >= 5 {
            let from = self.l4 + self.header + self.len - 5;
            // SAFETY: room for five. Zeros, where it fails.
            unsafe { bpf_skb_load_bytes(self.skb.cast(), from, five.as_mut_ptr().cast(), 5) };
        }
        five
    }

    /// Whether the data begins with a frame `SETTINGS` of HTTP/2 on stream 0 that is none of acknowledgement.
    #[inline(always)]
    #[expect(unsafe_code, reason = "a helper of the kernel")]
    pub(crate) fn begins_with_settings(&self) -> bool {
        let mut frame = [0xff_u8; 9];
        // SAFETY: room for nine. No such frame, where it fails.
        unsafe { bpf_skb_load_bytes(self.skb.cast(), self.l4 + self.header, frame.as_mut_ptr().cast(), 9) };
        let [a, _, _, kind, flags, s0, s1, s2, s3] = frame;
        a == 0 && kind == 4 && flags == 0 && s0 | s1 | s2 | s3 == 0
    }

    /// Writes four bytes of the TCP header, in network byte order, and mends the checksum.
    #[inline(always)]
    #[expect(unsafe_code, reason = "helpers of the kernel")]
    fn replace(&self, offset: u32, new: u32) {
        let mut old = 0_u32;
        // SAFETY: four bytes in and out.
        unsafe {
            bpf_skb_load_bytes(self.skb.cast(), self.l4 + offset, (&raw mut old).cast(), 4);
            if old != new {
                bpf_l4_csum_replace(self.skb.cast(), self.l4 + SUM_AT, old as u64, new as u64, 4);
                bpf_skb_store_bytes(self.skb.cast(), self.l4 + offset, (&raw const new).cast(), 4, 0);
            }
        }
    }

    /// Writes both ports.
    #[inline(always)]
    pub(crate) fn set_ports(&self, source: u16, destination: u16) {
        self.replace(0, ((source as u32) << 16 | destination as u32).to_be());
    }

    /// Writes both numbers, and those of selective acknowledgements (RFC 2018) as many less; and timestamps.
    #[inline(always)]
    pub(crate) fn shift(&self, scratch: &mut Scratch, by: Shift) {
        self.replace(SEQ_AT, self.seq.wrapping_sub(by.seq_less).to_be());
        if by.value_more | by.echo_less != 0 {
            let Timestamps { present, value, echo } = self.timestamps();
            if present {
                self.replace(OPTIONS_AT + 4, value.wrapping_add(by.value_more).to_be());
                self.replace(OPTIONS_AT + 8, echo.wrapping_sub(by.echo_less).to_be());
            }
        }
        if !self.has(ACK) {
            return;
        }
        self.replace(ACK_AT, self.ack.wrapping_sub(by.ack_less).to_be());
        if self.header > OPTIONS_AT + 12 && by.ack_less != 0 && !self.has(SYN) {
            self.shift_selective(scratch, by.ack_less);
        }
    }

    /// Makes a packet of this pod to its caller one of the caller to this pod: addresses and hardware addresses change
    /// places, and the ports become these. The checksums of both layers hold for either order.
    #[inline(always)]
    #[expect(unsafe_code, reason = "a helper of the kernel")]
    pub(crate) fn reflect(&self, source_port: u16, destination_port: u16) {
        self.set_ports(source_port, destination_port);
        // SAFETY: as many bytes as the addresses have, and six of the hardware's.
        unsafe {
            if self.v6 {
                let addresses = [self.destination, self.source];
                bpf_skb_store_bytes(self.skb.cast(), L3 + 8, (&raw const addresses).cast(), 32, 0);
            } else {
                let addresses = [self.destination[3], self.source[3]];
                bpf_skb_store_bytes(self.skb.cast(), L3 + 12, (&raw const addresses).cast(), 8, 0);
            }
            let mut own = [0_u8; 6];
            bpf_skb_load_bytes(self.skb.cast(), 6, (&raw mut own).cast(), 6);
            bpf_skb_store_bytes(self.skb.cast(), 0, (&raw const own).cast(), 6, 0);
        }
    }
}
