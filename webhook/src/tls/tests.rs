//! Real handshakes with a real server, while its certificate changes.

use std::{net::SocketAddr, time::Duration};

use axum::{Router, routing::get};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
};
use tokio::{
    io::AsyncReadExt as _,
    net::{TcpListener, TcpStream},
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_util::sync::CancellationToken;

use super::{
    chain::{now, service_hosts},
    rotation::{Policy, Step},
    *,
};
use crate::server;

const HOST: &str = "sluice-webhook.sluice-system.svc";

struct Running {
    address: SocketAddr,
    current: Arc<Current>,
    stop: CancellationToken,
    server: tokio::task::JoinHandle<()>,
}

async fn start(connections: usize) -> Running {
    let provider = Arc::new(ring::default_provider());
    let current = Arc::new(Current::default());
    let config = Arc::new(server_config(current.clone(), provider).unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = Router::new().route("/", get(async || "answer"));
    let stop = CancellationToken::new();
    let server = tokio::spawn(server::serve(listener, config, router, connections, stop.clone()));
    Running { address, current, stop, server }
}

fn first() -> Chain {
    Chain::new(now(), &Policy::DEFAULT, &hosts()).unwrap()
}

fn hosts() -> Vec<String> {
    service_hosts("sluice-webhook", "sluice-system")
}

fn serve(running: &Running, chain: &Chain) {
    running.current.replace(chain, HOST, now(), &Arc::new(ring::default_provider())).unwrap();
}

/// A handshake by someone who trusts `authorities`.
async fn handshake(address: SocketAddr, authorities: &str, alpn: &[u8]) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    for authority in CertificateDer::pem_slice_iter(authorities.as_bytes()) {
        roots.add(authority.unwrap()).unwrap();
    }
    let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![alpn.to_vec()];
    let stream = TcpStream::connect(address).await?;
    Box::pin(TlsConnector::from(Arc::new(config)).connect(ServerName::try_from(HOST).unwrap(), stream)).await
}

type Sender = hyper::client::conn::http2::SendRequest<http_body_util::Empty<axum::body::Bytes>>;

async fn connect(address: SocketAddr, authorities: &str) -> Sender {
    let stream = handshake(address, authorities, b"h2").await.unwrap();
    let (sender, connection) =
        Box::pin(hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))).await.unwrap();
    tokio::spawn(connection);
    sender
}

async fn ask(sender: &mut Sender) {
    let request = http::Request::get(format!("https://{HOST}/")).body(http_body_util::Empty::new()).unwrap();
    assert_eq!(sender.send_request(request).await.unwrap().status(), 200);
}

#[tokio::test]
async fn d05_no_request_fails_while_the_certificate_is_rotated() {
    let running = start(64).await;
    let mut chain = first();
    serve(&running, &chain);
    let before = running.current.certificate().unwrap();
    // What the API server knows follows a step behind.
    let known = Arc::new(arc_swap::ArcSwap::from_pointee(chain.authorities()));
    let done = CancellationToken::new();
    let mut askers = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let (address, known, done) = (running.address, known.clone(), done.clone());
        askers.spawn(async move {
            let mut old = connect(address, &known.load()).await;
            let mut asked = 0_u32;
            while !done.is_cancelled() {
                ask(&mut old).await;
                ask(&mut connect(address, &known.load()).await).await;
                asked += 1;
            }
            asked
        });
    }
    let steps =
        [Step::RenewLeaf, Step::AddSuccessor, Step::RenewLeaf, Step::Promote, Step::RenewLeaf, Step::DropPrevious];
    for step in steps {
        chain = chain.take(step, now(), &Policy::DEFAULT, &hosts()).unwrap();
        serve(&running, &chain);
        // With the old knowledge and the new certificate.
        for _ in 0..5 {
            ask(&mut connect(running.address, &known.load()).await).await;
        }
        known.store(Arc::new(chain.authorities()));
        for _ in 0..5 {
            ask(&mut connect(running.address, &known.load()).await).await;
        }
    }
    done.cancel();
    while let Some(asked) = askers.join_next().await {
        assert!(asked.unwrap() > 0);
    }
    assert_ne!(running.current.certificate().unwrap(), before);
    running.stop.cancel();
    running.server.await.unwrap();
}

#[tokio::test]
async fn who_trusts_others_is_refused_and_who_is_early_too() {
    let running = start(8).await;
    assert!(handshake(running.address, &first().authorities(), b"h2").await.is_err(), "there is no certificate yet");
    let chain = first();
    serve(&running, &chain);
    assert!(handshake(running.address, &first().authorities(), b"h2").await.is_err());
    let stream = handshake(running.address, &chain.authorities(), b"http/1.1").await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(b"http/1.1".as_slice()));
    drop(stream);
    running.stop.cancel();
    running.server.await.unwrap();
}

#[tokio::test]
async fn what_cannot_be_served_changes_nothing() {
    let running = start(8).await;
    let chain = first();
    serve(&running, &chain);
    let before = running.current.certificate();
    let late = chain.inventory().leaf.until + jiff::SignedDuration::from_secs(1);
    let provider = Arc::new(ring::default_provider());
    running.current.replace(&first(), HOST, late, &provider).unwrap_err();
    running.current.replace(&first(), "elsewhere.svc", now(), &provider).unwrap_err();
    assert_eq!(running.current.certificate(), before);
    ask(&mut connect(running.address, &chain.authorities()).await).await;
    running.stop.cancel();
    running.server.await.unwrap();
}

/// Connections that say nothing are ended, and until then keep nobody out for long.
#[tokio::test]
async fn d05_silent_connections_are_ended() {
    let running = start(2).await;
    let chain = first();
    serve(&running, &chain);
    let mut silent =
        [TcpStream::connect(running.address).await.unwrap(), TcpStream::connect(running.address).await.unwrap()];
    // Both places are taken; the third is served when they are ended.
    let asked = tokio::time::timeout(Duration::from_secs(20), async {
        ask(&mut connect(running.address, &chain.authorities()).await).await;
    });
    asked.await.unwrap();
    for silent in &mut silent {
        assert_eq!(silent.read(&mut [0; 16]).await.unwrap_or(0), 0);
    }
    running.stop.cancel();
    running.server.await.unwrap();
}
