//! f06 with `--supervised`: the agent proper is killed, and its parent keeps what connections depend on; and what a parent
//! must do besides: hand on the key, pass on signals and statuses, give up on a worker that cannot live, and be small.

use std::{fs, time::Duration};

use anyhow::{Context as _, Result, ensure};
use futures_util::future::try_join_all;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use sluice_tests::{
    Agent, Direction, eventually,
    peers::http1::{Answer, Http1Caller},
    stage::{Rule, Stage},
};

use crate::{HTTP, OURS, SOON, Scene, THEIRS, ask, ensure_no_connection};

const EACH: usize = 20;

/// The agent proper.
pub(crate) fn worker_of(scene: &Scene) -> Result<Pid> {
    Ok(Pid::from_raw(i32::try_from(scene.agent.process().child()?)?))
}

/// Scene with an agent of two processes.
pub(crate) async fn scene(name: &str) -> Result<Box<Scene>> {
    let stage = Stage::new(name)?;
    let rules = Rule::file(&[stage.header("mine", &[HTTP])]);
    Box::pin(Scene::started(stage, &[], Answer::identity, &rules, &["--supervised"])).await
}

/// Waits until there is another worker than this one, and requests are answered by the side that each is for. The client has
/// not been told of another key: the agent's is the same.
async fn another(scene: &Scene, killed: Pid) -> Result<()> {
    eventually(SOON, "another worker answers each request by the side that it is for", || async {
        ensure!(worker_of(scene)? != killed, "the worker is still there");
        let mut caller = scene.connect().await?;
        ask(&mut caller, OURS).await?;
        ask(&mut caller, THEIRS).await
    })
    .await?;
    ensure!(scene.agent.status().await?.key_hash == scene.agent.key(), "another key");
    Ok(())
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
    let (mut left, mut about_to_be) = (shifted(&scene).await?, Vec::new());
    ask_all(&mut left).await?;
    ensure!(scene.look().await?.returned == EACH as u64, "{:?}", scene.look().await?);
    about_to_be.extend(shifted(&scene).await?);

    let killed = worker_of(&scene)?;
    kill(killed, Signal::SIGKILL)?;
    for callers in [&mut left, &mut about_to_be] {
        ask_all(callers).await.context("right behind the end of the worker")?;
    }
    another(&scene, killed).await?;
    for callers in [&mut left, &mut about_to_be] {
        ask_all(callers).await.context("with another worker")?;
    }
    drop((left, about_to_be));
    scene.finish()
}

