//! f01: a connection that the app serves alone, until one of its requests fits.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use sluice_tests::{eventually, peers::http1::Http1Caller, stage::OTHER};

use crate::{OURS, SOON, Scene, THEIRS, ask, ensure_no_connection, play};

/// A request that the kernel cannot disprove, and that fits no rule: its body's end is not its business.
pub(crate) fn undecided() -> Vec<u8> {
    let (name, value) = OTHER;
    let head =
        format!("POST /undecided HTTP/1.1\r\nHost: app.test\r\n{name}: {value}\r\nTransfer-Encoding: chunked\r\n\r\n");
    [head.as_bytes(), b"5\r\nhello\r\n0\r\n\r\n"].concat()
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn f01_a_connection_is_joined_when_a_request_of_it_fits_and_goes_on_unbroken() -> Result<()> {
    const BEFORE: u64 = 10;
    play(Scene::set("f01", &[]).await?, async |scene| {
        let stream = scene.stage.caller.connect(scene.to()).await?;
        let own = stream.local_addr()?;
        let mut caller = Http1Caller::over(stream)?;
        for _ in 0..BEFORE {
            ask(&mut caller, THEIRS).await?;
        }
        let look = scene.look().await?;
        ensure!(look.passed == BEFORE && look.held == 0 && scene.insertions().await? == 0, "not native: {look:?}");

        ask(&mut caller, OURS).await.context("the first that fits")?;
        ensure!(scene.insertions().await? == 1, "{:?}", scene.look().await?);
        let turns = [THEIRS, THEIRS, OURS, OURS, THEIRS, OURS, THEIRS];
        for (number, turn) in turns.into_iter().enumerate() {
            ask(&mut caller, turn).await.with_context(|| format!("request {number} behind it"))?;
        }
        // A pause in which an agent might leave.
        tokio::time::sleep(Duration::from_millis(500)).await;
        for (number, turn) in turns.into_iter().enumerate() {
            ask(&mut caller, turn).await.with_context(|| format!("request {number} behind a pause"))?;
        }

        let connections = scene.app.connections();
        ensure!(connections.len() == 1, "the app has seen other connections: {connections:?}");
        ensure!(
            connections[0].ip().to_canonical() == own.ip() && connections[0].port() == own.port(),
            "the app has seen {connections:?} instead of {own}"
        );
        let (theirs, ours) = (scene.app.requests().len(), scene.local.requests().len());
        ensure!(theirs == 10 + 8 && ours == 1 + 6, "{theirs} requests at the app, {ours} at the laptop");
        caller.half_close().await?;
        ensure!(caller.try_response("GET").await?.is_none(), "the end");
        scene.ensure_inserted(1).await
    })
    .await
}

/// The agent's sockets send segments of the size that the connection has.
#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn f01_segments_are_as_long_as_before() -> Result<()> {
    play(Scene::set("f01_segments", &[]).await?, async |scene| {
        let sizes = |filter: &str| {
            let shown = scene.stage.pod.tool("ss", &["-tinH", "state", "established", filter])?;
            let sizes = shown.split_whitespace().filter_map(|word| word.strip_prefix("mss:"));
            anyhow::Ok(sizes.map(str::to_owned).collect::<Vec<_>>())
        };
        let stream = scene.stage.caller.connect(scene.to()).await?;
        let own = stream.local_addr()?.port();
        let mut caller = Http1Caller::over(stream)?;
        ask(&mut caller, THEIRS).await?;
        let filter = format!("dport = :{own}");
        let before = sizes(&filter)?;
        ensure!(before.len() == 1, "the app's connection: {before:?}");
        ask(&mut caller, OURS).await?;
        let inserted = sizes(&filter)?;
        ensure!(
            inserted.len() == 3 && inserted.iter().all(|size| *size == before[0]),
            "{inserted:?}, before {before:?}"
        );
        Ok(())
    })
    .await
}

/// In the middle of the connection the app sends to the caller it had from the start: no reset, no end.
#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn f01_the_agent_leaves_where_nothing_was_taken_and_joins_again() -> Result<()> {
    const ROUNDS: u64 = 50;
    play(Scene::set("f01_again", &[]).await?, async |scene| {
        let mut caller = scene.connect().await?;
        for round in 0..ROUNDS {
            let what = || format!("round {round}");
            caller.send(&undecided()).await?;
            let answer = caller.response("POST").await.with_context(what)?;
            ensure!(answer.answered_by() == Some("pod") && answer.request_seen() == undecided(), "{answer:?}");
            // Longer than the agent waits for more.
            tokio::time::sleep(Duration::from_millis(20)).await;
            ask(&mut caller, THEIRS).await.with_context(what)?;
            ask(&mut caller, THEIRS).await.with_context(what)?;
        }
        let look = scene.look().await?;
        // Where the test's own thread was late, the agent may have been as well.
        ensure!(look.returned * 10 >= ROUNDS * 9, "it hardly ever leaves: {look:?}");
        ensure!(look.passed >= look.returned, "the app is not left alone: {look:?}");
        ensure!(scene.insertions().await? == look.held, "{look:?}");
        ask(&mut caller, OURS).await.context("one that fits")?;
        ask(&mut caller, THEIRS).await.context("behind it")?;
        ensure!(scene.app.connections().len() == 1, "the app has seen other connections");
        scene.ensure_inserted(ROUNDS / 2).await
    })
    .await
}

/// The first request of a connection, and connections that end in every way while the agent is in them.
#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn f01_connections_end_as_they_would_without_the_agent() -> Result<()> {
    play(Scene::set("f01_ends", &[]).await?, async |scene| {
        for (number, turns) in
            [vec![OURS], vec![THEIRS, OURS], vec![OURS, THEIRS], vec![THEIRS, OURS, THEIRS]].iter().enumerate()
        {
            // By the caller.
            let mut caller = scene.connect().await?;
            for &turn in turns {
                ask(&mut caller, turn).await.with_context(|| format!("connection {number}"))?;
            }
            caller.half_close().await?;
            ensure!(caller.try_response("GET").await?.is_none(), "connection {number}: more than the end");
            // By the app, after its last answer.
            let mut caller = scene.connect().await?;
            for &turn in turns {
                ask(&mut caller, turn).await.with_context(|| format!("connection {number}"))?;
            }
            let (header, by) = turns[turns.len() - 1];
            let answer = caller.get("/", &[header, ("Connection", "close")]).await?;
            ensure!(answer.answered_by() == Some(by), "connection {number}: {:?}", answer.answered_by());
            ensure!(caller.try_response("GET").await?.is_none(), "connection {number}: the connection goes on");
            // By a reset.
            let stream = scene.stage.caller.connect(scene.to()).await?;
            let mut caller = Http1Caller::over(stream)?;
            for &turn in turns {
                ask(&mut caller, turn).await.with_context(|| format!("connection {number}"))?;
            }
            let (stream, _) = caller.into_parts();
            socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
        }
        scene.ensure_inserted(12).await?;
        eventually(SOON, "the app has no connection any more", || async { ensure_no_connection(&scene.stage.pod) })
            .await?;
        eventually(SOON, "the agent has no connection any more", || async {
            let open = scene.agent.metric("sluice_agent_connections_open").await?;
            ensure!(open == 0, "{open}");
            Ok(())
        })
        .await
    })
    .await
}
