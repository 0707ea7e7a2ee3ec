//! Sockets as the kernel lists them, and their end.

use std::{
    collections::BTreeSet,
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use crate::netlink::{
    AF_INET, AF_INET6, IPPROTO_TCP, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, Request, SOCK_DIAG_BY_FAMILY, TCP_CLOSE_WAIT,
    TCP_CLOSING, TCP_ESTABLISHED, TCP_FIN_WAIT1, TCP_FIN_WAIT2, TCP_LAST_ACK, TCP_SYN_RECV, TCP_TIME_WAIT,
};

// Numbers of the Linux ABI.
const SOCK_DESTROY: u16 = 21;
/// Length of `inet_diag_sockid`, and where it stands in `inet_diag_msg`.
const ID: usize = 48;
const ID_AT: usize = 4;
const INODE_AT: usize = 68;

/// A socket as the kernel describes it.
#[derive(Debug)]
pub(super) struct Socket {
    family: u8,
    id: [u8; ID],
    /// The other end.
    pub(super) peer: IpAddr,
    /// 0 while no process has it.
    pub(super) inode: u32,
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

    /// This end.
    pub(super) fn local(&self) -> IpAddr {
        match self.family {
            AF_INET => IpAddr::from(Ipv4Addr::new(self.id[4], self.id[5], self.id[6], self.id[7])),
            _ => {
                let mut address = [0; 16];
                address.copy_from_slice(&self.id[4..20]);
                IpAddr::from(Ipv6Addr::from(address)).to_canonical()
            }
        }
    }

    /// The other end's port.
    pub(super) fn peer_port(&self) -> u16 {
        u16::from_be_bytes([self.id[2], self.id[3]])
    }

    /// What no other socket ever has.
    pub(super) fn cookie(&self) -> u64 {
        self.id.last_chunk().map_or(0, |cookie| u64::from_ne_bytes(*cookie))
    }

    /// Resets the connection: both ends see that.
    pub(super) fn destroy(&self) -> io::Result<()> {
        let request = Request::new(SOCK_DESTROY, NLM_F_REQUEST | NLM_F_ACK)
            .with(&[self.family, IPPROTO_TCP, 0, 0])
            .with(&u32::MAX.to_ne_bytes())
            .with(&self.id);
        request.ask(libc::NETLINK_SOCK_DIAG).map(drop)
    }
}

/// States of sockets, a bit each, as the kernel is asked for them.
#[derive(Debug, Clone, Copy)]
pub(super) struct States(u32);

// === impl States ===

impl States {
    /// Both sides may still have something to say.
    const OPEN: Self = Self::of(&[TCP_ESTABLISHED, TCP_SYN_RECV, TCP_FIN_WAIT1, TCP_FIN_WAIT2, TCP_CLOSE_WAIT]);
    /// And those that are the kernel's alone: it sends what their owners have left, and repeats it.
    pub(super) const ALIVE: Self = Self::OPEN.and(Self::of(&[TCP_LAST_ACK, TCP_CLOSING]));
    /// And those that only tell the other side, which repeats its end until then, that it has been heard.
    pub(super) const ALIVE_OR_LATE: Self = Self::ALIVE.and(Self::of(&[TCP_TIME_WAIT]));

    const fn of(states: &[u8]) -> Self {
        match states {
            [] => Self(0),
            [first, others @ ..] => Self(1 << *first).and(Self::of(others)),
        }
    }

    const fn and(self, others: Self) -> Self {
        Self(self.0 | others.0)
    }
}

/// All connections to a local port that somebody has.
pub(super) fn sockets(port: u16) -> io::Result<Vec<Socket>> {
    list(port, States::OPEN, |socket, state| {
        // One that is being closed and that no process holds is nobody's any more.
        socket.inode != 0 || !matches!(state, TCP_FIN_WAIT1 | TCP_FIN_WAIT2)
    })
}

/// Those to a local port in certain states, whether or not a process has them.
pub(super) fn in_states(port: u16, states: States) -> io::Result<Vec<Socket>> {
    list(port, states, |_, _| true)
}

fn list(port: u16, states: States, wanted: impl Fn(&Socket, u8) -> bool) -> io::Result<Vec<Socket>> {
    let mut sockets = Vec::new();
    for family in [AF_INET, AF_INET6] {
        let mut id = [0; ID];
        id[..2].copy_from_slice(&port.to_be_bytes());
        let request = Request::new(SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST | NLM_F_DUMP)
            .with(&[family, IPPROTO_TCP, 0, 0])
            .with(&states.0.to_ne_bytes())
            .with(&id);
        request.list(libc::NETLINK_SOCK_DIAG, |body| {
            let socket = body.get(1).zip(Socket::read(body)).filter(|(state, socket)| wanted(socket, **state));
            sockets.extend(socket.map(|(_, socket)| socket));
        })?;
    }
    Ok(sockets)
}

/// The sockets of this process.
pub(super) fn own_inodes() -> io::Result<BTreeSet<u32>> {
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
