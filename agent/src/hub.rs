//! The clients that are connected, by key, and the streams opened to them.
//!
//! Owns the QUIC endpoint's accept loop and the rule that one key has one connection, the newest. Runs in the agent's
//! thread. It decides nothing about traffic, and what happens when a client is not available is up to the caller.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use quinn::Connection;
use sluice_protocol::{
    close::CloseCode,
    duplex::QuicDuplex,
    key::KeyHash,
    stream::{self, Open, RefusedReason, Reply},
    tls::{self, KeyPolicy},
};
use tokio::{sync::watch, time::Instant};
use tokio_util::task::TaskTracker;

use crate::metrics::Metrics;

/// A client that has not accepted a stream by then is not available.
pub const ACCEPT_LIMIT: Duration = Duration::from_secs(1);

/// How long a client that a rule names for the first time is expected to come: requests wait for it, up to
/// [`ACCEPT_LIMIT`] each. In a pod that has just been created the first requests may come before the client does.
const EXPECTED: Duration = Duration::from_secs(5);

/// A handshake that takes longer is given up.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(5);

/// Why a client cannot take a connection or a request now.
#[derive(Debug, thiserror::Error)]
pub enum Unavailable {
    /// No client with this key is connected.
    #[error("no client with this key is connected")]
    NotConnected,
    /// It did not answer the last time, and nothing has come from it since.
    #[error("the client is silent")]
    Silent,
    /// It has not answered within [`ACCEPT_LIMIT`].
    #[error("the client did not accept within {} ms", ACCEPT_LIMIT.as_millis())]
    TimedOut,
    /// It cannot serve it: usually nobody listens on the local port.
    #[error("the client refused: {detail}")]
    Refused {
        /// The reason.
        reason: RefusedReason,
        /// The reason in words.
        detail: String,
    },
    /// The connection to it broke.
    #[error("the connection to the client broke")]
    Lost,
}

/// Who may connect, and what is counted of those who may not.
#[derive(Debug)]
pub struct Admission {
    allowed: Mutex<BTreeSet<KeyHash>>,
    metrics: Metrics,
}

/// All connected clients.
#[derive(Debug, Default)]
pub struct Hub {
    clients: Mutex<BTreeMap<KeyHash, Client>>,
    /// Those that rules name.
    named: Mutex<BTreeMap<KeyHash, Expected>>,
    /// hub --a client has come or gone--> whoever reports it or waits for it
    news_tx: watch::Sender<()>,
}

/// Whether somebody who is not connected is about to be.
#[derive(Debug, Clone, Copy)]
enum Expected {
    Until(Instant),
    /// It has been here, so it knows the way.
    Seen,
}

/// A connected client, as the status shows it.
#[derive(Debug, Clone, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ClientStatus {
    /// Hash of its key.
    pub key_hash: KeyHash,
    /// Where its packets come from.
    pub address: SocketAddr,
}

#[derive(Debug)]
struct Client {
    connection: Connection,
    /// How many datagrams had come from it when it last failed to answer.
    deaf_at: Option<u64>,
}

// === impl Admission ===

impl Admission {
    /// Nobody is allowed yet.
    #[must_use]
    pub fn new(metrics: Metrics) -> Self {
        Self { allowed: Mutex::default(), metrics }
    }

    /// From now on these keys are allowed and no others.
    pub fn allow(&self, keys: BTreeSet<KeyHash>) {
        *lock(&self.allowed) = keys;
    }
}

impl KeyPolicy for Admission {
    fn admits(&self, key: &KeyHash) -> bool {
        lock(&self.allowed).contains(key)
    }

    fn refused(&self, key: &KeyHash) {
        self.metrics.key_refused();
        tracing::warn!(%key, "refused a client: no rule names its key");
    }

    fn unproven(&self, key: &KeyHash) {
        self.metrics.key_refused();
        tracing::warn!(%key, "refused a client: it showed this public key and could not prove that it has the private one");
    }
}

// === impl Hub ===

impl Hub {
    /// A hub without clients, which says on `news_tx` when one has come or gone.
    #[must_use]
    pub fn new(news_tx: watch::Sender<()>) -> Self {
        Self { clients: Mutex::default(), named: Mutex::default(), news_tx }
    }

    /// Whether the client with this key is connected.
    #[must_use]
    pub fn is_connected(&self, key: &KeyHash) -> bool {
        lock(&self.clients).contains_key(key)
    }

    /// Accepts clients until the endpoint is closed. Every task it starts is in `tasks`.
    pub async fn accept(self: Arc<Self>, endpoint: quinn::Endpoint, admission: Arc<Admission>, tasks: TaskTracker) {
        while let Some(incoming) = endpoint.accept().await {
            let (hub, admission) = (self.clone(), admission.clone());
            tasks.spawn(async move {
                let address = incoming.remote_address();
                let connecting = match incoming.accept() {
                    Ok(connecting) => tokio::time::timeout(HANDSHAKE_LIMIT, connecting).await,
                    Err(error) => return tracing::debug!(%address, %error, "a client's first packet cannot be used"),
                };
                match connecting {
                    Ok(Ok(connection)) => hub.serve(connection, &admission).await,
                    Ok(Err(error)) => tracing::debug!(%address, %error, "a client did not get through the handshake"),
                    Err(_) => tracing::debug!(%address, "a client did not finish the handshake in time"),
                }
            });
        }
    }

