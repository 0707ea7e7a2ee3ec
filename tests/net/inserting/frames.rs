//! f05: packets that no caller's TCP would send just then, in frames made by hand: with a checksum that does not hold, which the
//! packet programs see before the app's TCP throws them away; and such as come twice, alone or in one piece with others, as where
//! packets get lost behind the programs.

use std::process::Command;

use anyhow::{Result, ensure};
use sluice_tests::{Process, eventually, stage::MATCHING};

use crate::{HTTP, SOON, Scene, play};

const FORGER: &str = include_str!("forger.py");

/// What `forger.py` does on a connection on which it has been answered once, and what is seen of it: over either family.
async fn forged(what: &str, see: impl AsyncFn(&Scene, &Process) -> Result<()>) -> Result<()> {
    for (family, v6) in [("", false), ("6", true)] {
        let scene = Scene::set(&format!("f05_{what}{family}"), &[]).await?;
        let forge = async |scene: &Scene| {
            let pod = &scene.stage.pod;
            let pod = if v6 { pod.at_v6(HTTP)? } else { pod.at(HTTP) }.ip().to_string();
            let mut command = Command::new("python3");
            command.args(["-c", FORGER, &pod, &HTTP.to_string(), what, &format!("{}: {}", MATCHING.0, MATCHING.1)]);
            see(scene, &scene.stage.caller.spawn(command)?).await
        };
        play(scene, forge).await?;
    }
    Ok(())
}

/// Targets of the requests that the laptop has got.
fn at_the_laptop(scene: &Scene) -> Vec<String> {
    scene.local.requests().into_iter().map(|request| request.target).collect()
}

/// The same of the app.
fn at_the_app(scene: &Scene) -> Vec<String> {
    scene.app.requests().into_iter().map(|request| request.target).collect()
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn f05_a_packet_with_a_wrong_checksum_is_nothing() -> Result<()> {
    forged("wrong", async |scene, forger| {
        eventually(SOON, "the request before and the one behind it are answered by the app", || async {
            let said = forger.output();
            ensure!(forger.is_running() && said.contains("after: "), "{said}");
            ensure!(said.matches("x-answered-by: pod").count() == 2, "{said}");
            Ok(())
        })
        .await?;
        ensure!(at_the_laptop(scene).is_empty(), "{:?} at the laptop", at_the_laptop(scene));
        let look = scene.look().await?;
        ensure!(look.held == 0 && look.passed == 2 && scene.insertions().await? == 0, "{look:?}");
        Ok(())
    })
    .await
}

/// The same frame with the right checksum is a request like any other: the one above is ignored for its checksum only.
#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn f05_the_same_packet_with_the_right_checksum_is_a_request() -> Result<()> {
    forged("right", async |scene, forger| {
        eventually(SOON, "the laptop has it", || async {
            ensure!(at_the_laptop(scene) == ["/forged"], "{:?}, {}", at_the_laptop(scene), forger.output());
            Ok(())
        })
        .await?;
        scene.ensure_inserted(1).await
    })
    .await
}

/// A caller repeats what got lost behind the programs together with the request behind it, which is held. The app gets the one
/// from the agent.
#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn f05_what_comes_again_with_a_held_request_is_not_kept_from_the_app() -> Result<()> {
    forged("again", async |scene, forger| {
        eventually(SOON / 4, "each side has its own", || async {
            ensure!(at_the_app(scene) == ["/before", "/first"], "{:?}, {}", at_the_app(scene), forger.output());
            ensure!(at_the_laptop(scene) == ["/second"], "{:?} at the laptop", at_the_laptop(scene));
            Ok(())
        })
        .await?;
        scene.ensure_inserted(1).await
    })
    .await
}

/// A caller repeats what the app has got already, as it was not told so, together with a request behind it: that one alone is
/// the agent's.
#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn f05_what_the_app_has_and_comes_again_with_a_request_is_passed_over() -> Result<()> {
    forged("twice", async |scene, forger| {
        eventually(SOON, "the laptop has the second", || async {
            ensure!(at_the_laptop(scene) == ["/second"], "{:?}, {}", at_the_laptop(scene), forger.output());
            Ok(())
        })
        .await?;
        ensure!(at_the_app(scene) == ["/before", "/first"], "{:?}", at_the_app(scene));
        scene.ensure_inserted(1).await
    })
    .await
}

/// The first packet of a connection comes again when the connection has long been there: as when it was repeated because its
/// answer got lost. What is known of the connection stays.
#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn f05_a_first_packet_that_comes_twice_changes_nothing() -> Result<()> {
    forged("begin", async |scene, forger| {
        eventually(SOON, "the laptop answers", || async {
            let said = forger.output();
            ensure!(said.contains("after: ") && said.contains("x-answered-by: laptop"), "{said}");
            Ok(())
        })
        .await?;
        ensure!(at_the_laptop(scene) == ["/behind"], "{:?} at the laptop", at_the_laptop(scene));
        scene.ensure_inserted(1).await
    })
    .await
}
