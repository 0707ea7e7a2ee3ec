//! One end of a connection: the caller's or the app's.
//!
//! Owns its socket and, under a wiretap for all TCP, the copies of all that comes from it, so that whoever serves the
//! connection need not know of them. Knows whether the socket was made by insertion, and has to be closed accordingly.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    pin::Pin,
    task::{Context, Poll, ready},
};

use sluice_protocol::duplex::Duplex;
use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

use crate::{insertion::repair, wiretap::ConnectionTaps};

/// An end of a connection.
#[derive(Debug)]
pub(crate) struct Socket {
    socket: TcpStream,
    taps: Option<Box<ConnectionTaps>>,
    /// It ends with a reset unless something else is said, so that its peer is told when this process dies.
    resets: bool,
}

// === impl Socket ===

impl Socket {
    /// One that was accepted or connected.
    pub(crate) fn new(socket: TcpStream) -> Self {
        Self { socket, taps: None, resets: false }
    }

    /// One that was made by insertion.
    pub(crate) fn inserted(socket: TcpStream) -> Self {
        Self { socket, taps: None, resets: true }
    }

    /// Closes it without a packet.
    pub(crate) fn vanish(&mut self) {
        if let Err(error) = repair::silence(&self.socket) {
            tracing::error!(%error, "a socket of an inserted connection cannot be closed in silence");
        }
    }

    /// From now on all that is read is copied.
    pub(crate) fn copy_to(&mut self, taps: ConnectionTaps) {
        self.taps = Some(Box::new(taps));
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if self.resets {
            // It has come to its end while the process lives: orderly, as every other. Fails for none that is open.
            let _ = SockRef::from(&self.socket).set_linger(None);
        }
    }
}

impl AsyncRead for Socket {
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

impl AsyncWrite for Socket {
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

impl Duplex for Socket {
    fn abort(&mut self) {
        self.resets = false;
        self.socket.abort();
    }
}
