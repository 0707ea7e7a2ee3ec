//! Sluice's data plane inside a pod: takes the connections that the kernel steers to it, decides per connection or per
//! request, and passes them to the app or through the tunnel to a developer's machine.
//!
//! One process, one thread, in the pod's network namespace. A connection comes in through [`kernel`] and is served by
//! `connection`, which hands it to `http1`, `http2` or a plain join; [`dialer`] reaches the app, [`hub`] the clients; [`wiretap`] copies.
//! It has no Kubernetes rights
//! and talks to no API: in a pod, [`control`] gets the rules from Sluice's controller.

pub mod admin;
pub mod app;
pub mod config;
pub mod connection;
pub mod control;
pub mod dialer;
mod existing;
pub mod forwarded;
pub mod gateway;
pub mod http1;
mod http2;
pub mod hub;
pub mod insertion;
pub mod kernel;
mod limits;
pub mod metrics;
mod netlink;
pub mod rules_file;
mod socket;
pub mod supervise;
mod ways;
pub mod wiretap;
