//! Bytes, ends and resets, through the whole client.

use std::io::ErrorKind;

use tokio::io::AsyncReadExt as _;
use tokio::io::AsyncWriteExt as _;

use crate::agent::accepted;
use crate::connected;
use crate::local::Local;
use crate::soon;

const BODY: usize = 8 << 20;

fn body(seed: u64) -> Vec<u8> {
    // Multiples of a large odd number never repeat within the body, so any loss or swap shows.
    (0..BODY as u64 / 8).flat_map(|n| (n ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes()).collect()
}

#[tokio::test]
async fn a09_large_bodies_arrive_byte_for_byte_in_both_directions() {
    // Before there is a connection, as this keeps the thread busy for a while.
    let (up, down) = (body(1), body(2));
    let local = Local::new().await;
    let (agent, _tunnel) = connected(&[(local.port, 8080)]).await;
    let client = agent.current();
    let stream = accepted(&client, 8080).await;
    let mut server = local.accept().await;
    let (mut tunnel_read, mut tunnel_write) = tokio::io::split(stream);
    let (mut server_read, mut server_write) = server.split();
    let (mut got_up, mut got_down) = (Vec::new(), Vec::new());
    let all = async {
        tokio::join!(
            async {
                tunnel_write.write_all(&up).await.unwrap();
                tunnel_write.shutdown().await.unwrap();
            },
            async {
                server_write.write_all(&down).await.unwrap();
                server_write.shutdown().await.unwrap();
            },
            async { server_read.read_to_end(&mut got_up).await.unwrap() },
            async { tunnel_read.read_to_end(&mut got_down).await.unwrap() },
        )
    };
    soon("both bodies", all).await;
    assert!(got_up == up && got_down == down);
}

#[tokio::test]
async fn a_server_may_speak_first() {
    let local = Local::new().await;
    let (agent, _tunnel) = connected(&[(local.port, 25)]).await;
    let client = agent.current();
    let mut stream = accepted(&client, 25).await;
    local.accept().await.write_all(b"220 hello\r\n").await.unwrap();
    let mut greeting = Vec::new();
    soon("greeting", stream.read_to_end(&mut greeting)).await.unwrap();
    assert_eq!(greeting, b"220 hello\r\n");
}

#[tokio::test]
async fn a13_half_close_in_each_direction() {
    let local = Local::new().await;
    let (agent, _tunnel) = connected(&[(local.port, 8080)]).await;
    let client = agent.current();

    let mut stream = accepted(&client, 8080).await;
    let mut server = local.accept().await;
    stream.write_all(b"question").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut got = String::new();
    soon("end", server.read_to_string(&mut got)).await.unwrap();
    assert_eq!(got, "question");
    server.write_all(b"answer").await.unwrap();
    server.shutdown().await.unwrap();
    got.clear();
    soon("end", stream.read_to_string(&mut got)).await.unwrap();
    assert_eq!(got, "answer");

    let mut stream = accepted(&client, 8080).await;
    let mut server = local.accept().await;
    server.write_all(b"that is all").await.unwrap();
    server.shutdown().await.unwrap();
    got.clear();
    soon("end", stream.read_to_string(&mut got)).await.unwrap();
    assert_eq!(got, "that is all");
    stream.write_all(b"noted").await.unwrap();
    stream.shutdown().await.unwrap();
    got.clear();
    soon("end", server.read_to_string(&mut got)).await.unwrap();
    assert_eq!(got, "noted");
}

#[tokio::test]
async fn a13_reset_in_each_direction() {
    let local = Local::new().await;
    let (agent, _tunnel) = connected(&[(local.port, 8080)]).await;
    let client = agent.current();

    let mut stream = accepted(&client, 8080).await;
    let server = local.accept().await;
    server.set_zero_linger().unwrap();
    drop(server);
    let error = soon("reset", stream.read(&mut [0])).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);

    let stream = accepted(&client, 8080).await;
    let mut server = local.accept().await;
    drop(stream);
    let error = soon("reset", server.read(&mut [0])).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_local_server_that_does_not_read_holds_up_nobody_else() {
    let local = Local::new().await;
    let (agent, _tunnel) = connected(&[(local.port, 8080)]).await;
    let client = agent.current();
    let mut stuck = accepted(&client, 8080).await;
    let _at_a_breakpoint = local.accept().await;
    let flood = tokio::spawn(async move {
        loop {
            if stuck.write_all(&[0; 65536]).await.is_err() {
                return;
            }
        }
    });
    for _ in 0..20 {
        let mut stream = accepted(&client, 8080).await;
        let mut server = local.accept().await;
        let request = vec![1; 100_000];
        let mut got = vec![0; request.len()];
        let exchange = async { tokio::join!(stream.write_all(&request), server.read_exact(&mut got)) };
        let (wrote, read) = soon("another stream", exchange).await;
        wrote.unwrap();
        read.unwrap();
    }
    assert!(!flood.is_finished(), "the first one is still held back");
    flood.abort();
}
