//! The way back: an inserted connection in which nothing happens any more is given back to its caller and its app.
//!
//! The agent arms the flow with the numbers at which both sides stand. From then on it does nothing to its sockets: with
//! the caller's next request, if that fits no rule, the kernel lets the packet pass to the app and tells the agent to
//! forget its sockets. Anything else disarms the flow first.
//!
//! Timestamps (RFC 7323) are the one thing in which the agent's sockets are not exactly where the two sides are: a little
//! ahead. Where the programs outlive this process they translate them from then on, so that a connection can go back
//! in the midst of traffic; otherwise it has to be quiet for a moment.

use std::{
    fmt, io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use sluice_ebpf_common::insertion::{FLAG_CLOCK, Flow, FlowKey, Op, Outcome, UNTIMED};
use tokio::time::{Instant, Sleep};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::{SharedPrograms, is_lost_alone, joining::clock_ms, lock, repair};
use crate::socket::Socket;

/// How long nothing must have happened, where timestamps are not translated: those of the agent's sockets run up to 2 ms
/// ahead of those of the two sides, and who saw them would drop what is older (PAWS, RFC 7323 §5).
const QUIET: Duration = Duration::from_millis(3);
/// After so many requests in a row that fit nothing a connection goes back without a moment's quiet.
const SETTLED: u32 = 4;
/// Longest pause between two attempts.
const LONGEST: Duration = Duration::from_millis(200);

/// An inserted connection's way back.
pub(crate) struct Inserted {
    key: FlowKey,
    id: u32,
    programs: SharedPrograms,
    returned: Pin<Box<WaitForCancellationFutureOwned>>,
    /// The agent is being stopped.
    stopping: Pin<Box<WaitForCancellationFutureOwned>>,
    stops: bool,
    /// It stays with the agent until it ends.
    stays: bool,
    /// Timestamps can be translated.
    timed: bool,
    timer: Option<Pin<Box<Sleep>>>,
    pause: Duration,
    armed: bool,
}

/// What an inserted connection does, as its relay sees it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Activity {
    /// Nothing is under way.
    pub(crate) quiet: bool,
    /// Requests that have passed since the last one that fits a rule.
    pub(crate) passed: u32,
}

// === impl Inserted ===

impl Inserted {
    /// `returned` is cancelled when the kernel has given the connection back.
    pub(super) fn new(
        key: FlowKey,
        id: u32,
        programs: SharedPrograms,
        returned: CancellationToken,
        stopping: CancellationToken,
        timed: bool,
    ) -> Self {
        let (returned, stopping) = (Box::pin(returned.cancelled_owned()), Box::pin(stopping.cancelled_owned()));
        Self {
            key,
            id,
            programs,
            returned,
            stopping,
            stops: false,
            stays: false,
            timed,
            timer: None,
            pause: QUIET,
            armed: false,
        }
    }

    /// To be called whenever both directions wait. Ready when the connection has gone back.
    pub(crate) fn poll_return(
        &mut self,
        activity: Activity,
        caller: &Socket,
        app: &Socket,
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        if self.returned.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        // Asked once: such a future is over then.
        self.stops = self.stops || self.stopping.as_mut().poll(cx).is_ready();
        if !activity.quiet {
            self.timer = None;
            self.pause = QUIET;
            if std::mem::take(&mut self.armed) {
                // The kernel has done so itself, unless the change came from elsewhere.
                let _ = lock(&self.programs).command(&self.key, self.id, Op::Disarm, &[]);
            }
            return Poll::Pending;
        }
        // Tried once without a pause; what stands in the way then takes its time.
        let mut at_once = self.timed && !self.stops && activity.passed >= SETTLED && self.timer.is_none();
        while !self.armed && !self.stays {
            let pause = self.pause;
            let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(pause)));
            if !std::mem::take(&mut at_once) && timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            match self.arm(caller, app) {
                Ok(true) => self.armed = true,
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!(%error, "an inserted connection cannot go back; it is served on");
                    self.pause = LONGEST;
                }
            }
            self.pause = (2 * self.pause).min(LONGEST);
            let next = Instant::now() + self.pause;
            if let Some(timer) = &mut self.timer {
                timer.as_mut().reset(next);
            }
        }
        self.timer = None;
        if self.stops && lock(&self.programs).command(&self.key, self.id, Op::Return, &[]) == Outcome::Done {
            // Nobody waits for a request of the caller any more.
            self.armed = false;
            return Poll::Ready(());
        }
        Poll::Pending
    }

    /// Whether the flow is armed now.
    fn arm(&mut self, caller: &Socket, app: &Socket) -> io::Result<bool> {
        // The caller has acknowledged all with the packet at which the connection goes back, or it does not go back.
        if !repair::is_read(caller)? || !repair::is_read(app)? || !repair::is_acknowledged(app)? {
            return Ok(false);
        }
        let (to_caller, from_caller) = repair::numbers(caller)?;
        let (to_app, from_app) = repair::numbers(app)?;
        let (din, dout) = (from_caller.wrapping_sub(to_app), to_caller.wrapping_sub(from_app));
        let programs = lock(&self.programs);
        let Some(flow) = programs.flow(&self.key) else { return Ok(false) };
        let lost = din | dout != 0 || is_lost_alone(&flow);
        if lost && (self.stops || !programs.keeps_shifted()) {
            // It would be lost with this process, as the numbers never meet again.
            self.stays = true;
            return Ok(false);
        }
        let Some((time_out, clock)) = self.times(&flow, caller, app)? else { return Ok(false) };
        let numbers = [from_caller, to_caller, din, dout, time_out, clock];
        if programs.command(&self.key, self.id, Op::Arm, &numbers) != Outcome::Done {
            return Ok(false);
        }
        // What came before the flow was armed has not disarmed it.
        if repair::is_read(caller)? && repair::is_read(app)? {
            return Ok(true);
        }
        programs.command(&self.key, self.id, Op::Disarm, &[]);
        Ok(false)
    }

    /// How the kernel is to translate timestamps, as [`Op::Arm`] takes it; `None` where that cannot be told yet.
    fn times(&self, flow: &Flow, caller: &Socket, app: &Socket) -> io::Result<Option<(u32, u32)>> {
        if !self.timed || self.stops {
            // Where the agent stops nobody will translate.
            return Ok(Some((0, UNTIMED)));
        }
        if flow.flags & FLAG_CLOCK == 0 {
            return Ok(None);
        }
        let now = clock_ms()?;
        let since = |socket| repair::time(socket).map(|time| time.wrapping_sub(now));
        Ok(Some((since(caller)?.wrapping_sub(flow.app_clock), since(app)?)))
    }
}

impl Drop for Inserted {
    fn drop(&mut self) {
        if self.armed {
            let _ = lock(&self.programs).command(&self.key, self.id, Op::Disarm, &[]);
        }
    }
}

impl fmt::Debug for Inserted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inserted").field("key", &self.key).field("armed", &self.armed).finish_non_exhaustive()
    }
}
