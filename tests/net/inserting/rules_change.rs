//! f08: the intercept ends while the agent is in connections. Each goes on unbroken, with the app.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use futures_util::future::try_join_all;
use sluice_tests::{
    eventually,
    peers::{
        http1::{Http1Caller, request},
        pattern,
        raw::{RawApp, Script},
    },
    stage::{MATCHING, OTHER, Rule},
};

use crate::{HTTP, OURS, SOON, Scene, THEIRS, any, ask, joining::undecided, play};

/// Keeps the client welcome.
const ELSEWHERE: u16 = 8079;
/// The laptop is at a breakpoint here.
const DEBUGGED: u16 = 8081;

/// Whoever asks: the app answers.
const ALL_THEIRS: [((&str, &str), &str); 3] = [(OTHER, "pod"), (MATCHING, "pod"), (OTHER, "pod")];

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn f08_connections_go_on_with_the_app_when_the_intercept_ends() -> Result<()> {
    const EACH: usize = 20;
    play(Scene::set("f08", &[DEBUGGED]).await?, async |scene| {
        let rules = |ports: &[u16]| Rule::file(&[scene.stage.header("mine", ports)]);
        let (some, none) = (rules(&[HTTP, DEBUGGED, ELSEWHERE]), rules(&[ELSEWHERE]));
        scene.agent.set_rules(&some).await?;
        let connect = async |turns: &[((&str, &str), &str)]| {
            let mut caller = scene.connect().await?;
            for &turn in turns {
                ask(&mut caller, turn).await?;
            }
            anyhow::Ok(caller)
        };
        let native = try_join_all((0..EACH).map(|_| connect(&[THEIRS]))).await?;
        let unused = try_join_all((0..EACH).map(|_| connect(&[]))).await?;
        let shifted = try_join_all((0..EACH).map(|_| connect(&[THEIRS, OURS, THEIRS]))).await?;
        let taken = try_join_all((0..EACH).map(|_| connect(&[OURS]))).await?;
        let mut armed = Vec::new();
        for _ in 0..EACH {
            let mut caller = scene.connect().await?;
            caller.send(&undecided()).await?;
            ensure!(caller.response("POST").await?.answered_by() == Some("pod"));
            armed.push(caller);
        }
        let inserted = scene.insertions().await?;
        ensure!(inserted == 3 * 20, "{:?}", scene.look().await?);

        scene.agent.set_rules(&none).await?;
        let mut all =
            [("native", native), ("unused", unused), ("shifted", shifted), ("taken", taken), ("armed", armed)];
        for round in 0..2 {
            for (kind, callers) in &mut all {
                for (number, caller) in callers.iter_mut().enumerate() {
                    for turn in ALL_THEIRS {
                        ask(caller, turn)
                            .await
                            .with_context(|| format!("{kind} connection {number}, round {round}"))?;
                    }
                }
            }
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        ensure!(scene.insertions().await? == inserted, "inserted without a rule");
        ensure!(scene.app.connections().len() == 5 * EACH, "the app has seen other connections");

        // And again, with the connections of before.
        scene.agent.set_rules(&some).await?;
        for (kind, callers) in &mut all {
            for (number, caller) in callers.iter_mut().enumerate() {
                for turn in [THEIRS, OURS, THEIRS] {
                    ask(caller, turn).await.with_context(|| format!("{kind} connection {number}, again"))?;
                }
            }
        }
        scene.agent.set_rules(&none).await?;
        drop(all);
        eventually(SOON * 2, "the programs have left the port", || async {
            let look = scene.look().await?;
            ensure!(!look.ports.contains(&HTTP) && look.ports.contains(&ELSEWHERE), "{look:?}");
            Ok(())
        })
        .await
    })
    .await
}

/// What is under way at that moment is finished by the side that has it.
#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn f08_requests_that_are_under_way_are_answered() -> Result<()> {
    play(Scene::set("f08_under_way", &[DEBUGGED]).await?, async |scene| {
        let (stage, to) = (&scene.stage, scene.stage.pod.at(DEBUGGED));
        let answer = |name: &str| format!("HTTP/1.1 200 OK\r\nx-answered-by: {name}\r\ncontent-length: 0\r\n\r\n");
        let script = |name: &str| {
            let script = Script::new().read_until(b"\r\n\r\n");
            if name == "pod" { script } else { script.hold() }.send(answer(name).as_bytes()).again()
        };
        let _app = RawApp::start(&stage.pod, any(DEBUGGED), script("pod"))?;
        let debugged = RawApp::start(&stage.laptop, any(DEBUGGED), script("laptop"))?;
        let rules = |ports: &[u16]| Rule::file(&[stage.header("mine", ports)]);
        let mut waiting = Http1Caller::connect(&stage.caller, to).await?;
        ask(&mut waiting, THEIRS).await?;
        waiting.send(&request("GET", "/", &[MATCHING], b"")).await?;
        eventually(SOON, "it is at its breakpoint", || async { debugged.connections().len() == 1 }).await?;
        // Through the agent, and more than fits on the way.
        let mut loading = scene.connect().await?;
        ask(&mut loading, OURS).await?;
        let large = request("POST", "/", &[OTHER], &pattern::body(7, 16 << 20));
        loading.send(&large).await?;
        let mut uploading = scene.connect().await?;
        ask(&mut uploading, OURS).await?;
        let (sent, rest) = large.split_at(1_000_000);
        uploading.send(sent).await?;

        scene.agent.set_rules(&rules(&[ELSEWHERE])).await?;
        uploading.send(rest).await?;
        for (what, caller) in [("download", &mut loading), ("upload", &mut uploading)] {
            let answer = tokio::time::timeout(SOON, caller.response("POST")).await.context(what)?.context(what)?;
            ensure!(answer.answered_by() == Some("pod") && answer.request_seen() == large, "{what}: other bytes");
            for turn in ALL_THEIRS {
                ask(caller, turn).await.with_context(|| format!("behind the {what}"))?;
            }
        }
        debugged.release();
        let answer = tokio::time::timeout(SOON, waiting.response("GET")).await.context("no answer")??;
        ensure!(answer.answered_by() == Some("laptop"), "by {:?}", answer.answered_by());
        for turn in ALL_THEIRS {
            ask(&mut waiting, turn).await.context("behind the breakpoint")?;
        }
        Ok(())
    })
    .await
}
