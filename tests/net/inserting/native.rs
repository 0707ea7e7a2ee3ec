//! f02: callers whose requests never fit meet the app and nobody else.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use futures_util::future::try_join_all;
use sluice_tests::{Agent, Client, Process, eventually, peers::http1::Http1Caller, stage::Rule};

use crate::{HTTP, OURS, SOON, Scene, THEIRS, ask, ensure_no_connection, play, supervised};

const CALLERS: usize = 20;
const EACH: usize = 100;
const REQUESTS: u64 = 2_000;

/// What a request may cost the agent: nothing, but for what it does from time to time anyway. Passing one through costs
/// more than 100 µs where nothing is optimised.
const MOST: Duration = Duration::from_micros(20);

/// How much of the processor a program uses until something is done.
async fn used(process: &Process, work: impl Future<Output = Result<()>>) -> Result<Duration> {
    let before = process.run_time()?;
    work.await?;
    Ok(process.run_time()?.saturating_sub(before))
}

async fn all_ask(callers: &mut [Http1Caller]) -> Result<()> {
    let asked = callers.iter_mut().map(async |caller| {
        for _ in 0..EACH {
            ask(caller, THEIRS).await?;
        }
        anyhow::Ok(())
    });
    try_join_all(asked).await?;
    Ok(())
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn f02_who_never_matches_costs_the_agent_nothing_and_is_seen_by_the_app() -> Result<()> {
    play(Scene::set("f02", &[]).await?, async |scene| {
        let agent = scene.agent.process();
        // Sockets of the agent's admin endpoint and of starting up are gone.
        tokio::time::sleep(Duration::from_millis(300)).await;
        let sockets = agent.open_sockets()?;
        let (mut callers, mut addresses) = (Vec::new(), Vec::new());
        let begin = Instant::now();
        let busy = used(agent, async {
            for _ in 0..CALLERS {
                let stream = scene.stage.caller.connect(scene.to()).await?;
                addresses.push(stream.local_addr()?);
                callers.push(Http1Caller::over(stream)?);
            }
            all_ask(&mut callers).await
        })
        .await?;
        let took = begin.elapsed();
        ensure!(agent.open_sockets()? <= sockets, "{} sockets, {sockets} before", agent.open_sockets()?);
        let idle = used(agent, async {
            tokio::time::sleep(took).await;
            Ok(())
        })
        .await?;
        eprintln!(
            "f02: {REQUESTS} requests in {took:?}: the agent used {busy:?}, and {idle:?} in as much time without"
        );
        let most = idle + MOST * u32::try_from(REQUESTS)?;
        ensure!(busy < most, "the agent used {busy:?} in {took:?}, {idle:?} when idle");

        let look = scene.look().await?;
        ensure!(look.passed == REQUESTS && look.held == 0 && look.steered == 0, "{look:?}");
        ensure!(scene.insertions().await? == 0, "inserted");
        ensure!(scene.agent.counter("passed").await? == i64::try_from(REQUESTS)?, "not counted with the others");
        let mut seen = scene.app.connections();
        seen.iter_mut().for_each(|peer| *peer = SocketAddr::new(peer.ip().to_canonical(), peer.port()));
        ensure!(seen == addresses, "the app has seen {seen:?}\ninstead of {addresses:?}");
        ensure!(scene.app.requests().len() == CALLERS * EACH);
        Ok(())
    })
    .await
}

/// That the measure measures: the same, passing through the agent.
#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn f02_the_same_costs_time_and_sockets_where_it_passes_through_the_agent() -> Result<()> {
    let stage = sluice_tests::stage::Stage::new("f02_through")?;
    let _app = sluice_tests::peers::http1::Http1App::start(&stage.pod, crate::any(HTTP), "pod")?;
    let agent = Agent::builder(&stage.pod).argument("--steering=lookup");
    let agent = agent.start(&Rule::file(&[stage.header("mine", &[HTTP])])).await?;
    let _client = Client::start(&stage.laptop, &agent, &stage.key, &["8080"]).await?;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let sockets = agent.process().open_sockets()?;
    let mut callers = Vec::new();
    let busy = used(agent.process(), async {
        for _ in 0..CALLERS {
            callers.push(Http1Caller::connect(&stage.caller, stage.pod.at(HTTP)).await?);
        }
        all_ask(&mut callers).await
    })
    .await?;
    ensure!(busy > MOST * 2 * u32::try_from(REQUESTS)?, "only {busy:?}: the bound of the other test is too high");
    ensure!(agent.process().open_sockets()? >= sockets + CALLERS, "sockets are not counted well");
    stage.finish()
}

/// Connections that the agent has to stay in cost it nothing while nothing happens in them.
#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn f02_inserted_connections_cost_nothing_while_they_are_idle() -> Result<()> {
    const WHILE: Duration = Duration::from_secs(3);
    play(Scene::set("f02_idle", &[]).await?, async |scene| {
        let mut callers = Vec::new();
        for _ in 0..100 {
            let mut caller = scene.connect().await?;
            for turn in [OURS, THEIRS] {
                ask(&mut caller, turn).await?;
            }
            callers.push(caller);
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        let lines = |output: String| output.lines().count();
        let before = lines(scene.agent.process().output());
        let idle = used(scene.agent.process(), async {
            tokio::time::sleep(WHILE).await;
            Ok(())
        })
        .await?;
        let said = lines(scene.agent.process().output()) - before;
        eprintln!(
            "f02: with 100 idle inserted connections the agent used {idle:?} in {WHILE:?} and logged {said} lines"
        );
        ensure!(said < 10, "{said} lines in its log, for nothing");
        ensure!(idle < WHILE / 100, "{idle:?} in {WHILE:?}");
        Ok(())
    })
    .await
}

/// Connections that are native, from the beginning or again, end as without Sluice, whoever closes: nobody waits for the other.
#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn f02_native_connections_end_at_once() -> Result<()> {
    play(supervised::scene("f02_ends").await?, async |scene| {
        let mut returned = 0;
        for first in [THEIRS, OURS] {
            for by_app in [false, true] {
                let mut caller = scene.connect().await?;
                ask(&mut caller, first).await?;
                returned += u64::from(first == OURS);
                let until = Instant::now() + SOON;
                while scene.look().await?.returned < returned {
                    ensure!(Instant::now() < until, "the agent does not leave");
                    ask(&mut caller, THEIRS).await?;
                }
                if by_app {
                    let answer = caller.get("/", &[THEIRS.0, ("Connection", "close")]).await?;
                    ensure!(answer.answered_by() == Some("pod"), "by {:?}", answer.answered_by());
                } else {
                    caller.half_close().await?;
                }
                ensure!(caller.try_response("GET").await?.is_none(), "more than the end");
            }
        }
        eventually(SOON, "neither side has a connection any more", || async {
            ensure_no_connection(&scene.stage.caller)?;
            ensure_no_connection(&scene.stage.pod)
        })
        .await?;
        scene.ensure_inserted(2).await
    })
    .await
}
