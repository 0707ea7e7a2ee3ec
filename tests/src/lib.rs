//! The test rings' laboratory: real programs on real kernel networking, on one machine and without containers.
//!
//! A [`Lab`] is a set of hosts, each of them a network namespace, joined by [`Link`]s that can be cut, made lossy or slow.
//! Programs run inside hosts as ordinary processes; test code talks from inside any host through [`Host::connect`] and
//! [`Host::listen`], on one runtime. [`Lab::finish`] proves that nothing is left behind.
//!
//! Everything here needs root, `ip` (iproute2), `nft` (nftables), `setpriv` (util-linux) and `bpftool`;
//! `cargo xtask test` sees to these.
//!
//! Not in here: any expectation about Sluice itself. Those stand in `tests/net`, one file for each theme.

#![forbid(unsafe_code)]

mod agent;
mod client;
mod command;
mod eventually;
mod guard;
mod host;
mod lab;
mod leftovers;
mod link;
mod process;
mod run_id;

pub mod bench;
pub mod binaries;
pub mod cluster;
pub mod demo;
pub mod flows;
pub mod image;
pub mod peers;
pub mod product;
pub mod random;
pub mod signals;
pub mod soak;
pub mod stage;

pub use agent::{Agent, AgentBuilder, InsertionStatus, Status};
pub use client::{Client, ClientKey};
pub use eventually::{Outcome, eventually};
pub use guard::BpfObjects;
pub use host::{Host, HostBuilder, Running};
pub use lab::Lab;
pub use link::{
    Link,
    shape::{Direction, Shape, ShapeOrder},
};
pub use process::Process;
