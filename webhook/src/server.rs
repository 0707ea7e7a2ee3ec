//! HTTPS for API servers and agents.
//!
//! Owns the listener, the handshakes and the connections. Who is slow delays only themselves: handshakes and heads have
//! deadlines, the number of connections is bounded. HTTP/2, which API servers prefer, and HTTP/1.1.

use std::{io, sync::Arc, time::Duration};

use axum::Router;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{conn::auto::Builder, graceful::GracefulShutdown},
    service::TowerToHyperService,
};
use rustls::ServerConfig;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::timeout,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Longest that a handshake or a request's head may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often a quiet HTTP/2 connection is asked whether it is still there.
const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// How long requests may go on after a stop was asked for.
const DRAIN: Duration = Duration::from_secs(10);
/// Pause after the system had no socket for us.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Serves `router` until `stop`, then lets requests in progress end. At most `connections` at a time.
pub async fn serve(
    listener: TcpListener,
    config: Arc<ServerConfig>,
    router: Router,
    connections: usize,
    stop: CancellationToken,
) {
    let acceptor = TlsAcceptor::from(config);
    let permits = Arc::new(Semaphore::new(connections));
    let (tasks, graceful) = (TaskTracker::new(), GracefulShutdown::new());
    let abort = CancellationToken::new();
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            // Cancel safe: a connection that is not returned stays in the queue.
            accepted = accept(&listener, &permits) => accepted,
        };
        let (stream, permit) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let (acceptor, service) = (acceptor.clone(), TowerToHyperService::new(router.clone()));
        let (watcher, abort) = (graceful.watcher(), abort.clone());
        tasks.spawn(async move {
            let serving = async move {
                let stream = match timeout(PATIENCE, acceptor.accept(stream)).await {
                    Ok(Ok(stream)) => stream,
                    Ok(Err(error)) => return tracing::debug!(%error, "handshake failed"),
                    Err(_) => return tracing::debug!("handshake took too long"),
                };
                let builder = builder();
                let connection = builder.serve_connection(TokioIo::new(stream), service);
                if let Err(error) = Box::pin(watcher.watch(connection)).await {
                    tracing::debug!(error, "connection ended");
                }
            };
            tokio::select! {
                biased;
                () = abort.cancelled() => {}
                () = serving => {}
            }
            drop(permit);
        });
    }
    drop(listener);
    tasks.close();
    if timeout(DRAIN, graceful.shutdown()).await.is_err() {
        tracing::warn!("requests were still going on after {} s", DRAIN.as_secs());
    }
    abort.cancel();
    tasks.wait().await;
}

async fn accept(
    listener: &TcpListener,
    permits: &Arc<Semaphore>,
) -> io::Result<(TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    let permit = permits.clone().acquire_owned().await.map_err(io::Error::other)?;
    let (stream, _) = listener.accept().await?;
    stream.set_nodelay(true)?;
    Ok((stream, permit))
}

fn builder() -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(PATIENCE);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(PATIENCE)
        .max_concurrent_streams(250);
    builder
}
