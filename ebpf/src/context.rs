//! What the program reads of a lookup, copied out once.
//!
//! The reads are volatile because LLVM otherwise forms `ctx + offset` before the branches that use it, and the verifier
//! refuses such a pointer ("dereference of modified ctx ptr disallowed").

use core::ptr::read_volatile;

use aya_ebpf::{maps::lpm_trie::Key, programs::SkLookupContext};
use sluice_ebpf_common::{self as common, AddressWords};

// Numbers of the Linux ABI; the bindings do not have them.
const AF_INET: u32 = 2;
const AF_INET6: u32 = 10;

/// One lookup of a listener.
pub(crate) struct Lookup {
    /// Protocol number of the IP header.
    pub(crate) protocol: u8,
    /// Destination port in host byte order.
    pub(crate) local_port: u16,
    /// Source address, IPv4 in its v4-mapped form.
    pub(crate) address: AddressWords,
    own_source: bool,
    listener_slot: u32,
}

impl Lookup {
    /// Copies what the program needs; nothing for a family that is neither IPv4 nor IPv6.
    #[inline(always)]
    #[expect(unsafe_code, reason = "the context is a pointer from the kernel")]
    pub(crate) fn read(ctx: &SkLookupContext) -> Option<Self> {
        let lookup = ctx.lookup;
        // SAFETY: the kernel calls the program with a valid `bpf_sk_lookup`; these fields exist since the program type
        // does (5.9), and the verifier checks each access.
        let (family, protocol, local_port) = unsafe {
            (
                read_volatile(&raw const (*lookup).family),
                read_volatile(&raw const (*lookup).protocol),
                read_volatile(&raw const (*lookup).local_port),
            )
        };
        let (address, own_source, listener_slot) = match family {
            AF_INET => {
                // SAFETY: as above.
                let address = unsafe { read_volatile(&raw const (*lookup).remote_ip4) };
                (common::v4_mapped_words(address), common::is_own_source_v4(address), common::SLOT_V4)
            }
            AF_INET6 => {
                // SAFETY: as above. Word by word: the verifier allows no wider reads of this array.
                let [a, b, c, d] = unsafe {
                    [
                        read_volatile(&raw const (*lookup).remote_ip6[0]),
                        read_volatile(&raw const (*lookup).remote_ip6[1]),
                        read_volatile(&raw const (*lookup).remote_ip6[2]),
                        read_volatile(&raw const (*lookup).remote_ip6[3]),
                    ]
                };
                ([a, b, c, d], common::is_own_source_v6([a, b]), common::SLOT_V6)
            }
            _ => return None,
        };
        #[expect(clippy::cast_possible_truncation, reason = "the kernel fills these words from 8 and 16 bits")]
        Some(Self { protocol: protocol as u8, local_port: local_port as u16, address, own_source, listener_slot })
    }

    /// Whether the connection is one that the agent makes to the app.
    #[inline(always)]
    pub(crate) const fn is_own_source(&self) -> bool {
        self.own_source
    }

    /// The key that finds the longest exempt prefix of the source address.
    #[inline(always)]
    pub(crate) const fn exempt_key(&self) -> Key<AddressWords> {
        Key::new(common::ADDRESS_BITS, self.address)
    }

    /// Which listener can take the connection: the kernel accepts one of the same family only.
    #[inline(always)]
    pub(crate) const fn listener_slot(&self) -> u32 {
        self.listener_slot
    }
}
