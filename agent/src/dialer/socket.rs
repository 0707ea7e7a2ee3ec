//! One connection from a given source address.

use std::{io, net::SocketAddr};

use nix::sys::socket::setsockopt;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpStream;

nix::setsockopt_impl!(
    BindAddressNoPort,
    libc::SOL_IP,
    libc::IP_BIND_ADDRESS_NO_PORT,
    bool,
    nix::sys::socket::sockopt::SetBool
);

/// `IP_BIND_ADDRESS_NO_PORT`: bind the address now, choose the port in `connect`, when it only has to be free towards
/// that target.
#[derive(Clone, Copy, Debug)]
struct BindAddressNoPort;

/// Connects from `source`, an address with port 0, to `target`, of the same family.
pub(super) async fn connect(source: SocketAddr, target: SocketAddr) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(target), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    // The IPv4 option serves both families.
    setsockopt(&socket, BindAddressNoPort, &true)?;
    if target.is_ipv6() {
        // The address lies in a prefix that is local as a whole; no interface has it.
        socket.set_freebind_v6(true)?;
    }
    socket.set_tcp_nodelay(true)?;
    socket.bind(&source.into())?;
    start(&socket, target)?;
    // Within one host the handshake is over before the first call returns, though that call cannot say so yet. Asking
    // again tells, and saves the way through epoll.
    let done = start(&socket, target)?;
    let stream = TcpStream::from_std(socket.into())?;
    if !done {
        stream.writable().await?;
        if let Some(error) = stream.take_error()? {
            return Err(error);
        }
    }
    Ok(stream)
}

/// Starts a connection, or asks after one: whether it is there.
fn start(socket: &Socket, target: SocketAddr) -> io::Result<bool> {
    match socket.connect(&target.into()) {
        Ok(()) => Ok(true),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINPROGRESS | libc::EALREADY)) => Ok(false),
        Err(error) if error.raw_os_error() == Some(libc::EISCONN) => Ok(true),
        Err(error) => Err(error),
    }
}
