//! f05: packets that no caller's TCP would send just then, in frames made by hand: with a checksum that does not hold, which the
//! packet programs see before the app's TCP throws them away; and such as come twice, alone or in one piece with others, as where
//! packets get lost behind the programs.

use std::{net::IpAddr, process::Command};

use anyhow::{Result, ensure};
use sluice_tests::{Host, Process, eventually, stage::MATCHING};

use crate::{HTTP, SOON, Scene, play};

const FORGER: &str = include_str!("forger.py");

/// A caller that sends, on a connection on which it has been answered once, a request that fits in a frame of its own making.
fn forge(scene: &Scene, to: IpAddr, what: &str) -> Result<Process> {
    let pod = to.to_string();
    let mut command = Command::new("python3");
    command.args(["-c", FORGER, &pod, &HTTP.to_string(), what, &format!("{}: {}", MATCHING.0, MATCHING.1)]);
    scene.stage.caller.spawn(command)
}

/// Targets of the requests that the laptop has got.
fn at_the_laptop(scene: &Scene) -> Vec<String> {
    scene.local.requests().into_iter().map(|request| request.target).collect()
}

async fn wrong(name: &str, to: impl FnOnce(&Host) -> Result<IpAddr>) -> Result<()> {
    play(Scene::set(name, &[]).await?, async |scene| {
        let forger = forge(scene, to(&scene.stage.pod)?, "wrong")?;
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
async fn right(name: &str, to: impl FnOnce(&Host) -> Result<IpAddr>) -> Result<()> {
    play(Scene::set(name, &[]).await?, async |scene| {
        let forger = forge(scene, to(&scene.stage.pod)?, "right")?;
        eventually(SOON, "the laptop has it", || async {
            ensure!(at_the_laptop(scene) == ["/forged"], "{:?}, {}", at_the_laptop(scene), forger.output());
            Ok(())
        })
        .await?;
        scene.ensure_inserted(1).await
    })
    .await
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn f05_a_packet_with_a_wrong_checksum_is_nothing() -> Result<()> {
    Box::pin(wrong("f05_wrong", |pod| Ok(pod.at(HTTP).ip()))).await?;
    Box::pin(wrong("f05_wrong6", |pod| Ok(pod.at_v6(HTTP)?.ip()))).await
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn f05_the_same_packet_with_the_right_checksum_is_a_request() -> Result<()> {
    Box::pin(right("f05_right", |pod| Ok(pod.at(HTTP).ip()))).await?;
    Box::pin(right("f05_right6", |pod| Ok(pod.at_v6(HTTP)?.ip()))).await
}

/// A caller repeats what got lost behind the programs together with the request behind it, which is held. The app gets the one
/// from the agent.
async fn again(name: &str, to: impl FnOnce(&Host) -> Result<IpAddr>) -> Result<()> {
    play(Scene::set(name, &[]).await?, async |scene| {
        let forger = forge(scene, to(&scene.stage.pod)?, "again")?;
        eventually(SOON / 4, "each side has its own", || async {
            let got: Vec<_> = scene.app.requests().into_iter().map(|request| request.target).collect();
            ensure!(got == ["/before", "/first"], "{got:?}, {}", forger.output());
            ensure!(at_the_laptop(scene) == ["/second"], "{:?} at the laptop", at_the_laptop(scene));
            Ok(())
        })
        .await?;
        scene.ensure_inserted(1).await
    })
    .await
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn f05_what_comes_again_with_a_held_request_is_not_kept_from_the_app() -> Result<()> {
    Box::pin(again("f05_again", |pod| Ok(pod.at(HTTP).ip()))).await?;
    Box::pin(again("f05_again6", |pod| Ok(pod.at_v6(HTTP)?.ip()))).await
}

/// A caller repeats what the app has got already, as it was not told so, together with a request behind it: that one alone is
/// the agent's.
async fn twice(name: &str, to: impl FnOnce(&Host) -> Result<IpAddr>) -> Result<()> {
    play(Scene::set(name, &[]).await?, async |scene| {
        let forger = forge(scene, to(&scene.stage.pod)?, "twice")?;
        eventually(SOON, "the laptop has the second", || async {
            ensure!(at_the_laptop(scene) == ["/second"], "{:?}, {}", at_the_laptop(scene), forger.output());
            Ok(())
        })
        .await?;
        let got: Vec<_> = scene.app.requests().into_iter().map(|request| request.target).collect();
        ensure!(got == ["/before", "/first"], "{got:?}");
        scene.ensure_inserted(1).await
    })
    .await
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn f05_what_the_app_has_and_comes_again_with_a_request_is_passed_over() -> Result<()> {
    Box::pin(twice("f05_twice", |pod| Ok(pod.at(HTTP).ip()))).await?;
    Box::pin(twice("f05_twice6", |pod| Ok(pod.at_v6(HTTP)?.ip()))).await
}

/// The first packet of a connection comes again when the connection has long been there: as when it was repeated because its
/// answer got lost. What is known of the connection stays.
async fn begin(name: &str, to: impl FnOnce(&Host) -> Result<IpAddr>) -> Result<()> {
    play(Scene::set(name, &[]).await?, async |scene| {
        let forger = forge(scene, to(&scene.stage.pod)?, "begin")?;
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

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn f05_a_first_packet_that_comes_twice_changes_nothing() -> Result<()> {
    Box::pin(begin("f05_begin", |pod| Ok(pod.at(HTTP).ip()))).await?;
    Box::pin(begin("f05_begin6", |pod| Ok(pod.at_v6(HTTP)?.ip()))).await
}
