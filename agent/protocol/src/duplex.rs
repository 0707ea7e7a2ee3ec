//! Byte streams that can be cut off: a TCP connection, a QUIC stream.
//!
//! Owns the difference between "all was sent" and "it broke off", which the two transports express in their own way.
//! Runs inside the task that owns the stream. Moves no bytes between streams: that is [`crate::join`].

use std::io;
use std::pin::Pin;
use std::task::Context;
use std::task::Poll;
use std::task::ready;
use std::time::Duration;

use quinn::RecvStream;
use quinn::SendStream;
use tokio::io::AsyncRead;
use tokio::io::AsyncWrite;
use tokio::io::ReadBuf;
use tokio::net::TcpStream;

use crate::close::STREAM_ABORTED;

/// How much later than the last bytes a QUIC stream is reset. A reset overtakes what was written before it: quinn throws
/// away what it has not sent, and the peer what it has not read. TCP does so only with what is not on its way yet.
const SETTLE: Duration = Duration::from_millis(100);

/// A byte stream in both directions.
pub trait Duplex: AsyncRead + AsyncWrite + Unpin + Send {
    /// Makes the end of this stream a failure in the eyes of the peer, whatever direction is still open: RST for TCP
    /// (sent when the stream is dropped), reset and stop for QUIC (at once). A direction that was finished before stays
    /// finished as far as the transport allows.
    fn abort(&mut self);

    /// How long to wait after the last write before [`Duplex::abort`], for what was written to arrive at a peer that
    /// reads.
    fn settles_within(&self) -> Duration {
        Duration::ZERO
    }
}

/// The two halves of a bidirectional QUIC stream as one.
///
/// Dropped before it was shut down, it is reset: what was cut short must not look complete.
#[derive(Debug)]
pub struct QuicDuplex {
    send: SendStream,
    recv: RecvStream,
    finished: bool,
}

impl Duplex for TcpStream {
    fn abort(&mut self) {
        // Fails only for a socket that is beyond repair already.
        let _ = self.set_zero_linger();
    }
}

impl<D: Duplex + ?Sized> Duplex for &mut D {
    fn abort(&mut self) {
        (**self).abort();
    }

    fn settles_within(&self) -> Duration {
        (**self).settles_within()
    }
}

impl<D: Duplex + ?Sized> Duplex for Box<D> {
    fn abort(&mut self) {
        (**self).abort();
    }

    fn settles_within(&self) -> Duration {
        (**self).settles_within()
    }
}

// === impl QuicDuplex ===

impl QuicDuplex {
    /// Joins the halves that quinn hands out.
    #[must_use]
    pub fn new(send: SendStream, recv: RecvStream) -> Self {
        Self { send, recv, finished: false }
    }

    /// The halves, for messages before and after.
    pub fn halves_mut(&mut self) -> (&mut SendStream, &mut RecvStream) {
        (&mut self.send, &mut self.recv)
    }

    /// Says that all was sent; what was written still arrives. Does nothing behind a shutdown or an abort.
    pub fn finish(&mut self) {
        if !self.finished {
            self.finished = true;
            // Fails only if the peer has stopped it: then it does not care.
            let _ = self.send.finish();
        }
    }

    /// Aborts it when what was written has had the time to arrive.
    pub async fn settle_and_abort(mut self) {
        tokio::time::sleep(SETTLE).await;
        self.abort();
    }

    fn reset(&mut self) {
        if !self.finished {
            self.finished = true;
            // Fails only if it was reset or stopped before.
            let _ = self.send.reset(STREAM_ABORTED);
        }
    }
}

impl From<(SendStream, RecvStream)> for QuicDuplex {
    fn from((send, recv): (SendStream, RecvStream)) -> Self {
        Self::new(send, recv)
    }
}

impl Duplex for QuicDuplex {
    fn abort(&mut self) {
        self.reset();
        // Fails only if everything was read or it was stopped before.
        let _ = self.recv.stop(STREAM_ABORTED);
    }

    fn settles_within(&self) -> Duration {
        SETTLE
    }
}

impl AsyncRead for QuicDuplex {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        AsyncRead::poll_read(Pin::new(&mut self.get_mut().recv), cx, buf)
    }
}

impl AsyncWrite for QuicDuplex {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.get_mut().send).poll_write(cx, buf));
        Poll::Ready(written.map_err(|error| match error {
            // The peer reads no more; what it sends is as good as before. quinn has no kind of its own for that.
            quinn::WriteError::Stopped(_) => io::Error::new(io::ErrorKind::BrokenPipe, error),
            error => error.into(),
        }))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        AsyncWrite::poll_flush(Pin::new(&mut self.get_mut().send), cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let shutdown = AsyncWrite::poll_shutdown(Pin::new(&mut this.send), cx);
        this.finished |= matches!(shutdown, Poll::Ready(Ok(())));
        shutdown
    }
}

impl Drop for QuicDuplex {
    fn drop(&mut self) {
        self.reset();
    }
}
