//! What tests need of the two ends: real endpoints on loopback.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use quinn::Connection;
use quinn::ConnectionError;
use quinn::Endpoint;
use tokio::net::TcpListener;
use tokio::net::TcpStream;

use crate::duplex::QuicDuplex;
use crate::key::Identity;
use crate::key::KeyHash;
use crate::tls;
use crate::tls::KeyPolicy;
use crate::tls::SERVER_NAME;
use crate::way;
use crate::way::Direct;

/// Everything in these tests is done long before; only a hang takes this long.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

pub(crate) async fn soon<F: Future>(what: &str, future: F) -> F::Output {
    tokio::time::timeout(DEADLINE, future).await.unwrap_or_else(|_| panic!("not within {DEADLINE:?}: {what}"))
}

pub(crate) fn loopback() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 0).into()
}

/// Admits a set of keys that a test may change and notes whom it refused.
#[derive(Debug, Default)]
pub(crate) struct Guests {
    admitted: Mutex<BTreeSet<KeyHash>>,
    pub(crate) refused: Mutex<Vec<KeyHash>>,
    pub(crate) unproven: Mutex<Vec<KeyHash>>,
}

impl Guests {
    pub(crate) fn new(keys: impl IntoIterator<Item = KeyHash>) -> Arc<Self> {
        Arc::new(Self { admitted: Mutex::new(keys.into_iter().collect()), ..Self::default() })
    }

    pub(crate) fn forget(&self, key: KeyHash) {
        self.admitted.lock().unwrap().remove(&key);
    }
}

impl KeyPolicy for Guests {
    fn admits(&self, key: &KeyHash) -> bool {
        self.admitted.lock().unwrap().contains(key)
    }

    fn refused(&self, key: &KeyHash) {
        self.refused.lock().unwrap().push(*key);
    }

    fn unproven(&self, key: &KeyHash) {
        self.unproven.lock().unwrap().push(*key);
    }
}

pub(crate) fn identity() -> Identity {
    Identity::generate().unwrap()
}

pub(crate) fn agent_endpoint(identity: &Identity, guests: Arc<Guests>) -> Endpoint {
    let config = tls::server_config(identity, guests).unwrap();
    way::endpoint(&Direct::new(loopback()), identity, Some(config)).unwrap()
}

pub(crate) fn client_endpoint() -> Endpoint {
    way::endpoint(&Direct::new(loopback()), &identity(), None).unwrap()
}

/// One attempt to connect: how it went at the agent and at the client.
pub(crate) async fn attempt(
    agent: &Endpoint,
    client: &Endpoint,
    config: quinn::ClientConfig,
) -> (Result<Connection, ConnectionError>, Result<Connection, ConnectionError>) {
    let address = agent.local_addr().unwrap();
    let accepting = async { agent.accept().await.unwrap().await };
    let dialling = async {
        let connection = client.connect_with(config, address, SERVER_NAME).unwrap().await?;
        tls::confirmed(&connection).await?;
        Ok(connection)
    };
    soon("handshake", Box::pin(async { tokio::join!(accepting, dialling) })).await
}

/// A connected pair; the endpoints keep the connections alive.
pub(crate) struct Tunnel {
    pub(crate) agent: Connection,
    pub(crate) client: Connection,
    _endpoints: [Endpoint; 2],
}

impl Tunnel {
    pub(crate) async fn new() -> Self {
        let (agent_identity, client_identity) = (identity(), identity());
        let agent = agent_endpoint(&agent_identity, Guests::new([client_identity.hash()]));
        let client = client_endpoint();
        let config = tls::client_config(&client_identity, agent_identity.hash()).unwrap();
        let (accepted, dialled) = attempt(&agent, &client, config).await;
        Self { agent: accepted.unwrap(), client: dialled.unwrap(), _endpoints: [agent, client] }
    }

    /// A new stream: the agent's end and the client's. One byte is spent on telling the client that it exists.
    pub(crate) async fn stream(&self) -> (QuicDuplex, QuicDuplex) {
        let (mut send, recv) = soon("open", self.agent.open_bi()).await.unwrap();
        send.write_all(&[0]).await.unwrap();
        let (client_send, mut client_recv) = soon("accept", self.client.accept_bi()).await.unwrap();
        client_recv.read_exact(&mut [0]).await.unwrap();
        (QuicDuplex::new(send, recv), QuicDuplex::new(client_send, client_recv))
    }
}

/// A TCP connection over loopback: the end that dialled and the end that accepted.
pub(crate) async fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind(loopback()).await.unwrap();
    let address = listener.local_addr().unwrap();
    let (dialled, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
    (dialled.unwrap(), accepted.unwrap().0)
}
