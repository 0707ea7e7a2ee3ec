//! The demo: two small services, a network to put them into, and three scenes that show what Sluice does.
//!
//! `tictac` counts. It leaves the adding to `add`, over gRPC, and hands on the headers of its own caller. Both run in
//! pods; a developer has an `add` of their own on a laptop. Every answer says which `add` has added.

mod messages;
mod web;

pub mod add;
pub mod on_cluster;
pub mod report;
pub mod scenes;
pub mod stage;
pub mod tictac;

use std::time::Duration;

use anyhow::Result;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// The header, or metadata entry, with which `add` signs what it has added.
pub const ANSWERED_BY: &str = "x-answered-by";

/// How long requests under way may take when a service is asked to end.
const DRAIN: Duration = Duration::from_secs(2);

/// A token that is cancelled by SIGTERM or SIGINT.
pub fn stop_on_signal() -> Result<CancellationToken> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let stop = CancellationToken::new();
    let stopped = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            // Both cancel-safe: a signal that has come stays noted.
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        stopped.cancel();
    });
    Ok(stop)
}
