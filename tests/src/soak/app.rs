//! The soak's app: says who it is and sends each body back, or a stream as long as it is asked for, and remembers nothing.

use std::{convert::Infallible, fmt, net::SocketAddr, str::FromStr, sync::Arc};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt as _, Collected, Full, StreamBody, combinators::BoxBody};
use hyper::{
    Request, Response,
    body::{Frame, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio_util::task::AbortOnDropHandle;

use crate::{
    Host,
    peers::{ANSWERED_BY, pattern, serve},
};

/// The header that names the request which is answered.
pub(super) const TARGET: &str = "x-target";

/// An answer of many chunks, as the query of a request asks for it: `BYTES/CHUNK`.
#[derive(Clone, Copy)]
pub(super) struct Stream {
    pub(super) bytes: usize,
    /// Bytes of a chunk.
    pub(super) chunk: usize,
}

pub(super) fn start(host: &Host, on: SocketAddr) -> Result<AbortOnDropHandle<()>> {
    serve(host, on, |stream, name| async move {
        let answer = service_fn(move |request| answer(Arc::clone(&name), request));
        // Where a connection breaks its caller sees it.
        http1::Builder::new().pipeline_flush(true).serve_connection(TokioIo::new(stream), answer).await.ok()
    })
}

async fn answer(name: Arc<str>, ask: Request<Incoming>) -> Result<Response<BoxBody<Bytes, Infallible>>, Infallible> {
    let answer = Response::builder().header(ANSWERED_BY, &*name).header(TARGET, ask.uri().to_string());
    let stream = ask.uri().query().and_then(|query| query.parse::<Stream>().ok());
    let body = ask.into_body().collect().await.map(Collected::to_bytes).unwrap_or_default();
    let body = match stream {
        Some(stream) => stream.chunks(),
        // Without a known length it is sent in chunks.
        None if body.len() % 2 == 1 => Full::new(body).map_frame(|frame| frame).boxed(),
        None => Full::new(body).boxed(),
    };
    Ok(answer.body(body).unwrap_or_default())
}

// === impl Stream ===

impl Stream {
    /// All of it.
    pub(super) fn body(self) -> Vec<u8> {
        pattern::body(0, self.bytes as u64)
    }

    /// Chunk by chunk.
    fn chunks(self) -> BoxBody<Bytes, Infallible> {
        let mut left = Bytes::from(self.body());
        let chunks = std::iter::from_fn(move || {
            let chunk = left.split_to(self.chunk.max(1).min(left.len()));
            (!chunk.is_empty()).then(|| Ok(Frame::data(chunk)))
        });
        BoxBody::new(StreamBody::new(stream::iter(chunks)))
    }
}

impl fmt::Display for Stream {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "{}/{}", self.bytes, self.chunk)
    }
}

impl FromStr for Stream {
    type Err = anyhow::Error;

    fn from_str(query: &str) -> Result<Self> {
        let (bytes, chunk) = query.split_once('/').context("BYTES/CHUNK")?;
        Ok(Self { bytes: bytes.parse()?, chunk: chunk.parse()? })
    }
}
