//! Requests that go on while something breaks, and what became of each.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use sluice_tests::{Host, peers::http1::Http1Caller};
use tokio_util::sync::CancellationToken;

/// Between two requests of one caller: load enough to hit every moment, little enough for a slow machine.
const PACE: Duration = Duration::from_millis(3);

/// Whether the requests of one caller share a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Connections {
    /// One, kept alive.
    Kept,
    /// One for each request.
    Fresh,
}

/// What became of the requests of one caller.
#[derive(Debug, Default)]
pub(crate) struct Report {
    /// How many were answered, by whom (or with which status).
    pub(crate) by: BTreeMap<String, usize>,
    /// The longest that one took.
    pub(crate) worst: Duration,
    /// When those began that were not answered.
    pub(crate) failed: Vec<(Instant, String)>,
}

/// Asks again and again until `stop`. A connection that failed is replaced.
pub(crate) async fn keep_asking(
    from: &Host,
    to: SocketAddr,
    header: (&str, &str),
    connections: Connections,
    stop: &CancellationToken,
) -> Result<Report> {
    let mut report = Report::default();
    let mut kept = None;
    while !stop.is_cancelled() {
        let begin = Instant::now();
        match ask(from, to, header, &mut kept).await {
            Ok(by) => {
                *report.by.entry(by).or_default() += 1;
                report.worst = report.worst.max(begin.elapsed());
            }
            Err(error) => {
                kept = None;
                report.failed.push((begin, format!("{error:#}")));
            }
        }
        if connections == Connections::Fresh {
            kept = None;
        }
        tokio::time::sleep(PACE).await;
    }
    Ok(report)
}

async fn ask(from: &Host, to: SocketAddr, header: (&str, &str), kept: &mut Option<Http1Caller>) -> Result<String> {
    let caller = match kept {
        Some(caller) => caller,
        None => kept.insert(Http1Caller::connect(from, to).await.context("connecting")?),
    };
    let response = caller.get("/", &[header]).await?;
    Ok(response.answered_by().map_or_else(|| response.status.to_string(), str::to_owned))
}

// === impl Report ===

impl Report {
    /// The names of those who answered.
    pub(crate) fn answered_by(&self) -> Vec<&str> {
        self.by.keys().map(String::as_str).collect()
    }
}
