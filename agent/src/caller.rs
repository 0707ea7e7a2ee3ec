//! The caller's end of a steered connection.
//!
//! Owns its socket and, under a wiretap for all TCP, the copies of all that the caller sends, so that whoever serves the
//! connection need not know of them.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use sluice_protocol::duplex::Duplex;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

use crate::wiretap::ConnectionTaps;

/// A caller's connection.
#[derive(Debug)]
pub(crate) struct Caller {
    socket: TcpStream,
    taps: Option<Box<ConnectionTaps>>,
}

// === impl Caller ===

impl Caller {
    pub(crate) fn new(socket: TcpStream) -> Self {
        Self { socket, taps: None }
    }

    /// From now on all that is read is copied.
    pub(crate) fn copy_to(&mut self, taps: ConnectionTaps) {
        self.taps = Some(Box::new(taps));
    }
}

impl AsyncRead for Caller {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = ready!(Pin::new(&mut self.socket).poll_read(cx, buf));
        if let Some(taps) = &mut self.taps {
            match &read {
                Ok(()) if buf.filled().len() > before => taps.copy(&buf.filled()[before..]),
                // The end, which dropping them passes on.
                Ok(()) if buf.remaining() > 0 => self.taps = None,
                Ok(()) => {}
                Err(_) => taps.cut(),
            }
        }
        Poll::Ready(read)
    }
}

impl AsyncWrite for Caller {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}

impl Duplex for Caller {
    fn abort(&mut self) {
        self.socket.abort();
    }
}
