//! HTTP/1.0 and 1.1 as original bytes: found, framed and decided, never written anew.
//!
//! Owns the grammar (`scan`, [`head`], [`body`]), where messages begin and end (`requests`, `track`) and the relay of one
//! connection (`relay`, `divert`). Runs in the agent's one thread, one task per connection. It does not repair, normalise
//! or guess: what cannot be framed beyond doubt goes to the app as raw bytes for the rest of the connection, with its
//! reason ([`Doubt`]) counted.

pub mod body;
mod divert;
pub mod framing;
pub mod head;
mod relay;
mod requests;
mod scan;
mod track;

pub(crate) use relay::{poll_flush, serve};

/// Why a connection is no longer read as HTTP/1 but passed on as bytes.
///
/// The names are the values of the metric's label `reason`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Doubt {
    /// The first bytes are no HTTP request (binary, TLS, HTTP/0.9, another text protocol).
    NotHttp,
    /// The app spoke unasked: a protocol in which the server greets, or an answer nobody waits for.
    AppFirst,
    /// A head of more than [`head::MAX_HEAD`] bytes or [`head::MAX_HEADERS`] headers.
    TooLarge,
    /// A later head that breaks the grammar: bare LF, folded line, blank before a colon, control characters.
    Grammar,
    /// `Content-Length` twice, not a number, or together with `Transfer-Encoding` (RFC 9112 §6.3: request smuggling).
    Length,
    /// A `Transfer-Encoding` other than exactly `chunked`, or one in HTTP/1.0.
    Coding,
    /// A chunked body that breaks the grammar.
    Chunk,
    /// `CONNECT`: what follows is a tunnel.
    Connect,
    /// The connection was upgraded, by the app's own answer.
    Upgraded,
    /// An answer whose head or framing is beyond us.
    Response,
    /// The caller closed in the middle of a head.
    Truncated,
    /// Bytes behind a request or an answer that ends the connection (RFC 9112 §9.6).
    Closing,
}

// === impl Doubt ===

impl Doubt {
    /// All of them, for metrics.
    pub const ALL: [Self; 12] = [
        Self::NotHttp,
        Self::AppFirst,
        Self::TooLarge,
        Self::Grammar,
        Self::Length,
        Self::Coding,
        Self::Chunk,
        Self::Connect,
        Self::Upgraded,
        Self::Response,
        Self::Truncated,
        Self::Closing,
    ];

    /// Its name in the metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::NotHttp => "not_http",
            Self::AppFirst => "app_first",
            Self::TooLarge => "too_large",
            Self::Grammar => "grammar",
            Self::Length => "length",
            Self::Coding => "coding",
            Self::Chunk => "chunk",
            Self::Connect => "connect",
            Self::Upgraded => "upgraded",
            Self::Response => "response",
            Self::Truncated => "truncated",
            Self::Closing => "closing",
        }
    }
}
