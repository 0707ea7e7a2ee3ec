//! Connections from before: those to an intercepted port that were open already when the kernel began to steer it.
//!
//! Owns which they are, for as long as they live, and their end where a rule asks for it (`resetExisting`). They are the
//! app's: the agent neither serves nor counts them otherwise. Knows them by the kernel's cookie, which no other socket ever
//! has, so that nothing else can be reset: no listener, no other port, none of the agent's own sockets.
//!
//! A socket that nobody has accepted has no inode, so it cannot be told whose it is. It may be one that was steered just now,
//! and then is the agent's within a moment: it is looked at again, and never reset before it is clear.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::{Duration, Instant},
};

use ipnet::IpNet;

use crate::{dialer::is_own_source, netlink::Request};

/// The agent accepts what was steered within a fraction of this. What is not accepted by then is the app's.
const CLEAR_AFTER: Duration = Duration::from_secs(1);

// Numbers of the Linux ABI.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_DUMP: u16 = 0x300;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const IPPROTO_TCP: u8 = 6;
const TCP_ESTABLISHED: u8 = 1;
const TCP_SYN_RECV: u8 = 3;
const TCP_FIN_WAIT1: u8 = 4;
const TCP_FIN_WAIT2: u8 = 5;
const TCP_CLOSE_WAIT: u8 = 8;
/// Length of `inet_diag_sockid`, and where it stands in `inet_diag_msg`.
const ID: usize = 48;
const ID_AT: usize = 4;
const INODE_AT: usize = 68;

/// Why connections could not be reset.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ResetError {
    /// The kernel cannot do it for anybody.
    #[error(
        "connections from before cannot be reset: the kernel was built without CONFIG_INET_DIAG_DESTROY; restart the app, or \
         wait until its callers connect again"
    )]
    Unsupported,
    /// It does not do it for this agent.
    #[error("connections from before cannot be reset")]
    Refused(#[source] io::Error),
}

/// Connections from before, by port.
#[derive(Debug, Default)]
pub(crate) struct Existing {
    ports: BTreeMap<u16, Before>,
}

#[derive(Debug)]
struct Before {
    since: Instant,
    connections: BTreeSet<u64>,
    unclear: BTreeSet<u64>,
}

/// A socket as the kernel describes it.
#[derive(Debug)]
struct Socket {
    family: u8,
    id: [u8; ID],
    peer: IpAddr,
    inode: u32,
}

// === impl Existing ===

impl Existing {
    /// These ports are steered now, and connections from `exempt` are not meant by any rule. Of a port that was steered
    /// before, nothing new is from before.
    pub(crate) fn steered(&mut self, ports: &BTreeSet<u16>, exempt: &[IpNet]) -> io::Result<()> {
        self.ports.retain(|port, _| ports.contains(port));
        for &port in ports.iter().filter(|port| !self.ports.contains_key(port)).collect::<Vec<_>>() {
            let mut before = Before { since: Instant::now(), connections: BTreeSet::new(), unclear: BTreeSet::new() };
            let own = own_inodes()?;
            for socket in sockets(port)? {
                if is_own_source(socket.peer) || exempt.iter().any(|net| net.contains(&socket.peer)) {
                    continue;
                }
                if socket.inode == 0 {
                    before.unclear.insert(socket.cookie());
                } else if !own.contains(&socket.inode) {
                    before.connections.insert(socket.cookie());
                }
            }
            self.ports.insert(port, before);
        }
        Ok(())
    }

