//! a12: connections that were open before the intercept. They stay with the app, idle or in use, when it comes and when it
//! goes; how many there are is told; and they end where a rule asks for that, and nothing else does.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use sluice_tests::{
    Agent, Client, eventually,
    peers::http1::{Http1App, Http1Caller, request},
    stage::{MATCHING, OTHER, Rule, Stage},
};
use tokio::io::AsyncReadExt as _;

use crate::{SOON, any, asked};

const PORT: u16 = 8080;
const OTHER_PORT: u16 = 8081;

/// How many connections from before the agent knows on [`PORT`].
async fn existing(agent: &Agent) -> Result<usize> {
    let ports = agent.status().await?.kernel.ports;
    let port = ports.iter().find(|port| port.port == PORT).with_context(|| format!("not steered: {ports:?}"))?;
    Ok(port.existing_connections)
}

async fn exist(agent: &Agent, expected: usize) -> Result<()> {
    let seen = || async {
        let seen = existing(agent).await?;
        ensure!(seen == expected, "{seen}");
        Ok(())
    };
    eventually(SOON, &format!("{expected} connections from before are told"), seen).await
}

/// Who answers a matching request on a connection that is there.
async fn on(connection: &mut Http1Caller) -> Result<String> {
    let answer = connection.get("/", &[MATCHING]).await?;
    Ok(answer.answered_by().unwrap_or("nobody").to_owned())
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn a12_connections_from_before_stay_with_the_app_and_are_counted() -> Result<()> {
    let stage = Stage::new("a12_stay")?;
    let (caller, pod) = (&stage.caller, &stage.pod);
    let app = Http1App::start(pod, any(PORT), "pod")?;
    let _local = Http1App::start(&stage.laptop, any(PORT), "laptop")?;
    let mut idle = Http1Caller::connect(caller, pod.at(PORT)).await?;
    let mut used = Http1Caller::connect(caller, pod.at_v6(PORT)?).await?;
    ensure!(on(&mut used).await? == "pod");
    let mut busy = Http1Caller::connect(caller, pod.at(PORT)).await?;
    let whole = request("POST", "/", &[MATCHING], b"in two halves");
    let (first, second) = whole.split_at(whole.len() / 2);
    busy.send(first).await?;
    eventually(SOON, "the app has all three", || async { app.connections().len() == 3 }).await?;

    let agent = Agent::start(pod, &Rule::file(&[stage.header("a12", &[PORT])])).await?;
    let _client = Client::start(&stage.laptop, &agent, &stage.key, &["8080"]).await?;
    exist(&agent, 3).await?;
    ensure!(agent.metrics().await?.contains("sluice_agent_kernel_existing 3\n"));
    ensure!(asked(caller, pod.at(PORT), MATCHING).await? == "laptop");
    ensure!(asked(caller, pod.at(PORT), OTHER).await? == "pod");
    let mut steered = Http1Caller::connect(caller, pod.at(PORT)).await?;
    ensure!(on(&mut steered).await? == "laptop");
    busy.send(second).await?;
    ensure!(busy.response("POST").await?.answered_by() == Some("pod"), "the one that was in use");
    for connection in [&mut idle, &mut used, &mut busy] {
        ensure!(on(connection).await? == "pod");
    }
    ensure!(agent.counter("accepted").await? == 3, "one from before is counted as taken");
    exist(&agent, 3).await?;
    drop(idle);
    exist(&agent, 2).await?;

    agent.set_rules(&Rule::file(&[])).await?;
    for connection in [&mut used, &mut busy] {
        ensure!(on(connection).await? == "pod", "after the removal");
    }
    // The one that the agent has goes on, and the next intercept does not take it for one from before.
    agent.set_rules(&Rule::file(&[stage.header("a12", &[PORT])])).await?;
    agent.connected(&stage.key).await?;
    ensure!(on(&mut steered).await? == "laptop");
    exist(&agent, 2).await?;
    for connection in [&mut used, &mut busy] {
        ensure!(on(connection).await? == "pod", "after the next creation");
    }
    stage.finish()
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn a12_connections_from_before_end_where_a_rule_asks_for_it_and_no_others_do() -> Result<()> {
    let stage = Stage::new("a12_reset")?;
    let (caller, pod) = (&stage.caller, &stage.pod);
    let _apps = [Http1App::start(pod, any(PORT), "pod")?, Http1App::start(pod, any(OTHER_PORT), "pod")?];
    let _local = Http1App::start(&stage.laptop, any(PORT), "laptop")?;
    let idle = Http1Caller::connect(caller, pod.at(PORT)).await?;
    let mut used = Http1Caller::connect(caller, pod.at_v6(PORT)?).await?;
    let mut elsewhere = Http1Caller::connect(caller, pod.at(OTHER_PORT)).await?;
    // From an address that is never steered, as a kubelet's.
    let mut exempt = Http1Caller::connect(&stage.laptop, pod.at(PORT)).await?;
    for connection in [&mut used, &mut elsewhere, &mut exempt] {
        ensure!(on(connection).await? == "pod");
    }
    let rules = |reset: bool| {
        let rule = stage.header("a12", &[PORT]).with("resetExisting", json!(reset));
        let mut file: Value = serde_json::from_str(&Rule::file(&[rule]))?;
        file["exempt"] = json!([format!("{}/32", stage.laptop.at(0).ip())]);
        anyhow::Ok(file.to_string())
    };
    let agent = Agent::start(pod, &rules(false)?).await?;
    let _client = Client::start(&stage.laptop, &agent, &stage.key, &["8080"]).await?;
    exist(&agent, 2).await?;
    let mut steered = Http1Caller::connect(caller, pod.at(PORT)).await?;
    ensure!(on(&mut steered).await? == "laptop");
    let passed = steered.get("/", &[OTHER]).await?;
    ensure!(passed.answered_by() == Some("pod"));

    agent.set_rules(&rules(true)?).await?;
    exist(&agent, 0).await?;
    // One that was never used as well.
    for connection in [idle, used] {
        let (mut stream, _) = connection.into_parts();
        let read = tokio::time::timeout(SOON, stream.read(&mut [0])).await.context("neither reset nor closed")?;
        ensure!(read.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset));
    }
    ensure!(on(&mut steered).await? == "laptop", "the agent's own connection to the caller");
    ensure!(steered.get("/", &[OTHER]).await?.answered_by() == Some("pod"), "the agent's own connection to the app");
    ensure!(on(&mut elsewhere).await? == "pod", "another port");
    ensure!(on(&mut exempt).await? == "pod", "from an exempt address");
    for header in [MATCHING, OTHER] {
        let expected = if header == MATCHING { "laptop" } else { "pod" };
        ensure!(asked(caller, pod.at(PORT), header).await? == expected, "who connects again");
    }

    drop(steered);
    // At the creation, too: the same with an agent that comes with the rule.
    ensure!(agent.terminate().await?.success());
    let mut idle = Http1Caller::connect(caller, pod.at(PORT)).await?;
    ensure!(on(&mut idle).await? == "pod");
    let agent = Agent::start(pod, &rules(true)?).await?;
    let (mut stream, _) = idle.into_parts();
    let read = tokio::time::timeout(SOON, stream.read(&mut [0])).await.context("neither reset nor closed")?;
    ensure!(read.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset));
    exist(&agent, 0).await?;
    ensure!(on(&mut elsewhere).await? == "pod", "another port");
    ensure!(on(&mut exempt).await? == "pod", "from an exempt address");
    stage.finish()
}
