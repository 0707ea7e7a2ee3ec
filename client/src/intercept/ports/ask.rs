//! How ports are written on the command line.

use std::fmt;
use std::num::NonZeroU16;
use std::str::FromStr;

/// Why a text is no `LOCAL[:REMOTE]`.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum ParseAskError {
    #[error(
        "{text:?} is not a port: give LOCAL or LOCAL:REMOTE; LOCAL is a number from 1 to 65535, REMOTE that or a name"
    )]
    Port { text: String },
    #[error("UDP cannot be intercepted yet")]
    Udp,
    #[error("{text:?} is not a protocol: only TCP can be intercepted")]
    Protocol { text: String },
}

/// A port of a Service or container.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Remote {
    Number(NonZeroU16),
    Name(String),
}

/// What the user typed behind `--port`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct PortAsk {
    pub(crate) local: NonZeroU16,
    pub(crate) remote: Remote,
}

// === impl Remote ===

impl Remote {
    /// Whether a port with this number and name is meant.
    pub(super) fn is(&self, number: i32, name: Option<&str>) -> bool {
        match self {
            Self::Number(wanted) => i32::from(wanted.get()) == number,
            Self::Name(wanted) => name == Some(wanted),
        }
    }
}

impl fmt::Display for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::Name(name) => f.write_str(name),
        }
    }
}

// === impl PortAsk ===

impl FromStr for PortAsk {
    type Err = ParseAskError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let ports = match text.rsplit_once('/') {
            Some((ports, protocol)) if protocol.eq_ignore_ascii_case("tcp") => ports,
            Some((_, protocol)) if protocol.eq_ignore_ascii_case("udp") => return Err(ParseAskError::Udp),
            Some((_, protocol)) => return Err(ParseAskError::Protocol { text: protocol.to_owned() }),
            None => text,
        };
        let wrong = |part: &str| ParseAskError::Port { text: part.to_owned() };
        let (local, remote) = ports.split_once(':').unwrap_or((ports, ports));
        let local = number(local).ok_or_else(|| wrong(local))?;
        let remote = match number(remote) {
            Some(remote) => Remote::Number(remote),
            None if is_name(remote) => Remote::Name(remote.to_owned()),
            None => return Err(wrong(remote)),
        };
        Ok(Self { local, remote })
    }
}

fn number(text: &str) -> Option<NonZeroU16> {
    // `parse` takes a sign; people who type one meant something else.
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if digits { text.parse().ok() } else { None }
}

/// As Kubernetes has it: at least one letter, so that no number is a name.
fn is_name(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    text.len() <= 63 && text.bytes().all(inner) && text.bytes().any(|byte| byte.is_ascii_lowercase())
}
