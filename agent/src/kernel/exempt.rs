//! How a source prefix is written in the kernel's prefix tree: IPv4 in its v4-mapped form, with the family it is for.

use std::net::Ipv6Addr;

use aya::maps::lpm_trie::Key;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use sluice_ebpf_common as abi;

/// An entry of the tree, in an order that makes sets comparable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Entry {
    bits: u32,
    address: abi::Address,
}

impl Entry {
    /// The entry for a prefix; bits of the address beyond its length do not matter.
    pub(crate) fn new(net: IpNet) -> Self {
        match net.trunc() {
            IpNet::V4(net) => Self {
                bits: abi::V4_MAPPED_BITS + u32::from(net.prefix_len()),
                address: abi::v4_mapped(net.network().octets()),
            },
            IpNet::V6(net) => Self { bits: u32::from(net.prefix_len()), address: net.network().octets() },
        }
    }

    pub(crate) const fn of_key(key: Key<abi::Address>) -> Self {
        Self { bits: key.prefix_len(), address: key.data() }
    }

    pub(crate) const fn key(self) -> Key<abi::Address> {
        Key::new(self.bits, self.address)
    }

    /// The family, as the program compares it.
    pub(crate) fn family(self) -> u32 {
        if self.mapped().is_some() { abi::SLOT_V4 } else { abi::SLOT_V6 }
    }

    /// The prefix as people write it; nothing if the length is none of IPv6.
    pub(super) fn net(self) -> Option<IpNet> {
        if let Some(net) = self.mapped() {
            return Some(IpNet::V4(net));
        }
        let bits = u8::try_from(self.bits).ok()?;
        Ipv6Net::new(Ipv6Addr::from(self.address), bits).ok().map(IpNet::V6)
    }

    fn mapped(self) -> Option<Ipv4Net> {
        let bits = u8::try_from(self.bits.checked_sub(abi::V4_MAPPED_BITS)?).ok()?;
        let address = Ipv6Addr::from(self.address).to_ipv4_mapped()?;
        Ipv4Net::new(address, bits).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(net: &str) -> Entry {
        Entry::new(net.parse().unwrap())
    }

    #[test]
    fn prefixes_come_back_as_they_were_written() {
        for net in ["10.0.0.1/32", "10.1.0.0/16", "0.0.0.0/0", "fd00::1/128", "fd00::/8", "::/0"] {
            assert_eq!(entry(net).net().unwrap().to_string(), net);
            assert_eq!(Entry::of_key(entry(net).key()), entry(net));
        }
    }

    #[test]
    fn host_bits_do_not_matter() {
        assert_eq!(entry("10.1.2.3/16"), entry("10.1.0.0/16"));
    }

    #[test]
    fn all_of_ipv6_is_not_all_of_ipv4() {
        assert_eq!(entry("::/0").family(), abi::SLOT_V6);
        assert_eq!(entry("0.0.0.0/0").family(), abi::SLOT_V4);
        assert_eq!(entry("0.0.0.0/0").bits, 96);
    }

    #[test]
    fn a_v4_mapped_prefix_is_one_of_ipv4() {
        assert_eq!(entry("::ffff:10.0.0.0/104"), entry("10.0.0.0/8"));
        assert_eq!(entry("::ffff:10.0.0.0/104").family(), abi::SLOT_V4);
    }
}
