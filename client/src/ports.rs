//! Which local port answers for which port of the workload.
//!
//! Owns the client's `LOCAL[:REMOTE]` list, which is the only thing that lets an agent reach a local port. It does not
//! connect anywhere.

use std::fmt;
use std::num::NonZeroU16;
use std::str::FromStr;

/// Why a text is no `LOCAL[:REMOTE]`.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ParsePortError {
    /// A part is no port number.
    #[error("{text:?} is not a port: give LOCAL or LOCAL:REMOTE, each from 1 to 65535")]
    Number {
        /// The part.
        text: String,
    },
}

/// Two local ports were named for one port of the workload.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("port {remote} of the workload is given twice (to local ports {first} and {second}): it can go to one only")]
pub struct RemoteTwice {
    /// The port of the workload.
    pub remote: NonZeroU16,
    /// The local port given first.
    pub first: NonZeroU16,
    /// The local port given later.
    pub second: NonZeroU16,
}

/// One pair of ports: what arrives for `remote` in the workload is answered by `local` here.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct PortForward {
    /// The port here.
    pub local: NonZeroU16,
    /// The port of the workload.
    pub remote: NonZeroU16,
}

/// All pairs of one tunnel; no remote port is in it twice.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Ports {
    forwards: Vec<PortForward>,
}

// === impl PortForward ===

impl FromStr for PortForward {
    type Err = ParsePortError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (local, remote) = text.split_once(':').unwrap_or((text, text));
        Ok(Self { local: port(local)?, remote: port(remote)? })
    }
}

impl fmt::Display for PortForward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.local, self.remote)
    }
}

// === impl Ports ===

impl Ports {
    /// Checks that no remote port is named twice.
    ///
    /// # Errors
    /// One is.
    pub fn new(forwards: impl IntoIterator<Item = PortForward>) -> Result<Self, RemoteTwice> {
        let mut ports = Self::default();
        for PortForward { local, remote } in forwards {
            if let Some(first) = ports.local(remote.get()) {
                return Err(RemoteTwice { remote, first, second: local });
            }
            ports.forwards.push(PortForward { local, remote });
        }
        Ok(ports)
    }

    /// The local port for a port of the workload, if the user named one.
    #[must_use]
    pub fn local(&self, remote: u16) -> Option<NonZeroU16> {
        self.forwards.iter().find(|forward| forward.remote.get() == remote).map(|forward| forward.local)
    }

    /// The pairs, in the order given.
    pub fn iter(&self) -> impl Iterator<Item = PortForward> {
        self.forwards.iter().copied()
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, forward) in self.forwards.iter().enumerate() {
            write!(f, "{}{forward}", if index == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

fn port(text: &str) -> Result<NonZeroU16, ParsePortError> {
    // `parse` takes a sign, people who type one meant something else.
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let number = if digits { text.parse().ok() } else { None };
    number.ok_or_else(|| ParsePortError::Number { text: text.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ports(texts: &[&str]) -> Result<Ports, RemoteTwice> {
        Ports::new(texts.iter().map(|text| text.parse().unwrap()))
    }

    #[test]
    fn a02_local_alone_stands_for_both() {
        let ports = ports(&["8080", "10121:50051"]).unwrap();
        assert_eq!(ports.local(8080).map(NonZeroU16::get), Some(8080));
        assert_eq!(ports.local(50051).map(NonZeroU16::get), Some(10121));
        assert_eq!(ports.local(10121), None, "a local port is no remote one");
        assert_eq!(ports.to_string(), "8080:8080, 10121:50051");
    }

    #[test]
    fn what_is_no_port_is_refused_and_named() {
        for (text, part) in [
            ("", ""),
            ("0", "0"),
            ("65536", "65536"),
            ("80:", ""),
            (":80", ""),
            ("+80", "+80"),
            ("80:90:100", "90:100"),
            ("http", "http"),
            (" 80", " 80"),
        ] {
            assert_eq!(text.parse::<PortForward>(), Err(ParsePortError::Number { text: part.to_owned() }), "{text:?}");
        }
        assert!("65535:1".parse::<PortForward>().is_ok());
    }

    #[test]
    fn one_remote_port_goes_to_one_local_port() {
        assert_eq!(
            ports(&["1:80", "2:81", "3:80"]).unwrap_err().to_string().split(':').next().unwrap(),
            "port 80 of the workload is given twice (to local ports 1 and 3)"
        );
        assert!(ports(&["1:80", "1:81"]).is_ok(), "one local port may serve several");
    }
}
