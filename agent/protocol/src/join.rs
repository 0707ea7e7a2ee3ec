//! Two byte streams made one.
//!
//! Owns the relay of both ends of a tunnel and of plain pass-through: bytes both ways, half close, reset, back-pressure.
//! Runs as one future inside the task that owns both streams; starts no task. It does not look into the bytes, sets no
//! time limit while both ends work, and does not close the streams: dropping them after [`join`] has returned does.
//!
//! What each end sees is what it would see of the other over one TCP connection:
//! * end of stream is passed on after the last byte, and the opposite direction goes on;
//! * a reset, or a loss of the connection, aborts the other end, unless that end was already sent everything including
//!   the end of stream: then it keeps what it was sent; bytes sent before a reset arrive at an end that reads;
//! * where an end takes no more bytes, what it had sent before is still delivered: a server that answers a large
//!   upload early and closes is heard.
//!
//! Cost: bytes are read into a scratch buffer that all joins of a thread share and written from there. Memory is held
//! for those bytes only that a slow reader did not take yet ([`SCRATCH`] a direction at most); an idle pair holds none.
//! A request and its response cost two reads and two writes: a read shorter than the buffer tells tokio that nothing is
//! left, so none is spent on finding out.

use std::io;
use std::mem;
use std::pin::Pin;
use std::task::Context;
use std::task::Poll;
use std::task::ready;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Sleep;

use crate::duplex::Duplex;

mod flow;
mod scratch;

pub use scratch::SCRATCH;

use flow::Fault;
use flow::Flow;
use flow::Step;

/// How long an end that stopped taking bytes may make no progress with those it had sent before, until both ends are
/// aborted.
const LINGER: Duration = Duration::from_secs(5);

/// One of the two streams.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Side {
    /// The first argument of [`join`].
    A,
    /// The second argument of [`join`].
    B,
}

/// How a join ended.
#[derive(Debug)]
pub enum Ending {
    /// Both ends finished and got all that the other sent.
    Finished,
    /// One end failed or was reset.
    Broken {
        /// The end that failed first.
        side: Side,
        /// How.
        error: io::Error,
    },
}

/// What a join did.
#[derive(Debug)]
pub struct JoinOutcome {
    /// Bytes from A that B took.
    pub a_to_b: u64,
    /// Bytes from B that A took.
    pub b_to_a: u64,
    /// How it ended.
    pub ending: Ending,
}

/// Bytes that were read from one end before the join and have yet to be written to the other.
#[derive(Clone, Debug, Default)]
pub struct JoinStart {
    /// Written to A before anything that B sends.
    pub to_a: Bytes,
    /// Written to B before anything that A sends.
    pub to_b: Bytes,
}

/// Relays between `a` and `b` until both have finished or one fails.
///
/// Drop both streams when this returns: an abort takes effect on TCP then. A future that is dropped early aborts each
/// end that was not sent everything, as bytes cut off must not look like a proper end.
pub async fn join<A: Duplex, B: Duplex>(a: &mut A, b: &mut B) -> JoinOutcome {
    join_with(a, b, JoinStart::default()).await
}

/// As [`join`], with bytes that were read before.
pub async fn join_with<A: Duplex, B: Duplex>(a: &mut A, b: &mut B, start: JoinStart) -> JoinOutcome {
    let (a_to_b, b_to_a) = (Flow::new(start.to_b), Flow::new(start.to_a));
    Join { a, b, a_to_b, b_to_a, fault: None, linger: None, settle: None }.await
}

struct Join<'a, A: Duplex, B: Duplex> {
    a: &'a mut A,
    b: &'a mut B,
    a_to_b: Flow,
    b_to_a: Flow,
    /// The first failure.
    fault: Option<(Side, io::Error)>,
    /// Runs once an end takes no more bytes.
    linger: Option<Linger>,
    /// Runs when all is over but the abort of an end that was sent bytes.
    settle: Option<Pin<Box<Sleep>>>,
}

struct Linger {
    timer: Pin<Box<Sleep>>,
    moved: u64,
}

