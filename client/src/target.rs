//! Where things are: the agent, and the host whose local ports answer.
//!
//! Owns how these are written and looked up. Names are looked up each time, as a name may mean another address after a
//! restart of the pod or of the VPN. It does not connect.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;
use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;

use sluice_protocol::DEFAULT_TUNNEL_PORT;
use tokio::net::TcpStream;

/// How long a local port may take to answer.
const ANSWER_LIMIT: Duration = Duration::from_millis(500);

/// Why a text names no place.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ParseTargetError {
    /// The host is missing or has characters that no host has.
    #[error("{text:?} is not a host: give a name, an IPv4 address, or an IPv6 address (in brackets if a port follows)")]
    Host {
        /// The text.
        text: String,
    },
    /// The port is no number from 1 to 65535.
    #[error("{text:?} is not a port: give a number from 1 to 65535")]
    Port {
        /// The text behind the colon.
        text: String,
    },
}

#[derive(Clone, Debug, Eq, PartialEq)]
enum Host {
    Ip(IpAddr),
    Name(String),
}

/// An agent: `HOST`, `HOST:PORT`, `ADDRESS:PORT` or `[IPV6]:PORT`. The port defaults to [`DEFAULT_TUNNEL_PORT`].
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct AgentAddress {
    host: Host,
    port: u16,
}

/// The host whose ports answer: a name or an address. The default is this machine: 127.0.0.1 and, where nobody listens
/// there, ::1, as many a development server listens on one of the two only.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct LocalHost {
    host: Option<Host>,
}

// === impl Host ===

impl Host {
    fn parse(text: &str) -> Result<Self, ParseTargetError> {
        let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
        if let Ok(ip) = bare.parse() {
            return Ok(Self::Ip(ip));
        }
        let allowed = |c: char| c.is_alphanumeric() || matches!(c, '.' | '-' | '_');
        if text.is_empty() || !text.chars().all(allowed) {
            return Err(ParseTargetError::Host { text: text.to_owned() });
        }
        Ok(Self::Name(text.to_owned()))
    }

    async fn resolve(&self, port: u16) -> io::Result<Vec<SocketAddr>> {
        match self {
            Self::Ip(ip) => Ok(vec![SocketAddr::new(*ip, port)]),
            Self::Name(name) => Ok(tokio::net::lookup_host((name.as_str(), port)).await?.collect()),
        }
    }

    fn write(&self, f: &mut fmt::Formatter<'_>, port: u16) -> fmt::Result {
        match self {
            Self::Ip(ip) => write!(f, "{}", SocketAddr::new(*ip, port)),
            Self::Name(name) => write!(f, "{name}:{port}"),
        }
    }
}

// === impl AgentAddress ===

impl AgentAddress {
    /// The addresses that this stands for now, in the order in which they are to be tried.
    pub(crate) async fn resolve(&self) -> io::Result<Vec<SocketAddr>> {
        self.host.resolve(self.port).await
    }
}

impl From<SocketAddr> for AgentAddress {
    fn from(address: SocketAddr) -> Self {
        Self { host: Host::Ip(address.ip()), port: address.port() }
    }
}

impl FromStr for AgentAddress {
    type Err = ParseTargetError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (host, port) = match text.rsplit_once(':') {
            // More colons and no brackets: an IPv6 address without a port.
            Some((before, _)) if before.contains(':') && !text.starts_with('[') => (text, None),
            Some(_) if text.ends_with(']') => (text, None),
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        };
        let host = Host::parse(host).map_err(|_| ParseTargetError::Host { text: text.to_owned() })?;
        let port = match port {
            None => DEFAULT_TUNNEL_PORT,
            Some(digits) => match digits.parse() {
                Ok(port) if port != 0 => port,
                _ => return Err(ParseTargetError::Port { text: digits.to_owned() }),
            },
        };
        Ok(Self { host, port })
    }
}

impl fmt::Display for AgentAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.host.write(f, self.port)
    }
}

// === impl LocalHost ===

impl LocalHost {
    /// The addresses at which `port` may answer now, in the order in which they are to be tried.
    pub(crate) async fn resolve(&self, port: u16) -> io::Result<Vec<SocketAddr>> {
        match &self.host {
            Some(host) => host.resolve(port).await,
            None => Ok(vec![(Ipv4Addr::LOCALHOST, port).into(), (Ipv6Addr::LOCALHOST, port).into()]),
        }
    }

