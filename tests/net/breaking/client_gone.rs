//! c01, c02: the client is killed, cut off, asleep or stopped while requests are under way, and comes back.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use sluice_tests::{
    Agent, Client, Direction, Host, eventually,
    peers::{
        http1::{Http1App, Http1Caller},
        raw::{RawApp, Script},
    },
    stage::{MATCHING, OTHER, Rule, Stage},
};
use tokio_util::sync::CancellationToken;

use crate::{
    PORT, SOON, any, asked,
    load::{Connections, Report, keep_asking},
};

/// Requests to this port are at a breakpoint on the laptop: they arrive there and get no answer.
const BREAKPOINT: u16 = 8081;

/// By then every request that fits has its answer, however the client went.
const PROMISED: Duration = Duration::from_secs(6);

/// A request that fits no rule must not have waited for anybody: a silent client would cost it a second at least.
const NOT_LATE: Duration = Duration::from_millis(900);

/// How a client goes.
#[derive(Clone, Copy, Debug)]
enum Way {
    Killed,
    Cut,
    Asleep,
    Stopped,
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn c01_a_killed_client_hangs_nobody() -> Result<()> {
    Box::pin(client_goes("c01_kill", Way::Killed, |rule| rule, "pod")).await
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn c01_a_killed_client_hangs_nobody_where_its_requests_are_refused() -> Result<()> {
    Box::pin(client_goes("c01_reject", Way::Killed, Rule::reject, "503")).await
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn c01_a_cut_cable_hangs_nobody_and_c02_the_client_comes_back() -> Result<()> {
    Box::pin(client_goes("c01_cut", Way::Cut, |rule| rule, "pod")).await
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn c01_a_laptop_asleep_hangs_nobody_and_c02_its_client_comes_back() -> Result<()> {
    Box::pin(client_goes("c01_sleep", Way::Asleep, |rule| rule, "pod")).await
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn c01_a_clean_stop_hands_over_at_once() -> Result<()> {
    Box::pin(client_goes("c01_stop", Way::Stopped, |rule| rule, "pod")).await
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn c02_a_client_that_is_started_again_serves_the_same_rule() -> Result<()> {
    let stage = Stage::new("c02")?;
    let (caller, pod) = (&stage.caller, &stage.pod);
    let _app = Http1App::start(pod, any(PORT), "pod")?;
    let _local = Http1App::start(&stage.laptop, any(PORT), "laptop")?;
    let agent = Agent::start(pod, &Rule::file(&[stage.header("c02", &[PORT])])).await?;
    for _ in 0..3 {
        let client = Client::start(&stage.laptop, &agent, &stage.key, &["8080"]).await?;
        ensure!(asked(caller, pod.at(PORT), MATCHING).await? == "laptop");
        ensure!(asked(caller, pod.at(PORT), OTHER).await? == "pod");
        client.kill();
    }
    ensure!(agent.status().await?.rules.generation == 1, "the rules are another version now");
    stage.finish()
}

async fn client_goes(name: &str, way: Way, policy: impl Fn(Rule) -> Rule, instead: &str) -> Result<()> {
    let stage = Stage::new(name)?;
    let (caller, pod, laptop) = (&stage.caller, &stage.pod, &stage.laptop);
    let _apps = [Http1App::start(pod, any(PORT), "pod")?, Http1App::start(pod, any(BREAKPOINT), "pod")?];
    let _local = Http1App::start(laptop, any(PORT), "laptop")?;
    let debugged = RawApp::start(laptop, any(BREAKPOINT), Script::new().read(1).hold())?;
    let rules = Rule::file(&[policy(stage.header("mine", &[PORT, BREAKPOINT]))]);
    let agent = Agent::start(pod, &rules).await?;
    let client = Client::start(laptop, &agent, &stage.key, &["8080", "8081"]).await?;
    let to = pod.at(PORT);

    let stop = CancellationToken::new();
    let scenario = async {
        let _end = stop.clone().drop_guard();
        let under_way = asked(caller, pod.at(BREAKPOINT), MATCHING);
        let story = async {
            eventually(SOON, "the request is at its breakpoint", || async { !debugged.connections().is_empty() })
                .await?;
            ensure!(asked(caller, to, MATCHING).await? == "laptop");
            let gone = Instant::now();
            go(way, &stage, &client).await?;
            // New requests: until the agent knows, each waits for its own answer only.
            while asked(caller, to, MATCHING).await? == "laptop" {
                ensure!(gone.elapsed() < PROMISED, "the laptop still answers");
            }
            ensure!(gone.elapsed() < PROMISED, "{way:?}: the next request took {:?}", gone.elapsed());
            anyhow::Ok(gone)
        };
        let timed = async {
            let by = under_way.await?;
            anyhow::Ok((by, Instant::now()))
        };
        let (gone, (by, answered)) = tokio::try_join!(story, timed)?;
        let took = answered.duration_since(gone);
        ensure!(by == instead, "the request that was under way: {by} instead of {instead}");
        ensure!(took < PROMISED, "{way:?}: the request that was under way took {took:?}");
        ensure!(!matches!(way, Way::Stopped) || took < Duration::from_secs(1), "a clean stop took {took:?}");
        ensure!(asked(caller, to, MATCHING).await? == instead);
        anyhow::Ok(())
    };
    let (kept, fresh) = (Connections::Kept, Connections::Fresh);
    let (others, other, mine, ()) = tokio::try_join!(
        keep_asking(caller, to, OTHER, kept, &stop),
        keep_asking(caller, to, OTHER, fresh, &stop),
        keep_asking(caller, to, MATCHING, fresh, &stop),
        scenario,
    )
    .with_context(|| format!("{way:?}"))?;
    for report in [&others, &other] {
        ensure!(report.failed.is_empty() && report.answered_by() == ["pod"], "others noticed: {report:?}");
        ensure!(report.worst < NOT_LATE, "others waited: {report:?}");
    }
    mine_was_served(&mine, instead)?;
    let (kept, fresh, mine) = (others.worst, other.worst, mine.worst);
    eprintln!("{name}: worst answers {kept:?} and {fresh:?} to others, {mine:?} to what fits the rule");
    comes_back(way, &stage, &client, caller).await?;
    stage.finish()
}

async fn go(way: Way, stage: &Stage, client: &Client) -> Result<()> {
    match way {
        Way::Killed => client.kill(),
        Way::Cut => stage.to_laptop.cut()?,
        Way::Asleep => client.process().signal(Signal::SIGSTOP)?,
        Way::Stopped => ensure!(client.terminate().await?.success()),
    }
    Ok(())
}

fn mine_was_served(mine: &Report, instead: &str) -> Result<()> {
    ensure!(mine.failed.is_empty(), "requests that fit the rule failed: {mine:?}");
    ensure!(mine.by.keys().all(|by| by == "laptop" || by == instead), "{mine:?}");
    ensure!(mine.by.contains_key("laptop") && mine.by.contains_key(instead), "not before and after: {mine:?}");
    ensure!(mine.worst < PROMISED, "a request that fits the rule waited: {mine:?}");
    Ok(())
}

async fn comes_back(way: Way, stage: &Stage, client: &Client, caller: &Host) -> Result<()> {
    match way {
        Way::Killed | Way::Stopped => return Ok(()),
        Way::Cut => stage.to_laptop.heal()?,
        Way::Asleep => client.process().signal(Signal::SIGCONT)?,
    }
    let to = stage.pod.at(PORT);
    eventually(Duration::from_secs(20), "the laptop answers again", || async {
        asked(caller, to, MATCHING).await.is_ok_and(|by| by == "laptop")
    })
    .await?;
    ensure!(asked(caller, to, OTHER).await? == "pod");
    Ok(())
}

/// What may be asked twice goes with the question whether the client takes it, which saves a round trip; anything else only
/// behind the answer. A client that is heard no more shows the difference: the app answers both in the end.
#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn c01_only_what_may_be_asked_twice_is_sent_before_the_client_accepts() -> Result<()> {
    for (method, sent) in [("POST", false), ("GET", true)] {
        let stage = Stage::new(&format!("c01_unheard_{method}"))?;
        let _app = Http1App::start(&stage.pod, any(PORT), "pod")?;
        let local = RawApp::start(&stage.laptop, any(PORT), Script::new())?;
        let agent = Agent::start(&stage.pod, &Rule::file(&[stage.header("unheard", &[PORT])])).await?;
        let _client = Client::start(&stage.laptop, &agent, &stage.key, &[&PORT.to_string()]).await?;
        stage.to_laptop.cut_way(Direction::BToA)?;
        let mut caller = Http1Caller::connect(&stage.caller, stage.pod.at(PORT)).await?;
        let answer = caller.call(method, "/", &[MATCHING], b"").await?;
        ensure!(answer.answered_by() == Some("pod"), "{method}: {answer:?}");
        let seen = local.ended(0, SOON).await?;
        ensure!(
            seen.bytes.starts_with(method.as_bytes()) == sent && (sent || seen.bytes.is_empty()),
            "{method}: {seen}"
        );
        stage.finish()?;
    }
    Ok(())
}
