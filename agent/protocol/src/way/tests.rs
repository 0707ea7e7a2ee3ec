use std::pin::Pin;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::task::Context;
use std::task::Poll;
use std::time::Duration;
use std::time::Instant;

use super::*;
use crate::close::CloseCode;
use crate::testing::Guests;
use crate::testing::Tunnel;
use crate::testing::agent_endpoint;
use crate::testing::attempt;
use crate::testing::client_endpoint;
use crate::testing::identity;
use crate::testing::loopback;
use crate::testing::soon;
use crate::tls;
use crate::transport::IDLE_LIMIT;
use crate::transport::KEEP_ALIVE;

#[tokio::test]
async fn unspecified_v6_takes_both_families() {
    let (agent_identity, client_identity) = (identity(), identity());
    let config = tls::server_config(&agent_identity, Guests::new([client_identity.hash()])).unwrap();
    let agent = endpoint(&Direct::new("[::]:0".parse().unwrap()), &agent_identity, Some(config)).unwrap();
    let port = agent.local_addr().unwrap().port();
    for host in ["127.0.0.1", "::1"] {
        let remote = SocketAddr::new(host.parse().unwrap(), port);
        let client = endpoint(&Direct::towards(remote), &client_identity, None).unwrap();
        let config = tls::client_config(&client_identity, agent_identity.hash()).unwrap();
        let dialling = async {
            let connection = client.connect_with(config, remote, tls::SERVER_NAME).unwrap().await.unwrap();
            tls::confirmed(&connection).await.unwrap();
            connection
        };
        let accepting = async { agent.accept().await.unwrap().await.unwrap() };
        let (dialled, _accepted) = soon("connect", async { tokio::join!(dialling, accepting) }).await;
        assert_eq!(dialled.remote_address(), remote);
    }
}

#[tokio::test]
async fn a_port_in_use_is_named() {
    let first = client_endpoint();
    let address = first.local_addr().unwrap();
    let error = endpoint(&Direct::new(address), &identity(), None).unwrap_err();
    assert!(error.to_string().contains(&address.to_string()), "{error}");
}

/// An agent that was killed and started again knows nothing of its clients; they must not wait for the idle limit.
#[tokio::test]
async fn a_restarted_agent_resets_old_connections_at_once() {
    let (agent_identity, client_identity) = (identity(), identity());
    let server = tls::server_config(&agent_identity, Guests::new([client_identity.hash()])).unwrap();

    // The first agent is a process of its own as far as the client can tell: endpoint, connection and their tasks are
    // in a runtime that is dropped without a word, and the socket with them.
    let first = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let agent = {
        let _inside = first.enter();
        endpoint(&Direct::new(loopback()), &agent_identity, Some(server.clone())).unwrap()
    };
    let address = agent.local_addr().unwrap();
    first.spawn(async move { agent.accept().await.unwrap().await.unwrap().closed().await });
    let client = client_endpoint();
    let config = tls::client_config(&client_identity, agent_identity.hash()).unwrap();
    let connecting = client.connect_with(config, address, tls::SERVER_NAME).unwrap();
    let dialled = soon("handshake", connecting).await.unwrap();
    soon("confirmation", tls::confirmed(&dialled)).await.unwrap();
    tokio::task::spawn_blocking(move || first.shutdown_timeout(crate::testing::DEADLINE)).await.unwrap();

    let second = endpoint(&Direct::new(address), &agent_identity, Some(server)).unwrap();
    let since = Instant::now();
    let error = soon("reset", dialled.closed()).await;
    assert_eq!(error, quinn::ConnectionError::Reset);
    assert!(since.elapsed() < KEEP_ALIVE * 2, "{:?}", since.elapsed());
    drop(second);
}

/// A way that can be cut: what is sent vanishes, nothing arrives, and nobody is told.
#[derive(Clone, Debug, Default)]
struct Cable {
    cut: Arc<AtomicBool>,
}

#[derive(Debug)]
struct CableSocket {
    cable: Cable,
    inner: Arc<dyn AsyncUdpSocket>,
}

