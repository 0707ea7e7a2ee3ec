//! The way by port-forward: QUIC's datagrams over byte streams that somebody else opens.
//!
//! Owns the UDP socket on loopback that QUIC sends to in place of the agent, and the task that bridges it to a stream and
//! to the next stream when that one breaks: QUIC takes the new one for a new address of this client and goes on. It does
//! not know how streams are opened ([`Forward`]) and does not dial.

use std::fmt;
use std::future::Future;
use std::io;
use std::net::Ipv4Addr;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;

use sluice_protocol::framed;
use tokio::io::AsyncRead;
use tokio::io::AsyncWrite;
use tokio::net::UdpSocket;
use tokio::task::JoinHandle;

/// Pause before the next stream is opened after one broke: the connection is given up after
/// [`sluice_protocol::transport::IDLE_LIMIT`], so there is time for some attempts.
const REOPEN_PAUSE: Duration = Duration::from_millis(250);

/// A byte stream in both directions.
pub trait ByteStream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> ByteStream for T {}

/// What [`Forward::open`] returns.
pub type Opening = Pin<Box<dyn Future<Output = io::Result<Box<dyn ByteStream>>> + Send>>;

/// Opens byte streams to where an agent takes framed datagrams ([`sluice_protocol::framed`]).
pub trait Forward: fmt::Debug + Send + Sync {
    /// A new stream.
    fn open(&self) -> Opening;
}

/// The ways to an agent beside its address.
#[derive(Clone, Debug, Default)]
pub struct Ways {
    forward: Option<Arc<dyn Forward>>,
    forward_first: Arc<AtomicBool>,
}

/// A bridge that is up: ends when dropped.
#[derive(Debug)]
pub(crate) struct Bridge {
    task: JoinHandle<()>,
}

// === impl Ways ===

impl Ways {
    /// The same with this one. What is known of which way works is shared with the original: where one pod's address
    /// cannot be reached, others' cannot either.
    #[must_use]
    pub fn with_forward(&self, forward: Arc<dyn Forward>) -> Self {
        Self { forward: Some(forward), forward_first: self.forward_first.clone() }
    }

    pub(crate) fn forward(&self) -> Option<&Arc<dyn Forward>> {
        self.forward.as_ref()
    }

    pub(crate) fn is_forward_first(&self) -> bool {
        self.forward_first.load(Ordering::Relaxed)
    }

    pub(crate) fn worked(&self, by_forward: bool) {
        self.forward_first.store(by_forward, Ordering::Relaxed);
    }
}

// === impl Bridge ===

impl Bridge {
    /// Bridges datagrams from `quic`, an endpoint on loopback, to `stream` and those after it. Returns the address to
    /// dial.
    pub(crate) async fn start(
        forward: Arc<dyn Forward>,
        stream: Box<dyn ByteStream>,
        quic: SocketAddr,
    ) -> io::Result<(Self, SocketAddr)> {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        // Only from there: another process of this machine cannot put anything in.
        socket.connect(quic).await?;
        let address = socket.local_addr()?;
        Ok((Self { task: tokio::spawn(keep(forward, stream, socket)) }, address))
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn keep(forward: Arc<dyn Forward>, mut stream: Box<dyn ByteStream>, socket: UdpSocket) {
    loop {
        match framed::bridge(stream, &socket).await {
            Ok(()) => tracing::debug!("a port-forward ended"),
            Err(error) => tracing::debug!(error = &error as &dyn std::error::Error, "a port-forward broke"),
        }
        stream = loop {
            tokio::time::sleep(REOPEN_PAUSE).await;
            match forward.open().await {
                Ok(stream) => break stream,
                Err(error) => tracing::debug!(%error, "cannot port-forward"),
            }
        };
    }
}
