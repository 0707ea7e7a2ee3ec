//! The way by port-forward, with a stream that does what the Kubernetes API server and the agent's listener do.

use std::io;
use std::net::Ipv4Addr;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use sluice::ByteStream;
use sluice::DialError;
use sluice::Forward;
use sluice::Identity;
use sluice::Opening;
use sluice::State;
use sluice::Tunnel;
use sluice::Ways;
use sluice_protocol::framed;
use tokio::io::AsyncReadExt as _;
use tokio::io::AsyncWriteExt as _;
use tokio::net::UdpSocket;
use tokio::task::JoinHandle;

use crate::agent::Agent;
use crate::agent::accepted;
use crate::config;
use crate::local::Local;
use crate::reaches;
use crate::soon;

/// Streams to an agent's UDP port.
#[derive(Debug)]
struct Streams {
    agent: SocketAddr,
    is_open: Mutex<bool>,
    bridges: Mutex<Vec<JoinHandle<()>>>,
}

impl Streams {
    fn to(agent: SocketAddr) -> Arc<Self> {
        Arc::new(Self { agent, is_open: Mutex::new(true), bridges: Mutex::default() })
    }

    fn opened(&self) -> usize {
        self.bridges.lock().unwrap().len()
    }

    fn cut(&self, reopens: bool) {
        *self.is_open.lock().unwrap() = reopens;
        self.bridges.lock().unwrap().iter().for_each(JoinHandle::abort);
    }

    fn reopen(&self) {
        *self.is_open.lock().unwrap() = true;
    }
}

impl Forward for Streams {
    fn open(&self) -> Opening {
        if !*self.is_open.lock().unwrap() {
            return Box::pin(async { Err(io::Error::other("no port-forward today")) });
        }
        let (ours, theirs) = tokio::io::duplex(4096);
        let agent = self.agent;
        let bridge = tokio::spawn(async move {
            let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
            socket.connect(agent).await.unwrap();
            let _ = framed::bridge(theirs, &socket).await;
        });
        self.bridges.lock().unwrap().push(bridge);
        Box::pin(async { Ok(Box::new(ours) as Box<dyn ByteStream>) })
    }
}

/// An address where datagrams vanish.
async fn silence() -> (UdpSocket, SocketAddr) {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = socket.local_addr().unwrap();
    (socket, address)
}

/// How many datagrams came to `socket` since the last call.
fn received(socket: &UdpSocket) -> usize {
    let mut datagram = [0; 2048];
    std::iter::from_fn(|| socket.try_recv_from(&mut datagram).ok()).count()
}

fn is_by(way: &'static str) -> impl FnMut(&State) -> bool {
    move |state| matches!(state, State::Connected { way: by, .. } if *by == way)
}

#[tokio::test]
async fn a_pod_that_cannot_be_reached_is_reached_by_port_forward_and_the_next_one_at_once() {
    let identity = Identity::generate().unwrap();
    let agent = Agent::start([identity.hash()]);
    let (silent, nowhere) = silence().await;
    let (ways, streams) = (Ways::default(), Streams::to(agent.address()));
    let start = || {
        let mut config = config(&agent, &identity, &[(1, 8080)]);
        config.agent = nowhere.into();
        config.ways = ways.with_forward(streams.clone());
        Tunnel::start(config).unwrap()
    };
    let first = start();
    let state = reaches(&first, "connection", is_by("port-forward")).await;
    assert!(matches!(state, State::Connected { address, .. } if address == nowhere), "the pod's address is shown");
    assert!(received(&silent) > 0, "the address comes first");
    agent.client().await;
    soon("goodbye", first.stop()).await.unwrap();

    received(&silent);
    let second = start();
    reaches(&second, "connection", is_by("port-forward")).await;
    assert_eq!(received(&silent), 0, "what worked comes first");
    assert_eq!(streams.opened(), 2);
}

#[tokio::test]
async fn a_pod_that_can_be_reached_needs_no_port_forward() {
    let identity = Identity::generate().unwrap();
    let agent = Agent::start([identity.hash()]);
    let streams = Streams::to(agent.address());
    let mut config = config(&agent, &identity, &[(1, 8080)]);
    config.ways = Ways::default().with_forward(streams.clone());
    let tunnel = Tunnel::start(config).unwrap();
    reaches(&tunnel, "connection", is_by("direct")).await;
    assert_eq!(streams.opened(), 0);
}

#[tokio::test]
async fn a_refusal_is_not_asked_for_twice() {
    let identity = Identity::generate().unwrap();
    let agent = Agent::start([]);
    let streams = Streams::to(agent.address());
    let mut config = config(&agent, &identity, &[(1, 8080)]);
    config.ways = Ways::default().with_forward(streams.clone());
    let tunnel = Tunnel::start(config).unwrap();
    let state = reaches(&tunnel, "refusal", |state| matches!(state, State::Failed(_))).await;
    assert!(matches!(&state, State::Failed(error) if matches!(**error, DialError::KeyRefused { .. })), "{state:?}");
    assert_eq!(streams.opened(), 0);
    agent.admit(identity.hash());
    reaches(&tunnel, "connection", is_by("direct")).await;
}

#[tokio::test]
async fn without_either_way_both_are_said() {
    let identity = Identity::generate().unwrap();
    let agent = Agent::start([identity.hash()]);
    let (_kept, nowhere) = silence().await;
    let streams = Streams::to(agent.address());
    streams.cut(false);
    let mut config = config(&agent, &identity, &[(1, 8080)]);
    config.agent = nowhere.into();
    config.ways = Ways::default().with_forward(streams.clone());
    let tunnel = Tunnel::start(config).unwrap();
    let state = reaches(&tunnel, "failure", |state| matches!(state, State::Failed(_))).await;
    let State::Failed(error) = &state else { panic!("{state:?}") };
    assert!(matches!(**error, DialError::Forward { .. }), "{error}");
    streams.reopen();
    reaches(&tunnel, "connection", is_by("port-forward")).await;
}

/// c06: the API server is restarted. The bytes in flight come late and nobody notices.
#[tokio::test]
async fn c06_a_stream_that_breaks_is_replaced_below_the_connection() {
    let identity = Identity::generate().unwrap();
    let agent = Agent::start([identity.hash()]);
    let (_kept, nowhere) = silence().await;
    let streams = Streams::to(agent.address());
    let local = Local::new().await;
    let mut config = config(&agent, &identity, &[(local.port, 8080)]);
    local.echo();
    config.agent = nowhere.into();
    config.ways = Ways::default().with_forward(streams.clone());
    let tunnel = Tunnel::start(config).unwrap();
    let client = agent.client().await;
    let mut stream = accepted(&client, 8080).await;
    for round in 0..3 {
        streams.cut(false);
        let sent = vec![round; 100_000];
        let (mut read, mut write) = tokio::io::split(&mut stream);
        let mut answer = vec![0; sent.len()];
        let later = async {
            tokio::time::sleep(Duration::from_millis(500)).await;
            streams.reopen();
        };
        let exchange = async { tokio::join!(write.write_all(&sent), read.read_exact(&mut answer), later) };
        let (written, answered, ()) = soon("the echo", Box::pin(exchange)).await;
        written.unwrap();
        answered.unwrap();
        assert_eq!(answer, sent);
    }
    assert!(matches!(*tunnel.state().borrow(), State::Connected { .. }));
    assert!(streams.opened() >= 4, "{}", streams.opened());
}
