//! Connections from the agent to the app, made so that the kernel program never steers them back to the agent.
//!
//! Runs in the pod's network namespace. Which address the app answers on is found by trying 127.0.0.1, then ::1, then
//! the address that the caller had used, and remembered for the port; the loopback ones come first because a mesh may
//! capture everything else. What flows over the connection is not its business.
//!
//! **The source** is an address of a reserved prefix, by which the program knows these connections (see
//! `sluice_ebpf_common`). For IPv4 nothing has to be set up. The IPv6 prefix has to be made local first, which happens
//! when a listener that can only be reached over IPv6 is found, and not before: see `route`.
//!
//! **Ports do not run out.** The kernel chooses the source port when it knows both ends (`IP_BIND_ADDRESS_NO_PORT`) and
//! the address changes with each connection, so ports in TIME_WAIT stand in nobody's way.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6},
    sync::{Arc, Mutex, PoisonError},
};

use sluice_ebpf_common as abi;
use tokio::net::TcpStream;

mod listening;
mod route;
mod socket;
mod source;

use self::{listening::Listening, route::OwnRoute, source::Sources};

/// Why there is no connection to the app.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// Nobody listens on the port, on none of the addresses tried: the app is down, or not up yet.
    #[error("nobody listens on port {}, neither on a loopback address nor on {}", .original.port(), .original.ip())]
    Refused {
        /// Where the caller had wanted to go.
        original: SocketAddr,
    },
    /// The app could not be reached for another reason.
    #[error("cannot connect to the app at {address}")]
    Connect {
        /// The address that failed.
        address: SocketAddr,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The source addresses for IPv6 could not be made local.
    #[error("cannot add the local IPv6 route that connections to {address} need")]
    Route {
        /// Where the connection was to go.
        address: SocketAddr,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// Connects to the app. Clones share what was learnt, and the IPv6 route, which goes with the last of them.
#[derive(Clone, Debug, Default)]
pub struct AppDialer {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    places: Mutex<HashMap<u16, Place>>,
    sources: Sources,
    listening: Listening,
    route: OwnRoute,
}

/// Where an app may listen, in the order in which to look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    LoopbackV4,
    LoopbackV6,
    /// The address that the caller used.
    Original,
}

/// Whether a connection comes from this agent: the guard against serving one's own connection, should it be steered
/// against all expectation.
#[must_use]
pub fn is_own_source(peer: IpAddr) -> bool {
    match peer.to_canonical() {
        IpAddr::V4(address) => abi::is_own_source_v4(u32::from_ne_bytes(address.octets())),
        IpAddr::V6(address) => {
            let [a, b, c, d, e, f, g, h, ..] = address.octets();
            abi::is_own_source_v6([u32::from_ne_bytes([a, b, c, d]), u32::from_ne_bytes([e, f, g, h])])
        }
    }
}

// === impl DialError ===

impl DialError {
    /// Whether nobody listens: the caller should see what it would have seen without the agent, a refused connection.
    #[must_use]
    pub const fn is_refused(&self) -> bool {
        matches!(self, Self::Refused { .. })
    }
}

// === impl AppDialer ===

impl AppDialer {
    /// A dialer that has learnt nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Connects to the app that a caller wanted to reach at `original_destination`. There is no time limit: an app
    /// whose backlog is full is waited for as the caller itself would have waited.
    ///
    /// Cancel-safe: the half-made connection is closed.
    ///
    /// # Errors
    ///
    /// [`DialError::Refused`] if nobody listens, else what kept the most promising address from answering.
    pub async fn connect(&self, original_destination: SocketAddr) -> Result<TcpStream, DialError> {
        let original = canonical(original_destination);
        let remembered = self.shared.remembered(original.port());
        let mut failure = None;
        for place in Place::order(remembered) {
            let Some(address) = place.address(original) else { continue };
            match self.shared.connect(address, remembered == Some(place)).await {
                Ok(Some(stream)) => {
                    if remembered != Some(place) {
                        self.shared.remember(original.port(), place);
                    }
                    return Ok(stream);
                }
                Ok(None) => {}
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        Err(failure.unwrap_or(DialError::Refused { original }))
    }
}

// === impl Shared ===

impl Shared {
    fn remembered(&self, port: u16) -> Option<Place> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner).get(&port).copied()
    }

    fn remember(&self, port: u16, place: Place) {
        self.places.lock().unwrap_or_else(PoisonError::into_inner).insert(port, place);
    }

    /// A connection to one address, or nothing if nobody listens there.
    async fn connect(&self, address: SocketAddr, known: bool) -> Result<Option<TcpStream>, DialError> {
        if let SocketAddr::V6(v6) = address {
            if !known && self.listening.is_surely_not(v6, self.sources.next_v6()) {
                return Ok(None);
            }
            self.route.ensure().map_err(|source| DialError::Route { address, source })?;
        }
        match socket::connect(self.sources.next_for(address), address).await {
            Ok(stream) => Ok(Some(stream)),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(None),
            Err(source) => Err(DialError::Connect { address, source }),
        }
    }
}

// === impl Place ===

impl Place {
    const ALL: [Self; 3] = [Self::LoopbackV4, Self::LoopbackV6, Self::Original];

    /// The remembered place, then the others.
    fn order(remembered: Option<Self>) -> impl Iterator<Item = Self> {
        remembered.into_iter().chain(Self::ALL.into_iter().filter(move |&place| remembered != Some(place)))
    }

    /// The address of this place, unless another place is the same one.
    fn address(self, original: SocketAddr) -> Option<SocketAddr> {
        const V4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
        const V6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);
        match self {
            Self::LoopbackV4 => Some(SocketAddr::new(V4, original.port())),
            Self::LoopbackV6 => Some(SocketAddr::new(V6, original.port())),
            Self::Original => (original.ip() != V4 && original.ip() != V6).then_some(original),
        }
    }
}

/// IPv4 addresses as such, even if they were met on an IPv6 socket; a link-local address keeps its interface.
fn canonical(address: SocketAddr) -> SocketAddr {
    match address.ip().to_canonical() {
        IpAddr::V4(v4) => SocketAddr::from((v4, address.port())),
        IpAddr::V6(v6) => {
            let scope = if let SocketAddr::V6(address) = address { address.scope_id() } else { 0 };
            SocketAddrV6::new(v6, address.port(), 0, scope).into()
        }
    }
}

#[cfg(test)]
mod tests;
