//! Streams that the client does not take.

use std::net::Ipv6Addr;
use std::time::Duration;
use std::time::Instant;

use sluice_protocol::duplex::QuicDuplex;
use sluice_protocol::stream;
use sluice_protocol::stream::Kind;
use sluice_protocol::stream::RefusedReason;
use sluice_protocol::stream::Reply;
use tokio::io::AsyncReadExt as _;
use tokio::io::AsyncWriteExt as _;

use crate::agent::accepted;
use crate::agent::message;
use crate::agent::open;
use crate::connected;
use crate::local::Local;
use crate::local::Nobody;
use crate::soon;

async fn refused(client: &quinn::Connection, message: &stream::Open) -> (RefusedReason, String) {
    let (mut stream, reply) = open(client, message).await;
    let Reply::Refused { reason, detail } = reply else { panic!("not refused: {reply:?}") };
    let mut rest = Vec::new();
    soon("end", stream.read_to_end(&mut rest)).await.unwrap();
    assert!(rest.is_empty(), "nothing follows a refusal");
    (reason, detail)
}

#[tokio::test]
async fn a08_nobody_listens_until_somebody_does() {
    let nobody = Nobody::new();
    let port = nobody.port;
    let (agent, _tunnel) = connected(&[(port, 8080)]).await;
    let client = agent.current();
    for _ in 0..3 {
        let (reason, detail) = refused(&client, &message(8080)).await;
        assert_eq!((reason, detail), (RefusedReason::NobodyListens, format!("nobody listens on 127.0.0.1:{port}")));
    }
    let local = nobody.listen();
    accepted(&client, 8080).await;
    local.accept().await;
}

#[tokio::test]
async fn a_port_that_the_user_did_not_name_is_out_of_reach() {
    let (named, other) = (Local::new().await, Local::new().await);
    let (agent, _tunnel) = connected(&[(named.port, 8080)]).await;
    let client = agent.current();
    for port in [other.port, named.port, 0, 65535] {
        let (reason, detail) = refused(&client, &message(port)).await;
        assert_eq!(reason, RefusedReason::UnknownPort);
        assert!(detail.contains(&port.to_string()) && detail.contains(&format!("{}:8080", named.port)), "{detail}");
    }
    assert!(!other.is_called().await && !named.is_called().await);
    accepted(&client, 8080).await;
    named.accept().await;
}

#[tokio::test]
async fn streams_of_newer_or_broken_agents_are_refused_one_by_one() {
    let local = Local::new().await;
    let (agent, _tunnel) = connected(&[(local.port, 8080)]).await;
    let client = agent.current();
    let newer = stream::Open { kind: Kind::Unknown, ..message(8080) };
    assert_eq!(refused(&client, &newer).await.0, RefusedReason::UnknownKind);

    for bytes in
        [b"GET / HTTP/1.1\r\n\r\n".as_slice(), &[stream::VERSION, 0, 2, b'{', b'}'], &[stream::VERSION, 0xff, 0xff]]
    {
        let mut stream = QuicDuplex::from(client.open_bi().await.unwrap());
        stream.write_all(bytes).await.unwrap();
        let reply = soon("a reply", stream::read_reply(&mut stream)).await.unwrap();
        assert!(matches!(reply, Reply::Refused { reason: RefusedReason::Malformed, .. }), "{reply:?}");
    }
    accepted(&client, 8080).await;
}

#[tokio::test]
async fn a_stream_that_says_nothing_is_reset_after_five_seconds() {
    let (agent, _tunnel) = connected(&[(1, 1)]).await;
    let client = agent.current();
    let mut silent = QuicDuplex::from(client.open_bi().await.unwrap());
    silent.write_all(&[stream::VERSION]).await.unwrap();
    let since = Instant::now();
    let error = soon("reset", silent.read(&mut [0])).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    assert!(since.elapsed() > Duration::from_millis(4500), "{:?}", since.elapsed());
}

/// The agent waits one second; the answer must be there before.
#[cfg(target_os = "linux")] // other systems refuse when the queue is full
#[tokio::test]
async fn a_local_port_that_hangs_is_refused_in_time() {
    let (port, _queue, _listener) = Nobody::new().hang().await;
    let (agent, _tunnel) = connected(&[(port, 8080)]).await;
    let client = agent.current();
    let since = Instant::now();
    let (reason, detail) = refused(&client, &message(8080)).await;
    assert_eq!(reason, RefusedReason::TimedOut);
    assert!(detail.contains(&format!("127.0.0.1:{port}")), "{detail}");
    assert!(since.elapsed() < Duration::from_secs(1), "{:?}", since.elapsed());
}

#[tokio::test]
async fn a_server_on_v6_loopback_only_is_found() {
    let local = Local::at((Ipv6Addr::LOCALHOST, 0).into()).await;
    let (agent, _tunnel) = connected(&[(local.port, 8080)]).await;
    let client = agent.current();
    let mut stream = accepted(&client, 8080).await;
    local.accept().await.write_all(b"six").await.unwrap();
    let mut got = Vec::new();
    soon("data", stream.read_to_end(&mut got)).await.unwrap();
    assert_eq!(got, b"six");
}