    /// Sees which of them are still there, and what has become clear.
    pub(crate) fn look(&mut self) -> io::Result<()> {
        for (&port, before) in self.ports.iter_mut().filter(|(_, before)| !before.is_over()) {
            let sockets: BTreeMap<_, _> = sockets(port)?.into_iter().map(|socket| (socket.cookie(), socket)).collect();
            before.connections.retain(|cookie| sockets.contains_key(cookie));
            if before.unclear.is_empty() {
                continue;
            }
            let (own, late) = (own_inodes()?, before.since.elapsed() >= CLEAR_AFTER);
            for cookie in std::mem::take(&mut before.unclear) {
                match sockets.get(&cookie).map(|socket| socket.inode) {
                    Some(0) if !late => _ = before.unclear.insert(cookie),
                    Some(inode) if !own.contains(&inode) => _ = before.connections.insert(cookie),
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// How many there are on a port, as of the last look.
    pub(crate) fn count(&self, port: u16) -> usize {
        self.ports.get(&port).map_or(0, |before| before.connections.len())
    }

    /// Whether looking again will tell more.
    pub(crate) fn is_unclear(&self) -> bool {
        self.ports.values().any(|before| !before.unclear.is_empty())
    }

    /// Ends those on a port, as of now.
    pub(crate) fn reset(&mut self, port: u16) -> Result<(), ResetError> {
        let Some(before) = self.ports.get_mut(&port).filter(|before| !before.connections.is_empty()) else {
            return Ok(());
        };
        for socket in sockets(port).map_err(ResetError::Refused)? {
            // One that nobody has accepted may become clear later.
            if socket.inode == 0 || !before.connections.contains(&socket.cookie()) {
                continue;
            }
            match socket.destroy() {
                Ok(()) => {}
                Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => return Err(ResetError::Unsupported),
                // It has just gone by itself.
                Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESTALE)) => {}
                Err(error) => return Err(ResetError::Refused(error)),
            }
            before.connections.remove(&socket.cookie());
        }
        Ok(())
    }
}

// === impl Before ===

impl Before {
    fn is_over(&self) -> bool {
        self.connections.is_empty() && self.unclear.is_empty()
    }
}

// === impl Socket ===

impl Socket {
    /// From the body of an `inet_diag_msg`.
    fn read(body: &[u8]) -> Option<Self> {
        let id: [u8; ID] = *body.get(ID_AT..)?.first_chunk()?;
        let peer = &id[20..36];
        let family = *body.first()?;
        let peer = match family {
            AF_INET => IpAddr::from(Ipv4Addr::from(*peer.first_chunk::<4>()?)),
            _ => IpAddr::from(Ipv6Addr::from(*peer.first_chunk::<16>()?)).to_canonical(),
        };
        let inode = u32::from_ne_bytes(*body.get(INODE_AT..)?.first_chunk()?);
        Some(Self { family, id, peer, inode })
    }

    fn cookie(&self) -> u64 {
        self.id.last_chunk().map_or(0, |cookie| u64::from_ne_bytes(*cookie))
    }

    fn destroy(&self) -> io::Result<()> {
        let request = Request::new(SOCK_DESTROY, NLM_F_REQUEST | NLM_F_ACK)
            .with(&[self.family, IPPROTO_TCP, 0, 0])
            .with(&u32::MAX.to_ne_bytes())
            .with(&self.id);
        request.ask(libc::NETLINK_SOCK_DIAG).map(drop)
    }
}

/// All connections to a local port.
fn sockets(port: u16) -> io::Result<Vec<Socket>> {
    let states = [TCP_ESTABLISHED, TCP_SYN_RECV, TCP_FIN_WAIT1, TCP_FIN_WAIT2, TCP_CLOSE_WAIT];
    let states = states.iter().fold(0_u32, |all, state| all | 1 << state);
    let mut sockets = Vec::new();
    for family in [AF_INET, AF_INET6] {
        let mut id = [0; ID];
        id[..2].copy_from_slice(&port.to_be_bytes());
        let request = Request::new(SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST | NLM_F_DUMP)
            .with(&[family, IPPROTO_TCP, 0, 0])
            .with(&states.to_ne_bytes())
            .with(&id);
        request.list(libc::NETLINK_SOCK_DIAG, |body| {
            let closing = |state| matches!(state, Some(&TCP_FIN_WAIT1 | &TCP_FIN_WAIT2));
            // One that is being closed and that no process holds is nobody's any more.
            sockets.extend(Socket::read(body).filter(|socket| socket.inode != 0 || !closing(body.get(1))));
        })?;
    }
    Ok(sockets)
}

/// The sockets of this process.
fn own_inodes() -> io::Result<BTreeSet<u32>> {
    let mut own = BTreeSet::new();
    for file in fs::read_dir("/proc/self/fd")? {
        // Closed meanwhile, where it fails.
        let Ok(target) = fs::read_link(file?.path()) else { continue };
        let inode =
            target.to_str().and_then(|target| target.strip_prefix("socket:[")?.strip_suffix(']')?.parse::<u32>().ok());
        own.extend(inode);
    }
    Ok(own)
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn a12_own_sockets_are_not_from_before_and_unaccepted_ones_are_unclear() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let waiting = TcpStream::connect(address).unwrap();
        let mut existing = Existing::default();
        existing.steered(&BTreeSet::from([address.port()]), &[]).unwrap();
        assert!(existing.is_unclear());
        assert_eq!(existing.count(address.port()), 0);
        let accepted = listener.accept().unwrap();
        existing.look().unwrap();
        assert!(!existing.is_unclear());
        assert_eq!(existing.count(address.port()), 0);
        existing.reset(address.port()).unwrap();
        drop((waiting, accepted));
    }
}
