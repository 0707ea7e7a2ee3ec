//! f06: the agent is killed. Connections that are native go on, those that it is in end soon, and nothing is left.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use futures_util::future::{join_all, try_join_all};
use sluice_tests::{
    eventually,
    peers::{
        http1::{Http1Caller, request},
        raw::{RawApp, Script},
    },
    stage::{MATCHING, OTHER},
};

use crate::{OURS, SOON, Scene, THEIRS, any, ask, joining::undecided};

const EACH: usize = 100;

/// Nobody on the laptop answers here.
const BREAKPOINT: u16 = 8081;

/// When the agent is gone, its connections are.
const PROMISED: Duration = Duration::from_secs(1);

/// What became of a connection on which nobody has asked anything since the agent's end.
async fn end_of(caller: &mut Http1Caller) -> Result<()> {
    match tokio::time::timeout(SOON, caller.try_response("GET")).await {
        Err(_) => anyhow::bail!("it hangs"),
        Ok(Ok(Some(answer))) => anyhow::bail!("{answer:?}"),
        Ok(Ok(None) | Err(_)) => Ok(()),
    }
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn f06_a_killed_agent_takes_only_the_connections_with_it_that_it_is_in() -> Result<()> {
    let scene = Scene::set("f06", &[BREAKPOINT]).await?;
    let (stage, agent) = (&scene.stage, &scene.agent);
    let debugged = RawApp::start(&stage.laptop, any(BREAKPOINT), Script::new().read(1).hold())?;
    let _app = sluice_tests::peers::http1::Http1App::start(&stage.pod, any(BREAKPOINT), "pod")?;
    let connect = async |turns: &[((&str, &str), &str)]| {
        let mut caller = scene.connect().await?;
        for &turn in turns {
            ask(&mut caller, turn).await?;
        }
        anyhow::Ok(caller)
    };
    let mut native = try_join_all((0..EACH).map(|_| connect(&[THEIRS, THEIRS]))).await?;
    let mut inserted = try_join_all((0..EACH).map(|_| connect(&[THEIRS, OURS, THEIRS]))).await?;
    // Connections that are about to go back, and such that are at a breakpoint.
    let mut armed = try_join_all((0..10).map(async |_| {
        let mut caller = scene.connect().await?;
        caller.send(&undecided()).await?;
        ensure!(caller.response("POST").await?.answered_by() == Some("pod"));
        anyhow::Ok(caller)
    }))
    .await?;
    let mut debugging = Vec::new();
    for _ in 0..10 {
        let mut caller = Http1Caller::connect(&stage.caller, stage.pod.at(BREAKPOINT)).await?;
        caller.send(&request("GET", "/", &[MATCHING], b"")).await?;
        debugging.push(caller);
    }
    eventually(SOON, "ten are at their breakpoint", || async { debugged.connections().len() == 10 }).await?;
    ensure!(scene.insertions().await? == 120, "{:?}", scene.look().await?);
    ensure!(!agent.process().bpf_objects().is_empty(), "the guard sees nothing of a living agent either");

    agent.kill();
    agent.process().exited(SOON).await?;
    let killed = Instant::now();
    let mut results = Vec::new();
    for (kind, callers) in [("inserted", &mut inserted), ("at a breakpoint", &mut debugging)] {
        let ends = join_all(callers.iter_mut().map(end_of)).await;
        for end in ends {
            end.context(kind)?;
        }
        results.push((kind, killed.elapsed()));
    }
    ensure!(killed.elapsed() < PROMISED, "they ended after {results:?}");
    // In these nothing is under way, and their numbers are not shifted: the kernel has given them back.
    for caller in &mut armed {
        ask(caller, THEIRS).await.context("about to go back")?;
    }
    eprintln!("f06: ended after {results:?}");
    for turn in [(OTHER, "pod"), (MATCHING, "pod")] {
        let all = native.iter_mut().enumerate().map(async |(number, caller)| {
            ask(caller, turn).await.with_context(|| format!("native connection {number}"))
        });
        try_join_all(all).await?;
    }
    let mut fresh = scene.connect().await?;
    ask(&mut fresh, (MATCHING, "pod")).await.context("a new one")?;
    stage.pod.nothing_left(SOON).await?;
    eventually(SOON, "the app has the native connections only", || async {
        let shown = stage.pod.tool("ss", &["-tnH", "state", "established", "sport", "=", ":8080"])?;
        ensure!(shown.lines().count() == EACH + armed.len() + 1, "{} connections", shown.lines().count());
        Ok(())
    })
    .await?;
    let Scene { stage, .. } = *scene;
    stage.finish()
}

/// Requests are under way on every connection at that moment.
#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn f06_native_connections_never_notice_while_they_are_busy() -> Result<()> {
    let scene = Scene::set("f06_busy", &[]).await?;
    let stop = tokio_util::sync::CancellationToken::new();
    let busy = |_| async {
        let mut caller = scene.connect().await?;
        let mut count = 0;
        while !stop.is_cancelled() {
            ask(&mut caller, THEIRS).await.with_context(|| format!("behind {count}"))?;
            count += 1;
        }
        anyhow::Ok(count)
    };
    let story = async {
        let _end = stop.clone().drop_guard();
        tokio::time::sleep(Duration::from_millis(500)).await;
        scene.agent.kill();
        scene.agent.process().exited(SOON).await?;
        tokio::time::sleep(Duration::from_millis(500)).await;
        anyhow::Ok(())
    };
    let (counts, ()) = tokio::try_join!(try_join_all((0..20).map(busy)), story)?;
    ensure!(counts.iter().all(|&count| count > 10), "{counts:?}");
    scene.stage.pod.nothing_left(SOON).await?;
    let Scene { stage, .. } = *scene;
    stage.finish()
}
