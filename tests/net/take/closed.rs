//! Connections end with their callers, whoever has answered: agent and client keep no file of one that is over.

use anyhow::{Result, ensure};
use sluice_tests::{
    Agent, Client, eventually,
    peers::http1::{Http1App, Http1Caller},
    stage::{MATCHING, OTHER, Rule, Stage},
};

use crate::{SOON, any};

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn a_connection_ends_with_its_caller_whoever_has_answered_last() -> Result<()> {
    let stage = Stage::new("closed")?;
    let _app = Http1App::start(&stage.pod, any(8080), "pod")?;
    let _local = Http1App::start(&stage.laptop, any(8080), "laptop")?;
    let agent = Agent::start(&stage.pod, &Rule::file(&[stage.header("closed", &[8080])])).await?;
    let client = Client::start(&stage.laptop, &agent, &stage.key, &["8080"]).await?;

    for headers in [&[MATCHING][..], &[OTHER], &[OTHER, MATCHING], &[MATCHING, OTHER]] {
        let mut caller = Http1Caller::connect(&stage.caller, stage.pod.at(8080)).await?;
        let before = client.process().open_files()?;
        for header in headers {
            let expected = if *header == MATCHING { "laptop" } else { "pod" };
            let response = caller.get("/", &[*header]).await?;
            ensure!(response.answered_by() == Some(expected), "{response:?}");
        }
        drop(caller);
        eventually(SOON, &format!("the connection has ended, behind {headers:?}"), || async {
            ensure!(agent.counter("open").await? == 0, "the agent still has it");
            ensure!(client.process().open_files()? == before, "the client still has a file of it");
            Ok(())
        })
        .await?;
    }
    stage.finish()
}
