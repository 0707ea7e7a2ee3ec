//! The way back: an inserted connection in which nothing happens any more is given back to its caller and its app.
//!
//! The agent arms the flow with the numbers at which both sides stand. From then on it does nothing to its sockets: with
//! the caller's next request, if that fits no rule, the kernel lets the packet pass to the app and tells the agent to
//! forget its sockets. Anything else disarms the flow first.

use std::{
    fmt, io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use sluice_ebpf_common::insertion::{FlowKey, Op, Outcome};
use tokio::time::{Instant, Sleep};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::{SharedPrograms, lock, repair};
use crate::socket::Socket;

/// How long nothing must have happened. The timestamps of the agent's sockets run up to 2 ms ahead of those of the two
/// sides, and who saw them would drop what is older (PAWS, RFC 7323 §5).
const QUIET: Duration = Duration::from_millis(3);
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
    timer: Option<Pin<Box<Sleep>>>,
    pause: Duration,
    armed: bool,
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
            timer: None,
            pause: QUIET,
            armed: false,
        }
    }

    /// To be called whenever both directions wait. `quiet`: nothing is under way. Ready when the connection has gone back.
    pub(crate) fn poll_return(&mut self, quiet: bool, caller: &Socket, app: &Socket, cx: &mut Context<'_>) -> Poll<()> {
        if self.returned.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        // Asked once: such a future is over then.
        self.stops = self.stops || self.stopping.as_mut().poll(cx).is_ready();
        if !quiet {
            self.timer = None;
            self.pause = QUIET;
            if std::mem::take(&mut self.armed) {
                // The kernel has done so itself, unless the change came from elsewhere.
                let _ = lock(&self.programs).command(&self.key, self.id, Op::Disarm, [0; 4]);
            }
            return Poll::Pending;
        }
        while !self.armed && !self.stays {
            let pause = self.pause;
            let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(pause)));
            if timer.as_mut().poll(cx).is_pending() {
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
        if self.stops && lock(&self.programs).command(&self.key, self.id, Op::Return, [0; 4]) == Outcome::Done {
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
        if din | dout != 0 && (self.stops || !programs.keeps_shifted()) {
            // It would be lost with this process, and the numbers never meet again.
            self.stays = true;
            return Ok(false);
        }
        if programs.command(&self.key, self.id, Op::Arm, [from_caller, to_caller, din, dout]) != Outcome::Done {
            return Ok(false);
        }
        // What came before the flow was armed has not disarmed it.
        if repair::is_read(caller)? && repair::is_read(app)? {
            return Ok(true);
        }
        programs.command(&self.key, self.id, Op::Disarm, [0; 4]);
        Ok(false)
    }
}

impl Drop for Inserted {
    fn drop(&mut self) {
        if self.armed {
            let _ = lock(&self.programs).command(&self.key, self.id, Op::Disarm, [0; 4]);
        }
    }
}

impl fmt::Debug for Inserted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inserted").field("key", &self.key).field("armed", &self.armed).finish_non_exhaustive()
    }
}
