//! How long to wait before the next attempt.
//!
//! Owns the growing pause and its jitter. It does not sleep and counts no attempts.

use std::hash::BuildHasher as _;
use std::hash::RandomState;
use std::time::Duration;

/// Short, since an agent may be told of this client a moment after the first attempt, and a developer is waiting; one
/// attempt costs two packets.
const FIRST: Duration = Duration::from_millis(50);
const LONGEST: Duration = Duration::from_secs(1);

/// Pauses that double from [`FIRST`] to [`LONGEST`], each shortened by up to a half at random, so that the clients of an
/// agent that comes back do not arrive all at once.
#[derive(Debug)]
pub(crate) struct Backoff {
    next: Duration,
}

impl Backoff {
    pub(crate) fn new() -> Self {
        Self { next: FIRST }
    }

    /// After a success.
    pub(crate) fn reset(&mut self) {
        self.next = FIRST;
    }

    pub(crate) fn pause(&mut self) -> Duration {
        let full = self.next;
        self.next = (full * 2).min(LONGEST);
        // std seeds every `RandomState` differently, which is all the randomness that is needed here.
        let random = RandomState::new().hash_one(0) & 0xffff;
        full - full / 2 * u32::try_from(random).unwrap_or(0) / 0xffff
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_second_and_start_again_after_a_success() {
        let mut backoff = Backoff::new();
        for full in [50, 100, 200, 400, 800, 1000, 1000] {
            let pause = backoff.pause();
            let full = Duration::from_millis(full);
            assert!(pause <= full && pause >= full / 2, "{pause:?} of {full:?}");
        }
        backoff.reset();
        assert!(backoff.pause() <= FIRST);
    }

    #[test]
    fn pauses_differ() {
        let pauses: std::collections::BTreeSet<_> = (0..32).map(|_| Backoff::new().pause()).collect();
        assert!(pauses.len() > 16, "{pauses:?}");
    }
}
