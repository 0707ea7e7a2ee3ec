//! `Upgrade: h2c` (RFC 7540 §3.2): a connection that begins in HTTP/1 and goes on in HTTP/2, in which the HTTP/1 request
//! is stream 1.
//!
//! The `h2` crate knows prior knowledge only. So each of its two ends is shown a request on stream 1 that never was on
//! the wire: the server towards the caller reads one, the client towards the answering server writes one that is cut out
//! of its bytes. Both are made of entries of the static table alone, so that neither changes the state of the header
//! compression.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, Waker, ready},
};

use bytes::{Bytes, BytesMut};
use h2::client::{Connection, ResponseFuture, SendRequest};
use http::Request;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};

use crate::socket::Socket;

use super::{PREFACE, Prefixed, TYPE_SETTINGS, client};

/// Length of a frame's header (RFC 9113 §4.1).
const FRAME_HEADER: usize = 9;

/// Longest first `SETTINGS` that is taken from a caller.
const MAX_SETTINGS: usize = 16 << 10;

/// `GET / http`, the end of stream 1.
const STREAM_ONE: [u8; FRAME_HEADER + 3] = [0, 0, 3, TYPE_HEADERS, 0x05, 0, 0, 0, 1, 0x82, 0x86, 0x84];

const TYPE_HEADERS: u8 = 0x01;

/// Reads the caller's preface and first `SETTINGS` and puts the request of stream 1 behind them. What the request asked
/// does not matter: it is with a server already, and only its answer is passed on.
pub(super) async fn opening(caller: &mut Socket, early: Bytes) -> io::Result<Bytes> {
    let mut bytes = BytesMut::from(early);
    read_to(caller, &mut bytes, PREFACE.len() + FRAME_HEADER).await?;
    let header = &bytes[PREFACE.len()..PREFACE.len() + FRAME_HEADER];
    let length = usize::from(header[0]) << 16 | usize::from(header[1]) << 8 | usize::from(header[2]);
    if !bytes.starts_with(PREFACE) || header[3] != TYPE_SETTINGS || length > MAX_SETTINGS {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "no HTTP/2 preface after the upgrade"));
    }
    let end = PREFACE.len() + FRAME_HEADER + length;
    read_to(caller, &mut bytes, end).await?;
    let rest = bytes.split_off(end);
    bytes.extend_from_slice(&STREAM_ONE);
    bytes.unsplit(rest);
    Ok(bytes.freeze())
}

/// An HTTP/2 client on a connection whose server has begun to answer on stream 1, and that answer.
pub(super) async fn resume<S: AsyncRead + AsyncWrite + Unpin>(
    server: S,
    first: Bytes,
) -> Result<(SendRequest<Bytes>, Connection<WithoutFirst<Prefixed<S>>>, ResponseFuture), h2::Error> {
    let io = WithoutFirst {
        inner: Prefixed { prefix: first, inner: server },
        held: Some(BytesMut::new()),
        out: BytesMut::new(),
        reader: None,
    };
    let (mut requests, connection) = client().handshake(io).await?;
    let mut request = Request::new(());
    // A request of HTTP/1.1 may be without an authority, and then has nothing but static entries.
    *request.version_mut() = http::Version::HTTP_11;
    let (answer, _) = requests.send_request(request, true)?;
    Ok((requests, connection, answer))
}

/// A connection on which the first request is not sent.
#[derive(Debug)]
pub(super) struct WithoutFirst<S> {
    inner: S,
    /// What has been written, until the request has been found and cut out.
    held: Option<BytesMut>,
    /// What may go.
    out: BytesMut,
    /// Waits to read. The server's answer may be here already, and must not be seen before its request was "sent".
    reader: Option<Waker>,
}

// === impl WithoutFirst ===

impl<S: AsyncWrite + Unpin> WithoutFirst<S> {
    /// Cuts the first `HEADERS` frame out of what is held, once it is there as a whole.
    fn cut(&mut self) {
        let Some(held) = &mut self.held else { return };
        let mut at = PREFACE.len();
        while let Some(header) = held.get(at..at + FRAME_HEADER) {
            let end = at
                + FRAME_HEADER
                + (usize::from(header[0]) << 16 | usize::from(header[1]) << 8 | usize::from(header[2]));
            if held.len() < end {
                return;
            }
            if header[3] == TYPE_HEADERS {
                let rest = held.split_off(end);
                held.truncate(at);
                self.out = std::mem::take(held);
                self.out.unsplit(rest);
                self.held = None;
                if let Some(reader) = self.reader.take() {
                    reader.wake();
                }
                return;
            }
            at = end;
        }
    }

    fn poll_out(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        crate::http1::poll_flush(&mut self.inner, &mut self.out, usize::MAX, cx)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for WithoutFirst<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if let Some(held) = &mut self.held {
            held.extend_from_slice(buf);
            self.cut();
            return Poll::Ready(Ok(buf.len()));
        }
        ready!(self.poll_out(cx))?;
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_out(cx))?;
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_out(cx))?;
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for WithoutFirst<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.held.is_some() {
            self.reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

async fn read_to(from: &mut Socket, bytes: &mut BytesMut, length: usize) -> io::Result<()> {
    while bytes.len() < length {
        if from.read_buf(bytes).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(())
}
