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
    io,
    net::SocketAddr,
    time::{Duration, Instant},
};

use ipnet::IpNet;

mod sockets;

use self::sockets::{Socket, States, in_states, own_inodes, sockets};
use crate::dialer::is_own_source;

/// The agent accepts what was steered within a fraction of this. What is not accepted by then is the app's.
const CLEAR_AFTER: Duration = Duration::from_secs(1);

/// Why connections could not be reset.
#[derive(Debug, thiserror::Error)]
enum ResetError {
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

/// Connections from before.
#[derive(Debug, Default)]
pub(crate) struct Existing {
    ports: BTreeMap<u16, Before>,
    /// Ports on which they are not wanted.
    reset: BTreeSet<u16>,
    /// Why they were not reset.
    error: Option<String>,
}

#[derive(Debug)]
struct Before {
    since: Instant,
    connections: BTreeSet<u64>,
    unclear: BTreeSet<u64>,
}

/// Resets those of these connections (port and caller) that are there; what cannot be reset is in the log.
pub(crate) fn reset(connections: impl IntoIterator<Item = (u16, SocketAddr)>) {
    let mut by_port = BTreeMap::<u16, BTreeSet<SocketAddr>>::new();
    for (port, caller) in connections {
        by_port.entry(port).or_default().insert(caller);
    }
    let warn = |port, error: &io::Error| {
        tracing::warn!(%error, port, "connections that depend on this agent cannot be ended: their callers have to give up");
    };
    for (port, callers) in by_port {
        let sockets = sockets(port).inspect_err(|error| warn(port, error)).unwrap_or_default();
        for socket in sockets {
            if callers.contains(&SocketAddr::new(socket.peer, socket.peer_port()))
                && let Err(error) = socket.destroy()
                && !matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESTALE))
            {
                warn(port, &error);
            }
        }
    }
}

/// A connection to a port.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Connection {
    pub(crate) local: SocketAddr,
    pub(crate) peer: SocketAddr,
    /// This process has it.
    pub(crate) own: bool,
}

/// Who has connections to ports, as long as packets of them may come that somebody waits for. Each port is asked for once.
#[derive(Debug)]
pub(crate) struct Callers {
    states: States,
    of_ports: BTreeMap<u16, io::Result<BTreeSet<SocketAddr>>>,
}

/// All connections to a port that there are.
pub(crate) fn connections(port: u16) -> io::Result<Vec<Connection>> {
    let own = own_inodes()?;
    let connection = |socket: Socket| Connection {
        local: SocketAddr::new(socket.local(), port),
        peer: SocketAddr::new(socket.peer, socket.peer_port()),
        own: own.contains(&socket.inode),
    };
    Ok(sockets(port)?.into_iter().map(connection).collect())
}

// === impl Callers ===

impl Callers {
    /// Of connections in which a side has something to say, or the kernel for it.
    pub(crate) fn alive() -> Self {
        Self { states: States::ALIVE, of_ports: BTreeMap::new() }
    }

    /// The same, and of those of which the caller's end may come again (TIME-WAIT, RFC 9293 §3.6).
    pub(crate) fn alive_or_late() -> Self {
        Self { states: States::ALIVE_OR_LATE, of_ports: BTreeMap::new() }
    }

    /// Whether this one may have a connection to the port: also where the kernel does not tell.
    pub(crate) fn may_have(&mut self, port: u16, caller: SocketAddr) -> bool {
        let of_port = self.of_ports.entry(port).or_insert_with(|| {
            Ok(in_states(port, self.states)?
                .into_iter()
                .map(|socket| SocketAddr::new(socket.peer, socket.peer_port()))
                .collect())
        });
        of_port.as_ref().map_or(true, |callers| callers.contains(&caller))
    }
}

// === impl Existing ===

impl Existing {
    /// These ports are steered now, those of `reset` for rules that want no connection from before. Connections from `exempt`
    /// are not meant by any rule.
    pub(crate) fn change(&mut self, ports: &BTreeSet<u16>, reset: BTreeSet<u16>, exempt: &[IpNet]) {
        (self.reset, self.error) = (reset, None);
        if let Err(error) = self.steered(ports, exempt) {
            tracing::warn!(%error, "the kernel does not tell which connections were open before");
        }
        self.look();
    }

    /// Sees which are left, and resets those that are not wanted.
    pub(crate) fn look(&mut self) {
        if let Err(error) = self.see() {
            tracing::warn!(%error, "the kernel does not tell which connections are still open");
        }
        // What has failed fails again, until the rules change.
        if self.error.is_some() {
            return;
        }
        let failed = self.reset.clone().into_iter().try_for_each(|port| self.reset(port)).err();
        self.error = failed.map(|error| format!("{:#}", anyhow::Error::from(error)));
        if let Some(error) = &self.error {
            tracing::error!(error, "connections from before stay with the app");
        }
    }

    /// How many there are on a port, as of the last look.
    pub(crate) fn count(&self, port: u16) -> usize {
        self.ports.get(&port).map_or(0, |before| before.connections.len())
    }

    /// Why they are still there although they are not wanted.
    pub(crate) fn reset_error(&self) -> Option<&str> {
        self.error.as_deref()
    }

    /// Whether looking again will tell more.
    pub(crate) fn is_unclear(&self) -> bool {
        self.ports.values().any(|before| !before.unclear.is_empty())
    }

    /// Of a port that was steered before, nothing new is from before.
    fn steered(&mut self, ports: &BTreeSet<u16>, exempt: &[IpNet]) -> io::Result<()> {
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
    fn see(&mut self) -> io::Result<()> {
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

    /// Ends those on a port, as of now.
    fn reset(&mut self, port: u16) -> Result<(), ResetError> {
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

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener, TcpStream};

    use super::*;

    #[test]
    fn a12_own_sockets_are_not_from_before_and_unaccepted_ones_are_unclear() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let waiting = TcpStream::connect(address).unwrap();
        let mut existing = Existing::default();
        let port = BTreeSet::from([address.port()]);
        existing.change(&port, port.clone(), &[]);
        assert!(existing.is_unclear());
        assert_eq!(existing.count(address.port()), 0);
        let accepted = listener.accept().unwrap();
        existing.look();
        assert!(!existing.is_unclear());
        assert_eq!(existing.count(address.port()), 0);
        assert_eq!(existing.reset_error(), None);
        drop((waiting, accepted));
    }
}
