use std::net::Ipv4Addr;

use tokio::io::DuplexStream;
use tokio::io::duplex;

use super::*;
use crate::testing::soon;

/// Two UDP sockets that are connected to each other.
async fn sockets() -> (UdpSocket, UdpSocket) {
    let (a, b) = (
        UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap(),
        UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap(),
    );
    a.connect(b.local_addr().unwrap()).await.unwrap();
    b.connect(a.local_addr().unwrap()).await.unwrap();
    (a, b)
}

/// A running bridge: its stream's other end, and its socket's.
async fn running(buffer: usize) -> (DuplexStream, UdpSocket, tokio::task::JoinHandle<Result<(), BridgeError>>) {
    let (ours, theirs) = duplex(buffer);
    let (outside, inside) = sockets().await;
    (ours, outside, tokio::spawn(async move { bridge(theirs, &inside).await }))
}

async fn received(socket: &UdpSocket) -> Vec<u8> {
    let mut bytes = vec![0; 4096];
    let length = soon("a datagram", socket.recv(&mut bytes)).await.unwrap();
    bytes.truncate(length);
    bytes
}

/// A stream that takes one byte at a time splits every read in every place.
#[tokio::test]
async fn datagrams_keep_their_bounds_however_the_stream_is_cut() {
    for buffer in [1, 2, 3, 7, 1000, 65536] {
        let (stream_a, outside_a, bridge_a) = running(buffer).await;
        let (stream_b, outside_b, bridge_b) = running(buffer).await;
        let mut ends = (stream_a, stream_b);
        let joined = tokio::spawn(async move { tokio::io::copy_bidirectional(&mut ends.0, &mut ends.1).await });
        for length in [1, 2, 255, 256, 1200, 1452, MAX_DATAGRAM] {
            let sent: Vec<u8> = (0..length).map(|i| u8::try_from((i * 7 + length) % 251).unwrap()).collect();
            outside_a.send(&sent).await.unwrap();
            assert_eq!(received(&outside_b).await, sent, "buffer {buffer}, length {length}");
            outside_b.send(&sent).await.unwrap();
            assert_eq!(received(&outside_a).await, sent, "back: buffer {buffer}, length {length}");
        }
        joined.abort();
        soon("the end", async { (bridge_a.await, bridge_b.await) }).await.0.unwrap().ok();
    }
}

#[tokio::test]
async fn what_is_too_long_for_a_frame_is_lost_and_the_rest_goes_on() {
    let (mut stream, outside, _bridge) = running(65536).await;
    for length in [MAX_DATAGRAM + 1, 4000, 0, 5] {
        outside.send(&vec![9; length]).await.unwrap();
    }
    let mut frame = [0; 9];
    soon("the frames", stream.read_exact(&mut frame)).await.unwrap();
    assert_eq!(frame, [0, 0, 0, 5, 9, 9, 9, 9, 9]);
}

#[tokio::test]
async fn a_frame_that_is_too_long_ends_the_bridge() {
    let (mut stream, _outside, bridge) = running(64).await;
    stream.write_all(&[8, 1]).await.unwrap();
    assert!(matches!(soon("the end", bridge).await.unwrap(), Err(BridgeError::TooLong { length: 2049 })));
}

#[tokio::test]
async fn the_end_of_the_stream_is_the_end_of_the_bridge() {
    let (mut stream, outside, bridge) = running(64).await;
    stream.write_all(&[0, 0, 0, 2, 1, 2]).await.unwrap();
    assert_eq!(received(&outside).await, [1, 2]);
    drop(stream);
    assert!(soon("the end", bridge).await.unwrap().is_ok());

    let (mut stream, _outside, bridge) = running(64).await;
    stream.write_all(&[0, 3, 1, 2]).await.unwrap();
    drop(stream);
    assert!(matches!(soon("the end", bridge).await.unwrap(), Err(BridgeError::Cut)));
}

#[tokio::test]
async fn a_peer_that_is_away_for_a_while_does_not_end_it() {
    let (mut stream, outside, bridge) = running(64).await;
    let (address, peer) = (outside.local_addr().unwrap(), outside.peer_addr().unwrap());
    drop(outside);
    for _ in 0..3 {
        stream.write_all(&[0, 1, 7]).await.unwrap();
        tokio::task::yield_now().await;
    }
    let again = UdpSocket::bind(address).await.unwrap();
    again.connect(peer).await.unwrap();
    // What the system still has to say about the datagrams before may cost one more.
    let deliver = async {
        let mut bytes = [0; 4];
        loop {
            stream.write_all(&[0, 1, 8]).await.unwrap();
            let arrived = tokio::time::timeout(std::time::Duration::from_millis(50), again.recv(&mut bytes)).await;
            if arrived.is_ok_and(|length| bytes[..length.unwrap()] == [8]) {
                break;
            }
        }
    };
    soon("delivery", deliver).await;
    assert!(!bridge.is_finished());
}

/// A stream that is not read holds one batch and no more; datagrams are lost meanwhile and the bridge goes on.
#[tokio::test]
async fn a_stream_that_is_stuck_costs_no_memory() {
    let (mut stream, outside, bridge) = running(16).await;
    for _ in 0..2000 {
        // The socket's buffer is full at some point, which loopback reports to nobody.
        outside.send(&[3; 1000]).await.unwrap();
    }
    let mut header = [0; 2];
    soon("a frame", stream.read_exact(&mut header)).await.unwrap();
    assert_eq!(header, 1000u16.to_be_bytes());
    assert!(!bridge.is_finished());
}
