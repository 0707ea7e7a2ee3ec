//! One direction of a join.

use std::io;
use std::pin::Pin;
use std::task::Context;
use std::task::Poll;
use std::task::ready;

use bytes::Buf as _;
use bytes::Bytes;
use tokio::io::AsyncRead;
use tokio::io::AsyncWrite;
use tokio::io::ReadBuf;

use super::scratch;

/// Buffers moved before other tasks get their turn: QUIC streams have no budget of their own as tokio's sockets do.
const ROUNDS: usize = 16;

/// Which end of a flow failed.
pub(super) enum Fault {
    Source(io::Error),
    Sink(io::Error),
}

/// How far one call of [`Flow::poll`] came.
pub(super) enum Step {
    /// The task will be woken.
    Waiting,
    /// Nothing is left to do in this direction.
    Over,
    /// Not to be polled before the join has decided what to do.
    Failed(Fault),
}

#[derive(Clone, Copy, Eq, PartialEq)]
enum State {
    Copying,
    /// The source has ended, the sink is being told.
    Finishing,
    /// The sink has everything, the end included.
    Delivered,
    /// The sink takes nothing any more: what still comes is thrown away, so that a source that writes before it reads
    /// gets to read.
    Discarding,
    /// As before, and the source has ended.
    Discarded,
}

pub(super) struct Flow {
    state: State,
    /// Read and not yet written.
    pending: Bytes,
    bytes: u64,
    unflushed: bool,
    trust_end: bool,
}

impl Flow {
    pub(super) fn new(pending: Bytes) -> Self {
        Self { state: State::Copying, pending, bytes: 0, unflushed: false, trust_end: true }
    }

    /// Bytes that the sink took.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn is_delivered(&self) -> bool {
        self.state == State::Delivered
    }

    pub(super) fn is_discarding(&self) -> bool {
        matches!(self.state, State::Discarding | State::Discarded)
    }

    /// Nothing to wait for: a flow that discards lasts as long as the other one.
    pub(super) fn is_over(&self) -> bool {
        self.is_delivered() || self.is_discarding()
    }

    pub(super) fn discard(&mut self) {
        self.state = State::Discarding;
        self.pending = Bytes::new();
    }

    /// From now on an end of stream counts as a failure of the source.
    pub(super) fn distrust_end(&mut self) {
        self.trust_end = false;
    }

    pub(super) fn poll<S, D>(&mut self, source: &mut S, sink: &mut D, cx: &mut Context<'_>) -> Step
    where
        S: AsyncRead + Unpin,
        D: AsyncWrite + Unpin,
    {
        match self.run(source, sink, cx) {
            Poll::Pending => Step::Waiting,
            Poll::Ready(Ok(())) => Step::Over,
            Poll::Ready(Err(fault)) => Step::Failed(fault),
        }
    }

    fn run<S, D>(&mut self, source: &mut S, sink: &mut D, cx: &mut Context<'_>) -> Poll<Result<(), Fault>>
    where
        S: AsyncRead + Unpin,
        D: AsyncWrite + Unpin,
    {
        for _ in 0..ROUNDS {
            match self.state {
                State::Copying => {
                    ready!(self.write_pending(sink, cx)).map_err(Fault::Sink)?;
                    if ready!(self.copy(source, sink, cx))? == 0 {
                        self.state = State::Finishing;
                    }
                }
                State::Finishing => {
                    ready!(Pin::new(&mut *sink).poll_shutdown(cx)).map_err(Fault::Sink)?;
                    self.state = State::Delivered;
                }
                State::Discarding => {
                    let read = scratch::with(|buffer| read(source, cx, buffer));
                    if ready!(read).map_err(Fault::Source)? == 0 {
                        self.state = State::Discarded;
                    }
                }
                State::Delivered | State::Discarded => return Poll::Ready(Ok(())),
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Reads once and writes what came; keeps what the sink does not take. 0 is the end of the source.
    fn copy<S, D>(&mut self, source: &mut S, sink: &mut D, cx: &mut Context<'_>) -> Poll<Result<usize, Fault>>
    where
        S: AsyncRead + Unpin,
        D: AsyncWrite + Unpin,
    {
        scratch::with(|buffer| {
            let Poll::Ready(length) = read(source, cx, buffer).map_err(Fault::Source)? else {
                return self.flush(sink, cx).map_err(Fault::Sink)?.map(|never| match never {});
            };
            if length == 0 && !self.trust_end {
                return Poll::Ready(Err(Fault::Source(io::ErrorKind::ConnectionReset.into())));
            }
            let mut rest = &buffer[..length];
            while !rest.is_empty() {
                match self.write(sink, rest, cx).map_err(Fault::Sink)? {
                    Poll::Ready(written) => rest = &rest[written..],
                    Poll::Pending => {
                        self.pending = Bytes::copy_from_slice(rest);
                        break;
                    }
                }
            }
            Poll::Ready(Ok(length))
        })
    }

    fn write_pending<D: AsyncWrite + Unpin>(&mut self, sink: &mut D, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.pending.is_empty() {
            let pending = self.pending.clone();
            let written = ready!(self.write(sink, &pending, cx))?;
            self.pending.advance(written);
            if self.pending.is_empty() {
                self.pending = Bytes::new();
            }
        }
        Poll::Ready(Ok(()))
    }

    fn write<D: AsyncWrite + Unpin>(
        &mut self,
        sink: &mut D,
        bytes: &[u8],
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(sink).poll_write(cx, bytes))?;
        if written == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        self.unflushed = true;
        self.bytes += written as u64;
        Poll::Ready(Ok(written))
    }

    /// Nothing more to read for now: let the sink send what it holds back. Never ready, as the source is what is
    /// waited for.
    fn flush<D: AsyncWrite + Unpin>(
        &mut self,
        sink: &mut D,
        cx: &mut Context<'_>,
    ) -> io::Result<Poll<std::convert::Infallible>> {
        if self.unflushed && Pin::new(sink).poll_flush(cx)?.is_ready() {
            self.unflushed = false;
        }
        Ok(Poll::Pending)
    }
}

fn read<S: AsyncRead + Unpin>(source: &mut S, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
    let mut buffer = ReadBuf::new(buffer);
    ready!(Pin::new(source).poll_read(cx, &mut buffer))?;
    Poll::Ready(Ok(buffer.filled().len()))
}
