//! b09: gRPC, all four kinds of calls, half of them taken, over one connection.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context as _, Result, ensure};
use sluice_tests::{
    Agent, Client, Lab,
    peers::{
        ANSWERED_BY,
        grpc::{BREAKPOINT, Call, GrpcApp, GrpcCaller, Words, with_metadata},
    },
    stage::{MATCHING, OTHER, Rule, Stage},
};
use tonic::{Code, Request};

use crate::{PORT, SOON, any};

/// A stage with a gRPC app on each side and one connection of a caller.
struct Talk {
    stage: Stage,
    agent: Agent,
    _client: Client,
    pod: GrpcApp,
    laptop: GrpcApp,
    caller: GrpcCaller,
}

const SIDES: [((&str, &str), &str); 2] = [(MATCHING, "laptop"), (OTHER, "pod")];

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn b09_half_of_the_calls_of_every_kind_are_taken_on_one_connection() -> Result<()> {
    let talk = Talk::begin("b09_kinds").await?;
    for round in 0..5 {
        let [mine, others] = SIDES.map(|(metadata, by)| every_kind(&talk.caller, metadata, by));
        tokio::try_join!(mine, others).with_context(|| format!("round {round}"))?;
    }
    for (app, calls) in [(&talk.pod, talk.pod.calls()), (&talk.laptop, talk.laptop.calls())] {
        ensure!(calls.len() == 20, "{} calls at {}", calls.len(), app.address());
        let peers: BTreeSet<_> = calls.iter().filter_map(|call| call.peer).collect();
        ensure!(peers.len() == 1, "one connection of the caller became {} at an app", peers.len());
    }
    ensure!(talk.agent.counter("diverted").await? == 20 && talk.agent.counter("passed").await? == 20);
    ensure!(talk.agent.counter("accepted").await? == 1, "the caller has used more than one connection");
    talk.end()
}

async fn every_kind(caller: &GrpcCaller, metadata: (&'static str, &str), by: &str) -> Result<()> {
    let metadata = [metadata];
    let said = caller.say("one", &metadata).await?;
    ensure!(said.by == by && said.text == "one", "{said:?} instead of {by}");
    let texts = ["a", "b", "c"];
    let gathered = caller.gather(&texts, &metadata).await?;
    ensure!(gathered.by == by && gathered.text == "abc" && gathered.number == 3, "{gathered:?} instead of {by}");
    let repeated = caller.repeat("r", 30, &metadata).await?;
    ensure!(repeated.len() == 30 && repeated.iter().all(|words| words.by == by), "{repeated:?} instead of {by}");
    ensure!(repeated.iter().map(|words| words.number).eq(0..30), "out of order: {repeated:?}");
    // Each message is sent when the one before it has been answered: nothing waits for an end of the stream.
    let chat = caller.chat(&texts, &metadata).await?;
    ensure!(chat.iter().all(|words| words.by == by), "{chat:?} instead of {by}");
    ensure!(chat.iter().map(|words| words.text.as_str()).eq(texts), "{chat:?}");
    Ok(())
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn b09_metadata_and_status_of_either_side_arrive() -> Result<()> {
    let talk = Talk::begin("b09_meta").await?;
    for (metadata, by) in SIDES {
        let request = with_metadata(Request::new(Words::said("x", 0)), &[metadata, ("x-more", "1"), ("x-more", "2")])?;
        let response = talk.caller.client().say(request).await?;
        let name = response.metadata().get(ANSWERED_BY).context("no name in the metadata")?;
        ensure!(name.to_str()? == by, "{name:?} instead of {by}");
    }
    for (app, (name, value)) in [(&talk.laptop, MATCHING), (&talk.pod, OTHER)] {
        let calls = app.calls();
        let [Call { metadata, .. }] = calls.as_slice() else { anyhow::bail!("{calls:?}") };
        ensure!(metadata.get(name).is_some_and(|seen| seen == value), "{metadata:?}");
        ensure!(metadata.get_all("x-more").iter().count() == 2, "a repeated entry got lost: {metadata:?}");
    }
    talk.end()
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn b09_deadlines_pass_on_and_end_the_call() -> Result<()> {
    let talk = Talk::begin("b09_deadline").await?;
    for (metadata, app) in [(MATCHING, &talk.laptop), (OTHER, &talk.pod)] {
        let mut request = with_metadata(Request::new(Words::said(BREAKPOINT, 0)), &[metadata])?;
        request.set_timeout(Duration::from_millis(300));
        let call = tokio::time::timeout(SOON, talk.caller.client().say(request)).await;
        let status = call.context("the deadline did not end the call")?.err().context("answered at a breakpoint")?;
        ensure!(matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled), "{status:?}");
        let calls = app.calls();
        ensure!(calls.len() == 1 && calls[0].metadata.contains_key("grpc-timeout"), "{calls:?}");
        // The connection and its other calls are none the worse.
        let (metadata, by) = SIDES[usize::from(metadata == OTHER)];
        ensure!(talk.caller.say("after", &[metadata]).await?.by == by);
    }
    ensure!(talk.agent.counter("accepted").await? == 1, "the caller had to connect again");
    talk.end()
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn b09_a_call_under_way_is_answered_by_the_app_when_the_client_dies() -> Result<()> {
    let Talk { stage, agent, _client: client, pod, laptop, caller } = Talk::begin("b09_dies").await?;
    let waiting = caller.clone();
    let under_way = tokio::spawn(async move { waiting.say(BREAKPOINT, &[MATCHING]).await });
    sluice_tests::eventually(SOON, "the call is at its breakpoint", || async { laptop.calls().len() == 1 }).await?;
    client.kill();
    // The same call comes to the app, which has the same breakpoint: that it arrives there is the proof.
    sluice_tests::eventually(Duration::from_secs(6), "the app has the call", || async { pod.calls().len() == 1 })
        .await?;
    ensure!(caller.say("next", &[MATCHING]).await?.by == "pod");
    under_way.abort();
    drop((agent, pod, laptop));
    stage.finish()
}

// === impl Talk ===

impl Talk {
    async fn begin(name: &str) -> Result<Self> {
        let stage = Stage::new(name)?;
        let pod = GrpcApp::start(&stage.pod, any(PORT), "pod")?;
        let laptop = GrpcApp::start(&stage.laptop, any(PORT), "laptop")?;
        let agent = Agent::start(&stage.pod, &Rule::file(&[stage.header("b09", &[PORT])])).await?;
        let client = Client::start(&stage.laptop, &agent, &stage.key, &["8080"]).await?;
        let caller = GrpcCaller::connect(&stage.caller, stage.pod.at(PORT)).await?;
        Ok(Self { stage, agent, _client: client, pod, laptop, caller })
    }

    fn end(self) -> Result<()> {
        let Self { stage: Stage { lab, .. }, .. } = self;
        Lab::finish(lab)
    }
}
