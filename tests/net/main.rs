//! The ring of network namespaces: real programs in the kernel, real agents and clients.
//!
//! Every test here needs root and is ignored without; `cargo xtask test` runs them. A file for each theme.

mod demo;
mod guard;
mod harness;
mod links;
mod peers;
mod services;
