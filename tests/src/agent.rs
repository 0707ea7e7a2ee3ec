//! The real agent in a host: started, asked, given rules, ended in every way.
//!
//! Talks to it as an operator would: its rules file, its admin port, its signals.

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use serde::Deserialize;

use crate::{Host, Process, binaries, client::ClientKey, eventually, peers::http1::Http1Caller};

/// The address of the agent's admin endpoint, seen from its own host.
const ADMIN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 17090);

/// UDP port on which agents wait for clients.
const TUNNEL_PORT: u16 = 17443;

/// How long starting, connecting and applying rules may take on a busy machine.
const LIMIT: Duration = Duration::from_secs(20);

static STARTED: AtomicUsize = AtomicUsize::new(0);

/// A running agent. It gets SIGKILL when this is dropped.
#[derive(Debug)]
pub struct Agent {
    process: Process,
    host: Host,
    rules: PathBuf,
    key: String,
}

/// An agent about to start.
#[derive(Debug)]
#[must_use = "`start` starts it"]
pub struct AgentBuilder<'h> {
    host: &'h Host,
    wrapper: Vec<String>,
    arguments: Vec<String>,
}

/// What the agent says about itself.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// Hash of the agent's key.
    pub key_hash: String,
    /// The rules in force.
    pub rules: RulesStatus,
    /// What the kernel holds.
    pub kernel: KernelStatus,
    /// What the packet programs hold and have counted.
    pub insertion: InsertionStatus,
    /// Who is connected.
    pub clients: Vec<ClientStatus>,
    /// Counters by name.
    pub counters: BTreeMap<String, i64>,
}

/// The rules in force.
#[derive(Clone, Debug, Deserialize)]
pub struct RulesStatus {
    /// Number of the version.
    pub generation: u64,
    /// Why the newest version is not in force.
    pub error: Option<String>,
    /// Which way each port is intercepted.
    pub ways: Vec<PortWay>,
}

/// Which way a port is intercepted.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
pub struct PortWay {
    /// Its number.
    pub port: u16,
    /// `insertion` or `lookup`.
    pub way: String,
    /// Why it is this one.
    pub why: Option<String>,
}

/// What the kernel holds.
#[derive(Clone, Debug, Deserialize)]
pub struct KernelStatus {
    /// Whether the program is attached.
    pub attached: bool,
    /// What is steered.
    pub ports: Vec<PortStatus>,
}

/// Ports at which the agent is inserted when it is needed; nothing with another way of steering.
#[derive(Clone, Debug, Deserialize)]
pub struct InsertionStatus {
    /// Whether the packet programs are attached.
    pub attached: bool,
    /// What they look at.
    pub ports: Vec<u16>,
    /// Where.
    pub devices: Vec<String>,
    /// Requests that the app got without the agent.
    pub passed: u64,
    /// Requests that were kept for the agent.
    pub held: u64,
    /// Held requests that were let go because nobody took them.
    pub late: u64,
    /// Connections that the packet programs have not seen begin, and that pass through the agent.
    pub steered: u64,
    /// Connections that the agent has left again.
    pub returned: u64,
}

/// A port that is steered.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PortStatus {
    /// Its number.
    pub port: u16,
    /// `TCP` or `UDP`.
    pub protocol: String,
    /// Connections that were open before and are not taken.
    pub existing_connections: usize,
}

/// A connected client.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClientStatus {
    /// Hash of its key.
    pub key_hash: String,
    /// Where it is.
    pub address: SocketAddr,
}

// === impl Agent ===

impl Agent {
    /// Starts an agent in a host with these rules, and waits until it is ready.
    pub async fn start(host: &Host, rules: &str) -> Result<Self> {
        Self::builder(host).start(rules).await
    }

