use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;

const DEADLINE: Duration = Duration::from_secs(20);

async fn soon<F: Future>(what: &str, future: F) -> F::Output {
    tokio::time::timeout(DEADLINE, future).await.unwrap_or_else(|_| panic!("not within {DEADLINE:?}: {what}"))
}

/// Something that plays the tunnel port, and the listener's address.
async fn serving() -> (UdpSocket, SocketAddr, TaskTracker, tokio::task::JoinHandle<()>) {
    let tunnel = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let any = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), tunnel.local_addr().unwrap().port());
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let tasks = TaskTracker::new();
    let server = tokio::spawn(serve(listener, any, tasks.clone()));
    (tunnel, address, tasks, server)
}

#[tokio::test]
async fn each_connection_is_another_client_of_the_tunnel_port() {
    let (tunnel, address, tasks, server) = serving().await;
    let mut clients = Vec::new();
    let mut sources = Vec::new();
    let mut buffer = [0; 64];
    for number in 1..=2 {
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(&[0, 2, 7, number]).await.unwrap();
        let (length, from) = soon("a datagram", tunnel.recv_from(&mut buffer)).await.unwrap();
        assert_eq!(buffer[..length], [7, number]);
        tunnel.send_to(&[9, number, 9], from).await.unwrap();
        let mut frame = [0; 5];
        soon("an answer", client.read_exact(&mut frame)).await.unwrap();
        assert_eq!(frame, [0, 3, 9, number, 9]);
        clients.push(client);
        sources.push(from);
    }
    assert_ne!(sources[0], sources[1]);
    server.abort();
    tasks.close();
    soon("all tasks ended", tasks.wait()).await;
    assert_eq!(soon("the end", clients[0].read(&mut buffer)).await.unwrap(), 0);
}

#[tokio::test]
async fn one_too_many_is_closed_and_a_place_is_free_again_later() {
    let (tunnel, address, _tasks, _server) = serving().await;
    let mut buffer = [0; 64];
    let mut clients = Vec::new();
    for _ in 0..MAX_CONNECTIONS {
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(&[0, 1, 1]).await.unwrap();
        soon("a datagram", tunnel.recv_from(&mut buffer)).await.unwrap();
        clients.push(client);
    }
    let mut extra = TcpStream::connect(address).await.unwrap();
    assert!(matches!(soon("the refusal", extra.read(&mut buffer)).await, Ok(0) | Err(_)));

    clients.pop();
    let served = async {
        loop {
            let mut client = TcpStream::connect(address).await.unwrap();
            // The agent may not have seen the other one's end yet, and close this one as well.
            if client.write_all(&[0, 1, 2]).await.is_err() {
                continue;
            }
            let arrived = tokio::time::timeout(Duration::from_millis(100), tunnel.recv_from(&mut buffer)).await;
            if arrived.is_ok() {
                break;
            }
        }
    };
    soon("a free place", served).await;
}
