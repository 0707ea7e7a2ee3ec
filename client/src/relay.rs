//! One stream of the agent: to which local port it goes and what becomes of it.
//!
//! Owns everything between "the agent opened a stream" and "both ends are done". Runs in a task per stream. It does not
//! look into the bytes and never goes to a port that the user did not name.

use std::collections::BTreeSet;
use std::error::Error;
use std::fmt;
use std::io;
use std::num::NonZeroU16;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use sluice_protocol::chain::Chain;
use sluice_protocol::duplex::QuicDuplex;
use sluice_protocol::join::Ending;
use sluice_protocol::join::join;
use sluice_protocol::stream::Kind;
use sluice_protocol::stream::Open;
use sluice_protocol::stream::RefusedReason;
use sluice_protocol::stream::Reply;
use sluice_protocol::stream::read_open;
use sluice_protocol::stream::write_reply;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use crate::copying;
use crate::ports::Ports;
use crate::target::LocalHost;

/// How long the agent may take to say what a stream is for. It does so in the packet that opens it.
const OPEN_LIMIT: Duration = Duration::from_secs(5);

/// How long a local connect may take. The agent gives up after 1 s; an answer must be on its way before.
const CONNECT_LIMIT: Duration = Duration::from_millis(900);

/// Where streams may go.
#[derive(Debug)]
pub(crate) struct Relay {
    host: LocalHost,
    ports: Ports,
    /// Local ports whose absence was told to the user already: once each time it begins, not once per request.
    missing: Mutex<BTreeSet<NonZeroU16>>,
}

/// Why a stream is not relayed.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("the client does not know this kind of stream: update it")]
    Kind,
    #[error("no local port is named for port {remote}; named are (local:remote) {ports}")]
    Port { remote: u16, ports: Ports },
    #[error("nobody listens on {address}")]
    NobodyListens { address: String },
    #[error("{address} does not answer within {} ms", CONNECT_LIMIT.as_millis())]
    TimedOut { address: String },
    #[error("cannot connect to {address}")]
    Connect {
        address: String,
        #[source]
        source: io::Error,
    },
}

impl Relay {
    pub(crate) fn new(host: LocalHost, ports: Ports) -> Self {
        Self { host, ports, missing: Mutex::default() }
    }

    /// Serves one stream to its end.
    pub(crate) async fn serve(&self, mut stream: QuicDuplex) {
        let open = match tokio::time::timeout(OPEN_LIMIT, read_open(&mut stream)).await {
            Ok(Ok(open)) => open,
            Ok(Err(error)) => {
                tracing::warn!(error = &error as &dyn Error, "the agent opened a stream that cannot be understood");
                return refuse(stream, RefusedReason::Malformed, &error).await;
            }
            // Dropping the stream resets it, which is all there is to say to a silent agent.
            Err(_) => return tracing::warn!("the agent opened a stream and did not say what for"),
        };
        match self.connect(&open).await {
            Ok(local) if open.copy => copy(stream, local, &open).await,
            Ok(local) => relay(stream, local, &open).await,
            Err(refused) => {
                self.tell(&open, &refused);
                refuse(stream, refused.reason(), &refused).await;
            }
        }
    }

    async fn connect(&self, open: &Open) -> Result<TcpStream, Refused> {
        if open.kind == Kind::Unknown {
            return Err(Refused::Kind);
        }
        let unknown = || Refused::Port { remote: open.port, ports: self.ports.clone() };
        let port = self.ports.local(open.port).ok_or_else(unknown)?;
        let address = || self.host.name(port.get()).to_string();
        let local = match tokio::time::timeout(CONNECT_LIMIT, self.connect_port(port)).await {
            Ok(Ok(local)) => local,
            Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => {
                return Err(Refused::NobodyListens { address: address() });
            }
            Ok(Err(source)) => return Err(Refused::Connect { address: address(), source }),
            Err(_) => return Err(Refused::TimedOut { address: address() }),
        };
        self.missing.lock().unwrap_or_else(PoisonError::into_inner).remove(&port);
        Ok(local)
    }