    /// Whether somebody listens on `port` now. Connects, and closes that at once.
    pub async fn answers(&self, port: u16) -> bool {
        let attempts = async {
            for address in self.resolve(port).await.unwrap_or_default() {
                if TcpStream::connect(address).await.is_ok_and(|stream| stream.local_addr().ok() != Some(address)) {
                    return true;
                }
            }
            false
        };
        tokio::time::timeout(ANSWER_LIMIT, attempts).await.unwrap_or(false)
    }

    /// How people write `port` on this host.
    #[must_use]
    pub fn address(&self, port: u16) -> String {
        self.name(port).to_string()
    }

    /// How people write `port` on this host.
    pub(crate) fn name(&self, port: u16) -> impl fmt::Display {
        fmt::from_fn(move |f| match &self.host {
            Some(host) => host.write(f, port),
            None => write!(f, "{}:{port}", Ipv4Addr::LOCALHOST),
        })
    }
}

impl From<IpAddr> for LocalHost {
    fn from(ip: IpAddr) -> Self {
        Self { host: Some(Host::Ip(ip)) }
    }
}

/// As it is written on the command line.
impl fmt::Display for LocalHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Some(Host::Ip(ip)) => ip.fmt(f),
            Some(Host::Name(name)) => f.write_str(name),
            None => Ipv4Addr::LOCALHOST.fmt(f),
        }
    }
}

impl FromStr for LocalHost {
    type Err = ParseTargetError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self { host: Some(Host::parse(text)?) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agent(text: &str) -> String {
        text.parse::<AgentAddress>().map_or_else(|error| error.to_string(), |address| address.to_string())
    }

    #[test]
    fn agents_are_written_in_many_ways() {
        assert_eq!(agent("10.1.0.2:5"), "10.1.0.2:5");
        assert_eq!(agent("10.1.0.2"), "10.1.0.2:17443");
        assert_eq!(agent("[fd00::2]:5"), "[fd00::2]:5");
        assert_eq!(agent("[fd00::2]"), "[fd00::2]:17443");
        assert_eq!(agent("fd00::2"), "[fd00::2]:17443");
        assert_eq!(agent("agent.demo_1.svc:5"), "agent.demo_1.svc:5");
        assert_eq!(agent("bücher"), "bücher:17443");
    }

    #[test]
    fn what_is_no_agent_is_refused_and_named() {
        for wrong in ["", ":5", "a b", "https://agent:5", "[fd00::2:5", "user@host", "host/path"] {
            assert_eq!(wrong.parse::<AgentAddress>(), Err(ParseTargetError::Host { text: wrong.to_owned() }));
        }
        for (wrong, port) in [("a:", ""), ("a:0", "0"), ("a:65536", "65536"), ("10.1.0.2:x", "x"), ("[::1]:x", "x")] {
            assert_eq!(wrong.parse::<AgentAddress>(), Err(ParseTargetError::Port { text: port.to_owned() }));
        }
    }

    #[tokio::test]
    async fn addresses_are_not_looked_up() {
        let local = |text: &str| text.parse::<LocalHost>().unwrap();
        assert_eq!(local("192.0.2.1").resolve(80).await.unwrap(), ["192.0.2.1:80".parse().unwrap()]);
        assert_eq!(local("[::1]").resolve(80).await.unwrap(), ["[::1]:80".parse().unwrap()]);
        assert_eq!(local("::1").name(80).to_string(), "[::1]:80");
        let default = LocalHost::default();
        assert_eq!(
            default.resolve(80).await.unwrap(),
            ["127.0.0.1:80".parse().unwrap(), "[::1]:80".parse::<SocketAddr>().unwrap()]
        );
        assert_eq!(default.name(80).to_string(), "127.0.0.1:80");
    }

    #[tokio::test]
    async fn names_are_looked_up() {
        let found = "localhost:5".parse::<AgentAddress>().unwrap().resolve().await.unwrap();
        assert!(found.iter().all(|address| address.ip().is_loopback() && address.port() == 5) && !found.is_empty());
    }
}
