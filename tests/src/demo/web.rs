//! The HTTP/1 side that both services have: a listener, small JSON messages, an orderly end.

use std::{convert::Infallible, future::Future};

use anyhow::Result;
use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, header::CONTENT_TYPE};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Serialize;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{ANSWERED_BY, DRAIN};

pub(super) type Answer = Response<Full<Bytes>>;

/// Serves until `stop`, then ends each connection behind its present request.
pub(super) async fn serve<H, F>(listener: TcpListener, stop: CancellationToken, handle: H) -> Result<()>
where
    H: Fn(Request<Incoming>) -> F + Clone + Send + 'static,
    F: Future<Output = Answer> + Send + 'static,
{
    let connections = TaskTracker::new();
    loop {
        let stream = tokio::select! {
            biased;
            // Cancel-safe: the token stays cancelled.
            () = stop.cancelled() => break,
            // Cancel-safe: a connection that is not taken stays in the backlog.
            accepted = listener.accept() => accepted?.0,
        };
        // Fails only for a caller that is gone already, which the connection will notice.
        let _ = stream.set_nodelay(true);
        connections.spawn(connection(stream, stop.clone(), handle.clone()));
    }
    connections.close();
    // Whoever has not finished by then is cut off by the end of the process.
    let _ = tokio::time::timeout(DRAIN, connections.wait()).await;
    Ok(())
}

async fn connection<H, F>(stream: TcpStream, stop: CancellationToken, handle: H)
where
    H: Fn(Request<Incoming>) -> F + Send,
    F: Future<Output = Answer> + Send,
{
    let service = service_fn(move |request| {
        let answer = handle(request);
        async { Ok::<_, Infallible>(answer.await) }
    });
    let mut connection =
        std::pin::pin!(http1::Builder::new().timer(TokioTimer::new()).serve_connection(TokioIo::new(stream), service));
    let served = tokio::select! {
        // Cancel-safe: it is polled on below.
        served = connection.as_mut() => served,
        // Cancel-safe: the token stays cancelled.
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = served {
        eprintln!("a caller's connection broke: {error}");
    }
}

/// The request's content, if it is of a sensible size.
pub(super) async fn content(request: Request<Incoming>) -> Result<Bytes, Answer> {
    const MOST: usize = 64 * 1024;
    let body = Limited::new(request.into_body(), MOST).collect().await;
    body.map(http_body_util::Collected::to_bytes).map_err(|error| text(StatusCode::BAD_REQUEST, &error.to_string()))
}

/// An answer in JSON, signed by the `add` that has added, if one has.
pub(super) fn json<T: Serialize>(message: &T, signature: Option<HeaderValue>) -> Answer {
    let Ok(content) = serde_json::to_vec(message) else {
        return text(StatusCode::INTERNAL_SERVER_ERROR, "the answer cannot be written as JSON");
    };
    let mut answer = Response::new(Full::from(content));
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Some(signature) = signature {
        answer.headers_mut().insert(ANSWERED_BY, signature);
    }
    answer
}

/// An answer in words.
pub(super) fn text(status: StatusCode, words: &str) -> Answer {
    let mut answer = Response::new(Full::from(format!("{words}\n")));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    answer
}
