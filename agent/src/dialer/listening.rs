//! Asks the kernel whether anybody listens at an IPv6 address, so that the route which a connection there needs is
//! added for those apps only that cannot be reached otherwise.
//!
//! Asked as if from one of the agent's own sources: the kernel runs its programs for this lookup too, and would find
//! the agent's listener otherwise. Needs no privilege. A kernel may lack this service, and its "nothing found" looks
//! the same then; so a listener that is there must be found once before a "no" is believed.

use std::{
    io,
    net::{Ipv6Addr, SocketAddr, SocketAddrV6, TcpListener},
    sync::OnceLock,
};

use crate::netlink::{AF_INET6, IPPROTO_TCP, NLM_F_REQUEST, Request, SOCK_DIAG_BY_FAMILY, TCP_LISTEN};

// Numbers of the Linux ABI.
const NO_COOKIE: [u8; 8] = [0xff; 8];

/// Knows whether the kernel's answers can be believed.
#[derive(Debug, Default)]
pub(super) struct Listening {
    believable: OnceLock<bool>,
}

// === impl Listening ===

impl Listening {
    /// Whether nobody listens at `target` for a connection from `source`, beyond doubt.
    pub(super) fn is_surely_not(&self, target: SocketAddrV6, source: Ipv6Addr) -> bool {
        matches!(is_listening(target, source), Ok(false)) && *self.believable.get_or_init(|| finds_a_listener(source))
    }
}

/// Where IPv6 is off there is nobody to be found, which is right as well.
fn finds_a_listener(source: Ipv6Addr) -> bool {
    let Ok(listener) = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)) else { return true };
    match listener.local_addr() {
        Ok(SocketAddr::V6(address)) => is_listening(address, source).unwrap_or(false),
        _ => false,
    }
}

fn is_listening(target: SocketAddrV6, source: Ipv6Addr) -> io::Result<bool> {
    let request = Request::new(SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST)
        .with(&[AF_INET6, IPPROTO_TCP, 0, 0])
        // Of the states only a dump takes notice.
        .with(&u32::MAX.to_ne_bytes())
        .with(&target.port().to_be_bytes())
        // Any source port does: no connection has it.
        .with(&0_u16.to_be_bytes())
        .with(&target.ip().octets())
        .with(&source.octets())
        .with(&target.scope_id().to_ne_bytes())
        .with(&NO_COOKIE);
    match request.ask(libc::NETLINK_SOCK_DIAG) {
        Ok(answer) => Ok(answer.body().get(1) == Some(&TCP_LISTEN)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: Ipv6Addr = Ipv6Addr::new(0xfd91, 0xf3ea, 0x0b62, 0xeebf, 0, 0, 0, 1);

    #[test]
    fn a_listener_is_found_while_it_is_there() {
        let Ok(listener) = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)) else {
            assert!(finds_a_listener(SOURCE), "without IPv6 nobody can listen");
            return;
        };
        let SocketAddr::V6(address) = listener.local_addr().unwrap() else { unreachable!("bound to ::1") };
        let listening = Listening::default();
        assert!(is_listening(address, SOURCE).unwrap());
        assert!(!listening.is_surely_not(address, SOURCE));
        drop(listener);
        assert!(listening.is_surely_not(address, SOURCE));
    }
}
