//! f04: connections that were there before the rule. They are not touched, and served from their next request on.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use sluice_tests::{
    eventually,
    peers::{
        http1::{Answer, Http1Caller, request},
        pattern,
        raw::{RawApp, Script},
    },
    stage::{OTHER, Rule, Stage},
};

use crate::{HTTP, OURS, SOON, Scene, THEIRS, any, ask, play};

/// A second port, with an app that follows a script.
const SCRIPTED: u16 = 8081;

/// Under a rule from the start, so that the client is welcome.
const ELSEWHERE: u16 = 8079;

const MIB: u64 = 1 << 20;

/// A scene in which nothing is intercepted yet at the ports of the tests, and the rules that change that.
async fn before(name: &str) -> Result<(Box<Scene>, String)> {
    let stage = Stage::new(name)?;
    let rules = |ports: &[u16]| Rule::file(&[stage.header("mine", ports)]);
    let (none, some) = (rules(&[ELSEWHERE]), rules(&[ELSEWHERE, HTTP, SCRIPTED]));
    Ok((Box::pin(Scene::on(stage, &[SCRIPTED], Answer::identity, &none)).await?, some))
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn f04_idle_connections_are_served_from_their_next_request_on() -> Result<()> {
    const EACH: usize = 10;
    let (scene, rules) = before("f04_idle").await?;
    play(scene, async |scene| {
        let mut callers = Vec::new();
        for number in 0..EACH * 3 {
            let mut caller = scene.connect().await?;
            for _ in 0..number / EACH {
                ask(&mut caller, THEIRS).await?;
            }
            callers.push(caller);
        }
        scene.agent.set_rules(&rules).await?;
        for (number, caller) in callers.iter_mut().enumerate() {
            // The one that fits is the next request of some, a later one of others.
            for turn in [&[OURS, THEIRS][..], &[THEIRS, OURS], &[THEIRS, THEIRS, OURS, OURS]][number % 3] {
                ask(caller, *turn).await.with_context(|| format!("connection {number}"))?;
            }
        }
        ensure!(scene.app.connections().len() == EACH * 3, "the app has seen other connections");
        ensure!(scene.look().await?.steered == 0, "steered");
        scene.ensure_inserted(u64::try_from(EACH)? * 3).await
    })
    .await
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn f04_one_in_the_middle_of_an_upload() -> Result<()> {
    let (scene, rules) = before("f04_upload").await?;
    play(scene, async |scene| {
        let body = pattern::body(1, 16 * MIB);
        upload(scene, &rules, &body, body.len() / 2).await?;
        scene.ensure_inserted(1).await
    })
    .await
}

/// What is under way may look like anything.
#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn f04_one_in_the_middle_of_an_upload_that_contains_what_would_fit() -> Result<()> {
    let (scene, rules) = before("f04_hidden").await?;
    play(scene, async |scene| {
        let half = pattern::body(1, MIB);
        let hidden = request("GET", "/hidden", &[OURS.0], b"");
        upload(scene, &rules, &[&half[..], &hidden, &half].concat(), half.len()).await?;
        ensure!(scene.local.requests().iter().all(|request| request.target != "/hidden"), "taken out of a body");
        scene.ensure_inserted(1).await
    })
    .await
}

/// An upload that is this far when the rule comes; then requests of both sides.
async fn upload(scene: &Scene, rules: &str, body: &[u8], so_far: usize) -> Result<()> {
    let mut caller = scene.connect().await?;
    ask(&mut caller, THEIRS).await?;
    // The kernel tells in its ticks which side has spoken last, and what is within one may be either.
    tokio::time::sleep(Duration::from_millis(20)).await;
    let whole = request("POST", "/upload", &[OTHER], body);
    let (sent, rest) = whole.split_at(whole.len() - body.len() + so_far);
    caller.send(sent).await?;
    // All of it is at the app's end, whose answer is to come.
    tokio::time::sleep(Duration::from_millis(300)).await;
    scene.agent.set_rules(rules).await?;
    caller.send(rest).await?;
    let answer = tokio::time::timeout(SOON, caller.response("POST")).await.context("no answer")??;
    ensure!(answer.answered_by() == Some("pod"), "by {:?}", answer.answered_by());
    ensure!(answer.request_seen() == whole, "it did not come whole");
    for turn in [OURS, THEIRS, OURS] {
        ask(&mut caller, turn).await.context("behind it")?;
    }
    Ok(())
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn f04_one_in_the_middle_of_a_download() -> Result<()> {
    let (scene, rules) = before("f04_download").await?;
    play(scene, async |scene| {
        for turns in [[OURS, THEIRS], [THEIRS, OURS]] {
            let mut caller = scene.connect().await?;
            // It comes back as the answer, more than fits on the way.
            let whole = request("POST", "/", &[OTHER], &pattern::body(1, 32 * MIB));
            caller.send(&whole).await?;
            tokio::time::sleep(Duration::from_millis(300)).await;
            scene.agent.set_rules(&rules).await?;
            let answer = tokio::time::timeout(SOON, caller.response("POST")).await.context("no answer")??;
            ensure!(answer.answered_by() == Some("pod") && answer.request_seen() == whole, "another answer");
            for turn in turns {
                ask(&mut caller, turn).await.context("behind it")?;
            }
            scene.agent.set_rules(&rules.replace("8080", "8078")).await?;
        }
        scene.ensure_inserted(2).await
    })
    .await
}

/// A request whose answer is owed from before the rule, and behind it, without waiting, one that fits.
#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn f04_one_whose_answer_is_owed() -> Result<()> {
    let (scene, rules) = before("f04_owed").await?;
    play(scene, async |scene| {
        let answer = b"HTTP/1.1 200 OK\r\nx-answered-by: pod\r\ncontent-length: 0\r\n\r\n";
        let script = |hold: bool| {
            let script = Script::new().read_until(b"\r\n\r\n");
            if hold { script.hold().send(answer).again() } else { script.send(answer).again() }
        };
        let app = RawApp::start(&scene.stage.pod, any(SCRIPTED), script(true))?;
        let answer = b"HTTP/1.1 200 OK\r\nx-answered-by: laptop\r\ncontent-length: 0\r\n\r\n";
        let _local = RawApp::start(
            &scene.stage.laptop,
            any(SCRIPTED),
            Script::new().read_until(b"\r\n\r\n").send(answer).again(),
        )?;
        let mut caller = Http1Caller::connect(&scene.stage.caller, scene.stage.pod.at(SCRIPTED)).await?;
        caller.send(&request("GET", "/", &[OTHER], b"")).await?;
        eventually(SOON, "the app has the request", || async { app.progress(0).received > 0 }).await?;
        scene.agent.set_rules(&rules).await?;
        caller.send(&request("GET", "/", &[OURS.0], b"")).await?;
        tokio::time::sleep(Duration::from_millis(300)).await;
        app.release();
        let first = tokio::time::timeout(SOON, caller.response("GET")).await.context("no answer")??;
        ensure!(first.answered_by() == Some("pod"), "the first answer is the second's");
        // Whoever answers this one: it is the next that must be right.
        tokio::time::timeout(SOON, caller.response("GET")).await.context("no second answer")??;
        for turn in [OURS, THEIRS, OURS] {
            ask(&mut caller, turn).await.context("behind it")?;
        }
        Ok(())
    })
    .await
}
