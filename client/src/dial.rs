//! One attempt to connect to the agent.
//!
//! Owns name lookup, the order of addresses and ways, and the words for what went wrong. Runs inside the tunnel's task.
//! It does not try again: that is [`crate::tunnel`].

use std::io;
use std::net::Ipv4Addr;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use quinn::Connection;
use quinn::ConnectionError;
use quinn::Endpoint;
use sluice_protocol::key::Identity;
use sluice_protocol::key::KeyHash;
use sluice_protocol::tls;
use sluice_protocol::tls::Refusal;
use sluice_protocol::transport::IDLE_LIMIT;
use sluice_protocol::way;
use sluice_protocol::way::Direct;
use sluice_protocol::way::Way as _;
use sluice_protocol::way::WayError;

use crate::forward::Bridge;
use crate::forward::Forward;
use crate::forward::Ways;
use crate::target::AgentAddress;

/// How long looking up the name may take. Systems try several name servers for up to half a minute, which is silence to a
/// user; the next attempt asks again.
const RESOLVE_LIMIT: Duration = Duration::from_secs(5);

/// How long one of several addresses may take; a single one has until QUIC gives up by itself.
const ADDRESS_LIMIT: Duration = Duration::from_secs(2);

/// How long the first answer from an address may take when there is another way to the agent: a round trip between any
/// two places of the earth. Where pods cannot be reached every intercept waits for so long before the other way is tried.
const ANSWER_LIMIT: Duration = Duration::from_millis(250);

/// How long an attempt by port-forward may take: it goes through the API server and a node's kubelet.
const FORWARD_LIMIT: Duration = Duration::from_secs(4);

/// Name of the way by port-forward.
const PORT_FORWARD: &str = "port-forward";

/// Why an attempt to connect failed. All of these are tried again.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The name has no address now.
    #[error("cannot find the address of the agent {agent}: check --agent and your name server or VPN")]
    Resolve {
        /// The agent as the user named it.
        agent: AgentAddress,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The name exists and has no address.
    #[error("the name of the agent {agent} has no address: check --agent")]
    NoAddress {
        /// The agent as the user named it.
        agent: AgentAddress,
    },
    /// This machine gives no socket.
    #[error("cannot open a socket towards {address}")]
    Socket {
        /// The agent's address.
        address: SocketAddr,
        /// What went wrong.
        #[source]
        source: WayError,
    },
    /// This machine cannot send to that address at all.
    #[error("cannot dial {address}")]
    Dial {
        /// The agent's address.
        address: SocketAddr,
        /// What QUIC said.
        #[source]
        source: quinn::ConnectError,
    },
    /// Nothing came back.
    #[error("no answer from {address}: check that the agent runs and that UDP gets there")]
    Silent {
        /// The agent's address.
        address: SocketAddr,
    },
    /// Nothing came back, and there is no port-forward either.
    #[error("no answer from {address}, and no port-forward to the agent's pod")]
    Forward {
        /// The agent's address.
        address: SocketAddr,
        /// What went wrong with the port-forward.
        #[source]
        source: io::Error,
    },
    /// Nothing came back either way.
    #[error("no answer from {address}, neither directly nor by port-forward: check that the agent runs")]
    ForwardSilent {
        /// The agent's address.
        address: SocketAddr,
    },
    /// The agent does not admit this client's key.
    #[error("the agent at {address} does not admit this client: its rules need an intercept with keyHash \"{key}\"")]
    KeyRefused {
        /// The agent's address.
        address: SocketAddr,
        /// The hash of this client's key.
        key: KeyHash,
    },
    /// Whoever answers there is not the expected agent.
    #[error("the agent at {address} is not the one given by --agent-key: look its key hash up again")]
    OtherAgent {
        /// The agent's address.
        address: SocketAddr,
        /// Both keys.
        #[source]
        source: ConnectionError,
    },
    /// The two ends do not understand each other.
    #[error("the agent at {address} speaks another version of the protocol: update the older of the two")]
    Version {
        /// The agent's address.
        address: SocketAddr,
        /// What QUIC said.
        #[source]
        source: ConnectionError,
    },
    /// The handshake failed for another reason.
    #[error("cannot connect to the agent at {address}")]
    Handshake {
        /// The agent's address.
        address: SocketAddr,
        /// What QUIC said.
        #[source]
        source: ConnectionError,
    },
}

/// What it takes to dial.
#[derive(Debug)]
pub(crate) struct Dialer {
    pub(crate) agent: AgentAddress,
    pub(crate) identity: Identity,
    pub(crate) tls: quinn::ClientConfig,
    pub(crate) ways: Ways,
}

/// A connection that the agent has confirmed, on an endpoint of its own.
#[derive(Debug)]
pub(crate) struct Dialled {
    pub(crate) endpoint: Endpoint,
    pub(crate) connection: Connection,
    pub(crate) address: SocketAddr,
    pub(crate) way: &'static str,
    /// What carries the connection when it is not the network.
    pub(crate) bridge: Option<Bridge>,
}

