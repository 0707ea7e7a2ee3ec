//! One diverted HTTP/1 request: from the caller to the developer's process and back, as original bytes.
//!
//! Runs inside the task of the connection, between two stretches of passing. Owns the streams to clients that a
//! connection keeps open for its next diverted request, and the question what becomes of a request whose client cannot
//! take it or goes away. It sets no time limit once a client has accepted: somebody may be at a breakpoint.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf, Bytes, BytesMut};
use sluice_protocol::{
    duplex::{Duplex as _, QuicDuplex},
    join::{JoinStart, join_with},
    key::KeyHash,
    rules::{OnUnavailable, matcher::Rule},
    stream::Kind,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf},
    net::TcpStream,
};

use super::{
    body::Body,
    head::{RequestHead, RequestKind, Upgrade},
    relay::{READ, Relay, poll_flush},
    track::{Answers, Followed},
};
use crate::{connection::End, metrics::Decision};

/// Most bytes of a request that are kept until its answer begins, so that the app can answer if the client dies.
const KEPT: usize = 64 << 10;

/// Bytes read from the caller behind a request that is being answered: enough to notice that it has gone.
const AHEAD: usize = 16 << 10;

/// Streams that one connection keeps open for its next diverted request.
const MAX_LAPTOPS: usize = 4;

/// How long a caller may take to read a last answer before its connection is dropped.
const LINGER: Duration = Duration::from_secs(2);

/// What became of a request.
pub(super) enum Diverted {
    /// It has its answer; the connection goes on.
    Answered,
    /// Its client cannot take it and the app shall: it stands at the beginning of the buffer.
    PassOn,
    /// It has its answer, and with it the connection has ended.
    Closed,
    /// Its client has agreed to go on in HTTP/2, and the caller has been told.
    Http2 {
        /// The rule that it fits.
        rule: Arc<Rule>,
        /// The stream to the client.
        stream: QuicDuplex,
        /// The client's first bytes in HTTP/2.
        first: Bytes,
    },
}

/// Streams to clients, kept for the next request; the oldest first.
#[derive(Default)]
pub(super) struct Laptops(Vec<Laptop>);

struct Laptop {
    key: KeyHash,
    intercept: String,
    stream: QuicDuplex,
}

/// One request and its answer.
struct Exchange<'a> {
    relay: &'a mut Relay,
    stream: QuicDuplex,
    answers: Answers,
    upgrade: Upgrade,
    /// What is still to come of the request's body behind `ready`.
    body: Body,
    /// How many bytes of the buffer belong to the request.
    ready: usize,
    /// How many of those have been sent.
    sent: usize,
    /// The buffer still has the request from its first byte.
    whole: bool,
    /// The local process takes no more of the request: its rest is read and thrown away.
    deaf: bool,
    fin_sent: bool,
    /// To the caller.
    out: BytesMut,
    /// The answer has ended; the value says whether the server closes after it.
    answered: Option<bool>,
    /// More came than the answer: the stream is of no further use.
    spoiled: bool,
}

/// How an exchange ended.
enum Outcome {
    Answered {
        /// The server closes its connection.
        close: bool,
    },
    /// Both sides go on in another protocol.
    Switched,
    /// The same with HTTP/2, of which these bytes have come.
    Http2(Bytes),
    /// The answer cannot be framed: it goes on until the stream ends.
    UntilEnd,
    /// The client went away before anything of the answer had come.
    Unanswered,
}

/// Takes the request at the beginning of the caller's buffer to the client of `rule`.
pub(super) async fn divert(
    relay: &mut Relay,
    laptops: &mut Laptops,
    rule: Arc<Rule>,
    head: RequestHead,
) -> Result<Diverted, End> {
    relay.up.next_request();
    let mut kept = laptops.take(&rule).await;
    loop {
        let reused = kept.is_some();
        let stream = match kept.take() {
            Some(stream) => stream,
            None => match open(relay, &rule).await {
                Some(stream) => stream,
                None => return unavailable(relay, &rule, head).await,
            },
        };
        let mut exchange = Exchange::new(relay, stream, head);
        let outcome = std::future::poll_fn(|cx| exchange.poll(cx)).await;
        let Exchange { stream, whole, out, sent, spoiled, .. } = exchange;
        match outcome.map_err(|end| relay.broken(end))? {
            Outcome::Answered { close } => {
                relay.steered.shared.metrics.request(Decision::Diverted);
                if close || head.close {
                    linger(&mut relay.steered.caller).await;
                    return Ok(Diverted::Closed);
                }
                if !spoiled {
                    laptops.keep(&rule, stream);
                }
                relay.up.next_request();
                return Ok(Diverted::Answered);
            }
            Outcome::Switched => {
                relay.steered.shared.metrics.request(Decision::Diverted);
                return switched(relay, stream, out, sent).await;
            }
            Outcome::Http2(first) => {
                let caller = &mut relay.steered.caller;
                caller.write_all(&out).await.map_err(End::Caller)?;
                relay.up.buf.advance(sent);
                return Ok(Diverted::Http2 { rule, stream, first });
            }
            Outcome::UntilEnd => {
                relay.steered.shared.metrics.request(Decision::Diverted);
                return until_end(relay, stream, out).await;
            }
            // The local server may close an idle connection just when the next request is sent to it, as any server.
            Outcome::Unanswered if reused && whole && head.idempotent => {}
            Outcome::Unanswered if whole => return unavailable(relay, &rule, head).await,
            Outcome::Unanswered => return bad_gateway(relay, head).await,
        }
    }
}

