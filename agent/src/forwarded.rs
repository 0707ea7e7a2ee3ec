//! The way in by a Kubernetes port-forward.
//!
//! Owns the TCP listener on loopback that port-forwards connect to, inside the pod's network namespace, and hands the
//! datagrams framed in each connection to the agent's own tunnel port. It admits nobody: QUIC's handshake does, as for a
//! client that comes directly. Runs in the agent's thread, one task per connection.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use sluice_protocol::framed::{self, BridgeError};
use tokio::{
    net::{TcpListener, TcpStream, UdpSocket},
    sync::Semaphore,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Connections at a time, one for each client of this pod that has no other way. Each holds a UDP socket and 36 KiB.
pub const MAX_CONNECTIONS: usize = 64;

/// Pause after the system could not accept, which is when it has no files left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Why a forwarded connection ended.
#[derive(Debug, thiserror::Error)]
enum ForwardedError {
    #[error("cannot open a UDP socket towards the tunnel port {tunnel}")]
    Socket {
        tunnel: SocketAddr,
        #[source]
        source: io::Error,
    },
    #[error("the forwarded connection broke")]
    Bridge(#[source] BridgeError),
}

/// Serves port-forwards until this future is dropped, which ends all of them. Every task it starts is in `tasks`.
///
/// `tunnel` is where the agent accepts clients; any address stands for loopback.
pub async fn serve(listener: TcpListener, tunnel: SocketAddr, tasks: TaskTracker) {
    let tunnel = on_loopback(tunnel);
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let stop = CancellationToken::new();
    let _stop_with_this = stop.clone().drop_guard();
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a port-forward");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Ok(place) = room.clone().try_acquire_owned() else {
            tracing::warn!(%peer, limit = MAX_CONNECTIONS, "refused a port-forward: too many at a time");
            continue;
        };
        let stop = stop.clone();
        tasks.spawn(async move {
            let _place = place;
            tracing::debug!(%peer, "a port-forward begins");
            let ended = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                ended = Box::pin(forward(stream, tunnel)) => ended,
            };
            match ended {
                Ok(()) => tracing::debug!(%peer, "a port-forward ended"),
                Err(error) => tracing::debug!(%peer, error = &error as &dyn std::error::Error, "a port-forward ended"),
            }
        });
    }
}

async fn forward(stream: TcpStream, tunnel: SocketAddr) -> Result<(), ForwardedError> {
    let socket = socket(tunnel).await.map_err(|source| ForwardedError::Socket { tunnel, source })?;
    // A wish only: datagrams must not wait for each other.
    let _ = stream.set_nodelay(true);
    framed::bridge(stream, &socket).await.map_err(ForwardedError::Bridge)
}

/// A socket of its own for each connection: to the tunnel port each is another client's address.
async fn socket(tunnel: SocketAddr) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind(SocketAddr::new(tunnel.ip(), 0)).await?;
    socket.connect(tunnel).await?;
    Ok(socket)
}

/// A tunnel port on all addresses is reached on loopback; `[::]` takes IPv4 as well (see [`sluice_protocol::way::Direct`]),
/// and unlike ::1, 127.0.0.1 is there in every pod.
fn on_loopback(tunnel: SocketAddr) -> SocketAddr {
    if tunnel.ip().is_unspecified() { SocketAddr::new(Ipv4Addr::LOCALHOST.into(), tunnel.port()) } else { tunnel }
}

#[cfg(test)]
mod tests;
