//! When things break: a client, a cable, an agent, a rule in the middle of the traffic, somebody with the wrong key.
//!
//! Every test here needs root and is ignored without; `cargo xtask test` runs them. A file for each theme.

mod agent_gone;
mod client_gone;
mod keys;
mod load;
mod rules_change;
mod under_way;
mod weather;

use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use anyhow::Result;
use sluice_tests::{Host, peers::http1::Http1Caller};

/// Long enough for anything that happens at once, on a busy machine.
const SOON: Duration = Duration::from_secs(10);

/// The port of the app.
const PORT: u16 = 8080;

/// Where an app listens that can be reached by every address of its host.
const fn any(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port)
}

/// Who answers a request over a connection of its own: the name of an app, or the status where it was none.
async fn asked(from: &Host, to: SocketAddr, header: (&str, &str)) -> Result<String> {
    let response = Http1Caller::connect(from, to).await?.get("/", &[header]).await?;
    Ok(response.answered_by().map_or_else(|| response.status.to_string(), str::to_owned))
}
