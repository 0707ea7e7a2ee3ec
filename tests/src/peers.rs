//! Those who talk in the tests: apps that say who they are and remember what they got, and callers.
//!
//! They run on the test's own runtime; only their sockets are inside a host. All of them are exact: what went over the
//! wire is what they report, byte for byte where the protocol is a stream of bytes.

mod framing;
pub mod grpc;
pub mod http1;
pub mod http2;
pub mod pattern;
pub mod raw;

/// The header, trailer or metadata entry in which an app says who it is.
pub const ANSWERED_BY: &str = "x-answered-by";
