//! Live insertion in pods of a real cluster: callers keep talking to the app, and the agent joins a connection when it is
//! needed. Every call here keeps its connection.

use std::{fs, time::Duration};

use anyhow::{Context as _, Result, ensure};
use nix::{sys::signal::Signal, unistd::Pid};
use serde_json::json;
use sluice_tests::eventually;

use super::{
    breaking::{agent_process, agent_worker},
    laptop::Laptop,
    stage::{Intercepting, LIMIT, Stage},
};

const TO: &str = "http://add/sum";

/// One in four requests has the header's value that the rule names.
const MIXED: [&str; 9] =
    [TO, "--keep-alive", "--count", "40", "--spread", "4", "--header", "x-user: {n}", "--parallel=1"];

/// A pod with an app, and a developer to be.
struct Set {
    stage: Stage,
    laptop: Laptop,
}

impl Set {
    async fn new(name: &str) -> Result<Self> {
        let stage = Stage::new(name).await?;
        stage.deploy("add", 1).await?;
        Ok(Self { stage, laptop: Laptop::start("laptop").await? })
    }

    /// Takes the requests of user 0, by insertion.
    async fn intercept(&self) -> Result<Intercepting> {
        let user = self.stage.user("ann").await?;
        let port = self.laptop.port("http");
        let arguments = ["add", "--port", &port, "--header", "x-user=0", "--steering", "insertion"];
        let intercepting = user.intercept(&arguments).await?;
        let pod = &self.stage.intercept("add").await?["status"]["pods"][0];
        ensure!(pod["ways"] == json!([{ "port": 8080, "way": "insertion" }]), "{pod}");
        Ok(intercepting)
    }

    /// That requests of both kinds on one connection are each answered by the side that it is for.
    async fn mixed(&self) -> Result<()> {
        let told = self.stage.call(&MIXED).await?;
        let (laptop, pod) = (told.answers.get("laptop"), told.answers.get("pod"));
        ensure!(told.failed == 0 && laptop == Some(&10) && pod == Some(&30), "{told:?}");
        Ok(())
    }

    async fn uid(&self) -> Result<String> {
        let found = self.stage.intercept("add").await?;
        Ok(found["status"]["pods"][0]["uid"].as_str().context("no pod")?.to_owned())
    }
}

/// Processor time of a process so far.
fn processor_time(pid: i32) -> Result<Duration> {
    let mut sum = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = fs::read_to_string(task?.path().join("schedstat"))?;
        sum += text.split(' ').next().context("no time")?.parse::<u64>()?;
    }
    Ok(Duration::from_nanos(sum))
}

#[tokio::test]
#[ignore = "needs root and Go: cargo xtask test"]
async fn f01_requests_of_one_connection_are_answered_by_the_side_that_each_is_for() -> Result<()> {
    let set = Set::new("f01").await?;
    let intercepting = set.intercept().await?;
    for _ in 0..3 {
        set.mixed().await?;
    }
    intercepting.stop().await?;
    set.stage.finish().await
}

#[tokio::test]
#[ignore = "needs root and Go: cargo xtask test"]
async fn f02_callers_that_never_match_cost_the_agent_nothing() -> Result<()> {
    const COUNT: u32 = 2000;
    let set = Set::new("f02").await?;
    let intercepting = set.intercept().await?;
    let agent = agent_worker(&set.uid().await?)?;
    // What it does anyway in the time that the requests take is measured as well, and is most of it.
    let before = processor_time(agent)?;
    let count = COUNT.to_string();
    let told = set.stage.call(&[TO, "--keep-alive", "--count", &count, "--header", "x-user: 1"]).await?;
    let spent = processor_time(agent)?.saturating_sub(before);
    told.all_by("pod", COUNT)?;
    ensure!(spent < COUNT * Duration::from_micros(20), "{spent:?} for {COUNT} requests");
    intercepting.stop().await?;
    set.stage.finish().await
}

#[tokio::test]
#[ignore = "needs root and Go: cargo xtask test"]
async fn f04_a_connection_that_is_older_than_the_intercept_is_served_from_its_next_request_on() -> Result<()> {
    let set = Set::new("f04").await?;
    let call = [TO, "--keep-alive", "--during", "12", "--every", "20", "--header", "x-user: 0"];
    let intercept = async {
        tokio::time::sleep(Duration::from_secs(2)).await;
        set.intercept().await
    };
    let (told, intercepting) = tokio::try_join!(set.stage.call(&call), intercept)?;
    let who: Vec<_> = told.changes.iter().map(|(_, who)| who.as_str()).collect();
    ensure!(told.failed == 0 && who == ["pod", "laptop"], "{told:?}");
    intercepting.stop().await?;
    set.stage.finish().await
}

