//! Plays the agent: a real endpoint with the agent's own configuration, and the agent's half of the protocol.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::Mutex;

use quinn::Connection;
use quinn::Endpoint;
use sluice::Identity;
use sluice::KeyHash;
use sluice_protocol::close::CloseCode;
use sluice_protocol::duplex::QuicDuplex;
use sluice_protocol::stream;
use sluice_protocol::stream::Kind;
use sluice_protocol::stream::Open;
use sluice_protocol::stream::Reply;
use sluice_protocol::tls;
use sluice_protocol::tls::KeyPolicy;
use sluice_protocol::way;
use sluice_protocol::way::Direct;
use tokio::runtime::Runtime;
use tokio::sync::Mutex as AsyncMutex;
use tokio::sync::mpsc;

use crate::DEADLINE;
use crate::soon;

/// Admits a set of keys, which a test may change.
#[derive(Debug, Default)]
struct Guests {
    admitted: Mutex<BTreeSet<KeyHash>>,
    refused: Mutex<Vec<KeyHash>>,
}

impl KeyPolicy for Guests {
    fn admits(&self, key: &KeyHash) -> bool {
        self.admitted.lock().unwrap().contains(key)
    }

    fn refused(&self, key: &KeyHash) {
        self.refused.lock().unwrap().push(*key);
    }
}

/// An agent in a runtime of its own, so that it can be killed like a process.
pub(crate) struct Agent {
    identity: Identity,
    guests: Arc<Guests>,
    address: SocketAddr,
    running: Option<Running>,
}

struct Running {
    runtime: Runtime,
    endpoint: Endpoint,
    /// accept loop --connection--> test; unbounded, as tests make a handful
    clients_rx: AsyncMutex<mpsc::UnboundedReceiver<Connection>>,
    current: Mutex<Option<Connection>>,
}

impl Agent {
    pub(crate) fn start(admitted: impl IntoIterator<Item = KeyHash>) -> Self {
        let guests = Guests { admitted: Mutex::new(admitted.into_iter().collect()), ..Guests::default() };
        let mut agent = Self {
            identity: Identity::generate().unwrap(),
            guests: Arc::new(guests),
            address: (Ipv4Addr::LOCALHOST, 0).into(),
            running: None,
        };
        agent.run();
        agent
    }

    /// Starts it again at its address, with its key.
    pub(crate) fn run(&mut self) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let config = tls::server_config(&self.identity, self.guests.clone()).unwrap();
        let endpoint = {
            let _inside = runtime.enter();
            way::endpoint(&Direct::new(self.address), &self.identity, Some(config)).unwrap()
        };
        self.address = endpoint.local_addr().unwrap();
        let (clients_tx, clients_rx) = mpsc::unbounded_channel();
        let accepting = endpoint.clone();
        runtime.spawn(async move {
            while let Some(incoming) = accepting.accept().await {
                if let Ok(connection) = incoming.await {
                    // The test may be over.
                    let _ = clients_tx.send(connection);
                }
            }
        });
        self.running = Some(Running { runtime, endpoint, clients_rx: clients_rx.into(), current: Mutex::default() });
    }

    /// Ends it without a word to anybody. A test that holds one of its connections holds its port, too.
    pub(crate) async fn kill(&mut self) {
        let Running { runtime, .. } = self.running.take().unwrap();
        tokio::task::spawn_blocking(move || runtime.shutdown_timeout(DEADLINE)).await.unwrap();
    }

    /// Ends it as SIGTERM does.
    pub(crate) async fn terminate(&mut self) {
        let endpoint = &self.running.as_ref().unwrap().endpoint;
        endpoint.close(CloseCode::AgentStopping.code(), b"bye");
        soon("goodbye", endpoint.wait_idle()).await;
        self.kill().await;
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn key(&self) -> KeyHash {
        self.identity.hash()
    }

    pub(crate) fn admit(&self, key: KeyHash) {
        self.guests.admitted.lock().unwrap().insert(key);
    }

    pub(crate) fn forget(&self, key: KeyHash) {
        self.guests.admitted.lock().unwrap().remove(&key);
    }

    pub(crate) fn refused(&self) -> Vec<KeyHash> {
        self.guests.refused.lock().unwrap().clone()
    }

    /// The next client that connects.
    pub(crate) async fn client(&self) -> Connection {
        let running = self.running.as_ref().unwrap();
        let client = soon("a client", async { running.clients_rx.lock().await.recv().await }).await.unwrap();
        *running.current.lock().unwrap() = Some(client.clone());
        client
    }

    /// The client that connected last.
    pub(crate) fn current(&self) -> Connection {
        self.running.as_ref().unwrap().current.lock().unwrap().clone().unwrap()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if let Some(Running { runtime, .. }) = self.running.take() {
            runtime.shutdown_background();
        }
    }
}

pub(crate) fn message(port: u16) -> Open {
    Open {
        intercept: "test".to_owned(),
        kind: Kind::Tcp,
        port,
        peer: "10.1.0.7:40112".parse().unwrap(),
        destination: "10.1.0.2:8080".parse().unwrap(),
        copy: false,
    }
}

/// Opens a stream and reads the answer.
pub(crate) async fn open(client: &Connection, open: &Open) -> (QuicDuplex, Reply) {
    let mut stream = QuicDuplex::from(soon("a stream", client.open_bi()).await.unwrap());
    stream::write_open(&mut stream, open).await.unwrap();
    let reply = soon("a reply", stream::read_reply(&mut stream)).await.unwrap();
    (stream, reply)
}

/// Opens a stream that must be accepted.
pub(crate) async fn accepted(client: &Connection, port: u16) -> QuicDuplex {
    let (stream, reply) = open(client, &message(port)).await;
    assert_eq!(reply, Reply::Accepted);
    stream
}
