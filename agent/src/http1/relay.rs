//! The relay of one caller's connection: caller, agent, app.
//!
//! Owns both sockets and their two directions, which one task polls together: no task, dial, allocation or log line
//! per request, and four data system calls for it. Requests pass as the bytes they came as. At a request that fits a
//! rule it stops, once the app has answered all before it, and hands over to [`super::divert`].
//!
//! Nothing is stored while a connection is idle: bytes are read into a buffer on the stack, and only what could not be
//! written, or is not yet a whole head, is kept.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes, BytesMut};
use sluice_protocol::{
    join::{JoinStart, join_with},
    rules::matcher::Rule,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

use super::{
    Doubt,
    body::Body,
    divert::{self, Diverted, Laptops},
    head::{MAX_HEAD, Parsed, RequestHead, Upgrade, parse_request},
    scan::{HeadScan, Scanned},
    track::{Answers, Followed},
};
use crate::{
    connection::{End, Steered},
    http2::{self, Switched},
    metrics::Decision,
};

/// Bytes read at once; more than most heads, so that a read is short and needs no second one to find the socket empty.
pub(super) const READ: usize = 64 << 10;

/// Requests that may be under way to the app before the caller is no longer read.
const MAX_PIPELINED: usize = 64;

/// Reads from the app in a row before the other direction has its turn.
const DOWN_BURST: usize = 16;

/// The caller's connection and the app's.
pub(super) struct Relay {
    pub(super) steered: Steered,
    pub(super) app: Option<TcpStream>,
    pub(super) up: Up,
    pub(super) down: Down,
    /// The answer before was the app's (or there was none): when the app closes, so does the caller's connection.
    /// After a diverted request it is not: the app has seen an idle connection and may have given up on it.
    pub(super) app_leads: bool,
}

/// Caller to app.
#[derive(Default)]
pub(super) struct Up {
    /// Read from the caller and not passed on.
    pub(super) buf: BytesMut,
    /// How much of `buf` is decided and goes to the app.
    decided: usize,
    /// What is still to come of the body of the last request that passed.
    body: Body,
    scan: HeadScan,
    stop: Option<Stop>,
    /// A head has been read: what follows is HTTP/1.
    begun: bool,
    /// The next head goes to the app, whatever the rules say: its client could not take it.
    pub(super) pass_next: bool,
    /// A request to switch to this protocol is with the app; what follows it depends on the answer.
    upgrading: Upgrade,
    /// The caller has sent its last byte.
    pub(super) eof: bool,
    /// The app has been told so, or takes nothing more anyway.
    fin_sent: bool,
    /// The app takes nothing more: the caller is no longer read.
    refused: bool,
}

/// App to caller.
#[derive(Default)]
pub(super) struct Down {
    /// Read from the app and not yet written.
    pub(super) out: BytesMut,
    answers: Answers,
    raw: Option<Doubt>,
    /// The app has switched to HTTP/2; its first bytes in it.
    http2: Option<Bytes>,
    /// The app's first bytes, before any of the caller, that may begin HTTP/2: kept until the caller has begun.
    early: BytesMut,
    eof: bool,
    fin_sent: bool,
}

/// Why the caller's bytes stay where they are.
enum Stop {
    /// The request at the beginning of the buffer (behind what is decided) fits a rule.
    Match(Arc<Rule>, RequestHead),
    /// Pass everything as bytes.
    Raw(Doubt),
    /// The HTTP/2 preface.
    Http2,
    /// The answer to an upgrade decides.
    Upgrade,
    /// Too many answers are owed.
    Answers,
}

/// Where the passing stops.
enum Event {
    Match(Arc<Rule>, RequestHead),
    Raw(Doubt),
    Http2,
    /// The app has agreed to go on in HTTP/2; its first bytes in it.
    Switched(Bytes),
    /// Bytes for the app, but its connection has gone.
    NeedApp,
    /// Both sides have sent their last byte.
    Done,
}

/// Serves a connection whose port has HTTP rules until it ends.
///
/// # Errors
/// [`End`] says which side broke off; the other one has been told in the same way.
pub(crate) async fn serve(mut steered: Steered) -> Result<(), End> {
    // In boxes: what happens once or seldom. An idle connection shall be small.
    let app = Box::pin(steered.connect_app()).await?;
    let mut relay = Relay { steered, app: Some(app), up: Up::default(), down: Down::default(), app_leads: true };
    let mut laptops = Laptops::default();
    loop {
        let event = std::future::poll_fn(|cx| relay.poll_pass(cx)).await;
        match event.map_err(|end| relay.broken(end))? {
            Event::Done => return Ok(()),
            Event::NeedApp => relay.app = Some(Box::pin(relay.steered.connect_app()).await?),
            Event::Raw(doubt) => return Box::pin(relay.wire(doubt)).await,
            Event::Http2 => {
                let Relay { mut steered, app, up, down, .. } = relay;
                let app = match app {
                    Some(app) => app,
                    None => Box::pin(steered.connect_app()).await?,
                };
                return Box::pin(http2::serve(steered, app, down.early.freeze(), up.buf.freeze())).await;
            }
            Event::Switched(first) => {
                let Relay { steered, app: Some(app), up, .. } = relay else { return Ok(()) };
                let by = Switched::App(app);
                return Box::pin(http2::serve_switched(steered, by, first, up.buf.freeze())).await;
            }
            Event::Match(rule, head) => {
                match Box::pin(divert::divert(&mut relay, &mut laptops, rule, head)).await? {
                    Diverted::Answered => relay.app_leads = false,
                    Diverted::PassOn => relay.up.pass_next = true,
                    Diverted::Closed => return Ok(()),
                    Diverted::Http2 { rule, stream, first } => {
                        let Relay { mut steered, app, up, .. } = relay;
                        let app = match app {
                            Some(app) => app,
                            None => Box::pin(steered.connect_app()).await?,
                        };
                        let by = Switched::Laptop { rule, stream, app };
                        return Box::pin(http2::serve_switched(steered, by, first, up.buf.freeze())).await;
                    }
                }
                relay.decide_buffered();
            }
        }
    }
}

// === impl Relay ===

impl Relay {
    /// Passes bytes both ways until something else is to be done.
    fn poll_pass(&mut self, cx: &mut Context<'_>) -> Poll<Result<Event, End>> {
        if let Poll::Ready(event) = self.poll_down(cx)? {
            return Poll::Ready(Ok(event));
        }
        if let Poll::Ready(event) = self.poll_up(cx)? {
            return Poll::Ready(Ok(event));
        }
        if self.up.fin_sent && self.down.fin_sent {
            return Poll::Ready(Ok(Event::Done));
        }
        Poll::Pending
    }

    fn poll_down(&mut self, cx: &mut Context<'_>) -> Poll<Result<Event, End>> {
        for _ in 0..DOWN_BURST {
            let down = &mut self.down;
            ready!(poll_flush(&mut self.steered.caller, &mut down.out, usize::MAX, cx)).map_err(End::Caller)?;
            if let Some(doubt) = down.raw.take() {
                return Poll::Ready(Ok(Event::Raw(doubt)));
            }
            if let Some(first) = down.http2.take() {
                return Poll::Ready(Ok(Event::Switched(first)));
            }
            if down.eof {
                if !down.fin_sent {
                    let _ = Pin::new(&mut self.steered.caller).poll_shutdown(cx);
                    down.fin_sent = true;
                }
                return Poll::Pending;
            }
            let Some(app) = &mut self.app else { return Poll::Pending };
            let mut space = [const { std::mem::MaybeUninit::uninit() }; READ];
            let mut read = ReadBuf::uninit(&mut space);
            let result = ready!(Pin::new(app).poll_read(cx, &mut read));
            let bytes = read.filled();
            if !self.app_leads && (result.is_err() || bytes.is_empty() || down.answers.owed() == 0) {
                // It gave up waiting (and may say so, with a 408) while the caller's requests went elsewhere.
                self.app = None;
                return Poll::Pending;
            }
            result.map_err(End::App)?;
            if bytes.is_empty() && !down.early.is_empty() {
                down.raw = Some(Doubt::AppFirst);
                continue;
            }
            if bytes.is_empty() {
                down.answers.close();
                down.eof = true;
                continue;
            }
            if !self.up.begun && down.answers.owed() == 0 && http2::may_greet(&down.early, bytes) {
                down.early.extend_from_slice(bytes);
                continue;
            }
            let pass = down.follow(bytes, self.up.upgrading);
            if down.answers.owed() == 0 {
                self.up.upgrading = Upgrade::None;
            }
            let written = match Pin::new(&mut self.steered.caller).poll_write(cx, &bytes[..pass]) {
                Poll::Ready(written) => written.map_err(End::Caller)?,
                Poll::Pending => 0,
            };
            down.out.extend_from_slice(&bytes[written..pass]);
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn poll_up(&mut self, cx: &mut Context<'_>) -> Poll<Result<Event, End>> {
        loop {
            if self.up.refused {
                return Poll::Pending;
            }
            if self.up.decided > 0 {
                let Some(app) = &mut self.app else { return Poll::Ready(Ok(Event::NeedApp)) };
                self.app_leads = true;
                let decided = self.up.decided;
                let before = self.up.buf.len();
                let flushed = poll_flush(app, &mut self.up.buf, decided, cx);
                self.up.decided -= before - self.up.buf.len();
                if ready!(flushed).is_err() {
                    // What the app has answered, or its reset, is with the other direction.
                    self.up.refuse();
                    return Poll::Pending;
                }
            }
            if let Some(event) = ready!(self.poll_stop()) {
                return Poll::Ready(Ok(event));
            }
            if self.up.eof {
                if !self.up.buf.is_empty() {
                    return Poll::Ready(Ok(Event::Raw(Doubt::Truncated)));
                }
                if !self.up.fin_sent {
                    self.up.fin_sent = true;
                    match &mut self.app {
                        Some(app) => drop(Pin::new(app).poll_shutdown(cx)),
                        None => self.down.fin_sent = true,
                    }
                }
                return Poll::Pending;
            }
            ready!(self.poll_caller(cx)).map_err(End::Caller)?;
        }
    }

    /// Reads from the caller, decides, and writes what may go at once.
    fn poll_caller(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut space = [const { std::mem::MaybeUninit::uninit() }; READ];
        let mut read = ReadBuf::uninit(&mut space);
        ready!(Pin::new(&mut self.steered.caller).poll_read(cx, &mut read))?;
        let bytes = read.filled();
        if bytes.is_empty() {
            self.up.eof = true;
            return Poll::Ready(Ok(()));
        }
        if !self.up.buf.is_empty() {
            self.up.buf.extend_from_slice(bytes);
            self.decide_buffered();
            return Poll::Ready(Ok(()));
        }
        let pass = self.decide(bytes);
        let mut written = 0;
        if let (Some(app), 1..) = (&mut self.app, pass) {
            self.app_leads = true;
            match Pin::new(app).poll_write(cx, &bytes[..pass]) {
                Poll::Ready(Ok(n)) => written = n,
                Poll::Ready(Err(_)) => {
                    self.up.refuse();
                    return Poll::Pending;
                }
                Poll::Pending => {}
            }
        }
        self.up.buf.extend_from_slice(&bytes[written..]);
        self.up.decided = pass - written;
        if self.up.buf.is_empty() {
            // An idle connection keeps no memory.
            self.up.buf = BytesMut::new();
        }
        Poll::Ready(Ok(()))
    }

    /// Whether the passing has to stop here; `Pending` while it must wait for the app's answers.
    fn poll_stop(&mut self) -> Poll<Option<Event>> {
        let owed = self.down.answers.owed();
        match self.up.stop.take() {
            None => return Poll::Ready(None),
            Some(Stop::Raw(doubt)) => return Poll::Ready(Some(Event::Raw(doubt))),
            Some(Stop::Http2) => return Poll::Ready(Some(Event::Http2)),
            Some(Stop::Match(rule, head)) if owed == 0 && self.down.out.is_empty() => {
                return Poll::Ready(Some(Event::Match(rule, head)));
            }
            Some(Stop::Upgrade) if self.up.upgrading == Upgrade::None => self.decide_buffered(),
            Some(Stop::Answers) if owed < MAX_PIPELINED => self.decide_buffered(),
            waiting => {
                self.up.stop = waiting;
                return Poll::Pending;
            }
        }
        if self.up.decided > 0 || self.up.stop.is_none() { Poll::Ready(None) } else { self.poll_stop() }
    }

    fn decide_buffered(&mut self) {
        let buf = std::mem::take(&mut self.up.buf);
        self.up.decided += self.decide(&buf[self.up.decided..]);
        self.up.buf = buf;
    }

    /// How many of `bytes`, which follow all that is decided, go to the app; `up.stop` says why not more.
    fn decide(&mut self, bytes: &[u8]) -> usize {
        let (up, down) = (&mut self.up, &mut self.down);
        let mut at = 0;
        while at < bytes.len() {
            if !up.body.is_done() {
                match up.body.take(&bytes[at..]) {
                    Ok(taken) => at += taken,
                    Err(doubt) => {
                        up.stop = Some(Stop::Raw(doubt));
                        return at;
                    }
                }
                continue;
            }
            if up.upgrading != Upgrade::None {
                up.stop = Some(Stop::Upgrade);
                return at;
            }
            if down.answers.owed() >= MAX_PIPELINED {
                up.stop = Some(Stop::Answers);
                return at;
            }
            let rest = &bytes[at..];
            if !up.begun && http2::PREFACE.starts_with(&rest[..rest.len().min(http2::PREFACE.len())]) {
                up.stop = (rest.len() >= http2::PREFACE.len()).then_some(Stop::Http2);
                return at;
            }
            // Counted already, as one whose client was not available.
            let counted = up.pass_next;
            match up.head(rest, &self.steered) {
                Parsed::Partial => return at,
                Parsed::Doubt(doubt) => {
                    up.stop = Some(Stop::Raw(doubt));
                    return at;
                }
                // HTTP/1 to a server that greets as one of HTTP/2 does: that is for the two of them to sort out.
                Parsed::Head(_) if !down.early.is_empty() => {
                    up.stop = Some(Stop::Raw(Doubt::AppFirst));
                    return at;
                }
                Parsed::Head((head, Some(rule))) => {
                    up.begun = true;
                    up.stop = Some(Stop::Match(rule, head));
                    return at;
                }
                Parsed::Head((head, None)) => {
                    up.begun = true;
                    up.upgrading = head.upgrade;
                    up.body = head.body;
                    down.answers.expect(head.kind, up.upgrading != Upgrade::None);
                    if !counted {
                        self.steered.shared.metrics.request(Decision::Passed);
                    }
                    at += head.len;
                }
            }
        }
        at
    }

    /// Joins caller and app as bytes for the rest of the connection.
    async fn wire(mut self, doubt: Doubt) -> Result<(), End> {
        self.steered.shared.metrics.wire(doubt);
        tracing::debug!(peer = %self.steered.peer, port = self.steered.port, reason = doubt.name(), "passing on as bytes");
        let mut app = match self.app.take() {
            Some(app) => app,
            None => Box::pin(self.steered.connect_app()).await?,
        };
        let mut to_caller = self.down.early;
        to_caller.unsplit(self.down.out);
        let start = JoinStart { to_a: to_caller.freeze(), to_b: self.up.buf.freeze() };
        join_with(&mut self.steered.caller, &mut app, start).await;
        Ok(())
    }

    /// Tells the other side in the way in which this one broke off.
    pub(super) fn broken(&mut self, end: End) -> End {
        use sluice_protocol::duplex::Duplex as _;
        match &end {
            End::Caller(_) => {
                if let Some(app) = &mut self.app {
                    app.abort();
                }
            }
            _ => self.steered.caller.abort(),
        }
        end
    }
}

// === impl Up ===

impl Up {
    fn head(&mut self, rest: &[u8], steered: &Steered) -> Parsed<(RequestHead, Option<Arc<Rule>>)> {
        if self.scan != HeadScan::default() {
            match self.scan.advance(rest) {
                Scanned::Partial if rest.len() >= MAX_HEAD => return Parsed::Doubt(Doubt::TooLarge),
                Scanned::Partial => return Parsed::Partial,
                Scanned::Doubt(doubt) => return Parsed::Doubt(doubt),
                Scanned::Complete => self.scan = HeadScan::default(),
            }
        }
        let pass = self.pass_next;
        match parse_request(rest, |view| if pass { None } else { steered.decide(view) }) {
            Parsed::Partial => match self.scan.advance(rest) {
                Scanned::Partial => Parsed::Partial,
                Scanned::Doubt(doubt) => Parsed::Doubt(doubt),
                // The two do not agree on what is a head: that is doubt enough.
                Scanned::Complete => Parsed::Doubt(Doubt::Grammar),
            },
            Parsed::Doubt(Doubt::NotHttp) if self.begun => Parsed::Doubt(Doubt::Grammar),
            parsed => {
                self.pass_next = false;
                parsed
            }
        }
    }

    /// The app reads no more: nothing is sent to it any longer.
    fn refuse(&mut self) {
        self.buf = BytesMut::new();
        self.decided = 0;
        self.stop = None;
        self.refused = true;
        self.fin_sent = true;
    }

    /// What follows a diverted request begins anew.
    pub(super) fn next_request(&mut self) {
        self.scan = HeadScan::default();
        if self.buf.is_empty() {
            self.buf = BytesMut::new();
        }
    }
}

// === impl Down ===

impl Down {
    /// Looks at bytes of the app; how many of them go to the caller.
    fn follow(&mut self, bytes: &[u8], upgrading: Upgrade) -> usize {
        let mut at = 0;
        while at < bytes.len() {
            match self.answers.follow(&bytes[at..]) {
                Followed::All => break,
                Followed::End { at: end, .. } => at += end,
                Followed::Switched { at: end } if upgrading == Upgrade::H2c => {
                    self.http2 = Some(Bytes::copy_from_slice(&bytes[at + end..]));
                    return at + end;
                }
                Followed::Switched { .. } => {
                    self.raw = Some(Doubt::Upgraded);
                    break;
                }
                Followed::Doubt { doubt, .. } => {
                    self.raw = Some(doubt);
                    break;
                }
            }
        }
        bytes.len()
    }
}

impl Default for Body {
    fn default() -> Self {
        Self::EMPTY
    }
}

/// Writes the first `upto` bytes of `buf` (all, where it has fewer), taking them out as they go.
pub(crate) fn poll_flush<W: AsyncWrite + Unpin>(
    to: &mut W,
    buf: &mut BytesMut,
    upto: usize,
    cx: &mut Context<'_>,
) -> Poll<io::Result<()>> {
    let mut left = upto.min(buf.len());
    while left > 0 {
        let written = ready!(Pin::new(&mut *to).poll_write(cx, &buf[..left]))?;
        if written == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        buf.advance(written);
        left -= written;
    }
    if buf.is_empty() && buf.capacity() > 0 {
        *buf = BytesMut::new();
    }
    Poll::Ready(Ok(()))
}
