//! The client side of the tunnel: on a developer's machine, as an ordinary user, on any operating system.
//!
//! [`Tunnel`] dials an agent, keeps the connection up, and relays the connections that the agent sends through it to
//! local ports. Which local ports may be reached is the user's word alone ([`Ports`]): an agent names ports of its
//! workload, never addresses here.
//!
//! The library logs with `tracing` and leaves it to the program to show that; it installs no signal handlers and reads
//! no environment. The command `sluice` is a thin layer over it.

#![forbid(unsafe_code)]

mod backoff;
mod copying;
mod dial;
mod forward;
mod ports;
mod relay;
mod target;
mod tunnel;

pub use dial::DialError;
pub use forward::ByteStream;
pub use forward::Forward;
pub use forward::Opening;
pub use forward::Ways;
pub use ports::ParsePortError;
pub use ports::PortForward;
pub use ports::Ports;
pub use ports::RemoteTwice;
pub use sluice_protocol::key::Identity;
pub use sluice_protocol::key::KeyError;
pub use sluice_protocol::key::KeyHash;
pub use target::AgentAddress;
pub use target::LocalHost;
pub use target::ParseTargetError;
pub use tunnel::Config;
pub use tunnel::Lost;
pub use tunnel::StartError;
pub use tunnel::State;
pub use tunnel::TakenOver;
pub use tunnel::Tunnel;
