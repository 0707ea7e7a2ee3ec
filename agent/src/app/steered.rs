//! Accepts what the kernel steers to the agent's listeners, and nothing else.
//!
//! Runs in the agent's thread, a task for each listener and one for each connection.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use sluice_protocol::duplex::Duplex as _;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    connection::{Shared, Steered},
    dialer::is_own_source,
    insertion::Position,
    socket::Socket,
};

/// Accepts steered connections for ever; each is a task in `connections`, ended early by `cut`.
pub(super) async fn accept(
    listener: TcpListener,
    shared: Arc<Shared>,
    connections: TaskTracker,
    cut: CancellationToken,
) {
    let port = listener.local_addr().map_or(0, |address| address.port());
    loop {
        let (caller, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            // The caller gave up before it was accepted.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
            Err(error) => {
                tracing::error!(%error, "cannot accept a connection; trying again");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        if let Some(steered) = take(&shared, caller, peer, port) {
            let open = shared.metrics.open();
            let cut = cut.clone();
            connections.spawn(async move {
                if let Some(Err(end)) = cut.run_until_cancelled(steered.serve()).await {
                    tracing::debug!(error = &end as &dyn std::error::Error, %peer, "a connection broke");
                }
                drop(open);
            });
        }
    }
}

fn take(shared: &Arc<Shared>, caller: TcpStream, peer: SocketAddr, listener_port: u16) -> Option<Steered> {
    let mut caller = caller;
    if is_own_source(peer.ip()) {
        // The kernel program lets these through to the app, so one that comes here would come again and again.
        shared.metrics.looped();
        tracing::error!(%peer, "refused a connection of the agent itself: is another steering program in this pod?");
        caller.abort();
        return None;
    }
    // Gone already, where it fails.
    let destination = canonical(caller.local_addr().ok()?);
    if destination.port() == listener_port {
        // Not steered: somebody in the pod has found the port of the listener itself.
        caller.abort();
        return None;
    }
    caller.set_nodelay(true).ok()?;
    let peer = canonical(peer);
    Some(Steered {
        shared: shared.clone(),
        caller: Socket::new(caller),
        peer,
        destination,
        port: destination.port(),
        app: None,
        position: Position::default(),
        inserted: None,
    })
}

/// An IPv4 address as such, also where it came through an IPv6 socket.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
