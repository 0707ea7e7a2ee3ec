//! HTTP/2 with prior knowledge, decided request by request.
//!
//! Owns one caller's connection from its preface on: an HTTP/2 server towards the caller, a client towards the app over
//! the connection that was opened for this caller, and, per rule that has matched, a client over one stream to the
//! developer's machine. Runs as one task per connection and one per request, all owned by the connection. The `h2`
//! crate does frames, header compression and flow control; nothing here looks inside a body.

mod body;
mod laptop;
mod request;

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::{Buf as _, Bytes};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    task::JoinSet,
};

use self::{laptop::Laptops, request::Exchange};
use crate::connection::{End, Shared, Steered};

/// What a client sends first (RFC 9113 §3.4).
pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Bytes of one stream that may be under way and unread, in each direction; also its memory bound.
const STREAM_WINDOW: u32 = 256 << 10;

/// The same for a connection.
const CONNECTION_WINDOW: u32 = 1 << 20;

/// Requests of one connection that may be open at once.
const MAX_STREAMS: u32 = 256;

/// Largest header list that is taken from either side, in bytes as RFC 9113 §6.5.2 counts them.
const MAX_HEADER_LIST: u32 = 128 << 10;

/// Bytes of answers that may wait for a caller that reads slowly.
const SEND_BUFFER: usize = 256 << 10;

/// A connection whose first bytes have been read already.
#[derive(Debug)]
struct Prefixed<S> {
    prefix: Bytes,
    inner: S,
}

/// What the requests of one connection share.
struct Upstreams {
    steered: SteeredBy,
    app: h2::client::SendRequest<Bytes>,
    laptops: Laptops,
}

/// A [`Steered`] whose socket has gone to the HTTP/2 server.
#[derive(Debug, Clone)]
struct SteeredBy {
    shared: Arc<Shared>,
    peer: std::net::SocketAddr,
    destination: std::net::SocketAddr,
    port: u16,
}

/// Serves a connection whose first bytes, `prefix`, are the preface.
///
/// # Errors
/// [`End`] where the connection failed as a whole; requests that failed have been reset on their own.
pub(crate) async fn serve(steered: Steered, app: TcpStream, prefix: Bytes) -> Result<(), End> {
    let Steered { shared, caller, peer, destination, port } = steered;
    let by = SteeredBy { shared, peer, destination, port };
    let (app, mut app_connection) = client().handshake(app).await.map_err(into_app)?;
    let mut server = server().handshake(Prefixed { prefix, inner: caller }).await.map_err(End::Http2)?;
    let stopping = by.shared.stopping.clone();
    let upstreams = Arc::new(Upstreams { steered: by, app, laptops: Laptops::default() });
    let mut requests = JoinSet::new();
    let (mut app_gone, mut told) = (false, false);
    loop {
        // Each arm only polls: nothing is lost when another one comes first.
        tokio::select! {
            biased;
            accepted = server.accept() => match accepted {
                Some(Ok((request, respond))) => {
                    requests.spawn(Exchange::new(upstreams.clone(), respond).serve(request));
                }
                Some(Err(error)) => return Err(End::Http2(error)),
                None => return Ok(()),
            },
            result = &mut app_connection, if !app_gone => {
                app_gone = true;
                // Its open requests have failed with it; the caller's next ones shall come over a new connection.
                server.graceful_shutdown();
                if let Err(error) = result {
                    tracing::debug!(error = &error as &dyn std::error::Error, "the app's HTTP/2 connection broke");
                }
            },
            () = stopping.cancelled(), if !told => {
                told = true;
                server.graceful_shutdown();
            },
            Some(_) = requests.join_next() => {}
        }
    }
}

fn server() -> h2::server::Builder {
    let mut builder = h2::server::Builder::new();
    builder
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEADER_LIST)
        .max_send_buffer_size(SEND_BUFFER);
    builder
}

fn client() -> h2::client::Builder {
    let mut builder = h2::client::Builder::new();
    builder
        .enable_push(false)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(MAX_HEADER_LIST)
        .max_send_buffer_size(SEND_BUFFER);
    builder
}

fn into_app(error: h2::Error) -> End {
    End::App(error.into_io().unwrap_or_else(|| io::Error::other("HTTP/2 handshake failed")))
}

// === impl Prefixed ===

impl<S: AsyncRead + Unpin> AsyncRead for Prefixed<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.prefix.is_empty() {
            return Pin::new(&mut self.inner).poll_read(cx, buf);
        }
        let n = self.prefix.len().min(buf.remaining());
        buf.put_slice(&self.prefix[..n]);
        self.prefix.advance(n);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Prefixed<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
