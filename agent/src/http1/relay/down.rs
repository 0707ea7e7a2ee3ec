//! The app's direction: what comes goes to the caller at once, and is followed to know which answers have ended.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{Event, READ, Relay, poll_flush, up::Up};
use crate::{
    connection::End,
    http1::{
        Doubt,
        head::Upgrade,
        track::{Answers, Followed},
    },
    http2,
};

/// Reads from the app in a row before the other direction has its turn.
const DOWN_BURST: usize = 16;

/// App to caller.
#[derive(Default)]
pub(in crate::http1) struct Down {
    /// Read from the app and not yet written.
    pub(in crate::http1) out: BytesMut,
    pub(super) answers: Answers,
    pub(super) raw: Option<Doubt>,
    /// The app has switched to HTTP/2; its first bytes in it.
    pub(super) http2: Option<Bytes>,
    /// The app's first bytes, before any of the caller, that may begin HTTP/2: kept until the caller has begun.
    pub(super) early: BytesMut,
    eof: bool,
    pub(super) fin_sent: bool,
}

// === impl Relay ===

impl Relay {
    pub(super) fn poll_down(&mut self, cx: &mut Context<'_>) -> Poll<Result<Event, End>> {
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
                // Behind the caller's last word nobody is left to say anything.
                down.fin_sent |= self.up.fin_sent;
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
                self.up.requests.end();
                continue;
            }
            if !self.up.requests.begun() && down.answers.owed() == 0 && http2::may_greet(&down.early, bytes) {
                down.early.extend_from_slice(bytes);
                continue;
            }
            let pass = down.follow(bytes, &mut self.up);
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
}

// === impl Down ===

impl Down {
    /// Looks at bytes of the app; how many of them go to the caller.
    fn follow(&mut self, bytes: &[u8], up: &mut Up) -> usize {
        let mut at = 0;
        while at < bytes.len() {
            match self.answers.follow(&bytes[at..]) {
                Followed::All => break,
                Followed::End { at: end, close } => {
                    at += end;
                    if close {
                        up.requests.end();
                    }
                }
                Followed::Switched { at: end } if up.upgrading == Upgrade::H2c => {
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
