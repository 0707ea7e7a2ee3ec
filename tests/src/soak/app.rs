//! The soak's app: says who it is and sends each body back, and remembers nothing.

use std::{convert::Infallible, net::SocketAddr, sync::Arc};

use anyhow::Result;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Collected, Full, combinators::BoxBody};
use hyper::{Request, Response, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio_util::task::AbortOnDropHandle;

use crate::{
    Host,
    peers::{ANSWERED_BY, serve},
};

/// The header that names the request which is answered.
pub(super) const TARGET: &str = "x-target";

pub(super) fn start(host: &Host, on: SocketAddr) -> Result<AbortOnDropHandle<()>> {
    serve(host, on, |stream, name| async move {
        let answer = service_fn(move |request| answer(Arc::clone(&name), request));
        // Where a connection breaks its caller sees it.
        http1::Builder::new().pipeline_flush(true).serve_connection(TokioIo::new(stream), answer).await.ok()
    })
}

async fn answer(name: Arc<str>, ask: Request<Incoming>) -> Result<Response<BoxBody<Bytes, Infallible>>, Infallible> {
    let target = ask.uri().path().to_owned();
    let body = ask.into_body().collect().await.map(Collected::to_bytes).unwrap_or_default();
    // Without a known length it is sent in chunks.
    let chunked = body.len() % 2 == 1;
    let body = Full::new(body);
    let body = if chunked { body.map_frame(|frame| frame).boxed() } else { body.boxed() };
    let answer = Response::builder().header(ANSWERED_BY, &*name).header(TARGET, target);
    Ok(answer.body(body).unwrap_or_default())
}
