//! Those who talk in the tests: apps that say who they are and remember what they got, and callers.
//!
//! They run on the test's own runtime; only their sockets are inside a host. All of them are exact: what went over the
//! wire is what they report, byte for byte where the protocol is a stream of bytes.

mod framing;
pub mod grpc;
pub mod http1;
pub mod http2;
pub mod pattern;
pub mod raw;

use std::{net::SocketAddr, sync::Arc};

use anyhow::Result;
use tokio::{net::TcpStream, task::JoinSet};
use tokio_util::task::AbortOnDropHandle;

use crate::Host;

/// The header, trailer or metadata entry in which an app says who it is.
pub const ANSWERED_BY: &str = "x-answered-by";

/// Listens inside a host and serves each connection at the same time as the others; `serve` is told the host's name. What
/// becomes of a connection is its caller's to see. All of it ends when this is dropped.
pub fn serve<F>(
    host: &Host,
    on: SocketAddr,
    serve: impl Fn(TcpStream, Arc<str>) -> F + Send + 'static,
) -> Result<AbortOnDropHandle<()>>
where
    F: Future<Output: Send + 'static> + Send + 'static,
{
    let (listener, name) = (host.listen(on)?, Arc::from(host.name()));
    let task = tokio::spawn(async move {
        let mut tasks = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            while tasks.try_join_next().is_some() {}
            tasks.spawn(serve(stream, Arc::clone(&name)));
        }
    });
    Ok(AbortOnDropHandle::new(task))
}