// === impl Laptops ===

impl Laptops {
    /// A stream that was kept for this rule's client and is still good.
    async fn take(&mut self, rule: &Rule) -> Option<QuicDuplex> {
        let wanted = &rule.intercept;
        let at = self.0.iter().position(|l| l.key == wanted.client.key_hash && l.intercept == wanted.name)?;
        let mut stream = self.0.remove(at).stream;
        // Whatever has come while nothing was asked for ends its use.
        let mut byte = [0];
        let quiet = std::future::poll_fn(|cx| {
            let mut read = ReadBuf::new(&mut byte);
            Poll::Ready(Pin::new(&mut stream).poll_read(cx, &mut read).is_pending())
        });
        quiet.await.then_some(stream)
    }

    fn keep(&mut self, rule: &Rule, stream: QuicDuplex) {
        if self.0.len() >= MAX_LAPTOPS {
            self.0.remove(0);
        }
        let intercept = rule.intercept.name.clone();
        self.0.push(Laptop { key: rule.intercept.client.key_hash, intercept, stream });
    }
}

// === impl Exchange ===

impl<'a> Exchange<'a> {
    fn new(relay: &'a mut Relay, stream: QuicDuplex, head: RequestHead) -> Self {
        let mut answers = Answers::default();
        answers.expect(head.kind, head.upgrade != Upgrade::None);
        let mut exchange = Self {
            relay,
            stream,
            answers,
            upgrade: head.upgrade,
            body: head.body,
            ready: head.len,
            sent: 0,
            whole: true,
            deaf: false,
            fin_sent: false,
            out: BytesMut::new(),
            answered: None,
            spoiled: false,
        };
        exchange.frame();
        exchange
    }

