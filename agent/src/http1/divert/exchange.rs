//! One request and its answer, between a caller and the developer's process.
//!
//! Polled inside the task of the connection. Both directions go on until each has what is its own: an answer that comes
//! before the request has ended does not cut that off. What becomes of a request without an answer is the parent's.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf as _, Bytes, BytesMut};
use sluice_protocol::duplex::QuicDuplex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::super::{
    Doubt,
    body::Body,
    head::{RequestHead, Upgrade},
    relay::{READ, Relay, Up, poll_flush},
    track::{Answers, Followed},
};
use crate::connection::End;

/// Most bytes of a request that are kept until its answer begins, so that the app can answer if the client dies.
const KEPT: usize = 64 << 10;

/// Bytes read from the caller behind a request that is being answered: enough to notice that it has gone.
const AHEAD: usize = 16 << 10;

/// One request and its answer.
pub(super) struct Exchange<'a> {
    relay: &'a mut Relay,
    pub(super) stream: QuicDuplex,
    answers: Answers,
    upgrade: Upgrade,
    /// What is still to come of the request's body behind `ready`.
    body: Body,
    /// It breaks the grammar there.
    doubt: Option<Doubt>,
    /// How many bytes of the buffer belong to the request.
    ready: usize,
    /// How many of those have been sent.
    pub(super) sent: usize,
    /// The buffer still has the request from its first byte.
    pub(super) whole: bool,
    /// The local process takes no more of the request: its rest is read and thrown away.
    deaf: bool,
    fin_sent: bool,
    /// To the caller.
    pub(super) out: BytesMut,
    /// The answer cannot be framed: it goes on until the local process closes.
    unframed: bool,
    /// The answer has ended; the value says whether the server closes after it.
    answered: Option<bool>,
    /// More came than the answer: the stream is of no further use.
    pub(super) spoiled: bool,
    /// The local process has sent its last byte.
    closed: bool,
    /// The caller has been told so.
    told: bool,
}

/// How an exchange ended.
pub(super) enum Outcome {
    Answered {
        /// The server closes its connection, or the request cannot be brought to its end.
        close: bool,
        /// The server has all of the request.
        complete: bool,
    },
    /// Both sides go on in another protocol.
    Switched,
    /// Where the request ends is in doubt: both sides go on as bytes.
    Wire(Doubt),
    /// The same with HTTP/2, of which these bytes have come.
    Http2(Bytes),
    /// The client went away before anything of the answer had come.
    Unanswered,
    /// The local process closed its connection instead of an answer.
    Silent,
    /// It did so in the middle of one.
    CutShort,
    /// It reset its connection instead of an answer.
    Reset(io::Error),
}

// === impl Exchange ===

impl<'a> Exchange<'a> {
    /// Of the request at the beginning of the caller's buffer, of which `sent` bytes, at most its head, have gone to the
    /// client already.
    pub(super) fn new(relay: &'a mut Relay, stream: QuicDuplex, head: RequestHead, sent: usize) -> Self {
        let mut answers = Answers::default();
        answers.expect(head.kind, head.upgrade != Upgrade::None);
        let mut exchange = Self {
            relay,
            stream,
            answers,
            upgrade: head.upgrade,
            body: head.body,
            doubt: None,
            ready: head.len,
            sent,
            whole: true,
            deaf: false,
            fin_sent: false,
            out: BytesMut::new(),
            unframed: false,
            answered: None,
            spoiled: false,
            closed: false,
            told: false,
        };
        if let Some(taps) = &mut exchange.relay.up.taps {
            taps.again();
            taps.copy(&exchange.relay.up.buf[..head.len], head.body.is_done());
        }
        exchange.frame();
        exchange
    }

    /// Moves `ready` over what has come of the body. Behind what breaks the grammar nothing can be decided: the local
    /// server, which has the request, gets that as well and judges for itself.
    fn frame(&mut self) {
        let Up { buf, taps, .. } = &mut self.relay.up;
        let have = &buf[self.ready..];
        match self.body.take(have) {
            Ok(taken) => {
                if let Some(taps) = taps {
                    taps.copy(&have[..taken], self.body.is_done());
                }
                self.ready += taken;
            }
            Err(doubt) => self.doubt = Some(doubt),
        }
    }

    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Outcome, End>> {
        if let Poll::Ready(end) = self.poll_up(cx) {
            end.map_err(End::Caller)?;
        }
        if let Some(doubt) = self.doubt {
            return Poll::Ready(Ok(Outcome::Wire(doubt)));
        }
        let outcome = ready!(self.poll_down(cx))?;
        let Outcome::Answered { mut close, .. } = outcome else { return Poll::Ready(Ok(outcome)) };
        let complete = self.body.is_done() && self.sent == self.ready;
        if !complete {
            // An early answer. What the server does with the rest of the request is its own affair.
            self.poll_listen(cx);
            close |= self.closed;
            if close && !self.told {
                self.told = true;
                let _ = Pin::new(&mut self.relay.steered.caller).poll_shutdown(cx);
            }
            let over = self.deaf || (self.relay.up.eof && self.sent == self.ready);
            if !over {
                return Poll::Pending;
            }
        }
        self.forget();
        Poll::Ready(Ok(Outcome::Answered { close: close || !complete, complete }))
    }

