//! c03: the way between pod and laptop is bad, or another one than before. Open streams go on.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use sluice_tests::{
    Agent, Client, Direction, eventually,
    peers::{
        http1::Http1App,
        pattern,
        raw::{RawApp, Script},
    },
    stage::{MATCHING, OTHER, Rule, Stage},
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_util::sync::CancellationToken;

use crate::{
    PORT, SOON, any,
    load::{Connections, keep_asking},
};

/// All TCP to it goes to the laptop.
const TCP: u16 = 5;

/// How long the weather is bad.
const BAD: Duration = Duration::from_secs(30);

/// The laptop's address in another network.
const ELSEWHERE: &str = "10.99.0.3";

/// The port by which the pod knows the client behind a NAT that has forgotten it.
const REBOUND: u16 = 41_000;

/// Apps everywhere, an agent with both kinds of rules, and a client.
struct Scene {
    stage: Stage,
    agent: Agent,
    _client: Client,
    _apps: [Http1App; 2],
    _echos: [RawApp; 2],
}

impl Scene {
    async fn new(name: &str) -> Result<Self> {
        let stage = Stage::new(name)?;
        let (pod, laptop) = (&stage.pod, &stage.laptop);
        let apps = [Http1App::start(pod, any(PORT), "pod")?, Http1App::start(laptop, any(PORT), "laptop")?];
        // The app would not say back what it hears.
        let echos =
            [RawApp::start(pod, any(TCP), Script::new().hold())?, RawApp::start(laptop, any(TCP), Script::echo())?];
        let rules = [stage.header("http", &[PORT]), stage.tcp("tcp", &[TCP])];
        let agent = Agent::start(pod, &Rule::file(&rules)).await?;
        let client = Client::start(laptop, &agent, &stage.key, &["8080", "5"]).await?;
        Ok(Self { stage, agent, _client: client, _apps: apps, _echos: echos })
    }

    /// Talks over one taken connection until `stop`; every byte comes back as it was sent. Gives how often.
    async fn converse(&self, stop: &CancellationToken) -> Result<usize> {
        let mut stream = self.stage.caller.connect(self.stage.pod.at(TCP)).await?;
        let mut rounds = 0;
        while !stop.is_cancelled() {
            let said = pattern::body(rounds, 4096);
            stream.write_all(&said).await.with_context(|| format!("round {rounds}"))?;
            let mut heard = vec![0; said.len()];
            stream.read_exact(&mut heard).await.with_context(|| format!("round {rounds}"))?;
            ensure!(heard == said, "other bytes came back in round {rounds}");
            rounds += 1;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(usize::try_from(rounds)?)
    }

    /// That the client has connected once and has not been away.
    fn ensure_kept(&self) -> Result<()> {
        let log = self.agent.process().output();
        ensure!(log.matches("client connected").count() == 1 && !log.contains("client gone"), "{log}");
        Ok(())
    }

    /// Waits until the agent knows the client by an address for which this holds.
    async fn known_by(&self, what: &str, is: impl Fn(std::net::SocketAddr) -> bool) -> Result<()> {
        eventually(SOON, what, || async {
            let clients = self.agent.status().await?.clients;
            ensure!(clients.len() == 1 && is(clients[0].address), "{clients:?}");
            Ok(())
        })
        .await
    }
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn c03_open_streams_survive_half_a_minute_in_which_every_third_packet_is_lost() -> Result<()> {
    let scene = Scene::new("c03_loss").await?;
    let (stage, to) = (&scene.stage, scene.stage.pod.at(PORT));
    let stop = CancellationToken::new();
    let weather = async {
        // Something has gone well before.
        tokio::time::sleep(Duration::from_millis(500)).await;
        for direction in [Direction::AToB, Direction::BToA] {
            stage.to_laptop.lose(direction, 30)?;
        }
        tokio::time::sleep(BAD).await;
        stop.cancel();
        stage.to_laptop.heal()
    };
    let ask = |header| keep_asking(&stage.caller, to, header, Connections::Kept, &stop);
    let (rounds, ours, others, weather) = tokio::join!(scene.converse(&stop), ask(MATCHING), ask(OTHER), weather);
    weather?;
    ensure!(rounds? > 100, "the stream has hardly moved");
    // One that waits longer than a second for the laptop to accept it is the app's; none is without an answer.
    let ours = ours?;
    ensure!(ours.failed.is_empty() && ours.by.get("laptop").is_some_and(|&count| count > 50), "{ours:?}");
    let others = others?;
    ensure!(others.failed.is_empty() && others.answered_by() == ["pod"], "{others:?}");
    ensure!(others.worst < Duration::from_millis(900), "{others:?}");
    scene.ensure_kept()?;
    scene.stage.finish()
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn c03_open_streams_survive_another_address_of_the_laptop_and_a_nat_that_forgets() -> Result<()> {
    let scene = Scene::new("c03_moves").await?;
    let (stage, stop) = (&scene.stage, CancellationToken::new());
    let moves = async {
        let known = scene.agent.status().await?.clients;
        let port = known.first().context("no client")?.address.port();
        let (old, pod) = (stage.laptop.address(), stage.pod.address());
        let (near, far) = (stage.to_laptop.device(&stage.pod)?, stage.to_laptop.device(&stage.laptop)?);
        stage.pod.tool("ip", &["route", "add", ELSEWHERE, "dev", near, "src", &pod.to_string()])?;
        stage.laptop.tool("ip", &["address", "add", ELSEWHERE, "dev", far])?;
        stage.laptop.tool("ip", &["route", "replace", &pod.to_string(), "dev", far, "src", ELSEWHERE])?;
        stage.laptop.tool("ip", &["address", "delete", &format!("{old}/32"), "dev", far])?;
        scene.known_by("the client is known by its new address", |at| at.ip().to_string().contains(ELSEWHERE)).await?;
        // What a NAT does that has forgotten a connection: the next packet gets another port.
        let rules = format!(
            "table ip nat {{\n\
             chain out {{ type filter hook postrouting priority 0;\n udp sport {port} udp sport set {REBOUND}\n }}\n\
             chain in {{ type filter hook prerouting priority 0;\n udp dport {REBOUND} udp dport set {port}\n }}\n}}\n"
        );
        let file = stage.laptop.folder().join("nat.nft");
        std::fs::write(&file, rules)?;
        stage.laptop.tool("nft", &["-f", &file.to_string_lossy()])?;
        scene.known_by("the client is known by its new port", |at| at.port() == REBOUND).await?;
        tokio::time::sleep(Duration::from_secs(1)).await;
        Ok::<_, anyhow::Error>(())
    };
    let (rounds, moved) = tokio::join!(scene.converse(&stop), async {
        let moved = moves.await;
        stop.cancel();
        moved
    });
    moved?;
    ensure!(rounds? > 20, "the stream has hardly moved");
    for (header, by) in [(MATCHING, "laptop"), (OTHER, "pod")] {
        ensure!(crate::asked(&stage.caller, stage.pod.at(PORT), header).await? == by, "not answered by {by}");
    }
    scene.ensure_kept()?;
    scene.stage.finish()
}
