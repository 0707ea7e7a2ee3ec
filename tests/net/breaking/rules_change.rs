//! c08: intercepts come and go under load, and nobody whose requests do not fit notices.

use anyhow::{Result, ensure};
use sluice_tests::{
    Agent, Client,
    peers::http1::Http1App,
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
