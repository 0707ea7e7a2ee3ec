//! The socket below QUIC: the seam for ways to an agent other than plain UDP.
//!
//! Owns how an endpoint is put onto a socket. Runs on both ends, at start and at each new way. There is one way so far,
//! [`Direct`]; a relay or a port-forward is another [`Way`] and nothing above it changes. It does not choose among ways
//! and does not dial.

use std::fmt;
use std::io;
use std::net::Ipv4Addr;
use std::net::SocketAddr;
use std::net::UdpSocket;
use std::sync::Arc;

use quinn::AsyncUdpSocket;
use quinn::Endpoint;
use quinn::EndpointConfig;
use quinn::Runtime;
use quinn::TokioRuntime;
use quinn_proto::RandomConnectionIdGenerator;
use socket2::Domain;
use socket2::Protocol;
use socket2::Socket;
use socket2::Type;

use crate::key::Identity;

/// Room asked of the system for datagrams that wait to be read or sent, in bytes. A stream's window comes as a burst
/// when the network is fast, and what does not fit is lost and sent again. The system grants less where it is told to.
const SOCKET_BUFFER: usize = 2 << 20;

/// Why there is no endpoint.
#[derive(Debug, thiserror::Error)]
pub enum WayError {
    /// The UDP socket cannot be had.
    #[error("cannot open UDP {address}")]
    Bind {
        /// The local address.
        address: SocketAddr,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The endpoint cannot be put onto the socket.
    #[error("cannot start QUIC over {way}")]
    Endpoint {
        /// The way's name.
        way: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// A way for QUIC's datagrams.
pub trait Way: fmt::Debug + Send + Sync {
    /// What people call it: shown in logs and states.
    fn name(&self) -> &'static str;

    /// A socket over which datagrams take this way. Called once per endpoint, inside a tokio runtime.
    ///
    /// # Errors
    /// The way is closed.
    fn socket(&self) -> Result<Arc<dyn AsyncUdpSocket>, WayError>;
}

/// Plain UDP: the two ends reach each other's address.
#[derive(Clone, Copy, Debug)]
pub struct Direct {
    local: SocketAddr,
}

impl Direct {
    /// Over a socket bound to `local`; port 0 lets the system choose. `[::]` takes IPv4 as well, and stands for 0.0.0.0
    /// where the system has no IPv6.
    #[must_use]
    pub fn new(local: SocketAddr) -> Self {
        Self { local }
    }

    /// For dialling `remote`: any local address of the same family.
    #[must_use]
    pub fn towards(remote: SocketAddr) -> Self {
        let any = if remote.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { std::net::Ipv6Addr::UNSPECIFIED.into() };
        Self::new(SocketAddr::new(any, 0))
    }

    fn bind(local: SocketAddr) -> io::Result<UdpSocket> {
        let socket = Socket::new(Domain::for_address(local), Type::DGRAM, Some(Protocol::UDP))?;
        if local.is_ipv6() {
            // The default differs between systems. Some cannot do both, which is no reason to do neither.
            let _ = socket.set_only_v6(!local.ip().is_unspecified());
        }
        // A wish only, see SOCKET_BUFFER.
        let _ = socket.set_recv_buffer_size(SOCKET_BUFFER);
        let _ = socket.set_send_buffer_size(SOCKET_BUFFER);
        socket.bind(&local.into())?;
        Ok(socket.into())
    }
}

impl Way for Direct {
    fn name(&self) -> &'static str {
        "direct"
    }

    fn socket(&self) -> Result<Arc<dyn AsyncUdpSocket>, WayError> {
        let bound = match Self::bind(self.local) {
            Err(error) if self.local.is_ipv6() && self.local.ip().is_unspecified() && is_no_ipv6(&error) => {
                Self::bind(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), self.local.port()))
            }
            outcome => outcome,
        };
        let failed = |source| WayError::Bind { address: self.local, source };
        TokioRuntime.wrap_udp_socket(bound.map_err(failed)?).map_err(failed)
    }
}

/// An endpoint over `way`. With a `server` configuration it accepts connections; it may dial in any case.
///
/// A peer whose connection did not survive a restart of this process is told so at once if `identity` is the same as
/// before; otherwise it finds out after [`crate::transport::IDLE_LIMIT`].
///
/// # Errors
/// The way is closed or the socket unusable.
pub fn endpoint(way: &dyn Way, identity: &Identity, server: Option<quinn::ServerConfig>) -> Result<Endpoint, WayError> {
    let mut config = EndpointConfig::new(Arc::new(identity.reset_key()));
    // quinn's default generator recognises its own IDs by a key that a restart changes; resets would never be sent.
    config.cid_generator(|| Box::new(RandomConnectionIdGenerator::default()));
    Endpoint::new_with_abstract_socket(config, server, way.socket()?, Arc::new(TokioRuntime))
        .map_err(|source| WayError::Endpoint { way: way.name(), source })
}

/// IPv6 is not built in, or switched off (`ipv6.disable=1`, `net.ipv6.conf.all.disable_ipv6=1`).
fn is_no_ipv6(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::AddrNotAvailable | io::ErrorKind::Unsupported)
        || error.raw_os_error() == Some(UNSUPPORTED_FAMILY)
}

/// EAFNOSUPPORT, which std gives no kind of its own.
const UNSUPPORTED_FAMILY: i32 = if cfg!(windows) {
    10047
} else if cfg!(target_os = "linux") {
    97
} else {
    47
};

#[cfg(test)]
mod tests;
