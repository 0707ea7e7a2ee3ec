//! QUIC's limits and timers, the same on every way through.
//!
//! Owns the numbers and why they are so. Runs at endpoint creation only. It does not choose packet sizes: quinn's
//! defaults hold.

use std::sync::Arc;
use std::time::Duration;

use quinn::IdleTimeout;
use quinn::TransportConfig;
use quinn::VarInt;

use crate::congestion::FlooredConfig;

/// Both ends send something at least this often.
pub const KEEP_ALIVE: Duration = Duration::from_secs(1);

/// Silence after which a peer counts as gone, in milliseconds.
///
/// A dead laptop must be noticed within 6 s. The timer restarts not only when a packet arrives but also when the first
/// ack-eliciting packet after the last arrival is sent (RFC 9000, 10.1), which the keep-alive does at the latest
/// [`KEEP_ALIVE`] after the peer fell silent: 1 s + 4.5 s. On a path whose probe timeout is long, quinn waits for three
/// of those at least, as the RFC demands.
const IDLE_LIMIT_MS: u32 = 4_500;

/// A connection from which nothing has come for so long is over.
pub const IDLE_LIMIT: Duration = Duration::from_millis(IDLE_LIMIT_MS as u64);

/// Streams that an agent may have open to one client at a time: one for each connection that is being diverted.
pub const MAX_STREAMS: u32 = 4_096;

/// Bytes of one stream that an agent takes from a client before the caller has read them. Also the agent's memory per
/// stream whose caller does not read, so smaller than the client's: the agent lives in somebody's memory limit.
const AGENT_STREAM_WINDOW: u32 = 512 << 10;

/// Bytes of one stream that a client takes from an agent before the local process has read them.
const CLIENT_STREAM_WINDOW: u32 = 1 << 20;

pub(crate) fn agent() -> TransportConfig {
    let mut transport = common(AGENT_STREAM_WINDOW);
    transport.max_concurrent_bidi_streams(VarInt::from_u32(0)); // only the agent opens streams
    transport
}

pub(crate) fn client() -> TransportConfig {
    let mut transport = common(CLIENT_STREAM_WINDOW);
    transport.max_concurrent_bidi_streams(VarInt::from_u32(MAX_STREAMS));
    transport
}

fn common(stream_window: u32) -> TransportConfig {
    let mut transport = TransportConfig::default();
    transport
        .keep_alive_interval(Some(KEEP_ALIVE))
        .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(IDLE_LIMIT_MS))))
        .congestion_controller_factory(Arc::new(FlooredConfig::default()))
        .stream_receive_window(VarInt::from_u32(stream_window))
        // Unlimited: one stream whose reader sits at a breakpoint must not use up the room of all the others. Memory is
        // bounded by the window of each stream.
        .receive_window(VarInt::MAX)
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(None);
    transport
}
