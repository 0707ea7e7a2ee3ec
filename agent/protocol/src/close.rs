//! Why a connection was closed or a stream was reset, as numbers on the wire.
//!
//! Owns the application error codes of `sluice/1`. Used by both ends. It does not close anything by itself.

use std::fmt;

use quinn::Connection;
use quinn::ConnectionError;
use quinn::VarInt;

/// Reset code: one of the two joined byte streams failed or was reset by its peer.
pub const STREAM_ABORTED: VarInt = VarInt::from_u32(1);

/// Why one end closes the connection.
///
/// 0 is left out on purpose: quinn sends it when the last handle is dropped, that is by a process that gave no reason.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[repr(u32)]
pub enum CloseCode {
    /// The client was stopped by its user.
    Stopped = 1,
    /// Another client with the same key connected and serves its intercepts now. The client must not reconnect: two
    /// would take turns for ever.
    Replaced = 2,
    /// No rule names the client's key any more. Trying again is right: a rule may come back.
    NotAllowed = 3,
    /// The agent is being stopped.
    AgentStopping = 4,
    /// The peer broke the protocol.
    Protocol = 5,
}

impl CloseCode {
    const ALL: [Self; 5] = [Self::Stopped, Self::Replaced, Self::NotAllowed, Self::AgentStopping, Self::Protocol];

    /// The number on the wire.
    #[must_use]
    pub const fn code(self) -> VarInt {
        VarInt::from_u32(self as u32)
    }

    /// The code that the peer closed with; `None` if the connection ended for another reason or with a code that this
    /// version does not know.
    #[must_use]
    pub fn of(error: &ConnectionError) -> Option<Self> {
        let ConnectionError::ApplicationClosed(close) = error else {
            return None;
        };
        Self::ALL.into_iter().find(|known| known.code() == close.error_code)
    }

    /// Closes `connection` with this code; the peer shows the text of [`fmt::Display`].
    ///
    /// The packet is sent by the endpoint's driver: wait for `Endpoint::wait_idle` before the process ends.
    pub fn close(self, connection: &Connection) {
        connection.close(self.code(), self.to_string().as_bytes());
    }
}

impl fmt::Display for CloseCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Stopped => "the client was stopped",
            Self::Replaced => "another client with the same key took over",
            Self::NotAllowed => "no rule names this key any more",
            Self::AgentStopping => "the agent is stopping",
            Self::Protocol => "the peer broke the protocol",
        })
    }
}
