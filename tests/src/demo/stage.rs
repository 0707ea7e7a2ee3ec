//! The demo's network, and the programs in it: the two services in their pods, agent and client where they belong.

use std::{net::SocketAddr, process::Command, time::Duration};

use anyhow::{Context as _, Result};

use super::scenes::Set;
use crate::{
    Agent, Client, ClientKey, Host, Lab, Process, binaries,
    peers::http1::{Http1Caller, Response},
};

/// HTTP port of both services.
pub const HTTP_PORT: u16 = 8080;

/// The port of `add` that its Service would name `grpc`.
pub const GRPC_PORT: u16 = 9090;

/// How long a program may take to start on a busy machine.
const LIMIT: Duration = Duration::from_secs(20);

const NO_RULES: &str = "intercepts: []\n";

/// Everything that is up.
#[derive(Debug)]
pub struct Stage {
    /// Where requests come from.
    pub caller: Host,
    /// The pod of `tictac`.
    pub tictac: Host,
    /// The pod of `add`, with the agent.
    pub add: Host,
    /// The developer's machine.
    pub laptop: Host,
    /// The agent in the pod of `add`.
    pub agent: Agent,
    key: ClientKey,
    client: Option<Client>,
    connection: Http1Caller,
    _services: [Process; 3],
}

/// Who is to be served by the laptop.
#[derive(Clone, Copy, Debug)]
pub enum Rule {
    /// Everybody who connects.
    AllTcp,
    /// Requests with this header.
    Header {
        /// Its name.
        name: &'static str,
        /// Its value.
        value: &'static str,
    },
}

// === impl Stage ===

impl Stage {
    /// Makes the hosts and starts everything but the client, which comes with the first intercept. Tells `progress` what
    /// it is about to do.
    pub async fn set_up(lab: &Lab, progress: impl Fn(&str)) -> Result<Self> {
        progress("making four hosts: caller, the pods of tictac and add, laptop");
        let host = |name| lab.host(name).build();
        let (caller, tictac, add, laptop) = (host("caller")?, host("tictac")?, host("add")?, host("laptop")?);
        for (a, b) in [(&caller, &tictac), (&caller, &add), (&tictac, &add), (&laptop, &add)] {
            lab.connect(a, b)?;
        }
        progress("starting the services: tictac and add in their pods, an add of your own on the laptop");
        let add_url = format!("http://{}", add.at(GRPC_PORT));
        let services = [
            start(&add, "add", &["--signed", "pod"]).await?,
            start(&tictac, "tictac", &["--add", &add_url]).await?,
            start(&laptop, "add", &["--signed", "laptop"]).await?,
        ];
        progress("starting Sluice's agent in the pod of add, without any rule");
        let agent = Agent::start(&add, NO_RULES).await.context("starting the agent")?;
        let key = ClientKey::new(lab, "laptop")?;
        let connection = Http1Caller::connect(&caller, tictac.at(HTTP_PORT)).await?;
        Ok(Self { caller, tictac, add, laptop, agent, key, client: None, connection, _services: services })
    }

    /// Where callers find `tictac`.
    pub fn tictac_address(&self) -> SocketAddr {
        self.tictac.at(HTTP_PORT)
    }

    fn rules(&self, rule: Rule) -> String {
        let matching = match rule {
            Rule::AllTcp => String::new(),
            Rule::Header { name, value } => format!("  match:\n    headers: [{{name: {name}, value: {value}}}]\n"),
        };
        format!(
            "intercepts:\n- name: demo\n  ports: [{{port: {GRPC_PORT}}}]\n{matching}  client: {{keyHash: \"{}\"}}\n",
            self.key.hash()
        )
    }
}

impl Set for Stage {
    async fn intercept(&mut self, rule: Rule) -> Result<()> {
        self.agent.set_rules(&self.rules(rule)).await?;
        if self.client.is_none() {
            let port = GRPC_PORT.to_string();
            let client = Client::start(&self.laptop, &self.agent, &self.key, &[&port]).await;
            self.client = Some(client.context("starting the client on the laptop")?);
        }
        Ok(())
    }

    async fn request(&mut self, method: &str, path: &str, headers: &[(&str, &str)]) -> Result<Response> {
        self.connection.call(method, path, headers, b"").await.with_context(|| format!("{method} {path}"))
    }
}

async fn start(host: &Host, program: &str, arguments: &[&str]) -> Result<Process> {
    let mut command = Command::new(binaries::find(program)?);
    command.args(arguments);
    let process = host.spawn(command)?;
    process.printed("is ready", LIMIT).await?;
    Ok(process)
}
