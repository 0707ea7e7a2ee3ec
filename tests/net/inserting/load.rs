//! f07: many connections, few requests that fit, in front of servers that many apps are made with.

use std::{process::Command, time::Duration};

use anyhow::{Context as _, Result, ensure};
use sluice_tests::{Host, Process, peers::http1::Http1App};

use crate::{
    LIMIT, Scene,
    callers::{Load, call},
    programs,
    programs::{PORT, echo},
};

/// How many requests a server gets, instead of the few that a test of a minute takes. 100000 is the case's number.
const SIZE: &str = "SLUICE_TEST_F07_REQUESTS";

const CALLERS: usize = 64;
const FITS_ONCE_IN: usize = 50;

/// A caller that is made as many are.
const GO: &str = include_str!("caller.go");

async fn play(
    name: &str,
    at_once: usize,
    start: impl AsyncFnOnce(&Host) -> Result<(Process, Option<Http1App>)>,
) -> Result<()> {
    // A server says now and then that it answers nothing more while requests behind that are held already. Nobody answers those:
    // their callers ask again.
    let excused: &[&str] = if at_once > 1 { &["closing"] } else { &[] };
    Box::pin(play_with(name, excused, start, async |scene, requests| {
        let load = Load { requests, callers: CALLERS, fits_once_in: FITS_ONCE_IN, at_once };
        Box::pin(call(&scene.stage.caller, scene.stage.pod.at(PORT), &load)).await
    }))
    .await
}

/// With other callers, who say how many of their requests fitted, and where some may be let go for these reasons.
async fn play_with(
    name: &str,
    excused: &[&str],
    start: impl AsyncFnOnce(&Host) -> Result<(Process, Option<Http1App>)>,
    call: impl AsyncFnOnce(&Scene, usize) -> Result<usize>,
) -> Result<()> {
    let size = std::env::var(SIZE).ok();
    let requests = size.map_or(Ok(4_000), |size| size.parse()).with_context(|| format!("{SIZE} is no number"))?;
    let limit = LIMIT + Duration::from_millis(50) * u32::try_from(requests)?;
    Box::pin(crate::play_within(limit, Scene::set(name, &[PORT]).await?, async |scene| {
        let local = Http1App::with(&scene.stage.laptop, crate::any(PORT), "laptop", echo)?;
        let (server, _behind) = Box::pin(start(&scene.stage.pod)).await?;
        let begin = std::time::Instant::now();
        let taken = Box::pin(call(scene, requests)).await?;
        let look = scene.look().await?;
        eprintln!("{name}: {requests} requests, of which {taken} fit, in {:?}; {look:?}", begin.elapsed());
        ensure!(local.requests().len() == taken, "{} requests at the laptop, {taken} fit", local.requests().len());
        ensure!(server.is_running(), "the server has ended");
        let complaints = server.output();
        ensure!(!complaints.contains("rror"), "the server complains: {complaints}");
        ensure!(look.passed > 0 && look.steered == 0, "{look:?}");
        scene.ensure_inserted_but(excused, u64::try_from(taken)?.min(CALLERS as u64)).await
    }))
    .await
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn f07_nginx() -> Result<()> {
    Box::pin(play("f07_nginx", 1, async |host| {
        let (server, behind) = programs::nginx(host).await?;
        Ok((server, Some(behind)))
    }))
    .await
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn f07_a_blocking_python_server() -> Result<()> {
    Box::pin(play("f07_python", 1, async |host| Ok((programs::python(host).await?, None)))).await
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn f07_nodes_server() -> Result<()> {
    Box::pin(play("f07_node", 1, async |host| Ok((programs::node(host).await?, None)))).await
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn f07_gos_server() -> Result<()> {
    Box::pin(play("f07_go", 1, async |host| Ok((programs::go(host).await?, None)))).await
}

/// Go's callers in front of Go's server: goroutines that share a pool of connections.
#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn f07_gos_server_and_gos_callers() -> Result<()> {
    let start = async |host: &Host| Ok((programs::go(host).await?, None));
    Box::pin(play_with("f07_go_callers", &[], start, async |scene, requests| {
        let caller = &scene.stage.caller;
        let mut command = Command::new(programs::go_program(caller.folder(), "caller", GO).await?);
        command.arg(scene.stage.pod.at(PORT).to_string());
        command.args([requests, CALLERS, FITS_ONCE_IN].map(|number| number.to_string()));
        let callers = caller.spawn(command)?;
        // It has a limit for each request, and this test has one for all.
        let status = callers.exited(LIMIT + Duration::from_millis(50) * u32::try_from(requests)?).await?;
        let said = callers.output();
        ensure!(status.success(), "Go's callers end with {status} and say:\n{said}");
        let taken = said.lines().find_map(|line| line.strip_prefix("taken "));
        Ok(taken.with_context(|| format!("Go's callers do not say how many requests fitted: {said}"))?.parse()?)
    }))
    .await
}

/// The same with callers who do not wait for an answer before they send the next request.
#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn f07_nginx_and_callers_that_pipeline() -> Result<()> {
    Box::pin(play("f07_nginx_pipes", 6, async |host| {
        let (server, behind) = programs::nginx(host).await?;
        Ok((server, Some(behind)))
    }))
    .await
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn f07_a_blocking_python_server_and_callers_that_pipeline() -> Result<()> {
    Box::pin(play("f07_python_pipes", 6, async |host| Ok((programs::python(host).await?, None)))).await
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn f07_nodes_server_and_callers_that_pipeline() -> Result<()> {
    Box::pin(play("f07_node_pipes", 6, async |host| Ok((programs::node(host).await?, None)))).await
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn f07_gos_server_and_callers_that_pipeline() -> Result<()> {
    Box::pin(play("f07_go_pipes", 6, async |host| Ok((programs::go(host).await?, None)))).await
}
