//! Odd and old traffic: what HTTP/1 allows and few do, and what is no HTTP at all. Who is to answer answers, in order,
//! byte by byte and without having to wait.
//!
//! Every test here needs root and is ignored without; `cargo xtask test` runs them. A file for each theme.

mod memory;
mod others;
mod pipelines;
mod real;
mod servers;
mod silence;
mod slow;
mod upgrades;

use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use anyhow::{Result, ensure};
use sluice_tests::{
    Agent, Client,
    peers::http1::{Http1App, Http1Caller},
    stage::{MATCHING, OTHER, Rule, Stage},
};

/// Long enough for anything that happens at once, on a busy machine.
const SOON: Duration = Duration::from_secs(10);

/// The port of plain HTTP/1, under the rule in every test: where it is seen that the rule is in force.
const HTTP: u16 = 8080;

/// A stage with an agent that has one rule, for requests with a header, on [`HTTP`] and on more ports. The client serves
/// all of them.
struct Ruled {
    stage: Stage,
    agent: Agent,
    _client: Client,
    _app: Http1App,
    _local: Http1App,
}

// === impl Ruled ===

impl Ruled {
    async fn set(name: &str, more: &[u16]) -> Result<Self> {
        let stage = Stage::new(name)?;
        let ports = [&[HTTP], more].concat();
        let app = Http1App::start(&stage.pod, any(HTTP), "pod")?;
        let local = Http1App::start(&stage.laptop, any(HTTP), "laptop")?;
        let agent = Agent::start(&stage.pod, &Rule::file(&[stage.header("odd", &ports)])).await?;
        let named: Vec<_> = ports.iter().map(u16::to_string).collect();
        let named: Vec<_> = named.iter().map(String::as_str).collect();
        let client = Client::start(&stage.laptop, &agent, &stage.key, &named).await?;
        Ok(Self { stage, agent, _client: client, _app: app, _local: local })
    }

    /// Sees that the rule is in force, and that the agent has done all that it had to do before.
    async fn works(&self) -> Result<()> {
        let mut caller = Http1Caller::connect(&self.stage.caller, self.stage.pod.at(HTTP)).await?;
        for (header, by) in [(MATCHING, "laptop"), (OTHER, "pod")] {
            let answer = caller.get("/", &[header]).await?;
            ensure!(answer.answered_by() == Some(by), "{header:?}: by {:?}", answer.answered_by());
        }
        Ok(())
    }

    fn finish(self) -> Result<()> {
        let Self { stage, .. } = self;
        stage.finish()
    }
}

/// Where an app listens that can be reached by every address of its host.
const fn any(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port)
}
