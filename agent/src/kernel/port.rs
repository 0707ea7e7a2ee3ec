//! A port that can be steered.

use std::fmt;

use sluice_ebpf_common as abi;

/// Transport protocol of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP. The program knows it, but there is no UDP listener yet: its datagrams go to the app.
    Udp,
}

/// A destination port in host byte order, with its protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortKey {
    /// The port in host byte order.
    pub port: u16,
    /// Its protocol.
    pub protocol: Protocol,
}

// === impl Protocol ===

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        })
    }
}

// === impl PortKey ===

impl PortKey {
    /// A TCP port.
    #[must_use]
    pub const fn tcp(port: u16) -> Self {
        Self { port, protocol: Protocol::Tcp }
    }

    pub(super) const fn to_abi(self) -> abi::PortKey {
        abi::PortKey::new(
            self.port,
            match self.protocol {
                Protocol::Tcp => abi::PROTOCOL_TCP,
                Protocol::Udp => abi::PROTOCOL_UDP,
            },
        )
    }

    /// Nothing for a key that this agent did not write.
    pub(super) const fn from_abi(key: abi::PortKey) -> Option<Self> {
        let protocol = match key.protocol {
            abi::PROTOCOL_TCP => Protocol::Tcp,
            abi::PROTOCOL_UDP => Protocol::Udp,
            _ => return None,
        };
        Some(Self { port: key.port, protocol })
    }
}

impl fmt::Display for PortKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.port, self.protocol)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_survives_the_way_through_the_map() {
        for key in [PortKey::tcp(8080), PortKey { port: 53, protocol: Protocol::Udp }] {
            assert_eq!(PortKey::from_abi(key.to_abi()), Some(key));
        }
        assert_eq!(PortKey::from_abi(abi::PortKey::new(8080, 132)), None);
        assert_eq!(PortKey::tcp(8080).to_string(), "8080/TCP");
    }
}
