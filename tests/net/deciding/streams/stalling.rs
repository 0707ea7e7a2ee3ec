//! A stream that stalls leaves the others of its connection be, however many stall.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use futures_util::future::try_join_all;
use sluice_tests::{
    eventually,
    peers::{
        http2::{read_all, send_all},
        pattern,
    },
};
use tokio::time::timeout;

use super::{Apps, answered, connect, echo, open};
use crate::{
    acting::ENDLESS,
    stage::{SOON, on_stage},
};

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn b09_a_stream_that_stalls_stalls_no_other() -> Result<()> {
    /// Enough that they would be in the way of all others if they had to share a window of a usual size.
    const STALLED: usize = 5;
    on_stage("b09_stall", async |stage| {
        let apps = Apps::start(stage)?;
        let caller = connect(stage).await?;
        let content = Bytes::from(pattern::body(3, 1_500_000));
        let (mut answers, mut uploads) = (Vec::new(), Vec::new());
        for number in 0..STALLED {
            for taken in [false, true] {
                // Nobody reads it.
                let (answer, _) = open(&caller, taken, &format!("/endless/{number}"), true).await?;
                answers.push((answered(answer, taken).await?, taken));
                // Nor this.
                let (answer, mut send) = open(&caller, taken, &format!("/sink/{number}"), false).await?;
                let content = content.clone();
                let sending = tokio::spawn(async move {
                    send_all(&mut send, content).await?;
                    anyhow::Ok(send.send_data(Bytes::new(), true)?)
                });
                uploads.push((answer, sending, taken));
            }
        }
        // All of it stands still: what can be under way is.
        let mut before = 0;
        eventually(SOON, "nothing moves", || {
            let now = apps.pod.sent() + apps.laptop.sent();
            let still = now > 0 && std::mem::replace(&mut before, now) == now;
            async move {
                // So far apart that a stream that can move does.
                tokio::time::sleep(Duration::from_millis(100)).await;
                still
            }
        })
        .await?;
        ensure!(uploads.iter().all(|(_, sending, _)| !sending.is_finished()), "an upload got through");

        let small = content.slice(..200_000);
        for round in 0..3 {
            let calls = [false, true].into_iter().flat_map(|taken| (0..5).map(move |number| (taken, number)));
            let calls = calls.map(async |(taken, number)| {
                let path = format!("/echo/{round}/{number}");
                timeout(SOON, echo(&caller, taken, &path, &small)).await.with_context(|| format!("{path} is stuck"))?
            });
            try_join_all(calls).await?;
        }
        ensure!(uploads.iter().all(|(_, sending, _)| !sending.is_finished()), "an upload got through");

        // Nothing of what has waited is lost.
        let expected = pattern::body(1, ENDLESS);
        for (mut body, taken) in answers {
            let (got, _) = timeout(SOON, read_all(&mut body)).await.context("stuck")??;
            ensure!(got == expected, "taken: {taken}: {} bytes of {}", got.len(), expected.len());
        }
        apps.pod.release();
        apps.laptop.release();
        for (answer, sending, taken) in uploads {
            drop(answered(answer, taken).await?);
            sending.await??;
        }
        for number in 0..STALLED {
            for app in [&apps.pod, &apps.laptop] {
                ensure!(app.seen(&format!("/sink/{number}")).body.as_ref() == Some(&content), "other content");
            }
        }
        ensure!(apps.pod.connections() == 1 && apps.laptop.connections() == 1);
        Ok(())
    })
    .await
}
