//! Conditions with deadlines: the only way in which tests wait for something.
//!
//! Runs on the caller's runtime and in no particular namespace. Knows nothing about what is waited for.

use std::{fmt::Display, future::Future, panic::Location, time::Duration};

use anyhow::{Result, bail};
use tokio::time::{Instant, sleep, timeout_at};

const FIRST_PAUSE: Duration = Duration::from_millis(2);
const LONGEST_PAUSE: Duration = Duration::from_millis(50);

/// What one attempt of [`eventually`] found: a value, or a description of what was seen instead.
pub trait Outcome {
    /// What is waited for.
    type Value;

    /// The value, or in words what was there instead.
    fn outcome(self) -> Result<Self::Value, String>;
}

impl<T> Outcome for Option<T> {
    type Value = T;

    fn outcome(self) -> Result<T, String> {
        self.ok_or_else(|| "nothing".to_owned())
    }
}

impl<T, E: Display> Outcome for Result<T, E> {
    type Value = T;

    fn outcome(self) -> Result<T, String> {
        self.map_err(|error| format!("{error:#}"))
    }
}

impl Outcome for bool {
    type Value = ();

    fn outcome(self) -> Result<(), String> {
        if self { Ok(()) } else { Err("false".to_owned()) }
    }
}

/// Tries `attempt` again and again until it gives a value, and fails after `within` with what was seen last.
///
/// An attempt that is still running at the deadline is dropped.
#[track_caller]
pub fn eventually<A, F>(
    within: Duration,
    what: &str,
    mut attempt: A,
) -> impl Future<Output = Result<<F::Output as Outcome>::Value>>
where
    A: FnMut() -> F,
    F: Future<Output: Outcome>,
{
    let place = Location::caller();
    async move {
        let deadline = Instant::now() + within;
        let mut pause = FIRST_PAUSE;
        let mut last = None;
        loop {
            match timeout_at(deadline, attempt()).await {
                Ok(found) => match found.outcome() {
                    Ok(value) => return Ok(value),
                    Err(seen) => last = Some(seen),
                },
                Err(_) if last.is_none() => last = Some("the first attempt did not end".to_owned()),
                Err(_) => {}
            }
            if Instant::now() + pause >= deadline {
                bail!("{place}: not within {within:?}: {what}; last seen: {}", last.unwrap_or_default());
            }
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}
