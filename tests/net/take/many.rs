//! Callers that open a connection for each request: more of them at a time than a host has ports.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result, ensure};
use sluice_tests::{
    Agent, Client, eventually,
    peers::http1::{Http1App, Http1Caller},
    stage::{MATCHING, OTHER, Rule, Stage},
};
use tokio::{net::TcpStream, task::JoinSet};

use crate::{SOON, any};

const PORT: u16 = 8080;

const CALLERS: usize = 20;
const EACH: usize = 1500;

/// Seconds are enough for all of them on a machine that has time; where ports have run out it takes minutes.
const LIMIT: Duration = Duration::from_secs(120);

/// One connection for each request.
async fn ask(to: SocketAddr) -> Result<()> {
    for number in 0..EACH {
        let (header, by) = if number % 10 == 0 { (MATCHING, "laptop") } else { (OTHER, "pod") };
        let stream = TcpStream::connect(to).await.with_context(|| format!("connection {number}"))?;
        let answer = Http1Caller::over(stream)?.get("/", &[header]).await?;
        ensure!(answer.answered_by() == Some(by), "{answer:?} instead of {by}");
    }
    Ok(())
}

/// Where each connection of a proxy to its app takes a port of its own, ports run out: they stay in TIME_WAIT for a minute.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs root: cargo xtask test"]
async fn thirty_thousand_short_connections_are_all_answered() -> Result<()> {
    let stage = Stage::new("take_many")?;
    let _apps = [Http1App::start(&stage.pod, any(PORT), "pod")?, Http1App::start(&stage.laptop, any(PORT), "laptop")?];
    let agent = Agent::start(&stage.pod, &Rule::file(&[stage.header("many", &[PORT])])).await?;
    let _client = Client::start(&stage.laptop, &agent, &stage.key, &["8080"]).await?;
    let files = agent.process().open_files()?;
    // Two addresses, or it would be the caller whose ports run out.
    let to = [stage.pod.at(PORT), stage.pod.at_v6(PORT)?];
    let asking = stage.caller.run(move || async move {
        let mut callers = JoinSet::new();
        for number in 0..CALLERS {
            callers.spawn(ask(to[number % to.len()]));
        }
        callers.join_all().await.into_iter().collect::<Result<()>>()
    })?;
    tokio::time::timeout(LIMIT, asking).await.context("they take minutes")???;
    eventually(SOON, "the agent has closed them all", || async {
        let open = agent.process().open_files()?;
        ensure!(open <= files + 2, "{open} open files, {files} before");
        Ok(())
    })
    .await?;
    stage.finish()
}
