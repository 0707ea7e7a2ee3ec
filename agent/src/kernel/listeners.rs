//! The sockets that steered connections are accepted from.
//!
//! Bound to a loopback address and a free port, one per family, because the kernel hands a connection to a listener of
//! its own family only. Steered connections keep the address and port they were sent to; what a process in the pod
//! sends to the loopback port itself shows that port as its local one, and was not steered.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
};

use socket2::{Domain, Protocol, Socket, Type};

/// Connections that may wait to be accepted; the kernel cuts it to `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// Listeners for steered connections: non-blocking, listening, and known to the kernel program until they are closed.
#[derive(Debug)]
pub struct Listeners {
    /// Accepts steered IPv4 connections.
    pub v4: TcpListener,
    /// Accepts steered IPv6 connections; absent where IPv6 is off.
    pub v6: Option<TcpListener>,
}

// === impl Listeners ===

impl Listeners {
    /// The same listeners once more, for another program that hands connections to them.
    ///
    /// # Errors
    /// When this process has too many files open.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { v4: self.v4.try_clone()?, v6: self.v6.as_ref().map(TcpListener::try_clone).transpose()? })
    }

    /// Opens them in the network namespace of the calling thread.
    pub(super) fn open() -> Result<Self, (SocketAddr, io::Error)> {
        let v4 = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let v6 = SocketAddr::from((Ipv6Addr::LOCALHOST, 0));
        Ok(Self {
            v4: listen(v4).map_err(|error| (v4, error))?,
            v6: match listen(v6) {
                Ok(listener) => Some(listener),
                Err(error) if is_without_ipv6(&error) => None,
                Err(error) => return Err((v6, error)),
            },
        })
    }
}

/// Whether the error means that this host or namespace has no IPv6.
fn is_without_ipv6(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::AddrNotAvailable || error.raw_os_error() == Some(libc::EAFNOSUPPORT)
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    // Accepted sockets inherit it, which saves a system call for each.
    socket.set_tcp_nodelay(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    // Accepted sockets inherit this too, and occupy the port of the app, where they seem to be connected. Without it an
    // app that is started again could not bind to its port (EADDRINUSE) as long as one of them exists, or is in TIME_WAIT.
    socket.set_reuse_address(true)?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;

    use super::*;

    #[test]
    fn they_accept_at_once_and_never_block() {
        let listeners = Listeners::open().unwrap();
        assert_eq!(listeners.v4.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock);

        let address = listeners.v4.local_addr().unwrap();
        assert!(address.ip().is_loopback());
        let _client = TcpStream::connect(address).unwrap();
        let (accepted, _) = listeners.v4.accept().unwrap();
        assert!(accepted.nodelay().unwrap(), "inherited from the listener");
    }
}
