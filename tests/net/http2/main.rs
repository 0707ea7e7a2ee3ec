//! HTTP/2: requests of one connection go different ways, whoever speaks first and however the connection began.
//!
//! Every test here needs root and is ignored without; `cargo xtask test` runs them. A file for each theme.

mod calls;
mod connections;
mod ends;
mod extended_connect;
mod limits;

use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr},
    time::Duration,
};

/// Long enough for anything that happens at once, on a busy machine.
const SOON: Duration = Duration::from_secs(10);

/// The port of the app.
const PORT: u16 = 8080;

/// Where an app listens that can be reached by every address of its host.
const fn any(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port)
}
