//! What the kernel program and the agent must agree on, written once: map names, keys, values and the source addresses
//! by which the program knows the agent's own connections.
//!
//! Compiled twice: for the kernel (no standard library, no allocation) and for the agent (feature `user`, which adds
//! aya's `Pod`). It decides nothing and touches no map itself.
//!
//! Every type that goes through a map is `repr(C)` without padding: the kernel hashes and compares keys byte by byte,
//! so a hole with undefined bytes would make equal keys differ. The assertions below break the build if one appears.

#![no_std]

mod hash;
pub mod insertion;
mod own_source;

pub use hash::{LOWER, NAME_SEED, finish, first_bytes, mix, name_bit, name_bit_of, name_hash, value_hash, word_of};
pub use own_source::{
    OWN_SOURCE_V4, OWN_SOURCE_V4_BITS, OWN_SOURCE_V6, OWN_SOURCE_V6_BITS, is_own_source_v4, is_own_source_v6,
};

/// Name of the map of steered ports: [`PortKey`] to mode bits (`u32`, see [`MODE_STEER`]).
pub const PORTS_MAP: &str = "PORTS";
/// Name of the socket map of the agent's listeners, by [`SLOT_V4`] and [`SLOT_V6`].
pub const LISTENERS_MAP: &str = "LISTENERS";
/// Name of the prefix tree of source addresses that are never steered: [`Address`] to the family (`u32`, written as its
/// listener's slot) that the prefix is meant for. Without it `::/0` would hold all of IPv4 too, which lies inside.
pub const EXEMPT_MAP: &str = "EXEMPT";
/// Name of the per-CPU array of `u64` counters, by [`Counter`].
pub const COUNTERS_MAP: &str = "COUNTERS";
/// Name of the program.
pub const STEER_PROGRAM: &str = "sluice_steer";

/// Most ports that can be steered at once. The map holds twice as many, so that all of them can be exchanged without a
/// moment in which one is missing.
pub const PORTS_MAX: u32 = 512;
/// Most exempt prefixes; the map holds twice as many, as with the ports.
pub const EXEMPT_MAX: u32 = 1024;

/// Slot of the IPv4 listener in [`LISTENERS_MAP`].
pub const SLOT_V4: u32 = 0;
/// Slot of the IPv6 listener in [`LISTENERS_MAP`].
pub const SLOT_V6: u32 = 1;
/// Number of slots of [`LISTENERS_MAP`].
pub const SLOTS: u32 = 2;

/// Mode bit: new connections to this port go to the agent. A port without it goes to the app, as one not listed does.
pub const MODE_STEER: u32 = 1 << 0;

/// Protocol number of TCP, as in the IP header.
pub const PROTOCOL_TCP: u8 = 6;
/// Protocol number of UDP, as in the IP header.
pub const PROTOCOL_UDP: u8 = 17;

/// Key of [`PORTS_MAP`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortKey {
    /// Destination port in host byte order.
    pub port: u16,
    /// [`PROTOCOL_TCP`] or [`PROTOCOL_UDP`].
    pub protocol: u8,
    /// Always 0: keys are compared as bytes.
    pad: u8,
}

impl PortKey {
    /// A key for `port` in host byte order.
    #[must_use]
    #[inline]
    pub const fn new(port: u16, protocol: u8) -> Self {
        Self { port, protocol, pad: 0 }
    }
}

/// An IPv6 address in network byte order; IPv4 addresses are written v4-mapped (`::ffff:a.b.c.d`), so that one tree
/// serves both and a /24 of IPv4 is a /120 here.
pub type Address = [u8; 16];
/// The same bytes as the program handles them: in four words, each in network byte order.
pub type AddressWords = [u32; 4];

/// The v4-mapped form of an IPv4 address given by its bytes in network order.
#[must_use]
#[inline]
pub const fn v4_mapped([a, b, c, d]: [u8; 4]) -> Address {
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d]
}

/// [`v4_mapped`] for an address whose bytes in network order were read as one word.
#[must_use]
#[inline(always)]
pub const fn v4_mapped_words(address: u32) -> AddressWords {
    [0, 0, u32::from_ne_bytes([0, 0, 0xff, 0xff]), address]
}

/// The bytes of [`AddressWords`].
#[must_use]
#[inline(always)]
pub const fn bytes_of([a, b, c, d]: AddressWords) -> Address {
    let ([a0, a1, a2, a3], [b0, b1, b2, b3]) = (a.to_ne_bytes(), b.to_ne_bytes());
    let ([c0, c1, c2, c3], [d0, d1, d2, d3]) = (c.to_ne_bytes(), d.to_ne_bytes());
    [a0, a1, a2, a3, b0, b1, b2, b3, c0, c1, c2, c3, d0, d1, d2, d3]
}

/// Bits of an [`Address`].
pub const ADDRESS_BITS: u32 = 128;
/// Bits that [`v4_mapped`] puts before an IPv4 prefix.
pub const V4_MAPPED_BITS: u32 = 96;

/// Index of a counter in [`COUNTERS_MAP`]. They count lookups of a listener: nearly always one per connection, one more
/// for each repeated SYN.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counter {
    /// Handed to the agent's listener.
    Steered = 0,
    /// A steered port, but the source address is exempt: went to the app.
    Exempt = 1,
    /// Came from one of the agent's own source addresses: went to the app.
    Own = 2,
    /// A steered port, but no listener of the agent could take it: went to the app.
    NoListener = 3,
}

/// Number of counters.
pub const COUNTERS: u32 = 4;

const _: () = assert!(size_of::<PortKey>() == 4 && align_of::<PortKey>() == 2);
const _: () = assert!(size_of::<Address>() == 16 && align_of::<Address>() == 1);

#[cfg(feature = "user")]
#[expect(unsafe_code, reason = "aya's marker for types that may be copied byte by byte")]
mod user {
    // SAFETY: `repr(C)`, `Copy`, no padding (asserted above), and every bit pattern is a value.
    unsafe impl aya::Pod for super::PortKey {}
    // SAFETY: as above, each asserted beside its type.
    unsafe impl aya::Pod for super::insertion::FlowKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::insertion::Flow {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::insertion::Local {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::insertion::NameKey {}
}

#[cfg(test)]
mod tests {
    use core::mem::offset_of;

    use super::*;

    #[test]
    fn a_port_key_has_no_holes() {
        assert_eq!(offset_of!(PortKey, port), 0);
        assert_eq!(offset_of!(PortKey, protocol), 2);
        assert_eq!(offset_of!(PortKey, pad), 3);
        assert_eq!(size_of::<PortKey>(), size_of::<u16>() + size_of::<u8>() + size_of::<u8>());
    }

    #[test]
    fn counters_are_dense() {
        let all = [Counter::Steered, Counter::Exempt, Counter::Own, Counter::NoListener];
        assert_eq!(all.map(|counter| counter as u32), [0, 1, 2, 3]);
        assert_eq!(all.len(), COUNTERS as usize);
    }

    #[test]
    fn v4_mapped_is_what_the_standard_library_says() {
        let address = core::net::Ipv4Addr::new(10, 1, 2, 3);
        assert_eq!(v4_mapped(address.octets()), address.to_ipv6_mapped().octets());
        let words = v4_mapped_words(u32::from_ne_bytes(address.octets()));
        assert_eq!(bytes_of(words), address.to_ipv6_mapped().octets());
    }
}