    /// Behind the answer: notices that the local process sends more, closes or is gone.
    fn poll_listen(&mut self, cx: &mut Context<'_>) {
        while !self.closed && !self.spoiled && !self.deaf {
            let mut byte = [0];
            let mut read = ReadBuf::new(&mut byte);
            match Pin::new(&mut self.stream).poll_read(cx, &mut read) {
                Poll::Pending => break,
                Poll::Ready(Err(_)) => self.deaf = true,
                Poll::Ready(Ok(())) if read.filled().is_empty() => self.closed = true,
                Poll::Ready(Ok(())) => self.spoiled = true,
            }
        }
    }

    /// Caller to client. Ready only when the caller breaks off.
    fn poll_up(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.doubt.is_none() {
            self.poll_send(cx);
            let up = &mut self.relay.up;
            let behind = up.buf.len() - self.ready;
            let full = if self.body.is_done() { behind >= AHEAD } else { self.ready - self.sent >= READ };
            if up.eof || full {
                return Poll::Pending;
            }
            let mut space = [const { std::mem::MaybeUninit::uninit() }; READ];
            let mut read = ReadBuf::uninit(&mut space);
            ready!(Pin::new(&mut self.relay.steered.caller).poll_read(cx, &mut read))?;
            if read.filled().is_empty() {
                self.relay.up.eof = true;
                continue;
            }
            self.relay.up.buf.extend_from_slice(read.filled());
            self.frame();
        }
        Poll::Pending
    }

    fn poll_send(&mut self, cx: &mut Context<'_>) {
        while self.sent < self.ready {
            if self.deaf {
                self.sent = self.ready;
                break;
            }
            let unsent = &self.relay.up.buf[self.sent..self.ready];
            match Pin::new(&mut self.stream).poll_write(cx, unsent) {
                Poll::Ready(Ok(n)) => self.sent += n,
                Poll::Ready(Err(_)) => self.deaf = true,
                Poll::Pending => break,
            }
        }
        if !self.untouched() || self.ready > KEPT {
            self.forget();
        }
        let up = &self.relay.up;
        if up.eof && !self.fin_sent && !self.deaf && self.sent == self.ready && up.buf.len() == self.ready {
            self.fin_sent = true;
            let _ = Pin::new(&mut self.stream).poll_shutdown(cx);
        }
    }

    /// Lets go of what has been sent.
    fn forget(&mut self) {
        self.whole &= self.sent == 0;
        self.relay.up.buf.advance(self.sent);
        self.ready -= self.sent;
        self.sent = 0;
    }

    /// Client to caller.
    fn poll_down(&mut self, cx: &mut Context<'_>) -> Poll<Result<Outcome, End>> {
        loop {
            ready!(poll_flush(&mut self.relay.steered.caller, &mut self.out, usize::MAX, cx)).map_err(End::Caller)?;
            if let Some(close) = self.answered {
                return Poll::Ready(Ok(Outcome::Answered { close, complete: false }));
            }
            let mut space = [const { std::mem::MaybeUninit::uninit() }; READ];
            let mut read = ReadBuf::uninit(&mut space);
            let result = ready!(Pin::new(&mut self.stream).poll_read(cx, &mut read));
            let bytes = read.filled();
            if result.is_err() || bytes.is_empty() {
                return Poll::Ready(self.ended(result));
            }
            let followed = if self.unframed { Followed::All } else { self.answers.follow(bytes) };
            let (pass, outcome) = match followed {
                Followed::All => (bytes.len(), None),
                Followed::End { at, close } => {
                    self.answered = Some(close);
                    self.spoiled = at < bytes.len();
                    (at, None)
                }
                Followed::Switched { at } if self.upgrade == Upgrade::H2c => {
                    (at, Some(Outcome::Http2(Bytes::copy_from_slice(&bytes[at..]))))
                }
                Followed::Switched { .. } => (bytes.len(), Some(Outcome::Switched)),
                Followed::Doubt { .. } => {
                    self.unframed = true;
                    (bytes.len(), None)
                }
            };
            let written = match Pin::new(&mut self.relay.steered.caller).poll_write(cx, &bytes[..pass]) {
                Poll::Ready(written) => written.map_err(End::Caller)?,
                Poll::Pending => 0,
            };
            self.out.extend_from_slice(&bytes[written..pass]);
            if let Some(outcome) = outcome {
                return Poll::Ready(Ok(outcome));
            }
        }
    }

    /// Whether nothing of the answer has come.
    fn untouched(&self) -> bool {
        self.answers.untouched() && !self.unframed
    }

    /// The client's stream has ended.
    fn ended(&mut self, how: io::Result<()>) -> Result<Outcome, End> {
        let untouched = self.untouched();
        match how {
            Ok(()) if self.unframed || self.answers.close() => {
                self.closed = true;
                self.answered = Some(true);
                Ok(Outcome::Answered { close: true, complete: false })
            }
            Ok(()) if untouched => Ok(Outcome::Silent),
            Ok(()) => Ok(Outcome::CutShort),
            Err(error) if !untouched => Err(End::Laptop(error)),
            // The client says so: its own end, or that of the connection to it, looks different.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(Outcome::Reset(error)),
            Err(_) => Ok(Outcome::Unanswered),
        }
    }
}
