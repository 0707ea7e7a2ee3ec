//! Signals that end a program which has something to take down first.

use anyhow::Result;
use tokio::signal::unix::{SignalKind, signal};

/// What has ended a program early.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Interrupted {
    /// As in `signal.h`.
    pub name: &'static str,
    /// By convention 128 and the signal's number.
    pub exit_code: u8,
}

/// From now on such a signal ends nothing by itself; waits for one.
pub fn interrupted() -> Result<impl Future<Output = Interrupted>> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => Interrupted { name: "SIGINT", exit_code: 130 },
            _ = terminate.recv() => Interrupted { name: "SIGTERM", exit_code: 143 },
            _ = hangup.recv() => Interrupted { name: "SIGHUP", exit_code: 129 },
        }
    })
}