    /// For an agent with more options.
    pub fn builder(host: &Host) -> AgentBuilder<'_> {
        AgentBuilder { host, wrapper: Vec::new(), arguments: Vec::new() }
    }

    /// The process, for its memory, files, output and kernel objects.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// The host it runs in.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// The file with its rules.
    pub fn rules_file(&self) -> &Path {
        &self.rules
    }

    /// Hash of its key.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Where clients reach it.
    pub fn address(&self) -> SocketAddr {
        self.host.at(TUNNEL_PORT)
    }

    /// What it says about itself.
    pub async fn status(&self) -> Result<Status> {
        let body = get(&self.host, "/status").await?;
        serde_json::from_slice(&body).with_context(|| format!("reading /status: {}", String::from_utf8_lossy(&body)))
    }

    /// A counter of `/status`.
    pub async fn counter(&self, name: &str) -> Result<i64> {
        let counters = self.status().await?.counters;
        counters.get(name).copied().with_context(|| format!("no counter {name:?} among {:?}", counters.keys()))
    }

    /// Its metrics, in Prometheus' text format.
    pub async fn metrics(&self) -> Result<String> {
        Ok(String::from_utf8(get(&self.host, "/metrics").await?)?)
    }

    /// A whole number of its metrics, by its name with all labels.
    pub async fn metric(&self, name: &str) -> Result<u64> {
        let metrics = self.metrics().await?;
        let value = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok());
        value.with_context(|| format!("no metric {name:?} in\n{metrics}"))
    }

    /// Gives it other rules, and waits until they are in force and the kernel holds their ports.
    pub async fn set_rules(&self, rules: &str) -> Result<()> {
        let before = self.status().await?.rules.generation;
        replace(&self.rules, rules)?;
        eventually(LIMIT, "the agent follows the new rules", || async {
            let status = self.status().await?.rules;
            match status.error {
                None if status.generation > before => Ok(()),
                other => Err(anyhow!("generation {} as before, error {other:?}", status.generation)),
            }
        })
        .await?;
        self.process.bpf_objects();
        Ok(())
    }

    /// Gives it rules that it must refuse, and returns the error that it shows. The rules in force must stay.
    pub async fn set_bad_rules(&self, rules: &str) -> Result<String> {
        let before = self.status().await?.rules.generation;
        replace(&self.rules, rules)?;
        let refused = || async { Ok::<_, anyhow::Error>(self.status().await?.rules) };
        let status = eventually(LIMIT, "the agent refuses the rules", || async {
            let status = refused().await?;
            status.error.is_some().then_some(status).context("no error")
        })
        .await?;
        ensure!(status.generation == before, "other rules are in force");
        status.error.context("no error")
    }

    /// Waits until the client with this key is connected.
    pub async fn connected(&self, key: &ClientKey) -> Result<ClientStatus> {
        eventually(LIMIT, "the client is connected to the agent", || async {
            let clients = self.status().await?.clients;
            let seen = format!("{clients:?}");
            clients.into_iter().find(|client| client.key_hash == key.hash()).with_context(|| format!("clients: {seen}"))
        })
        .await
    }

    /// Waits until no client with this key is connected.
    pub async fn disconnected(&self, key: &ClientKey, within: Duration) -> Result<()> {
        eventually(within, "the agent notices that the client is gone", || async {
            let clients = self.status().await?.clients;
            ensure!(clients.iter().all(|client| client.key_hash != key.hash()), "clients: {clients:?}");
            Ok(())
        })
        .await
    }

    /// SIGKILL. What it held in the kernel is remembered for [`Host::nothing_left`].
    pub fn kill(&self) {
        self.process.kill();
    }

    /// SIGTERM; returns the exit status.
    pub async fn terminate(&self) -> Result<ExitStatus> {
        self.process.terminate(LIMIT).await
    }
}

// === impl AgentBuilder ===

impl AgentBuilder<'_> {
    /// Adds an argument to the agent's command line.
    pub fn argument(mut self, argument: &str) -> Self {
        self.arguments.push(argument.to_owned());
        self
    }

    /// Starts the agent through another program, which must become the agent (`setpriv …`).
    pub fn wrapper(mut self, words: &[&str]) -> Self {
        self.wrapper = words.iter().map(|&word| word.to_owned()).collect();
        self
    }

    /// Starts the agent and waits until it is ready.
    pub async fn start(self, rules: &str) -> Result<Agent> {
        let host = self.host.clone();
        let (process, rules) = self.spawn(rules)?;
        let ready = eventually(LIMIT, "the agent is ready", || async {
            if !process.is_running() {
                return Ok(Err(anyhow!("the agent has ended:\n{}", process.output())));
            }
            get(&host, "/readyz").await.map(Ok)
        });
        ready.await??;
        process.bpf_objects();
        let mut agent = Agent { process, host, rules, key: String::new() };
        let status = agent.status().await?;
        agent.key = status.key_hash;
        Ok(agent)
    }

    /// Starts an agent that is not expected to get ready, and returns its exit code and output.
    pub async fn fails(self, rules: &str) -> Result<(i32, String)> {
        let (process, _) = self.spawn(rules)?;
        let status = process.exited(LIMIT).await?;
        Ok((status.code().with_context(|| format!("the agent ended by {status}"))?, process.output()))
    }

    fn spawn(self, rules: &str) -> Result<(Process, PathBuf)> {
        self.host.remember_state()?;
        // A number in the name: agents that follow each other in a host do not share a file.
        let number = STARTED.fetch_add(1, Ordering::Relaxed);
        let path = self.host.folder().join(format!("{}-rules-{number}.yaml", self.host.name()));
        replace(&path, rules)?;
        let binary = binaries::find("sluice-agent")?;
        let mut command = match self.wrapper.split_first() {
            None => Command::new(binary),
            Some((program, arguments)) => {
                let mut command = Command::new(program);
                command.args(arguments).arg(binary);
                command
            }
        };
        command.arg("--rules").arg(&path).args(&self.arguments);
        Ok((self.host.spawn(command)?, path))
    }
}

/// Replaces the file in one step, as an editor or a mounted ConfigMap does: no reader sees half of it.
fn replace(path: &Path, content: &str) -> Result<()> {
    let next = path.with_extension("next");
    fs::write(&next, content)?;
    fs::rename(&next, path).with_context(|| format!("writing {}", path.display()))
}

/// The body of a page of the admin endpoint of the agent in `host`.
async fn get(host: &Host, path: &str) -> Result<Vec<u8>> {
    let mut caller = Http1Caller::connect(host, ADMIN).await?;
    let response = caller.get(path, &[("connection", "close")]).await?;
    if response.status != 200 {
        bail!("{path}: status {}: {}", response.status, String::from_utf8_lossy(&response.body));
    }
    Ok(response.body)
}
