//! One diverted HTTP/1 request: from the caller to the developer's process and back, as original bytes.
//!
//! Runs inside the task of the connection, between two stretches of passing. Owns the streams to clients that a
//! connection keeps open for its next diverted request, and the question what becomes of a request whose client cannot
//! take it or goes away. It sets no time limit once a client has accepted: somebody may be at a breakpoint.

mod exchange;

use std::{io, pin::Pin, sync::Arc, task::Poll, time::Duration};

use bytes::{Buf, Bytes, BytesMut};
use sluice_protocol::{
    duplex::{Duplex as _, QuicDuplex},
    join::{JoinStart, join_with},
    key::KeyHash,
    rules::{OnUnavailable, matcher::Rule},
    stream::Kind,
};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _, ReadBuf};

use self::exchange::{Exchange, Outcome};
use super::{
    head::{RequestHead, RequestKind},
    relay::Relay,
};
use crate::{connection::End, metrics::Decision, socket::Socket};

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
        let (stream, sent) = match kept.take() {
            Some(stream) => (stream, 0),
            None => {
                // It may come to the local process although the client is then found to be unavailable, and go to the app.
                let first = if head.idempotent { head.len } else { 0 };
                match open(relay, &rule, first).await {
                    Some(stream) => (stream, first),
                    None => return unavailable(relay, &rule, head).await,
                }
            }
        };
        let mut exchange = Exchange::new(relay, stream, head, sent);
        let outcome = std::future::poll_fn(|cx| exchange.poll(cx)).await;
        let Exchange { mut stream, whole, out, sent, spoiled, .. } = exchange;
        let outcome = match outcome {
            Ok(outcome) => outcome,
            Err(end) => {
                let end = relay.broken(end);
                if matches!(end, End::Caller(_)) {
                    stream.settle_and_abort().await;
                }
                return Err(end);
            }
        };
        let metrics = &relay.steered.shared.metrics;
        match outcome {
            Outcome::Answered { close, complete } => {
                metrics.rule(&rule, Decision::Diverted);
                if close || head.close {
                    linger(&mut relay.steered.caller).await;
                    if complete {
                        stream.finish();
                    }
                    return Ok(Diverted::Closed);
                }
                if !spoiled {
                    laptops.keep(&rule, stream);
                }
                relay.up.next_request();
                return Ok(Diverted::Answered);
            }
            Outcome::Switched => {
                metrics.rule(&rule, Decision::Diverted);
                return switched(relay, stream, out, sent).await;
            }
            Outcome::Wire(doubt) => {
                metrics.rule(&rule, Decision::Diverted);
                metrics.wire(doubt);
                return switched(relay, stream, out, sent).await;
            }
            Outcome::Http2(first) => {
                let caller = &mut relay.steered.caller;
                caller.write_all(&out).await.map_err(End::Caller)?;
                relay.up.buf.advance(sent);
                return Ok(Diverted::Http2 { rule, stream, first });
            }
            // The local server may close an idle connection just when the next request is sent to it, as any server.
            Outcome::Unanswered | Outcome::Silent | Outcome::Reset(_) if reused && whole => {
                if !head.idempotent {
                    return unavailable(relay, &rule, head).await;
                }
            }
            Outcome::Unanswered if whole => return unavailable(relay, &rule, head).await,
            Outcome::Unanswered => return bad_gateway(relay, &rule, head).await,
            // The local process has had the request, so nobody else gets it; the caller sees what it would see of it.
            Outcome::Silent | Outcome::CutShort => {
                metrics.rule(&rule, Decision::Failed);
                linger(&mut relay.steered.caller).await;
                return Ok(Diverted::Closed);
            }
            Outcome::Reset(error) => {
                metrics.rule(&rule, Decision::Failed);
                return Err(relay.broken(End::Laptop(error)));
            }
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
            self.0.remove(0).stream.finish();
        }
        let intercept = rule.intercept.name.clone();
        self.0.push(Laptop { key: rule.intercept.client.key_hash, intercept, stream });
    }

    /// The caller has broken off: so do the connections that were kept for it.
    pub(super) fn abort(&mut self) {
        self.0.iter_mut().for_each(|laptop| laptop.stream.abort());
    }
}

/// They are idle: their servers see the caller's connection end as it did, properly.
impl Drop for Laptops {
    fn drop(&mut self) {
        self.0.iter_mut().for_each(|laptop| laptop.stream.finish());
    }
}

/// Opens a stream for requests that fit `rule`, and sends the first bytes of the caller's buffer on it; `None`, with the
/// reason logged, where its client cannot take one.
async fn open(relay: &Relay, rule: &Rule, first: usize) -> Option<QuicDuplex> {
    let steered = &relay.steered;
    let (hub, first) = (&steered.shared.hub, &relay.up.buf[..first]);
    let opened = hub.open(rule.intercept.client.key_hash, steered.open(rule, Kind::Http), first).await;
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
            metrics.rule(rule, Decision::UnavailablePassed);
            if let Some(taps) = &mut relay.up.taps {
                taps.again();
            }
            Ok(Diverted::PassOn)
        }
        OnUnavailable::Reject => {
            metrics.rule(rule, Decision::Rejected);
            let text = format!("the client of intercept {} is not available\n", rule.intercept.name);
            answer(relay, head, "503 Service Unavailable", "Retry-After: 1\r\n", &text).await
        }
    }
}

/// The client took the request and went away, and its first bytes are no longer here for the app.
async fn bad_gateway(relay: &mut Relay, rule: &Rule, head: RequestHead) -> Result<Diverted, End> {
    relay.steered.shared.metrics.rule(rule, Decision::Failed);
    answer(relay, RequestHead { close: true, ..head }, "502 Bad Gateway", "", "the client went away\n").await
}

/// Answers the request ourselves. The connection goes on where all of the request is here already.
async fn answer(relay: &mut Relay, head: RequestHead, status: &str, header: &str, text: &str) -> Result<Diverted, End> {
    let buf = &mut relay.up.buf;
    let mut body = head.body;
    let taken = buf.get(head.len..).map_or(Ok(0), |rest| body.take(rest));
    let close = head.close || !body.is_done();
    if let (Some(taps), Ok(taken)) = (&mut relay.up.taps, taken) {
        taps.again();
        taps.copy(&buf[..head.len + taken], body.is_done());
    }
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

/// Joins caller and local process until both have finished: the server has switched protocols, or where the request
/// ends is in doubt.
async fn switched(relay: &mut Relay, mut stream: QuicDuplex, out: BytesMut, sent: usize) -> Result<Diverted, End> {
    let mut unsent = std::mem::take(&mut relay.up.buf);
    unsent.advance(sent);
    let start = JoinStart { to_a: out.freeze(), to_b: unsent.freeze() };
    join_with(&mut relay.steered.caller, &mut stream, start).await;
    Ok(Diverted::Closed)
}

/// Closes the caller's connection so that it can read the last answer: with unread bytes a plain close is a reset,
/// which may overtake the answer (RFC 9112 §9.6).
async fn linger(caller: &mut Socket) {
    let drained = async {
        caller.shutdown().await?;
        let mut rest = vec![0; 4096];
        while caller.read(&mut rest).await? > 0 {}
        io::Result::Ok(())
    };
    // Whether it read everything or broke off makes no difference now.
    let _ = tokio::time::timeout(LINGER, drained).await;
}
