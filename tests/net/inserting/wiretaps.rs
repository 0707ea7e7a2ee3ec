//! b16 with live insertion: who only looks gets copies of packets, and nobody joins the connection.

use anyhow::{Result, ensure};
use serde_json::json;
use sluice_tests::{
    eventually,
    peers::http1::{Answer, request},
    stage::{Rule, Stage},
};

use crate::{HTTP, OURS, SOON, Scene, THEIRS, play};

/// A scene with a wiretap instead of an intercept.
async fn scene(name: &str) -> Result<Box<Scene>> {
    let stage = Stage::new(name)?;
    let rules = Rule::file(&[stage.header("look", &[HTTP]).with("mode", json!("Wiretap"))]);
    Box::pin(Scene::on(stage, &[], Answer::identity, &rules)).await
}

/// The laptop has got these requests, in any order, as each copy has a stream of its own; and as they were sent.
async fn copied(scene: &Scene, expected: &[Vec<u8>]) -> Result<()> {
    eventually(SOON, "the copies are there", || async {
        let mut seen: Vec<_> = scene.local.requests().into_iter().map(|request| request.raw).collect();
        let mut expected = expected.to_vec();
        seen.sort();
        expected.sort();
        ensure!(seen == expected, "{} of {} requests, or others", seen.len(), expected.len());
        Ok(())
    })
    .await
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn b16_copies_are_made_without_joining_the_connection() -> Result<()> {
    play(scene("b16_native").await?, async |scene| {
        let mut caller = scene.connect().await?;
        let mut expected = Vec::new();
        for (number, (header, _)) in [THEIRS, OURS, THEIRS, OURS, OURS].into_iter().enumerate() {
            let bytes = request("POST", &format!("/{number}"), &[header], format!("body {number}").as_bytes());
            caller.send(&bytes).await?;
            let answer = caller.response("POST").await?;
            ensure!(answer.answered_by() == Some("pod"), "by {:?}", answer.answered_by());
            if header == OURS.0 {
                expected.push(bytes);
            }
        }
        // Several in one packet, of which some fit.
        let together: Vec<_> =
            [OURS, THEIRS, OURS].iter().map(|(header, _)| request("GET", "/together", &[*header], b"")).collect();
        caller.send(&together.concat()).await?;
        for _ in &together {
            ensure!(caller.response("GET").await?.answered_by() == Some("pod"), "by the wrong side");
        }
        expected.extend([together[0].clone(), together[2].clone()]);
        copied(scene, &expected).await?;
        ensure!(scene.insertions().await? == 0, "the agent has joined the connection");
        ensure!(scene.agent.counter("copied").await? == i64::try_from(expected.len())?, "the copies are not counted");
        let look = scene.look().await?;
        ensure!(look.held == 0 && look.passed == 2, "{look:?}");
        ensure!(scene.app.connections().len() == 1, "the app has more connections than its caller");
        Ok(())
    })
    .await
}

/// What does not come as a whole in one packet is copied by the agent itself.
#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn b16_large_requests_are_copied_as_well() -> Result<()> {
    play(scene("b16_large").await?, async |scene| {
        let mut caller = scene.connect().await?;
        let large = request("POST", "/large", &[OURS.0], &vec![b'l'; 100_000]);
        let small = request("POST", "/small", &[OURS.0], b"small");
        for bytes in [&small, &large, &small] {
            caller.send(bytes).await?;
            ensure!(caller.response("POST").await?.answered_by() == Some("pod"), "by the wrong side");
        }
        copied(scene, &[small.clone(), large, small]).await?;
        scene.ensure_inserted(1).await
    })
    .await
}
