//! Source addresses for the agent's own connections: each the next one of the reserved prefix.

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::atomic::{AtomicU32, Ordering},
};

use sluice_ebpf_common as abi;

/// Hands out source addresses in turn.
#[derive(Debug, Default)]
pub(super) struct Sources {
    used: AtomicU32,
}

// === impl Sources ===

impl Sources {
    /// A source for a connection to `target`, of its family, with the port left open.
    pub(super) fn next_for(&self, target: SocketAddr) -> SocketAddr {
        match target {
            SocketAddr::V4(_) => SocketAddr::from((self.next_v4(), 0)),
            SocketAddr::V6(_) => SocketAddr::from((self.next_v6(), 0)),
        }
    }

    fn next_v4(&self) -> Ipv4Addr {
        let [.., high, low] = self.next().to_be_bytes();
        let [a, b, ..] = abi::OWN_SOURCE_V4;
        Ipv4Addr::new(a, b, high, low)
    }

    pub(super) fn next_v6(&self) -> Ipv6Addr {
        Ipv6Addr::from(u128::from_be_bytes(abi::OWN_SOURCE_V6) | u128::from(self.next()))
    }

    /// Starts at 1: an address that ends in zeros looks like that of a network.
    fn next(&self) -> u32 {
        self.used.fetch_add(1, Ordering::Relaxed).wrapping_add(1)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::dialer::is_own_source;

    #[test]
    fn every_source_is_an_own_one_also_after_a_turn() {
        let sources = Sources { used: AtomicU32::new(u32::MAX - 3) };
        for _ in 0..70_000 {
            assert!(is_own_source(sources.next_v4().into()));
            assert!(is_own_source(sources.next_v6().into()));
        }
    }

    #[test]
    fn sources_differ() {
        let sources = Sources::default();
        let seen: HashSet<_> = (0..60_000).map(|_| sources.next_v4()).collect();
        assert_eq!(seen.len(), 60_000);
    }
}
