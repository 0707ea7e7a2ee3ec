//! The reserved source addresses of the agent's own connections to the app.
//!
//! Such a connection runs the kernel program like any other, and nothing but its source address tells it apart: the
//! interface does not when the target is the pod's own address. So the agent binds these, and the program lets them
//! pass with one compare and without a map. What comes from elsewhere with such a source reaches the app as well, which
//! is what it would have reached without the agent.

/// IPv4 sources: 127.77.0.0/16. All of 127.0.0.0/8 is local on every Linux host, nothing has to be set up for it.
pub const OWN_SOURCE_V4: [u8; 4] = [127, 77, 0, 0];
/// Length of the IPv4 prefix.
pub const OWN_SOURCE_V4_BITS: u8 = 16;

/// IPv6 sources: fd91:f3ea:b62:eebf::/64, drawn at random as RFC 4193 asks. Local only while the agent makes it so.
pub const OWN_SOURCE_V6: [u8; 16] = [0xfd, 0x91, 0xf3, 0xea, 0x0b, 0x62, 0xee, 0xbf, 0, 0, 0, 0, 0, 0, 0, 0];
/// Length of the IPv6 prefix.
pub const OWN_SOURCE_V6_BITS: u8 = 64;

const V4_MASK: u32 = u32::from_ne_bytes([0xff, 0xff, 0, 0]);
const V4_PREFIX: u32 = u32::from_ne_bytes(OWN_SOURCE_V4);
const V6_PREFIX: [u32; 2] = {
    let [a, b, c, d, e, f, g, h, ..] = OWN_SOURCE_V6;
    [u32::from_ne_bytes([a, b, c, d]), u32::from_ne_bytes([e, f, g, h])]
};

/// Whether an IPv4 address, its bytes in network order read as one word, is an own source.
#[must_use]
#[inline(always)]
pub const fn is_own_source_v4(address: u32) -> bool {
    address & V4_MASK == V4_PREFIX
}

/// Whether an IPv6 address, its bytes in network order read as words, is an own source; the first two words decide.
#[must_use]
#[inline(always)]
pub const fn is_own_source_v6(high: [u32; 2]) -> bool {
    high[0] == V6_PREFIX[0] && high[1] == V6_PREFIX[1]
}

#[cfg(test)]
mod tests {
    use core::net::Ipv6Addr;

    use super::*;

    fn v4(address: [u8; 4]) -> bool {
        is_own_source_v4(u32::from_ne_bytes(address))
    }

    fn v6(address: Ipv6Addr) -> bool {
        let [a, b, c, d, e, f, g, h, ..] = address.octets();
        is_own_source_v6([u32::from_ne_bytes([a, b, c, d]), u32::from_ne_bytes([e, f, g, h])])
    }

    #[test]
    fn the_ipv4_prefix_ends_where_it_says() {
        assert!(v4([127, 77, 0, 0]) && v4([127, 77, 255, 255]));
        assert!(!v4([127, 76, 255, 255]) && !v4([127, 78, 0, 0]) && !v4([127, 0, 0, 1]) && !v4([10, 77, 0, 1]));
    }

    #[test]
    fn the_ipv6_prefix_ends_where_it_says() {
        let base = u128::from_be_bytes(OWN_SOURCE_V6);
        let last = base | u128::from(u64::MAX);
        assert!(v6(Ipv6Addr::from(base)) && v6(Ipv6Addr::from(last)));
        assert!(!v6(Ipv6Addr::from(base - 1)) && !v6(Ipv6Addr::from(last + 1)) && !v6(Ipv6Addr::LOCALHOST));
    }

    #[test]
    fn the_ipv6_prefix_is_a_unique_local_one() {
        assert!(Ipv6Addr::from(OWN_SOURCE_V6).is_unique_local());
    }
}