impl Dialer {
    /// Tries the ways to the agent one after the other, first the one that worked last. Not at once: an agent takes the
    /// newest of several connections with one key and closes the others, so a race could be won by a connection that is
    /// gone.
    pub(crate) async fn dial(&self) -> Result<Dialled, DialError> {
        let addresses = self.addresses().await?;
        let forward = self.ways.forward().zip(addresses.first().copied());
        if let (true, Some((forward, address))) = (self.ways.is_forward_first(), forward) {
            match Box::pin(self.dial_forward(forward.clone(), address)).await {
                Ok(dialled) => return Ok(dialled),
                Err(error) if is_answer(&error) => return Err(error),
                Err(error) => note(address, &error),
            }
        }
        let direct = match Box::pin(self.dial_direct(addresses)).await {
            Ok(dialled) => {
                self.ways.worked(false);
                return Ok(dialled);
            }
            Err(error) => error,
        };
        match forward {
            Some((forward, address)) if !self.ways.is_forward_first() && !is_answer(&direct) => {
                let dialled = Box::pin(self.dial_forward(forward.clone(), address)).await?;
                self.ways.worked(true);
                Ok(dialled)
            }
            _ => Err(direct),
        }
    }

    async fn addresses(&self) -> Result<Vec<SocketAddr>, DialError> {
        let looked_up = tokio::time::timeout(RESOLVE_LIMIT, self.agent.resolve()).await;
        let looked_up = looked_up.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        let mut addresses = looked_up.map_err(|source| DialError::Resolve { agent: self.agent.clone(), source })?;
        addresses.dedup();
        Ok(addresses)
    }

    async fn dial_direct(&self, addresses: Vec<SocketAddr>) -> Result<Dialled, DialError> {
        let limit = if addresses.len() > 1 { ADDRESS_LIMIT } else { IDLE_LIMIT * 2 };
        let first_answer = self.ways.forward().map_or(limit, |_| ANSWER_LIMIT);
        let mut last = DialError::NoAddress { agent: self.agent.clone() };
        for address in addresses {
            let attempt = tokio::time::timeout(limit, Box::pin(self.dial_address(address, first_answer))).await;
            match attempt.unwrap_or(Err(DialError::Silent { address })) {
                Ok(dialled) => return Ok(dialled),
                Err(error) => {
                    note(address, &error);
                    last = error;
                }
            }
        }
        Err(last)
    }

    async fn dial_address(&self, address: SocketAddr, first_answer: Duration) -> Result<Dialled, DialError> {
        let way = Direct::towards(address);
        let endpoint =
            way::endpoint(&way, &self.identity, None).map_err(|source| DialError::Socket { address, source })?;
        let connection = self.handshake(&endpoint, address, address, first_answer).await?;
        Ok(Dialled { endpoint, connection, address, way: way.name(), bridge: None })
    }

    /// `address` is the agent's own, which is not dialled here: for people.
    async fn dial_forward(&self, forward: Arc<dyn Forward>, address: SocketAddr) -> Result<Dialled, DialError> {
        let failed = |source| DialError::Forward { address, source };
        let attempt = async {
            let stream = forward.open().await.map_err(failed)?;
            let way = Direct::new(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0));
            let endpoint =
                way::endpoint(&way, &self.identity, None).map_err(|source| DialError::Socket { address, source })?;
            let quic = endpoint.local_addr().map_err(failed)?;
            let (bridge, through) = Bridge::start(forward, stream, quic).await.map_err(failed)?;
            let connection = self.handshake(&endpoint, through, address, FORWARD_LIMIT).await?;
            Ok(Dialled { endpoint, connection, address, way: PORT_FORWARD, bridge: Some(bridge) })
        };
        match tokio::time::timeout(FORWARD_LIMIT, attempt).await {
            Ok(Err(DialError::Silent { .. })) | Err(_) => Err(DialError::ForwardSilent { address }),
            Ok(outcome) => outcome,
        }
    }

    /// Dials `through`, which is the agent's `address` or stands for it, until the agent has confirmed. Its first answer
    /// may take `first_answer`; a slow network may take longer for the rest.
    async fn handshake(
        &self,
        endpoint: &Endpoint,
        through: SocketAddr,
        address: SocketAddr,
        first_answer: Duration,
    ) -> Result<Connection, DialError> {
        let mut connecting = endpoint
            .connect_with(self.tls.clone(), through, tls::SERVER_NAME)
            .map_err(|source| DialError::Dial { address, source })?;
        let failed = |source| self.explain(address, source);
        match tokio::time::timeout(first_answer, connecting.handshake_data()).await {
            // What went wrong is said by the connection itself.
            Ok(Ok(_) | Err(_)) => {}
            Err(_) => return Err(DialError::Silent { address }),
        }
        let connection = connecting.await.map_err(failed)?;
        tls::confirmed(&connection).await.map_err(failed)?;
        Ok(connection)
    }

    fn explain(&self, address: SocketAddr, source: ConnectionError) -> DialError {
        match Refusal::of(&source) {
            Some(Refusal::OurKey) => DialError::KeyRefused { address, key: self.identity.hash() },
            Some(Refusal::PeerKey | Refusal::Unproven) => DialError::OtherAgent { address, source },
            Some(Refusal::Version) => DialError::Version { address, source },
            Some(Refusal::NoKey) => DialError::Handshake { address, source },
            None if source == ConnectionError::TimedOut => DialError::Silent { address },
            None => DialError::Handshake { address, source },
        }
    }
}

/// Whether the agent itself has spoken: another way leads to the same answer.
fn is_answer(error: &DialError) -> bool {
    matches!(error, DialError::KeyRefused { .. } | DialError::Version { .. })
}

fn note(address: SocketAddr, error: &DialError) {
    tracing::debug!(%address, error = error as &dyn std::error::Error, "not connected");
}
