//! The real client in a host: `sluice tunnel`, with a key of its own.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

use crate::{Agent, Host, Lab, Process, binaries, command};

/// How long starting and stopping may take on a busy machine.
const LIMIT: Duration = Duration::from_secs(20);

/// A client's key: known before the client starts, because the agent's rules name it.
#[derive(Clone, Debug)]
pub struct ClientKey {
    file: PathBuf,
    hash: String,
}

/// A running client. It gets SIGKILL when this is dropped.
#[derive(Debug)]
pub struct Client {
    process: Process,
}

// === impl ClientKey ===

impl ClientKey {
    /// Lets `sluice key` make a key in the lab's folder.
    pub fn new(lab: &Lab, name: &str) -> Result<Self> {
        let file = lab.folder().join(format!("{name}.key"));
        let binary = binaries::find("sluice")?;
        let binary = binary.to_str().context("the path of `sluice` is not UTF-8")?;
        let path = file.to_str().context("the lab's folder is not UTF-8")?;
        let hash = command::run(binary, &["key", "--key-file", path], "")?.trim().to_owned();
        ensure!(hash.starts_with("sha256:") && hash.len() == 71, "`sluice key` printed {hash:?}");
        Ok(Self { file, hash })
    }

    /// The file it is in.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// What the rules call it: `sha256:` and 64 hexadecimal digits.
    pub fn hash(&self) -> &str {
        &self.hash
    }
}

// === impl Client ===

impl Client {
    /// Starts a client in a host and waits until it is connected. Ports as on the command line: `LOCAL[:REMOTE]`.
    pub async fn start(host: &Host, agent: &Agent, key: &ClientKey, ports: &[&str]) -> Result<Self> {
        let client = Self::spawn(host, agent.address(), agent.key(), key, ports)?;
        client.process.printed("connected to", LIMIT).await?;
        // The agent's word is what counts: the client may be ahead of it by a packet.
        agent.connected(key).await?;
        Ok(client)
    }

    /// Starts a client and does not wait.
    pub fn spawn(host: &Host, agent: SocketAddr, agent_key: &str, key: &ClientKey, ports: &[&str]) -> Result<Self> {
        let mut command = Command::new(binaries::find("sluice")?);
        command.arg("tunnel").args(["--agent", &agent.to_string(), "--agent-key", agent_key]);
        command.arg("--key-file").arg(&key.file);
        for port in ports {
            command.args(["--port", port]);
        }
        Ok(Self { process: host.spawn(command)? })
    }

    /// The process, for its memory, files and output.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// SIGKILL.
    pub fn kill(&self) {
        self.process.kill();
    }

    /// SIGTERM; returns the exit status.
    pub async fn terminate(&self) -> Result<ExitStatus> {
        self.process.terminate(LIMIT).await
    }
}