/// The end of the app is lost, and repeated only when nothing else of the dead worker's is left.
#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn f06_connections_end_in_both_directions_behind_the_death_of_the_worker_that_had_left_them() -> Result<()> {
    /// Longer than the parent takes to see what is not needed any more.
    const LOST: Duration = Duration::from_secs(5);
    let scene = scene("f06_ends").await?;
    let mut left = shifted(&scene).await?;
    ask_all(&mut left).await?;
    let killed = worker_of(&scene)?;
    kill(killed, Signal::SIGKILL)?;
    another(&scene, killed).await?;

    let to_pod = &scene.stage.to_pod;
    to_pod.cut_way(Direction::BToA)?;
    for caller in &mut left {
        caller.half_close().await?;
    }
    tokio::time::sleep(LOST).await;
    to_pod.heal()?;
    for caller in &mut left {
        let end =
            tokio::time::timeout(SOON, caller.try_response("GET")).await.context("the app's end does not come")?;
        ensure!(end?.is_none(), "an answer that nobody has asked for");
    }
    // The last acknowledgement has come, too.
    eventually(SOON, "the app has no connection any more", || async { ensure_no_connection(&scene.stage.pod) }).await?;
    scene.finish()
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn f06_a_parent_that_is_killed_takes_its_worker_with_it() -> Result<()> {
    let scene = scene("f06_parent").await?;
    let mut native = scene.connect().await?;
    ask(&mut native, THEIRS).await?;
    let worker = worker_of(&scene)?;
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

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn f06_a_stop_ends_both_processes_and_at_once_the_connections_that_depend_on_them() -> Result<()> {
    let scene = scene("f06_stop").await?;
    // Of a worker that has died, and of the one that runs.
    let mut of_before = shifted(&scene).await?;
    let worker = worker_of(&scene)?;
    kill(worker, Signal::SIGKILL)?;
    another(&scene, worker).await?;
    let mut of_now = shifted(&scene).await?;
    ask_all(&mut of_before).await?;
    let mut native = scene.connect().await?;
    ask(&mut native, THEIRS).await?;
    let worker = worker_of(&scene)?;
    let status = scene.agent.terminate().await?;
    ensure!(status.code() == Some(0), "{status}");
    ensure!(kill(worker, None).is_err(), "the worker runs on");
    for caller in of_before.iter_mut().chain(&mut of_now) {
        let end = tokio::time::timeout(SOON, caller.try_response("GET")).await.context("a connection hangs")?;
        ensure!(!matches!(end, Ok(Some(_))), "{end:?}");
    }
    ask(&mut native, THEIRS).await?;
    scene.stage.pod.nothing_left(SOON).await?;
    let Scene { stage, .. } = *scene;
    stage.finish()
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn f06_a_worker_that_dies_again_and_again_ends_its_parent_with_the_status_of_its_signal() -> Result<()> {
    let stage = Stage::new("f06_loop")?;
    let rules = Rule::file(&[stage.header("mine", &[HTTP])]);
    let agent = Agent::builder(&stage.pod).argument("--supervised").start(&rules).await?;
    let mut deaths = 0;
    while agent.process().is_running() {
        // There is none during a pause, and at the end.
        if let Ok(worker) = agent.process().child() {
            deaths += usize::from(kill(Pid::from_raw(i32::try_from(worker)?), Signal::SIGKILL).is_ok());
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let status = agent.process().exited(SOON).await?;
    ensure!(status.code() == Some(128 + 9) && deaths >= 6, "{status} after {deaths} deaths");
    stage.pod.nothing_left(SOON).await?;
    stage.finish()
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn f06_a_worker_that_ends_by_itself_ends_its_parent_with_its_status() -> Result<()> {
    let stage = Stage::new("f06_status")?;
    let agent = || Agent::builder(&stage.pod).argument("--supervised");
    let rules = Rule::file(&[stage.header("mine", &[HTTP])]);
    // Without CAP_BPF, with rules that are none, and with a port that somebody has.
    let bare = agent().wrapper(&["setpriv", "--bounding-set=-bpf,-sys_admin", "--inh-caps=-bpf,-sys_admin"]);
    let (code, said) = bare.fails(&rules).await?;
    ensure!(code == 3, "{code}: {said}");
    let (code, said) = agent().fails("intercepts: 1").await?;
    ensure!(code == 4, "{code}: {said}");
    let _taken = stage.pod.listen(crate::any(17090))?;
    let (code, said) = agent().fails(&rules).await?;
    ensure!(code == 1 && said.contains("17090"), "{code}: {said}");
    stage.finish()
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn f06_a_parent_is_small() -> Result<()> {
    // Of which half are the relocations of a program that is not optimised.
    const MOST_KIB: u64 = 3 << 10;
    let scene = scene("f06_small").await?;
    // What it has of its own: the program's text is there once for both.
    let own = || {
        let path = format!("/proc/{}/status", scene.agent.process().pid());
        let status = fs::read_to_string(&path).with_context(|| path.clone())?;
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).context("no RssAnon")?;
        anyhow::Ok(line.trim().trim_end_matches(" kB").parse::<u64>()?)
    };
    let _callers = shifted(&scene).await?;
    ensure!(own()? < MOST_KIB, "{} KiB", own()?);
    let worker = worker_of(&scene)?;
    kill(worker, Signal::SIGKILL)?;
    another(&scene, worker).await?;
    ensure!(own()? < MOST_KIB, "{} KiB behind another worker", own()?);
    scene.finish()
}
