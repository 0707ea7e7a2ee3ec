//! Copies for wiretaps: the local process gets them, and what it answers goes nowhere.

use std::io::ErrorKind;

use sluice_protocol::duplex::Duplex as _;
use sluice_protocol::duplex::QuicDuplex;
use sluice_protocol::stream::Kind;
use sluice_protocol::stream::Open;
use sluice_protocol::stream::Reply;
use tokio::io::AsyncReadExt as _;
use tokio::io::AsyncWriteExt as _;

use crate::agent::Agent;
use crate::agent::message;
use crate::agent::open;
use crate::connected;
use crate::local::Local;
use crate::soon;

async fn copy(agent: &Agent, kind: Kind) -> QuicDuplex {
    let (stream, reply) = open(&agent.current(), &Open { kind, copy: true, ..message(80) }).await;
    assert_eq!(reply, Reply::Accepted);
    stream
}

#[tokio::test]
async fn b16_a_copied_request_keeps_its_connection_until_it_is_answered() {
    let local = Local::new().await;
    let (agent, _tunnel) = connected(&[(local.port, 80)]).await;
    let mut stream = copy(&agent, Kind::Http).await;
    let mut server = local.accept().await;
    stream.write_all(b"GET /").await.unwrap();
    stream.finish();
    let mut request = [0; 5];
    soon("the request", server.read_exact(&mut request)).await.unwrap();
    assert_eq!(&request, b"GET /");
    // The caller's connection has ended, and the request has not.
    let more = tokio::time::timeout(std::time::Duration::from_millis(1500), server.read(&mut request)).await;
    assert!(more.is_err(), "the connection has ended before the answer: {more:?}");
    server.write_all(b"an answer").await.unwrap();
    assert_eq!(soon("the end", server.read(&mut request)).await.unwrap(), 0);
    let mut answer = Vec::new();
    let _ = soon("the other end", stream.read_to_end(&mut answer)).await;
    assert_eq!(answer, b"");
}

#[tokio::test]
async fn b16_a_copied_connection_ends_when_the_caller_ends_it() {
    let local = Local::new().await;
    let (agent, _tunnel) = connected(&[(local.port, 80)]).await;
    let mut stream = copy(&agent, Kind::Tcp).await;
    let mut server = local.accept().await;
    server.write_all(b"a greeting").await.unwrap();
    stream.write_all(b"bytes").await.unwrap();
    stream.finish();
    let mut bytes = Vec::new();
    soon("the end", server.read_to_end(&mut bytes)).await.unwrap();
    assert_eq!(bytes, b"bytes");
}

#[tokio::test]
async fn b16_a_copy_with_a_gap_does_not_look_complete() {
    let local = Local::new().await;
    let (agent, _tunnel) = connected(&[(local.port, 80)]).await;
    for kind in [Kind::Http, Kind::Tcp] {
        let mut stream = copy(&agent, kind).await;
        let mut server = local.accept().await;
        stream.write_all(b"half").await.unwrap();
        let mut half = [0; 4];
        soon("the first half", server.read_exact(&mut half)).await.unwrap();
        stream.abort();
        let end = soon("the end", server.read(&mut half)).await;
        assert!(end.is_err_and(|error| error.kind() == ErrorKind::ConnectionReset), "{kind:?}");
    }
}
