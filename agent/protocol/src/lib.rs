//! What Sluice's agent, client and controller say to each other, and how they know each other.
//!
//! Runs wherever those run, on any operating system Rust's standard library and tokio support: nothing in here is
//! specific to Linux, needs privileges, or touches a network namespace. It spawns no task of its own; everything is
//! driven by the caller's tokio runtime. It decides nothing about traffic: that is the agent.
//!
//! | Module | Owns |
//! |---|---|
//! | [`key`] | key pairs, their files, their hashes |
//! | [`tls`] | TLS 1.3 with raw public keys (RFC 7250), pinned on both ends |
//! | [`transport`] | QUIC's limits and timers |
//! | `congestion` | the least that may be under way, however bad the way is |
//! | [`way`] | the socket below QUIC: the seam for ways other than plain UDP |
//! | [`framed`] | QUIC's datagrams over a byte stream, for the way by port-forward |
//! | [`stream`] | the messages that open a stream |
//! | [`close`] | application close and reset codes |
//! | [`duplex`], [`join`] | two byte streams made one, with half close, reset and back-pressure |
//! | [`chain`] | errors as people read them |
//!
//! # On the wire
//!
//! The client dials the agent over QUIC with ALPN [`ALPN`]; both prove their key in the handshake. The agent opens one
//! bidirectional stream per diverted connection and writes an [`Open`](stream::Open); the client answers with a
//! [`Reply`](stream::Reply) and, if it accepts, relays bytes both ways until both ends have finished or one resets.
//!
//! # Compatibility contract
//!
//! Agents live as long as the pods they are in and developers update when they like, so both ends meet other versions.
//!
//! Safe edits, no version changes:
//! * a new optional field in `Open` or `Reply` (unknown fields are ignored, missing ones must have a default);
//! * a new [`Kind`](stream::Kind) (an older client reads it as `Unknown` and refuses that one stream);
//! * a new [`RefusedReason`](stream::RefusedReason) (an older agent reads it as `Other`; `detail` carries the words);
//! * a new close code (an older peer treats it like a lost connection);
//! * other windows, timers and limits, as each end announces its own.
//!
//! Breaking edits:
//! * another layout before the JSON body, or a changed meaning of a field: raise [`stream::VERSION`]; an agent must go
//!   on writing the old version to clients that do not know the new one;
//! * another way to authenticate, who opens streams, or what they carry: a new ALPN (`sluice/2`), offered and accepted
//!   beside the old one for at least one release, so that either end may be updated first;
//! * another hash or encoding of keys: a new prefix beside `sha256:`, since people keep these strings in rules.
//!
//! Whoever makes a breaking edit raises the number in the same commit and keeps a test that speaks the old form.

#![forbid(unsafe_code)]

pub mod chain;
pub mod close;
mod congestion;
pub mod control;
pub mod duplex;
pub mod framed;
pub mod join;
pub mod key;
pub mod rules;
pub mod stream;
pub mod tls;
pub mod transport;
pub mod way;

#[cfg(test)]
mod testing;

/// The protocol that both ends must name in the TLS handshake; the number is raised by breaking edits.
pub const ALPN: &[u8] = b"sluice/1";

/// UDP port on which an agent accepts clients.
pub const DEFAULT_TUNNEL_PORT: u16 = 17443;

/// TCP port, on loopback, on which an agent answers health checks and metrics.
pub const DEFAULT_ADMIN_PORT: u16 = 17090;