impl Way for Cable {
    fn name(&self) -> &'static str {
        "cable"
    }

    fn socket(&self) -> Result<Arc<dyn AsyncUdpSocket>, WayError> {
        let inner = Direct::new(loopback()).socket()?;
        Ok(Arc::new(CableSocket { cable: self.clone(), inner }))
    }
}

impl AsyncUdpSocket for CableSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn quinn::UdpPoller>> {
        self.inner.clone().create_io_poller()
    }

    fn try_send(&self, transmit: &quinn::udp::Transmit<'_>) -> io::Result<()> {
        if self.cable.cut.load(Ordering::Relaxed) { Ok(()) } else { self.inner.try_send(transmit) }
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [io::IoSliceMut<'_>],
        meta: &mut [quinn::udp::RecvMeta],
    ) -> Poll<io::Result<usize>> {
        loop {
            let received = self.inner.poll_recv(cx, bufs, meta);
            if received.is_pending() || !self.cable.cut.load(Ordering::Relaxed) {
                return received;
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }
}

/// Promised are 6 s. The worst case is an agent that goes on sending, which restarts its idle timer once.
#[tokio::test]
async fn c01_a_cut_cable_is_noticed_within_six_seconds() {
    let (agent_identity, client_identity) = (identity(), identity());
    let agent = agent_endpoint(&agent_identity, Guests::new([client_identity.hash()]));
    let cable = Cable::default();
    let client = endpoint(&cable, &client_identity, None).unwrap();
    let config = tls::client_config(&client_identity, agent_identity.hash()).unwrap();
    let (accepted, dialled) = attempt(&agent, &client, config).await;
    let (accepted, _dialled) = (accepted.unwrap(), dialled.unwrap());
    let (mut send, _recv) = accepted.open_bi().await.unwrap();

    cable.cut.store(true, Ordering::Relaxed);
    let since = Instant::now();
    let talk = async {
        let mut tick = tokio::time::interval(Duration::from_millis(50));
        loop {
            tick.tick().await;
            if let Err(error) = send.write_all(b"are you there?").await {
                return error;
            }
        }
    };
    let error = soon("notice", talk).await;
    let took = since.elapsed();
    assert_eq!(error, quinn::WriteError::ConnectionLost(quinn::ConnectionError::TimedOut));
    assert!(took > IDLE_LIMIT - KEEP_ALIVE && took < Duration::from_secs(6), "{took:?}");
}

/// A laptop that goes from one network to another, or a NAT that forgets: same connection, same streams.
#[tokio::test]
async fn c03_open_streams_survive_a_new_client_address() {
    let (agent_identity, client_identity) = (identity(), identity());
    let agent = agent_endpoint(&agent_identity, Guests::new([client_identity.hash()]));
    let client = client_endpoint();
    let config = tls::client_config(&client_identity, agent_identity.hash()).unwrap();
    let (accepted, dialled) = attempt(&agent, &client, config).await;
    let (accepted, dialled) = (accepted.unwrap(), dialled.unwrap());
    let (mut send, mut recv) = accepted.open_bi().await.unwrap();
    send.write_all(b"before").await.unwrap();
    let (mut client_send, mut client_recv) = soon("stream", dialled.accept_bi()).await.unwrap();
    soon("data", client_recv.read_exact(&mut [0; 6])).await.unwrap();

    let before = accepted.remote_address();
    client.rebind_abstract(Direct::new(loopback()).socket().unwrap()).unwrap();
    client_send.write_all(b"after").await.unwrap();
    soon("data from elsewhere", recv.read_exact(&mut [0; 5])).await.unwrap();
    assert_ne!(accepted.remote_address(), before);
    send.write_all(b"found").await.unwrap();
    soon("data to elsewhere", client_recv.read_exact(&mut [0; 5])).await.unwrap();
}

#[tokio::test]
async fn a_clean_stop_is_noticed_at_once() {
    let tunnel = Tunnel::new().await;
    let since = Instant::now();
    CloseCode::Stopped.close(&tunnel.client);
    let error = soon("close", tunnel.agent.closed()).await;
    assert_eq!(CloseCode::of(&error), Some(CloseCode::Stopped));
    assert!(since.elapsed() < Duration::from_millis(200), "{:?}", since.elapsed());
}
