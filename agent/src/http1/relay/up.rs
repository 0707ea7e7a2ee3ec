//! The caller's direction: what is read is decided, and what is decided goes to the app.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::BytesMut;
use sluice_protocol::{
    rules::matcher::{Fits, Rule},
    stream::Kind,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{Event, READ, Relay, poll_flush};
use crate::{
    connection::{End, Steered},
    http1::{
        Doubt,
        head::{Parsed, RequestHead, RequestView, Upgrade},
        requests::Requests,
    },
    http2,
    metrics::Decision,
    wiretap::RequestTaps,
};

/// Requests that may be under way to the app before the caller is no longer read.
const MAX_PIPELINED: usize = 64;

/// Caller to app.
#[derive(Default)]
pub(in crate::http1) struct Up {
    /// Read from the caller and not passed on.
    pub(in crate::http1) buf: BytesMut,
    /// How much of `buf` is decided and goes to the app.
    decided: usize,
    /// Where in the requests the caller is.
    pub(super) requests: Requests,
    stop: Option<Stop>,
    /// Requests that have passed since the last one that fits a rule.
    pub(super) passed: u32,
    /// The copies of the requests that wiretaps see, from the first one on.
    pub(in crate::http1) taps: Option<Box<RequestTaps>>,
    /// The next head goes to the app, whatever the rules say: its client could not take it.
    pub(in crate::http1) pass_next: bool,
    /// A request to switch to this protocol is with the app; what follows it depends on the answer.
    pub(super) upgrading: Upgrade,
    /// The caller has sent its last byte.
    pub(in crate::http1) eof: bool,
    /// The app has been told so, or takes nothing more anyway.
    pub(super) fin_sent: bool,
    /// The app takes nothing more: the caller is no longer read.
    refused: bool,
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

// === impl Relay ===

impl Relay {
    pub(super) fn poll_up(&mut self, cx: &mut Context<'_>) -> Poll<Result<Event, End>> {
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
            if self.up.decided > 0 {
                // What was held back may go: first of all, as the caller may send nothing more before its answer.
                continue;
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
            // The app has said that it answers nothing more on this connection: the caller asks again on another.
            Some(Stop::Match(..)) if self.up.requests.ended() => return Poll::Ready(Some(Event::Raw(Doubt::Closing))),
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

    pub(super) fn decide_buffered(&mut self) {
        let buf = std::mem::take(&mut self.up.buf);
        self.up.decided += self.decide(&buf[self.up.decided..]);
        self.up.buf = buf;
    }

    /// How many of `bytes`, which follow all that is decided, go to the app; `up.stop` says why not more.
    fn decide(&mut self, bytes: &[u8]) -> usize {
        let (up, down) = (&mut self.up, &mut self.down);
        let mut at = 0;
        while at < bytes.len() {
            if !up.requests.between() {
                match up.requests.body(&bytes[at..]) {
                    Ok(taken) => {
                        if let Some(taps) = &mut up.taps {
                            taps.copy(&bytes[at..at + taken], up.requests.between());
                        }
                        at += taken;
                    }
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
            if !up.requests.begun() && http2::PREFACE.starts_with(&rest[..rest.len().min(http2::PREFACE.len())]) {
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
                Parsed::Head((head, Fits { taken_by, copied_to })) => {
                    if !copied_to.is_empty() || (up.taps.is_some() && !counted) {
                        let open = |rule: &Rule| self.steered.open(rule, Kind::Http);
                        up.taps.get_or_insert_default().begin(&self.steered.shared, copied_to, open);
                    }
                    if let Some(rule) = taken_by {
                        up.passed = 0;
                        up.stop = Some(Stop::Match(rule, head));
                        return at;
                    }
                    if let Some(taps) = &mut up.taps {
                        taps.copy(&rest[..head.len], head.body.is_done());
                    }
                    up.upgrading = head.upgrade;
                    up.requests.pass(&head);
                    up.passed = up.passed.saturating_add(1);
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
}

// === impl Up ===

impl Up {
    fn head(&mut self, rest: &[u8], steered: &Steered) -> Parsed<(RequestHead, Fits)> {
        let pass = self.pass_next;
        let decide = |view: &RequestView<'_>| if pass { Fits::default() } else { steered.decide(view) };
        let parsed = self.requests.head(rest, decide);
        self.pass_next &= matches!(parsed, Parsed::Partial);
        parsed
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
    pub(in crate::http1) fn next_request(&mut self) {
        self.requests.restart();
        if self.buf.is_empty() {
            self.buf = BytesMut::new();
        }
    }
}
