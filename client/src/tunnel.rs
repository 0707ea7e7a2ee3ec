//! The tunnel: one connection to one agent, kept up until it is stopped.
//!
//! Owns the task that dials, serves and dials again, and what callers see of it. Runs in the caller's tokio runtime,
//! one task plus one per stream, all of which end with the [`Tunnel`]. It does not choose the agent and knows nothing of
//! Kubernetes.

use std::error::Error;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use quinn::ConnectionError;
use sluice_protocol::chain::Chain;
use sluice_protocol::close::CloseCode;
use sluice_protocol::duplex::QuicDuplex;
use sluice_protocol::key::Identity;
use sluice_protocol::key::KeyHash;
use sluice_protocol::tls;
use sluice_protocol::tls::TlsError;
use sluice_protocol::transport::IDLE_LIMIT;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::backoff::Backoff;
use crate::dial::DialError;
use crate::dial::Dialer;
use crate::dial::Dialled;
use crate::forward::Ways;
use crate::ports::Ports;
use crate::relay::Relay;
use crate::target::AgentAddress;
use crate::target::LocalHost;

/// How long telling the agent goodbye may take.
const STOP_LIMIT: Duration = Duration::from_secs(1);

/// Why no tunnel can be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The cryptographic library cannot do what is needed.
    #[error("cannot prepare TLS")]
    Tls(#[source] TlsError),
}

/// Another client with the same key connected to the agent: it serves the intercepts now.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error(
    "another client with the same key took over at {address}: stop that one first, or give this one a key of its own \
     with --key-file"
)]
pub struct TakenOver {
    /// The agent's address.
    pub address: SocketAddr,
}

/// Why a connection that was up is no more.
#[derive(Clone, Debug)]
pub enum Lost {
    /// The agent closed it and said why.
    Closed(CloseCode),
    /// The agent closed it because no rule names this client's key any more.
    NotAllowed {
        /// The hash of this client's key.
        key: KeyHash,
    },
    /// It broke.
    Broken(ConnectionError),
}

/// What a tunnel does now.
#[derive(Clone, Debug)]
pub enum State {
    /// It dials.
    Connecting,
    /// The agent has taken this client: connections may arrive.
    Connected {
        /// The agent's address.
        address: SocketAddr,
        /// The way there: `direct` or `port-forward`.
        way: &'static str,
    },
    /// The last attempt failed; the next one follows shortly.
    Failed(Arc<DialError>),
    /// The connection was lost; the next attempt follows shortly.
    Lost(Lost),
    /// It was stopped.
    Stopped,
    /// It gave up.
    TakenOver(TakenOver),
}

/// What a tunnel needs to know.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where the agent is.
    pub agent: AgentAddress,
    /// The agent's key: nobody else is talked to.
    pub agent_key: KeyHash,
    /// This client's key.
    pub identity: Identity,
    /// Which local ports answer for which ports of the workload.
    pub ports: Ports,
    /// The host on which they are.
    pub to: LocalHost,
    /// Other ways to the agent than its address.
    pub ways: Ways,
}

/// A tunnel that is kept up. Dropping it stops it too, without waiting for that.
#[derive(Debug)]
pub struct Tunnel {
    state: watch::Receiver<State>,
    stop: CancellationToken,
    task: JoinHandle<Result<(), TakenOver>>,
}

// === impl Tunnel ===

impl Tunnel {
    /// Starts dialling in the background.
    ///
    /// # Errors
    /// The key cannot be used. A missing agent is no error here: it may come.
    pub fn start(config: Config) -> Result<Self, StartError> {
        let tls = tls::client_config(&config.identity, config.agent_key).map_err(StartError::Tls)?;
        // worker --state--> whoever watches; only the latest value counts
        let (state_tx, state_rx) = watch::channel(State::Connecting);
        let stop = CancellationToken::new();
        let worker = Worker {
            dialer: Dialer { agent: config.agent, identity: config.identity, tls, ways: config.ways },
            relay: Arc::new(Relay::new(config.to, config.ports)),
            state: state_tx,
            stop: stop.clone(),
            streams: TaskTracker::new(),
            abort_streams: CancellationToken::new(),
        };
        Ok(Self { state: state_rx, stop, task: tokio::spawn(worker.run()) })
    }

    /// The state now and its changes.
    #[must_use]
    pub fn state(&self) -> watch::Receiver<State> {
        self.state.clone()
    }

    /// Waits until the tunnel ends by itself. Cancel safe.
    pub async fn ended(&mut self) -> TakenOver {
        let ended = self.state.wait_for(|state| matches!(state, State::TakenOver(_))).await;
        if let Ok(State::TakenOver(error)) = ended.as_deref() {
            return *error;
        }
        // The worker is gone and did not say so: it panicked, which must not look like a tunnel that works.
        match (&mut self.task).await {
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            _ => std::future::pending().await,
        }
    }

