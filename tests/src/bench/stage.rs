//! The benchmark's network and the programs in it, and what can be read off the agent.

use std::{process::Command, time::Duration};

use anyhow::{Context as _, Result};
use nix::{time::clock_getcpuclockid, unistd::Pid};

use super::{CEILING, Case, HEADER, LIMIT, Path, TAKEN, app, load::Load, plan::Shape};
use crate::{Agent, Client, ClientKey, Host, Lab, Process, binaries};

/// Everything that is up.
#[derive(Debug)]
pub(super) struct Stage {
    pub(super) caller: Host,
    pub(super) pod: Host,
    pub(super) agent: Agent,
    pub(super) client: Client,
    _apps: [Process; 2],
}

// === impl Stage ===

impl Stage {
    /// Makes the hosts and starts everything.
    pub(super) async fn set_up(lab: &Lab) -> Result<Self> {
        let host = |name| lab.host(name).build();
        let (caller, pod, laptop) = (host("caller")?, host("pod")?, host("laptop")?);
        lab.connect(&caller, &pod)?;
        lab.connect(&laptop, &pod)?;
        // The load of several hosts comes from this one, and no port that waits for its time to be over is used again
        // before (the pod has the default).
        caller.enter(|| std::fs::write("/proc/sys/net/ipv4/ip_local_port_range", "1024 65535"))??;
        let apps = [start_app(&pod, app::POD).await?, start_app(&laptop, app::LAPTOP).await?];
        let key = ClientKey::new(lab, "laptop")?;
        let agent = Agent::start(&pod, &rules(&key)).await.context("starting the agent")?;
        let ports: Vec<_> = steered().into_iter().chain(INSERTED).map(|port| port.to_string()).collect();
        let ports: Vec<_> = ports.iter().map(String::as_str).collect();
        let client = Client::start(&laptop, &agent, &key, &ports).await;
        let client = client.context("starting the client")?;
        Ok(Self { caller, pod, agent, client, _apps: apps })
    }

    /// A load of this shape that takes this path.
    pub(super) fn load(&self, shape: Shape, path: Path) -> Load {
        let Shape { case, connections, streams } = shape;
        let ports = case.ports();
        let port = match path {
            Path::Direct => ports.direct,
            Path::Pass | Path::Intercepted => ports.steered,
            Path::Native | Path::HandedBack | Path::Inserted => ports.inserted.unwrap_or(ports.steered),
        };
        Load { case, connections, streams, to: self.pod.at(port), path }
    }

    /// The same towards a responder that only writes prepared bytes, where there is one for the case.
    pub(super) fn ceiling(&self, shape: Shape) -> Option<Load> {
        let (_, port) = CEILING.into_iter().find(|(case, _)| *case == shape.case)?;
        Some(Load { to: self.pod.at(port), ..self.load(shape, Path::Direct) })
    }

    /// Processor time that the agent has used so far, all its threads together, to the nanosecond: `/proc/PID/stat` only
    /// has hundredths of a second.
    pub(super) fn agent_cpu(&self) -> Result<Duration> {
        let pid = Pid::from_raw(i32::try_from(self.agent.process().pid())?);
        let clock = clock_getcpuclockid(pid).context("looking for the agent's clock")?;
        Ok(clock.now().context("reading the agent's clock")?.into())
    }
}

fn steered() -> [u16; 3] {
    [Case::Http1, Case::Http2, Case::Grpc].map(|case| case.ports().steered)
}

/// The port whose rule asks for insertion.
const INSERTED: Option<u16> = Case::Http1.ports().inserted;

fn rules(key: &ClientKey) -> String {
    let ports = steered().map(|port| format!("{{port: {port}}}")).join(", ");
    let inserted = INSERTED.map(|port| format!("{{port: {port}}}")).unwrap_or_default();
    let rule = |name, ports, steering| {
        format!(
            "- name: {name}\n  ports: [{ports}]\n  match:\n    headers: [{{name: {HEADER}, value: {TAKEN}}}]\n  \
             steering: {steering}\n  client: {{keyHash: \"{}\"}}\n",
            key.hash()
        )
    };
    format!("intercepts:\n{}{}", rule("bench", &ports, "lookup"), rule("inserted", &inserted, "insertion"))
}

async fn start_app(host: &Host, signed: &str) -> Result<Process> {
    let mut command = Command::new(binaries::find("sluice-bench")?);
    command.args(["app", signed]);
    let process = host.spawn(command)?;
    process.printed(app::READY, LIMIT).await?;
    Ok(process)
}