impl<A: Duplex, B: Duplex> Join<'_, A, B> {
    /// Moves what can be moved; true once nothing is left to do.
    fn advance(&mut self, cx: &mut Context<'_>) -> bool {
        loop {
            let mut failed = false;
            match self.a_to_b.poll(&mut *self.a, &mut *self.b, cx) {
                Step::Waiting | Step::Over => {}
                Step::Failed(fault) => {
                    if self.note(Side::A, fault) {
                        return true;
                    }
                    failed = true;
                }
            }
            match self.b_to_a.poll(&mut *self.b, &mut *self.a, cx) {
                Step::Waiting | Step::Over => {}
                Step::Failed(fault) => {
                    if self.note(Side::B, fault) {
                        return true;
                    }
                    failed = true;
                }
            }
            if self.a_to_b.is_over() && self.b_to_a.is_over() {
                return true;
            }
            // A failure changes what the two flows do: let both register for that.
            if !failed {
                return false;
            }
        }
    }

    /// How long the last bytes of an end that failed need to arrive at the other one.
    fn settles_within(&self) -> Duration {
        let (flow, sink) = match self.fault {
            Some((Side::A, _)) => (&self.a_to_b, self.b.settles_within()),
            Some((Side::B, _)) => (&self.b_to_a, self.a.settles_within()),
            None => return Duration::ZERO,
        };
        if flow.bytes() > 0 && !flow.is_over() { sink } else { Duration::ZERO }
    }

    /// Takes in that the flow out of `source` failed; true if that ends the join.
    fn note(&mut self, source: Side, fault: Fault) -> bool {
        let (flow, back) = match source {
            Side::A => (&mut self.a_to_b, &mut self.b_to_a),
            Side::B => (&mut self.b_to_a, &mut self.a_to_b),
        };
        match fault {
            Fault::Source(error) => {
                self.fault.get_or_insert((source, error));
                true
            }
            Fault::Sink(error) => {
                flow.discard();
                // A broken pipe says that the reader is gone and nothing about what it wrote. Any other error has
                // killed the connection, and the system may report it once only: then what looks like a proper end
                // of stream is none.
                if error.kind() != io::ErrorKind::BrokenPipe {
                    back.distrust_end();
                }
                self.fault.get_or_insert((source.other(), error));
                false
            }
        }
    }

    /// True if an end that takes no more bytes has had its time.
    fn linger_is_over(&mut self, cx: &mut Context<'_>) -> bool {
        if !self.a_to_b.is_discarding() && !self.b_to_a.is_discarding() {
            return false;
        }
        let moved = self.a_to_b.bytes() + self.b_to_a.bytes();
        let linger = self.linger.get_or_insert_with(|| Linger { timer: Box::pin(tokio::time::sleep(LINGER)), moved });
        while linger.timer.as_mut().poll(cx).is_ready() {
            if mem::replace(&mut linger.moved, moved) == moved {
                return true;
            }
            linger.timer.set(tokio::time::sleep(LINGER));
        }
        false
    }
}

impl<A: Duplex, B: Duplex> Future for Join<'_, A, B> {
    type Output = JoinOutcome;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<JoinOutcome> {
        let this = self.get_mut();
        if this.settle.is_none() {
            if !this.advance(cx) && !this.linger_is_over(cx) {
                return Poll::Pending;
            }
            let within = this.settles_within();
            if !within.is_zero() {
                this.settle = Some(Box::pin(tokio::time::sleep(within)));
            }
        }
        if let Some(settle) = &mut this.settle {
            ready!(settle.as_mut().poll(cx));
        }
        let ending = match this.fault.take() {
            Some((side, error)) => Ending::Broken { side, error },
            None => Ending::Finished,
        };
        Poll::Ready(JoinOutcome { a_to_b: this.a_to_b.bytes(), b_to_a: this.b_to_a.bytes(), ending })
    }
}

impl<A: Duplex, B: Duplex> Drop for Join<'_, A, B> {
    fn drop(&mut self) {
        if !self.a_to_b.is_delivered() {
            self.b.abort();
        }
        if !self.b_to_a.is_delivered() {
            self.a.abort();
        }
    }
}

// === impl Side ===

impl Side {
    /// The other one.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }
}

#[cfg(test)]
mod tests;
