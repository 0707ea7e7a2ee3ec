//! How a link treats packets, in one direction: the words that the harness and the link process share.

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};

/// What happens to packets of one direction. The default does nothing to them.
///
/// In this order: loss, rate (with the queue in front of it), delay.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct Shape {
    pub(crate) delay: Duration,
    pub(crate) jitter: Duration,
    pub(crate) reorder_percent: u8,
    pub(crate) reorder_by: Duration,
    pub(crate) loss_percent: u8,
    /// Bits per second of IP packets; 0 is no limit.
    pub(crate) rate: u64,
    /// Bytes that may wait for the rate; what comes on top is lost.
    pub(crate) queue: usize,
}

/// Which way packets go over a link: from the first host given to `connect` or to it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Direction {
    /// From the first host to the second.
    AToB,
    /// From the second host to the first.
    BToA,
}

/// A new shape for a direction of a running link: a line of JSON on the link process's standard input, which answers
/// with a line when it holds.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct ShapeOrder {
    /// The direction that changes.
    pub direction: Direction,
    /// What it does from now on.
    pub shape: Shape,
}

// === impl Shape ===

impl Shape {
    /// Enough for 100 ms at 10 Mbit/s: what a home router holds.
    const DEFAULT_QUEUE: usize = 128 * 1024;

    /// A link that only passes on.
    pub const fn new() -> Self {
        Self {
            delay: Duration::ZERO,
            jitter: Duration::ZERO,
            reorder_percent: 0,
            reorder_by: Duration::ZERO,
            loss_percent: 0,
            rate: 0,
            queue: Self::DEFAULT_QUEUE,
        }
    }

    /// Every packet arrives this much later.
    #[must_use]
    pub const fn delay(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    /// On top of the delay between nothing and this much, evenly spread. Packets stay in order.
    #[must_use]
    pub const fn jitter(mut self, jitter: Duration) -> Self {
        self.jitter = jitter;
        self
    }

    /// So many packets in 100 arrive late by `by`, behind packets that were sent after them.
    #[must_use]
    pub const fn reorder(mut self, percent: u8, by: Duration) -> Self {
        self.reorder_percent = percent;
        self.reorder_by = by;
        self
    }

    /// So many packets in 100 never arrive.
    #[must_use]
    pub const fn loss(mut self, percent: u8) -> Self {
        self.loss_percent = percent;
        self
    }

    /// At most so many bits of IP packets per second.
    #[must_use]
    pub const fn rate(mut self, bits_per_second: u64) -> Self {
        self.rate = bits_per_second;
        self
    }

    /// How many bytes may wait for the rate before packets are lost.
    #[must_use]
    pub const fn queue(mut self, bytes: usize) -> Self {
        self.queue = bytes;
        self
    }

    /// The delay of every packet.
    pub const fn base_delay(&self) -> Duration {
        self.delay
    }

    /// What is added to the delay, for a number between 0 and 1.
    pub fn jitter_at(&self, position: f64) -> Duration {
        self.jitter.mul_f64(position)
    }

    /// How much later a packet arrives that is to be overtaken; none when no packet is.
    pub const fn overtaken(&self) -> (u8, Duration) {
        (self.reorder_percent, self.reorder_by)
    }

    /// Packets in 100 that are lost.
    pub const fn lost(&self) -> u8 {
        self.loss_percent
    }

    /// The time that a packet of so many bytes takes on the line.
    pub fn line_time(&self, bytes: usize) -> Duration {
        const NANOS_PER_SECOND: u64 = 1_000_000_000;
        if self.rate == 0 {
            return Duration::ZERO;
        }
        let bits = 8 * u64::try_from(bytes).unwrap_or(u64::MAX / 8);
        Duration::from_nanos(bits.saturating_mul(NANOS_PER_SECOND) / self.rate)
    }

    /// How long the last packet that fits into the queue waits.
    pub fn longest_wait(&self) -> Duration {
        self.line_time(self.queue)
    }
}

impl Default for Shape {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::AToB => "a to b",
            Self::BToA => "b to a",
        })
    }
}