    async fn connect_port(&self, port: NonZeroU16) -> io::Result<TcpStream> {
        let mut first_error = None;
        for address in self.host.resolve(port.get()).await? {
            let connected = TcpStream::connect(address).await.and_then(|local| {
                // A port in the ephemeral range that nobody listens on may be connected to itself.
                if local.local_addr()? == address {
                    return Err(io::ErrorKind::ConnectionRefused.into());
                }
                local.set_nodelay(true)?;
                Ok(local)
            });
            match connected {
                Ok(local) => return Ok(local),
                // The first address is the one that the user is told about.
                Err(error) => _ = first_error.get_or_insert(error),
            }
        }
        Err(first_error.unwrap_or_else(|| io::ErrorKind::AddrNotAvailable.into()))
    }

    fn tell(&self, open: &Open, refused: &Refused) {
        let new = match refused {
            Refused::Kind | Refused::Port { .. } => false,
            Refused::NobodyListens { .. } | Refused::TimedOut { .. } | Refused::Connect { .. } => {
                let mut missing = self.missing.lock().unwrap_or_else(PoisonError::into_inner);
                self.ports.local(open.port).is_some_and(|port| missing.insert(port))
            }
        };
        if new {
            tracing::warn!("{}: requests get the answer that the intercept provides for", Chain(refused));
        }
        tracing::debug!(intercept = open.intercept, peer = %open.peer, reason = %Chain(refused), "refused a connection");
    }
}

impl Refused {
    fn reason(&self) -> RefusedReason {
        match self {
            Self::Kind => RefusedReason::UnknownKind,
            Self::Port { .. } => RefusedReason::UnknownPort,
            Self::NobodyListens { .. } => RefusedReason::NobodyListens,
            Self::TimedOut { .. } => RefusedReason::TimedOut,
            Self::Connect { .. } => RefusedReason::Other,
        }
    }
}

async fn relay(mut stream: QuicDuplex, mut local: TcpStream, open: &Open) {
    if let Err(error) = write_reply(&mut stream, &Reply::Accepted).await {
        return tracing::debug!(reason = %Chain(&error), "the agent gave up before the local port answered");
    }
    let outcome = join(&mut stream, &mut local).await;
    let ended: &dyn fmt::Display = match &outcome.ending {
        Ending::Finished => &"finished",
        Ending::Broken { error, .. } => error,
    };
    tracing::debug!(
        intercept = open.intercept,
        peer = %open.peer,
        port = open.port,
        received = outcome.a_to_b,
        sent = outcome.b_to_a,
        %ended,
        "relayed a connection"
    );
}

/// Gives the local process a copy. What it answers goes nowhere.
async fn copy(mut stream: QuicDuplex, mut local: TcpStream, open: &Open) {
    if let Err(error) = write_reply(&mut stream, &Reply::Accepted).await {
        return tracing::debug!(reason = %Chain(&error), "the agent gave up before the local port answered");
    }
    let outcome = copying::copy(&mut stream, &mut local, open.kind).await;
    stream.finish();
    let ended: &dyn fmt::Display = match &outcome {
        Ok(()) => &"finished",
        Err(error) => error,
    };
    tracing::debug!(intercept = open.intercept, peer = %open.peer, port = open.port, %ended, "relayed a copy");
}

async fn refuse(mut stream: QuicDuplex, reason: RefusedReason, error: &(dyn Error + Sync)) {
    let reply = Reply::Refused { reason, detail: Chain(error).to_string() };
    let sent = async {
        write_reply(&mut stream, &reply).await?;
        stream.shutdown().await.map_err(sluice_protocol::stream::WriteMessageError::Write)
    };
    if let Err(error) = sent.await {
        tracing::debug!(reason = %Chain(&error), "the agent gave up before it was refused");
    }
}