    /// Keeps a connection until it closes.
    async fn serve(&self, connection: Connection, admission: &Admission) {
        let Some(key) = tls::peer_key(&connection) else {
            return CloseCode::Protocol.close(&connection);
        };
        let address = connection.remote_address();
        let older = lock(&self.clients).insert(key, Client { connection: connection.clone(), deaf_at: None });
        if let Some(older) = older {
            CloseCode::Replaced.close(&older.connection);
        }
        if let Some(expected) = lock(&self.named).get_mut(&key) {
            *expected = Expected::Seen;
        }
        tracing::info!(%key, %address, "client connected");
        // The rules may have changed during the handshake.
        if !admission.admits(&key) {
            CloseCode::NotAllowed.close(&connection);
        }
        self.news_tx.send_replace(());
        let reason = connection.closed().await;
        let mut clients = lock(&self.clients);
        if clients.get(&key).is_some_and(|c| c.connection.stable_id() == connection.stable_id()) {
            clients.remove(&key);
        }
        drop(clients);
        self.news_tx.send_replace(());
        tracing::info!(%key, %address, %reason, "client gone");
    }

    /// These are the clients that rules name now: expects those that are new, and closes the connections of all others.
    pub fn keep_only(&self, keys: &BTreeSet<KeyHash>) {
        let until = Expected::Until(Instant::now() + EXPECTED);
        let mut named = lock(&self.named);
        named.retain(|key, _| keys.contains(key));
        for &key in keys {
            named.entry(key).or_insert(until);
        }
        drop(named);
        for (_, client) in lock(&self.clients).iter().filter(|(key, _)| !keys.contains(key)) {
            CloseCode::NotAllowed.close(&client.connection);
        }
    }

    /// Who is connected.
    #[must_use]
    pub fn clients(&self) -> Vec<ClientStatus> {
        let clients = lock(&self.clients);
        clients.iter().map(|(&key_hash, c)| ClientStatus { key_hash, address: c.connection.remote_address() }).collect()
    }

    /// Opens a stream to the client with this key and waits until it has accepted, [`ACCEPT_LIMIT`] at most, the time
    /// included in which it connects if it is expected.
    ///
    /// `first` goes with the question, which saves a round trip: the first bytes for the local process, from where they may
    /// be sent to somebody else as well.
    ///
    /// # Errors
    /// [`Unavailable`]; where it says that the client refused, nothing has reached the local process, and otherwise `first`
    /// at most.
    pub async fn open(&self, key: KeyHash, open: Open, first: &[u8]) -> Result<QuicDuplex, Unavailable> {
        let deadline = Instant::now() + ACCEPT_LIMIT;
        let connection = match self.connection(key) {
            Err(Unavailable::NotConnected) => self.arrival(key, deadline).await?,
            found => found?,
        };
        match tokio::time::timeout_at(deadline, negotiate(&connection, open, first)).await {
            Ok(result) => result,
            Err(_) => {
                if let Some(client) = lock(&self.clients).get_mut(&key) {
                    client.deaf_at = Some(client.connection.stats().udp_rx.datagrams);
                }
                Err(Unavailable::TimedOut)
            }
        }
    }

    /// Waits for somebody who is expected.
    async fn arrival(&self, key: KeyHash, deadline: Instant) -> Result<Connection, Unavailable> {
        let Some(&Expected::Until(until)) = lock(&self.named).get(&key) else { return Err(Unavailable::NotConnected) };
        let mut news = self.news_tx.subscribe();
        let arrived = async {
            loop {
                match self.connection(key) {
                    // Never closed, as the sender is in `self`.
                    Err(Unavailable::NotConnected) => drop(news.changed().await),
                    found => return found,
                }
            }
        };
        tokio::time::timeout_at(until.min(deadline), arrived).await.unwrap_or(Err(Unavailable::NotConnected))
    }

    fn connection(&self, key: KeyHash) -> Result<Connection, Unavailable> {
        let mut clients = lock(&self.clients);
        let client = clients.get_mut(&key).ok_or(Unavailable::NotConnected)?;
        if let Some(count) = client.deaf_at {
            // Asking again would make every request wait in turn for a client that is most likely gone.
            if client.connection.stats().udp_rx.datagrams == count {
                return Err(Unavailable::Silent);
            }
            client.deaf_at = None;
        }
        Ok(client.connection.clone())
    }
}

async fn negotiate(connection: &Connection, open: Open, first: &[u8]) -> Result<QuicDuplex, Unavailable> {
    let (mut send, mut recv) = connection.open_bi().await.map_err(|_| Unavailable::Lost)?;
    stream::write_open(&mut send, &open).await.map_err(|_| Unavailable::Lost)?;
    // Nothing has been awaited since: quinn puts both into one packet.
    send.write_all(first).await.map_err(|_| Unavailable::Lost)?;
    match stream::read_reply(&mut recv).await {
        Ok(Reply::Accepted) => Ok(QuicDuplex::new(send, recv)),
        Ok(Reply::Refused { reason, detail }) => Err(Unavailable::Refused { reason, detail }),
        Err(error) => {
            tracing::debug!(error = &error as &dyn std::error::Error, "a client's reply cannot be used");
            Err(Unavailable::Lost)
        }
    }
}

/// A panic while one of these is held cannot leave it half changed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