#[tokio::test]
#[ignore = "needs root and Go: cargo xtask test"]
async fn f06_callers_that_never_match_do_not_notice_that_the_agent_is_killed() -> Result<()> {
    let set = Set::new("f06").await?;
    let intercepting = set.intercept().await?;
    let agent = agent_process(&set.uid().await?)?;
    let kill = async {
        tokio::time::sleep(Duration::from_secs(2)).await;
        Ok(nix::sys::signal::kill(Pid::from_raw(agent), Signal::SIGKILL)?)
    };
    let call = [TO, "--keep-alive", "--during", "6", "--every", "10", "--header", "x-user: 1"];
    let (told, ()) = tokio::try_join!(set.stage.call(&call), kill)?;
    ensure!(told.failed == 0 && told.answers.len() == 1 && told.answers.contains_key("pod"), "{told:?}");
    set.stage.becomes("add", "True", "1/1").await?;
    // The one that has come back inserts as the one before did.
    eventually(LIMIT, "each request is answered by the side that it is for", || set.mixed()).await?;
    intercepting.stop().await?;
    set.stage.finish().await
}

#[tokio::test]
#[ignore = "needs root and Go: cargo xtask test"]
async fn f06_a_killed_worker_is_replaced_and_its_connections_go_on() -> Result<()> {
    let set = Set::new("f06-worker").await?;
    let intercepting = set.intercept().await?;
    let uid = set.uid().await?;
    let (parent, worker) = (agent_process(&uid)?, agent_worker(&uid)?);
    let key = set.stage.intercept("add").await?["status"]["pods"][0]["keyHash"].clone();
    let kill = async {
        tokio::time::sleep(Duration::from_secs(3)).await;
        Ok(nix::sys::signal::kill(Pid::from_raw(worker), Signal::SIGKILL)?)
    };
    // A connection on which one request in four is taken, with pauses in which the agent leaves it, its numbers shifted; and
    // one of somebody who never matches.
    let shifted = [TO, "--keep-alive", "--during", "8", "--every", "500", "--spread", "4", "--header", "x-user: {n}"];
    let native = [TO, "--keep-alive", "--during", "8", "--every", "10", "--header", "x-user: 1"];
    let (shifted, native, ()) = tokio::try_join!(set.stage.call(&shifted), set.stage.call(&native), kill)?;
    ensure!(native.failed == 0 && native.answers.len() == 1 && native.answers.contains_key("pod"), "{native:?}");
    let (laptop, pod) = (shifted.answers.get("laptop"), shifted.answers.get("pod"));
    ensure!(shifted.failed == 0 && laptop.is_some() && pod.is_some(), "{shifted:?}");
    eventually(LIMIT, "each request is answered by the side that it is for", || set.mixed()).await?;
    let found = set.stage.becomes("add", "True", "1/1").await?;
    ensure!(found["status"]["pods"][0]["keyHash"] == key && key.is_string(), "{key}, then {}", found["status"]);
    // The container is the same.
    ensure!(agent_process(&uid)? == parent && agent_worker(&uid)? != worker, "another container, or the same worker");
    intercepting.stop().await?;
    set.stage.finish().await
}

#[tokio::test]
#[ignore = "needs root and Go: cargo xtask test"]
async fn f08_a_connection_goes_on_unbroken_when_the_intercept_ends() -> Result<()> {
    let set = Set::new("f08").await?;
    let intercepting = set.intercept().await?;
    let end = async {
        tokio::time::sleep(Duration::from_secs(3)).await;
        intercepting.stop().await
    };
    let call = [TO, "--keep-alive", "--during", "8", "--every", "10", "--header", "x-user: 0"];
    let (told, ()) = tokio::try_join!(set.stage.call(&call), end)?;
    let who: Vec<_> = told.changes.iter().map(|(_, who)| who.as_str()).collect();
    ensure!(told.failed == 0 && who == ["laptop", "pod"], "{told:?}");
    set.stage.finish().await
}
