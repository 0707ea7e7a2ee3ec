//! c04: the agent is killed under load. The app answers the next connection, nothing of ours is left in the namespace,
//! and an agent that is started again has its client back.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use sluice_tests::{
    Agent, Client, eventually,
    peers::http1::Http1App,
    stage::{MATCHING, OTHER, Rule, Stage},
};
use tokio_util::sync::CancellationToken;

use crate::{
    PORT, SOON, any, asked,
    load::{Connections, keep_asking},
};

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn c04_a_killed_agent_leaves_the_app_reachable_and_nothing_behind() -> Result<()> {
    let stage = Stage::new("c04")?;
    let (caller, pod) = (&stage.caller, &stage.pod);
    let _app = Http1App::start(pod, any(PORT), "pod")?;
    let _local = Http1App::start(&stage.laptop, any(PORT), "laptop")?;
    let rules = Rule::file(&[stage.header("c04", &[PORT])]);
    let key_file = stage.lab.folder().join("agent.key").display().to_string();
    let start = || Agent::builder(pod).argument("--key-file").argument(&key_file).start(&rules);
    let agent = start().await?;
    let _client = Client::start(&stage.laptop, &agent, &stage.key, &["8080"]).await?;
    ensure!(asked(caller, pod.at(PORT), MATCHING).await? == "laptop");
    ensure!(!agent.process().bpf_objects().is_empty(), "the guard sees nothing of a living agent either");

    let to = pod.at(PORT);
    let stop = CancellationToken::new();
    let scenario = async {
        let _end = stop.clone().drop_guard();
        let before = agent.counter("passed").await?;
        eventually(SOON, "the load goes through the agent", || async {
            agent.counter("passed").await.is_ok_and(|passed| passed > before + 20)
        })
        .await?;
        agent.kill();
        agent.process().exited(SOON).await?;
        let killed = Instant::now();
        ensure!(asked(caller, to, MATCHING).await? == "pod", "the next connection did not reach the app");
        ensure!(killed.elapsed() < Duration::from_secs(1), "it took {:?}", killed.elapsed());
        pod.nothing_left(SOON).await?;
        for _ in 0..20 {
            ensure!(asked(caller, to, MATCHING).await? == "pod");
            ensure!(asked(caller, to, OTHER).await? == "pod");
        }
        anyhow::Ok(killed)
    };
    let (kept, fresh, killed) = tokio::try_join!(
        keep_asking(caller, to, OTHER, Connections::Kept, &stop),
        keep_asking(caller, to, OTHER, Connections::Fresh, &stop),
        scenario,
    )?;
    for report in [&kept, &fresh] {
        ensure!(report.answered_by() == ["pod"], "{report:?}");
        // What was in the agent's hands at that moment is lost (the kept connection, one fresh one), and nothing else.
        ensure!(report.failed.len() <= 1, "{report:?}");
    }
    ensure!(fresh.failed.iter().all(|(begin, _)| *begin <= killed), "after the kill: {fresh:?}");

    let again = start().await?;
    ensure!(again.key() == agent.key(), "the key file was not used");
    eventually(SOON, "the intercept is back by itself", || async {
        asked(caller, to, MATCHING).await.is_ok_and(|by| by == "laptop")
    })
    .await?;
    ensure!(asked(caller, to, OTHER).await? == "pod");
    stage.finish()
}