    /// Closes the connection so that the agent notices at once, and ends everything. Takes about a second at most.
    ///
    /// # Errors
    /// The tunnel had ended before.
    pub async fn stop(mut self) -> Result<(), TakenOver> {
        self.stop.cancel();
        // A panic in the worker was printed already; there is nothing left to stop then.
        (&mut self.task).await.unwrap_or(Ok(()))
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        // The worker sees it, says goodbye to the agent and ends with all its streams.
        self.stop.cancel();
    }
}

struct Worker {
    dialer: Dialer,
    relay: Arc<Relay>,
    state: watch::Sender<State>,
    /// Ends dialling and serving.
    stop: CancellationToken,
    streams: TaskTracker,
    /// Ends the streams; cancelled after the connection was closed, so that the agent learns the reason first.
    abort_streams: CancellationToken,
}

/// Streams end with the worker, even if its task is dropped in the middle by a runtime that shuts down.
impl Drop for Worker {
    fn drop(&mut self) {
        self.abort_streams.cancel();
    }
}

impl Worker {
    async fn run(self) -> Result<(), TakenOver> {
        let stop = self.stop.clone();
        let mut backoff = Backoff::new();
        let mut said = String::new();
        let end = loop {
            self.state.send_replace(State::Connecting);
            let dialled = tokio::select! {
                biased;
                () = stop.cancelled() => break Ok(()),
                // Dropped half-way: the agent sees an incomplete handshake.
                dialled = self.dialer.dial() => dialled,
            };
            match dialled {
                Ok(dialled) => {
                    backoff.reset();
                    said.clear();
                    match self.serve(&dialled).await {
                        Some(Lost::Closed(CloseCode::Replaced)) => {
                            break Err(TakenOver { address: dialled.address });
                        }
                        Some(lost) => {
                            tracing::warn!("lost {} ({lost}); trying again", dialled.address);
                            self.state.send_replace(State::Lost(lost));
                        }
                        None => break Ok(()),
                    }
                }
                Err(error) => {
                    // Every attempt fails the same way for as long as a pod takes to start: said once.
                    let reason = Chain(&error).to_string();
                    if reason != said {
                        tracing::warn!("{reason}; trying again");
                        said = reason;
                    }
                    self.state.send_replace(State::Failed(Arc::new(error)));
                }
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => break Ok(()),
                () = tokio::time::sleep(backoff.pause()) => {}
            }
        };
        self.abort_streams.cancel();
        self.streams.close();
        self.streams.wait().await;
        self.state.send_replace(match end {
            Ok(()) => State::Stopped,
            Err(taken_over) => State::TakenOver(taken_over),
        });
        end
    }

    /// Serves a connection until it is lost; `None` if the tunnel was stopped meanwhile.
    async fn serve(&self, Dialled { endpoint, connection, address, way, bridge }: &Dialled) -> Option<Lost> {
        match bridge {
            None => tracing::info!("connected to {address}"),
            Some(_) => tracing::info!("connected to {address} by {way}"),
        }
        self.state.send_replace(State::Connected { address: *address, way });
        let error = loop {
            let accepted = tokio::select! {
                biased;
                () = self.stop.cancelled() => {
                    CloseCode::Stopped.close(connection);
                    // The socket is in good order in nearly all cases and this takes some milliseconds.
                    let _ = tokio::time::timeout(STOP_LIMIT, endpoint.wait_idle()).await;
                    return None;
                }
                // Cancel safe: a stream that was not handed out stays in the connection.
                accepted = connection.accept_bi() => accepted,
            };
            match accepted {
                Ok(halves) => self.spawn(halves.into()),
                Err(error) => break error,
            }
        };
        Some(match CloseCode::of(&error) {
            Some(CloseCode::NotAllowed) => Lost::NotAllowed { key: self.dialer.identity.hash() },
            Some(code) => Lost::Closed(code),
            None => Lost::Broken(error),
        })
    }

    /// A stream outlives its connection only for as long as a local process takes to read what has arrived.
    fn spawn(&self, stream: QuicDuplex) {
        let (relay, abort) = (self.relay.clone(), self.abort_streams.clone());
        self.streams.spawn(async move {
            tokio::select! {
                biased;
                // Both ends are reset by being dropped.
                () = abort.cancelled() => {}
                () = relay.serve(stream) => {}
            }
        });
    }
}

// === impl Lost ===

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed(code) => code.fmt(f),
            Self::NotAllowed { key } => {
                write!(f, "no rule of the agent names this client any more: an intercept needs keyHash \"{key}\"")
            }
            Self::Broken(ConnectionError::TimedOut) => write!(f, "nothing heard for {} s", IDLE_LIMIT.as_secs_f32()),
            Self::Broken(ConnectionError::Reset) => {
                f.write_str("the agent no longer knows this connection: it was restarted, or this machine slept")
            }
            Self::Broken(error) => Chain(error as &dyn Error).fmt(f),
        }
    }
}
