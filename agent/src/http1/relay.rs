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
use tokio::io::AsyncWrite;

use self::down::Down;
pub(super) use self::up::Up;
use super::{
    Doubt,
    divert::{self, Diverted, Laptops},
    head::RequestHead,
};
use crate::{
    connection::{End, Steered},
    http2::{self, Switched},
    insertion::Activity,
    socket::Socket,
};

mod down;
mod up;

/// Bytes read at once; more than most heads, so that a read is short and needs no second one to find the socket empty.
pub(super) const READ: usize = 64 << 10;

/// The caller's connection and the app's.
pub(super) struct Relay {
    pub(super) steered: Steered,
    pub(super) app: Option<Socket>,
    pub(super) up: Up,
    pub(super) down: Down,
    /// The answer before was the app's (or there was none): when the app closes, so does the caller's connection.
    /// After a diverted request it is not: the app has seen an idle connection and may have given up on it.
    pub(super) app_leads: bool,
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
    /// The app has its caller back.
    Returned,
}

/// Serves a connection whose port has HTTP rules until it ends.
///
/// # Errors
/// [`End`] says which side broke off; the other one has been told in the same way.
pub(crate) async fn serve(steered: Steered) -> Result<(), End> {
    let mut laptops = Laptops::default();
    let result = Box::pin(requests(steered, &mut laptops)).await;
    if result.is_err() {
        laptops.abort();
    }
    result
}

async fn requests(mut steered: Steered, laptops: &mut Laptops) -> Result<(), End> {
    // In boxes: what happens once or seldom. An idle connection shall be small.
    let app = Box::pin(steered.connect_app()).await?;
    let position = std::mem::take(&mut steered.position);
    let mut relay = Relay { steered, app: Some(app), up: Up::default(), down: Down::default(), app_leads: true };
    relay.up.requests.resume(position.begun, position.body);
    relay.down.answers.resume(&position.owed, position.running);
    loop {
        let event = std::future::poll_fn(|cx| relay.poll_pass(cx)).await;
        match event.map_err(|end| relay.broken(end))? {
            Event::Done => return Ok(()),
            Event::Returned => return relay.returned(),
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
                match Box::pin(divert::divert(&mut relay, laptops, rule, head)).await? {
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
        let activity = Activity { quiet: self.is_quiet(), passed: self.up.passed };
        if let (Some(inserted), Some(app)) = (&mut self.steered.inserted, &self.app)
            && inserted.poll_return(activity, &self.steered.caller, app, cx).is_ready()
        {
            return Poll::Ready(Ok(Event::Returned));
        }
        Poll::Pending
    }

    /// Whether everything that was sent has been read, passed and answered.
    fn is_quiet(&self) -> bool {
        let (up, down) = (&self.up, &self.down);
        up.buf.is_empty()
            && up.requests.between()
            && !up.requests.ended()
            && up.taps.is_none()
            && !up.eof
            && down.answers.owed() == 0
            && down.out.is_empty()
            && down.early.is_empty()
    }

    /// The agent's two sockets are in nobody's way any more.
    fn returned(mut self) -> Result<(), End> {
        if let Some(app) = &mut self.app {
            app.vanish();
        }
        self.steered.caller.vanish();
        Ok(())
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