    /// Moves `ready` over what has come of the body. A body that breaks the grammar ends here: the local server gets
    /// what there was and then the end, and judges for itself.
    fn frame(&mut self) {
        let have = &self.relay.up.buf[self.ready..];
        match self.body.take(have) {
            Ok(taken) => self.ready += taken,
            Err(_) => {
                self.ready += have.len();
                self.relay.up.eof = true;
            }
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Outcome, End>> {
        if let Poll::Ready(end) = self.poll_up(cx) {
            end.map_err(End::Caller)?;
        }
        let outcome = ready!(self.poll_down(cx))?;
        // An early answer: the rest of the request has to be out of the way before the next one is read.
        let rest = !self.body.is_done() || self.sent < self.ready;
        Poll::Ready(Ok(match outcome {
            Outcome::Answered { close } => {
                self.forget();
                Outcome::Answered { close: close || rest }
            }
            outcome => outcome,
        }))
    }

    /// Caller to client. Ready only when the caller breaks off.
    fn poll_up(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
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
        if !self.answers.untouched() || self.ready > KEPT {
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
                return Poll::Ready(Ok(Outcome::Answered { close }));
            }
            let mut space = [const { std::mem::MaybeUninit::uninit() }; READ];
            let mut read = ReadBuf::uninit(&mut space);
            let result = ready!(Pin::new(&mut self.stream).poll_read(cx, &mut read));
            let bytes = read.filled();
            if result.is_err() || bytes.is_empty() {
                return Poll::Ready(self.ended(result));
            }
            let (pass, outcome) = match self.answers.follow(bytes) {
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
                Followed::Doubt { .. } => (bytes.len(), Some(Outcome::UntilEnd)),
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

    /// The client's stream has ended.
    fn ended(&mut self, how: io::Result<()>) -> Result<Outcome, End> {
        if how.is_ok() && self.answers.close() {
            return Ok(Outcome::Answered { close: true });
        }
        if self.answers.untouched() {
            return Ok(Outcome::Unanswered);
        }
        Err(End::Laptop(how.err().unwrap_or_else(|| io::ErrorKind::UnexpectedEof.into())))
    }
}

/// Opens a stream for requests that fit `rule`; `None`, with the reason logged, where its client cannot take one.
async fn open(relay: &Relay, rule: &Rule) -> Option<QuicDuplex> {
    let steered = &relay.steered;
    let opened = steered.shared.hub.open(rule.intercept.client.key_hash, steered.open(rule, Kind::Http)).await;
    opened
        .map_err(
            |why| tracing::debug!(intercept = rule.intercept.name, peer = %steered.peer, "client unavailable: {why}"),
        )
        .ok()
}

/// Does with the request at the beginning of the buffer what its intercept says for this case.
async fn unavailable(relay: &mut Relay, rule: &Rule, head: RequestHead) -> Result<Diverted, End> {
    let metrics = &relay.steered.shared.metrics;
    match rule.intercept.on_unavailable {
        OnUnavailable::PassThrough => {
            metrics.request(Decision::UnavailablePassed);
            Ok(Diverted::PassOn)
        }
        OnUnavailable::Reject => {
            metrics.request(Decision::Rejected);
            let text = format!("the client of intercept {} is not available\n", rule.intercept.name);
            answer(relay, head, "503 Service Unavailable", "Retry-After: 1\r\n", &text).await
        }
    }
}

/// The client took the request and went away, and its first bytes are no longer here for the app.
async fn bad_gateway(relay: &mut Relay, head: RequestHead) -> Result<Diverted, End> {
    relay.steered.shared.metrics.request(Decision::Failed);
    answer(relay, RequestHead { close: true, ..head }, "502 Bad Gateway", "", "the client went away\n").await
}

/// Answers the request ourselves. The connection goes on where all of the request is here already.
async fn answer(relay: &mut Relay, head: RequestHead, status: &str, header: &str, text: &str) -> Result<Diverted, End> {
    let buf = &mut relay.up.buf;
    let mut body = head.body;
    let taken = buf.get(head.len..).map_or(Ok(0), |rest| body.take(rest));
    let close = head.close || !body.is_done();
    if let (false, Ok(taken)) = (close, taken) {
        buf.advance(head.len + taken);
        relay.up.next_request();
    }
    let connection = if close { "Connection: close\r\n" } else { "" };
    let length = text.len();
    let text = if head.kind == RequestKind::Head { "" } else { text };
    let response = format!(
        "HTTP/1.1 {status}\r\n{header}{connection}Content-Type: text/plain\r\nContent-Length: {length}\r\n\r\n{text}"
    );
    let caller = &mut relay.steered.caller;
    if let Err(error) = caller.write_all(response.as_bytes()).await {
        return Err(relay.broken(End::Caller(error)));
    }
    if !close {
        return Ok(Diverted::Answered);
    }
    linger(caller).await;
    Ok(Diverted::Closed)
}

/// The local server switched protocols: caller and local process are joined until both have finished.
async fn switched(relay: &mut Relay, mut stream: QuicDuplex, out: BytesMut, sent: usize) -> Result<Diverted, End> {
    let mut unsent = std::mem::take(&mut relay.up.buf);
    unsent.advance(sent);
    let start = JoinStart { to_a: out.freeze(), to_b: unsent.freeze() };
    join_with(&mut relay.steered.caller, &mut stream, start).await;
    Ok(Diverted::Closed)
}

/// Passes an answer on that only its end can end. What the caller sends meanwhile was not decided, so it goes nowhere.
async fn until_end(relay: &mut Relay, mut stream: QuicDuplex, out: BytesMut) -> Result<Diverted, End> {
    let caller = &mut relay.steered.caller;
    let copied = async {
        caller.write_all(&out).await?;
        tokio::io::copy(&mut stream, caller).await
    };
    match copied.await {
        Ok(_) => linger(caller).await,
        Err(_) => caller.abort(),
    }
    Ok(Diverted::Closed)
}

/// Closes the caller's connection so that it can read the last answer: with unread bytes a plain close is a reset,
/// which may overtake the answer (RFC 9112 §9.6).
async fn linger(caller: &mut TcpStream) {
    let drained = async {
        caller.shutdown().await?;
        let mut rest = vec![0; 4096];
        while caller.read(&mut rest).await? > 0 {}
        io::Result::Ok(())
    };
    // Whether it read everything or broke off makes no difference now.
    let _ = tokio::time::timeout(LINGER, drained).await;
}
