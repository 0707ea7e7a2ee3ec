//! b05: heads of all sizes, in pieces of all sizes.

use anyhow::{Context as _, Result, ensure};
use futures_util::future::try_join_all;
use sluice_tests::peers::http1::{Http1App, Http1Caller};

use super::super::stage::{LAPTOP, MINE, OTHER, POD, PORT, Stage, on, on_stage, side};

const KIB: usize = 1 << 10;

/// A head of exactly this size whose last header is the rule's, behind one that is no ASCII.
fn head(size: usize, fits: bool) -> Vec<u8> {
    let ((name, value), _) = side(fits);
    let begin = b"GET /\xc3\xa9?q=\xe2\x82\xac HTTP/1.1\r\nHost: app.test\r\nX-Latin: caf\xe9 \xff\x80\xfe\r\n";
    let end = format!("\r\n{name}: {value}\r\n\r\n");
    let mut head = begin.to_vec();
    let line = [&b"X-Filler: "[..], &b"abc\xf6\xe4\xfc ".repeat(100), b"z\r\n"].concat();
    while head.len() + line.len() + end.len() + 10 < size {
        head.extend_from_slice(&line);
    }
    head.extend_from_slice(b"X-Rest: ");
    head.resize(size.saturating_sub(end.len()).max(head.len() + 1), b'r');
    head.extend_from_slice(end.as_bytes());
    head
}

fn apps(stage: &Stage) -> Result<[Http1App; 2]> {
    Ok([Http1App::start(&stage.pod, on(PORT), POD)?, Http1App::start(&stage.laptop, on(PORT), LAPTOP)?])
}

async fn answered(caller: &mut Http1Caller, sent: &[u8], fits: bool) -> Result<()> {
    let answer = caller.response("GET").await?;
    ensure!(answer.answered_by() == Some(side(fits).1), "by {:?}", answer.answered_by());
    ensure!(answer.request_seen() == sent, "it came as {}", answer.request_seen().escape_ascii());
    Ok(())
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn b05_heads_of_all_sizes_are_decided() -> Result<()> {
    on_stage("b05_sizes", async |stage| {
        let _apps = apps(stage)?;
        let mut caller = Http1Caller::connect(&stage.caller, stage.app()).await?;
        for size in [KIB, 8 * KIB, 64 * KIB - 1, 64 * KIB, 64 * KIB + 1, 127 * KIB, 128 * KIB] {
            for fits in [false, true, true, false] {
                let head = head(size, fits);
                ensure!(head.len() == size, "a head of {} bytes", head.len());
                caller.send(&head).await?;
                answered(&mut caller, &head, fits).await.with_context(|| format!("{size} bytes, fits: {fits}"))?;
            }
        }
        // Beyond that nothing is decided any more: the app gets all of it.
        for fits in [false, true] {
            let mut caller = Http1Caller::connect(&stage.caller, stage.app()).await?;
            let head = head(128 * KIB + 1, fits);
            caller.send(&head).await?;
            answered(&mut caller, &head, false).await.context("too large")?;
        }
        ensure!(stage.agent.counter("wires").await? == 2, "{:?}", stage.agent.status().await?.counters);
        Ok(())
    })
    .await
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn b05_heads_split_at_every_byte_are_decided() -> Result<()> {
    on_stage("b05_splits", async |stage| {
        let _apps = apps(stage)?;
        for fits in [false, true] {
            let head = head(0, fits);
            let mut callers = Vec::new();
            for at in 1..head.len() {
                let mut caller = Http1Caller::connect(&stage.caller, stage.app()).await?;
                caller.send(&head[..at]).await?;
                callers.push((at, caller));
            }
            // The agent, which has one thread, has read all beginnings before it has served this.
            let mut other = Http1Caller::connect(&stage.caller, stage.app()).await?;
            for _ in 0..2 {
                ensure!(other.get("/", &[OTHER]).await?.answered_by() == Some(POD));
                ensure!(other.get("/", &[MINE]).await?.answered_by() == Some(LAPTOP));
            }
            try_join_all(callers.into_iter().map(async |(at, mut caller)| {
                caller.send(&head[at..]).await?;
                answered(&mut caller, &head, fits).await.with_context(|| format!("split at {at}, fits: {fits}"))
            }))
            .await?;
        }
        ensure!(stage.agent.counter("wires").await? == 0, "{:?}", stage.agent.status().await?.counters);
        Ok(())
    })
    .await
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn b05_heads_in_single_bytes_are_decided() -> Result<()> {
    on_stage("b05_bytes", async |stage| {
        let _apps = apps(stage)?;
        try_join_all([false, true].map(async |fits| {
            let mut caller = Http1Caller::connect(&stage.caller, stage.app()).await?;
            for (size, piece) in [(0, 1), (8 * KIB, 1), (64 * KIB, 7)] {
                let head = head(size, fits);
                for piece in head.chunks(piece) {
                    caller.send(piece).await?;
                    tokio::task::yield_now().await;
                }
                answered(&mut caller, &head, fits).await.with_context(|| format!("{} bytes", head.len()))?;
            }
            anyhow::Ok(())
        }))
        .await?;
        ensure!(stage.agent.counter("wires").await? == 0, "{:?}", stage.agent.status().await?.counters);
        Ok(())
    })
    .await
}
