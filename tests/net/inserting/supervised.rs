//! f06 with `--supervised`: the agent proper is killed, and its parent keeps what connections depend on.

use std::{fs, time::Duration};

use anyhow::{Context as _, Result, ensure};
use futures_util::future::try_join_all;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use sluice_tests::{
    eventually,
    peers::http1::{Answer, Http1Caller},
    stage::{Rule, Stage},
};

use crate::{HTTP, OURS, SOON, Scene, THEIRS, ask};

const EACH: usize = 20;

/// The one child of a process.
fn child(parent: u32) -> Result<Pid> {
    let text = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"))?;
    Ok(Pid::from_raw(text.trim().parse().with_context(|| format!("the children of {parent} are {text:?}"))?))
}

/// Scene with an agent of two processes.
async fn scene(name: &str) -> Result<Box<Scene>> {
    let stage = Stage::new(name)?;
    let rules = Rule::file(&[stage.header("mine", &[HTTP])]);
    // With a key that each worker has, so that the client knows the next one.
    let key = format!("--key-file={}", stage.lab.folder().join("agent.key").display());
    Box::pin(Scene::started(stage, &[], Answer::identity, &rules, &["--supervised", &key])).await
}

/// Connections of which a request has been intercepted; the agent leaves them when nothing has happened for a moment.
async fn shifted(scene: &Scene) -> Result<Vec<Http1Caller>> {
    let callers = (0..EACH).map(async |_| {
        let mut caller = scene.connect().await?;
        for turn in [THEIRS, OURS] {
            ask(&mut caller, turn).await?;
        }
        anyhow::Ok(caller)
    });
    let callers = try_join_all(callers).await?;
    // What is waited for here is that nothing happens.
    tokio::time::sleep(Duration::from_millis(500)).await;
    Ok(callers)
}

async fn ask_all(callers: &mut [Http1Caller]) -> Result<()> {
    for caller in callers {
        ask(caller, THEIRS).await?;
    }
    Ok(())
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn f06_connections_that_the_agent_has_left_survive_the_death_of_its_worker() -> Result<()> {
    let scene = scene("f06_worker").await?;
    let parent = scene.agent.process().pid();
    let (mut left, mut about_to_be) = (shifted(&scene).await?, Vec::new());
    ask_all(&mut left).await?;
    ensure!(scene.look().await?.returned == EACH as u64, "{:?}", scene.look().await?);
    about_to_be.extend(shifted(&scene).await?);

    let worker = child(parent)?;
    kill(worker, Signal::SIGKILL)?;
    for callers in [&mut left, &mut about_to_be] {
        ask_all(callers).await.context("right behind the end of the worker")?;
    }
    eventually(SOON, "another worker answers each request by the side that it is for", || async {
        ensure!(child(parent)? != worker, "the worker is still there");
        let mut caller = scene.connect().await?;
        ask(&mut caller, OURS).await?;
        ask(&mut caller, THEIRS).await
    })
    .await?;
    for callers in [&mut left, &mut about_to_be] {
        ask_all(callers).await.context("with another worker")?;
    }
    drop((left, about_to_be));
    scene.finish()
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn f06_a_parent_that_is_killed_takes_its_worker_with_it() -> Result<()> {
    let scene = scene("f06_parent").await?;
    let mut native = scene.connect().await?;
    ask(&mut native, THEIRS).await?;
    let worker = child(scene.agent.process().pid())?;
    scene.agent.kill();
    scene.agent.process().exited(SOON).await?;
    eventually(SOON, "the worker has ended", || async {
        ensure!(kill(worker, None).is_err(), "it runs");
        Ok(())
    })
    .await?;
    ask(&mut native, THEIRS).await?;
    ask(&mut native, (OURS.0, "pod")).await?;
    scene.stage.pod.nothing_left(SOON).await?;
    let Scene { stage, .. } = *scene;
    stage.finish()
}
