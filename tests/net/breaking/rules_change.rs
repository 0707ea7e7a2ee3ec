//! c08: intercepts come and go under load, and nobody whose requests do not fit notices.

use anyhow::{Context as _, Result, ensure};
use sluice_tests::{
    Agent, Client,
    peers::http1::{Http1App, Http1Caller},
    stage::{MATCHING, OTHER, Rule, Stage},
};
use tokio_util::sync::CancellationToken;

use crate::{
    PORT, any, asked,
    load::{Connections, keep_asking},
};

/// How often the intercept is made and ended.
const TIMES: usize = 10;

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn c08_intercepts_come_and_go_without_one_failed_request() -> Result<()> {
    let stage = Stage::new("c08")?;
    let (caller, pod) = (&stage.caller, &stage.pod);
    let _app = Http1App::start(pod, any(PORT), "pod")?;
    let _local = Http1App::start(&stage.laptop, any(PORT), "laptop")?;
    // A rule on another port keeps the client welcome, so that what is measured is the coming and going alone.
    let (none, some) = ([stage.header("other", &[PORT + 1])], [stage.header("mine", &[PORT, PORT + 1])]);
    let agent = Agent::start(pod, &Rule::file(&none)).await?;
    let _client = Client::start(&stage.laptop, &agent, &stage.key, &["8080"]).await?;

    let to = pod.at(PORT);
    let stop = CancellationToken::new();
    let scenario = async {
        let _end = stop.clone().drop_guard();
        for _ in 0..TIMES {
            agent.set_rules(&Rule::file(&some)).await?;
            ensure!(asked(caller, to, MATCHING).await? == "laptop", "made, and not taken");
            ensure!(asked(caller, to, OTHER).await? == "pod");
            agent.set_rules(&Rule::file(&none)).await?;
            ensure!(asked(caller, to, MATCHING).await? == "pod", "ended, and still taken");
        }
        anyhow::Ok(())
    };
    let (kept, fresh, mine_kept, mine_fresh, ()) = tokio::try_join!(
        keep_asking(caller, to, OTHER, Connections::Kept, &stop),
        keep_asking(caller, to, OTHER, Connections::Fresh, &stop),
        keep_asking(caller, to, MATCHING, Connections::Kept, &stop),
        keep_asking(caller, to, MATCHING, Connections::Fresh, &stop),
        scenario,
    )?;
    for report in [&kept, &fresh] {
        ensure!(report.failed.is_empty() && report.answered_by() == ["pod"], "others noticed: {report:?}");
    }
    ensure!(mine_kept.failed.is_empty() && mine_fresh.failed.is_empty(), "{mine_kept:?} {mine_fresh:?}");
    ensure!(mine_fresh.answered_by() == ["laptop", "pod"], "both in turn: {mine_fresh:?}");
    stage.finish()
}

/// Nothing is attached between the intercepts here, and the client is not welcome then. Connections of every phase,
/// native ones and steered ones, are kept and used through all that follow.
#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn c08_connections_of_every_phase_go_on() -> Result<()> {
    const PHASES: usize = 5;
    let stage = Stage::new("c08_kept")?;
    let (caller, pod) = (&stage.caller, &stage.pod);
    let _app = Http1App::start(pod, any(PORT), "pod")?;
    let _local = Http1App::start(&stage.laptop, any(PORT), "laptop")?;
    let (none, some) = (Rule::file(&[]), Rule::file(&[stage.header("mine", &[PORT])]));
    let agent = Agent::start(pod, &none).await?;
    let _client = Client::spawn(&stage.laptop, agent.address(), agent.key(), &stage.key, &["8080"])?;

    let to = pod.at(PORT);
    let stop = CancellationToken::new();
    let scenario = async {
        let _end = stop.clone().drop_guard();
        let (mut native, mut steered) = (Vec::new(), Vec::new());
        for phase in 0..PHASES {
            native.push(Http1Caller::connect(caller, to).await?);
            go_on(&mut native, OTHER, "pod").await.with_context(|| format!("before intercept {phase}"))?;
            agent.set_rules(&some).await?;
            agent.connected(&stage.key).await?;
            steered.push(Http1Caller::connect(caller, to).await?);
            go_on(&mut native, OTHER, "pod").await.with_context(|| format!("native, intercept {phase}"))?;
            go_on(&mut steered, OTHER, "pod").await.with_context(|| format!("steered, intercept {phase}"))?;
            go_on(&mut steered, MATCHING, "laptop").await.with_context(|| format!("taken, intercept {phase}"))?;
            agent.set_rules(&none).await?;
            ensure!(!agent.status().await?.kernel.attached, "nothing is intercepted, and the program is attached");
            go_on(&mut native, OTHER, "pod").await.with_context(|| format!("native, behind intercept {phase}"))?;
            go_on(&mut steered, OTHER, "pod").await.with_context(|| format!("steered, behind intercept {phase}"))?;
            go_on(&mut steered, MATCHING, "pod").await.with_context(|| format!("no rule, behind intercept {phase}"))?;
        }
        anyhow::Ok(())
    };
    let (fresh, ()) = tokio::try_join!(keep_asking(caller, to, OTHER, Connections::Fresh, &stop), scenario)?;
    ensure!(fresh.failed.is_empty() && fresh.answered_by() == ["pod"], "others noticed: {fresh:?}");
    stage.finish()
}

async fn go_on(connections: &mut [Http1Caller], header: (&str, &str), by: &str) -> Result<()> {
    for (number, connection) in connections.iter_mut().enumerate() {
        let response = connection.get("/", &[header]).await.with_context(|| format!("connection {number}"))?;
        ensure!(response.answered_by() == Some(by), "connection {number}: {response:?} instead of {by}");
    }
    Ok(())
}
