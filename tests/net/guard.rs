//! Tests of the laboratory's guard: what is left behind is seen, and nothing else is.

use std::{process::Command, time::Duration};

use anyhow::{Context as _, Result, ensure};
use sluice_tests::{Agent, Direction, Lab, Shape, binaries, eventually};

use crate::harness::pair;

const SOON: Duration = Duration::from_secs(5);

/// A rule that steers a port; its client never comes.
const ONE_PORT: &str = "
intercepts:
- name: one
  ports: [{port: 8080}]
  client: {keyHash: \"sha256:0000000000000000000000000000000000000000000000000000000000000000\"}
";

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn an_unfinished_lab_is_taken_down() -> Result<()> {
    let lab = Lab::new("unfinished")?;
    let (left, right) = pair(&lab)?;
    lab.connect_shaped(&left, &right, Shape::new())?;
    let mut command = Command::new("sleep");
    command.arg("1000");
    let process = left.spawn(command)?;
    let gone = [
        left.namespace_path(),
        right.namespace_path(),
        lab.folder().to_owned(),
        format!("/proc/{}", process.pid()).into(),
    ];
    ensure!(gone.iter().all(|path| path.exists()));
    ensure!(Lab::new("unfinished").is_err(), "two labs of one name");
    drop(lab);
    let left_over: Vec<_> = gone.iter().filter(|path| path.exists()).collect();
    ensure!(left_over.is_empty(), "{left_over:?}");
    ensure!(left.connect(right.at(7)).await.is_err_and(|error| format!("{error:#}").contains("finished")));
    Ok(())
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn the_guard_sees_what_is_left_in_a_host() -> Result<()> {
    let lab = Lab::new("guard")?;
    let (left, right) = pair(&lab)?;
    let link = lab.connect(&left, &right)?;
    ensure!(left.nothing_left(Duration::ZERO).await.is_err(), "nothing to compare with");
    left.remember_state()?;
    left.nothing_left(SOON).await?;
    link.lose(Direction::BToA, 1)?;
    left.nothing_left(SOON).await.context("the lab's own filters do not count")?;
    let device = link.device(&left)?.to_owned();
    for (make, undo, shown) in [
        (
            vec!["addr", "add", "192.0.2.1/32", "dev", "lo"],
            vec!["addr", "del", "192.0.2.1/32", "dev", "lo"],
            "192.0.2.1",
        ),
        (
            vec!["-6", "route", "add", "local", "fd99::/64", "dev", "lo"],
            vec!["-6", "route", "del", "local", "fd99::/64", "dev", "lo"],
            "fd99::",
        ),
        (vec!["rule", "add", "fwmark", "1", "table", "9"], vec!["rule", "del", "fwmark", "1", "table", "9"], "0x1"),
        (vec!["link", "set", &device, "down"], vec!["link", "set", &device, "up"], &device),
    ] {
        left.tool("ip", &make)?;
        let error = left.nothing_left(Duration::from_millis(100)).await.err().context(format!("{make:?} not seen"))?;
        ensure!(format!("{error:#}").contains(shown), "{error:#}");
        left.tool("ip", &undo)?;
        link.plug()?;
        left.nothing_left(SOON).await?;
    }
    lab.finish()
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn the_guard_tells_an_agents_objects_apart_from_all_others() -> Result<()> {
    let lab = Lab::new("guard_objects")?;
    let (left, right) = pair(&lab)?;
    let stays = Agent::start(&right, ONE_PORT).await?;
    let agent = Agent::start(&left, ONE_PORT).await?;
    let held = agent.process().bpf_objects();
    ensure!(!held.programs.is_empty() && !held.maps.is_empty() && !held.links.is_empty(), "{held}");
    ensure!(held.common(&stays.process().bpf_objects()).is_empty(), "the two agents' objects are the same");
    left.nothing_left(SOON).await.context("what a running agent holds is not left behind")?;
    agent.kill();
    left.nothing_left(SOON).await?;
    ensure!(stays.status().await?.kernel.attached, "the other agent has lost its program");

    // Of an agent that the lab knows nothing about, nobody has seen what it holds: the link on the namespace gives it
    // away.
    let binary = binaries::find("sluice-agent")?;
    let rules = lab.folder().join("stranger.yaml");
    std::fs::write(&rules, ONE_PORT)?;
    let mut stranger = left.enter(move || Command::new(binary).arg("--rules").arg(rules).spawn())??;
    let seen = eventually(SOON, "the stranger's link is seen", || async {
        left.nothing_left(Duration::from_millis(1)).await.err().map(|error| format!("{error:#}"))
    });
    let seen = seen.await;
    stranger.kill()?;
    stranger.wait()?;
    let seen = seen?;
    ensure!(seen.contains("links"), "{seen}");
    left.nothing_left(SOON).await?;
    lab.finish()
}
