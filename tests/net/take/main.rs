//! Taking traffic: what is asked for reaches the laptop, everything else reaches the app, and both as if nobody stood
//! in between.
//!
//! Every test here needs root and is ignored without; `cargo xtask test` runs them. A file for each theme.

mod before;
mod bulk;
mod closed;
mod ends;
mod ipv6;
mod listening;
mod many;
mod ports;
mod unavailable;

use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use anyhow::{Context as _, Result};
use sluice_tests::{
    Host,
    peers::http1::{Http1Caller, Response},
};

/// Long enough for anything that happens at once, on a busy machine.
const SOON: Duration = Duration::from_secs(10);

/// Where an app listens that can be reached by every address of its host.
const fn any(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port)
}

/// A request over a connection of its own.
async fn get(from: &Host, to: SocketAddr, header: (&str, &str)) -> Result<Response> {
    let mut caller = Http1Caller::connect(from, to).await?;
    caller.get("/", &[header]).await.with_context(|| format!("request to {to} with {header:?}"))
}

/// Who answers such a request.
async fn asked(from: &Host, to: SocketAddr, header: (&str, &str)) -> Result<String> {
    let response = get(from, to, header).await?;
    Ok(response.answered_by().map_or_else(|| format!("nobody: {}", response.status), str::to_owned))
}
