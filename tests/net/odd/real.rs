//! b12 with servers that many apps are made with: nginx, Python's, Node's and Go's. A pool of callers sends them requests of
//! all kinds through a rule that one in five fits, and keeps its connections as long as the servers let it.

pub(crate) mod callers;
pub(crate) mod programs;

use anyhow::{Result, ensure};
use sluice_tests::{Host, Process, peers::http1::Http1App};

use self::{
    callers::Load,
    programs::{PORT, echo},
};
use crate::{Ruled, any};

const LOAD: Load = Load { requests: 10_000, callers: 16, fits_once_in: 5, at_once: 6 };

async fn play(name: &str, start: impl AsyncFnOnce(&Host) -> Result<(Process, Option<Http1App>)>) -> Result<()> {
    let ruled = Box::pin(Ruled::set(name, &[PORT])).await?;
    let local = Http1App::with(&ruled.stage.laptop, any(PORT), "laptop", echo)?;
    let (server, _behind) = Box::pin(start(&ruled.stage.pod)).await?;
    let taken = Box::pin(callers::call(&ruled.stage.caller, ruled.stage.pod.at(PORT), &LOAD)).await?;
    ensure!(local.requests().len() == taken, "{} requests at the laptop, {taken} fit", local.requests().len());
    ensure!(server.is_running(), "the server has ended");
    let complaints = server.output();
    ensure!(!complaints.contains("rror"), "the server complains: {complaints}");
    Box::pin(ruled.works()).await?;
    ruled.finish()
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn b12_nginx_under_a_rule_for_requests() -> Result<()> {
    play("b12_nginx", async |host| {
        let (server, behind) = programs::nginx(host).await?;
        Ok((server, Some(behind)))
    })
    .await
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn b12_a_blocking_python_server_under_a_rule_for_requests() -> Result<()> {
    play("b12_python", async |host| Ok((programs::python(host).await?, None))).await
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn b12_nodes_server_under_a_rule_for_requests() -> Result<()> {
    play("b12_node", async |host| Ok((programs::node(host).await?, None))).await
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn b12_gos_server_under_a_rule_for_requests() -> Result<()> {
    play("b12_go", async |host| Ok((programs::go(host).await?, None))).await
}
