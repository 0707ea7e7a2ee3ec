//! b11: callers that are silent before their first byte, in the middle of a head and between requests. What they then
//! ask is decided as if they had asked at once.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use futures_util::future::try_join_all;
use sluice_tests::{
    peers::http1::{Http1Caller, request},
    stage::{MATCHING, OTHER},
};

use crate::{HTTP, Ruled};

/// Longer than any detector of protocols waits.
const SILENCE: Duration = Duration::from_secs(10);

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn b11_whoever_is_silent_for_long_is_decided_all_the_same() -> Result<()> {
    let ruled = Ruled::set("b11", &[]).await?;
    let (from, to) = (&ruled.stage.caller, ruled.stage.pod.at(HTTP));
    let silent = async |sent: usize, asked_before: bool, header| {
        let mut caller = Http1Caller::connect(from, to).await?;
        let by = if header == MATCHING { "laptop" } else { "pod" };
        if asked_before {
            ensure!(caller.get("/before", &[OTHER]).await?.answered_by() == Some("pod"));
        }
        let bytes = request("GET", "/", &[header], b"");
        let (first, rest) = bytes.split_at(sent);
        caller.send(first).await?;
        // The silence is what this is about; nothing is waited for.
        tokio::time::sleep(SILENCE).await;
        caller.send(rest).await?;
        let answer = caller.response("GET").await.with_context(|| format!("{sent} bytes, {header:?}"))?;
        ensure!(answer.answered_by() == Some(by), "{sent} bytes, {header:?}: by {:?}", answer.answered_by());
        ensure!(answer.request_seen() == bytes, "the request was changed");
        anyhow::Ok(())
    };
    let mut all = Vec::new();
    for sent in [0, 1, 30, 45] {
        for asked_before in [false, true] {
            all.extend([MATCHING, OTHER].map(|header| silent(sent, asked_before, header)));
        }
    }
    try_join_all(all).await?;
    ensure!(ruled.agent.counter("wires").await? == 0, "passed on as bytes");
    ruled.finish()
}
