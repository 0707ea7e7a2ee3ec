//! The client against a real QUIC endpoint that plays the agent, and real TCP servers, all on loopback.
//!
//! No privileges, no fixed ports, safe to run in parallel.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test ends where it fails")]

mod agent;
mod command;
mod copies;
mod data;
mod forward;
mod lifecycle;
mod local;
mod refusals;

use std::time::Duration;

use sluice::Config;
use sluice::Identity;
use sluice::PortForward;
use sluice::Ports;
use sluice::State;
use sluice::Tunnel;

use agent::Agent;

/// Everything here is done long before; only a hang takes this long.
const DEADLINE: Duration = Duration::from_secs(30);

async fn soon<F: Future>(what: &str, future: F) -> F::Output {
    tokio::time::timeout(DEADLINE, future).await.unwrap_or_else(|_| panic!("not within {DEADLINE:?}: {what}"))
}

fn config(agent: &Agent, identity: &Identity, ports: &[(u16, u16)]) -> Config {
    let forward = |&(local, remote): &(u16, u16)| PortForward {
        local: local.try_into().unwrap(),
        remote: remote.try_into().unwrap(),
    };
    Config {
        agent: agent.address().into(),
        agent_key: agent.key(),
        identity: identity.clone(),
        ports: Ports::new(ports.iter().map(forward)).unwrap(),
        to: sluice::LocalHost::default(),
        ways: sluice::Ways::default(),
    }
}

async fn reaches(tunnel: &Tunnel, what: &str, reached: impl FnMut(&State) -> bool) -> State {
    soon(what, tunnel.state().wait_for(reached)).await.unwrap().clone()
}

/// An agent and a client that is connected to it.
async fn connected(ports: &[(u16, u16)]) -> (Agent, Tunnel) {
    let identity = Identity::generate().unwrap();
    let agent = Agent::start([identity.hash()]);
    let tunnel = Tunnel::start(config(&agent, &identity, ports)).unwrap();
    agent.client().await;
    (agent, tunnel)
}
