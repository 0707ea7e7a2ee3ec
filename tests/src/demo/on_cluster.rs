//! The demo on a real Kubernetes: the services in pods of a labelled namespace, intercepted by the real command.
//!
//! Takes the cluster that is there (or that `KUBECONFIG` names), or starts one of its own; takes away again what it has
//! brought: its namespace, Sluice if it was not installed, the cluster if it was not up.

use std::{process::Stdio, time::Duration};

use anyhow::{Context as _, Result, ensure};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    net::TcpStream,
    process::{Child, Command},
};

use super::{
    scenes::Set,
    stage::{HTTP_PORT, Rule},
};
use crate::{
    binaries,
    cluster::{self, Cluster, Folder, Namespace},
    eventually,
    peers::http1::{Http1Caller, Response},
    product::{self, Images, deploy_demo},
};

/// How long anything may take on a busy machine.
const LIMIT: Duration = Duration::from_secs(120);

/// What was there before.
#[derive(Debug)]
pub struct Found {
    /// The cluster of this checkout, if the demo has started it.
    started: Option<Folder>,
    installed: bool,
    cluster: Cluster,
}

/// Everything that is up.
#[derive(Debug)]
pub struct ClusterStage {
    cluster: Cluster,
    namespace: Namespace,
    local_grpc: u16,
    client: Option<Child>,
    connection: Http1Caller,
    forward: Child,
    local: Child,
}

// === impl Found ===

impl Found {
    /// The cluster that is there, or a new one.
    pub async fn get(progress: impl Fn(&str)) -> Result<Self> {
        let folder = Folder::of_checkout()?;
        let mut started = None;
        if cluster::given().is_none() {
            progress("starting a real Kubernetes on this machine (built once, which takes some minutes)");
            cluster::program::ensure()?;
            started = cluster::up(&folder).await?.then_some(folder);
        }
        let cluster = Cluster::get().await?;
        let crd = ["get", "crd", "intercepts.sluice.dev", "--ignore-not-found", "-o", "name"];
        let installed = !cluster.kubectl(&crd).run().await?.trim().is_empty();
        Ok(Self { started, installed, cluster })
    }

    /// Takes away what was not there.
    pub async fn restore(self) -> Result<()> {
        if let Some(folder) = self.started {
            cluster::down(&folder)?;
        } else if !self.installed {
            let output = Command::from(product::sluice(&self.cluster)?).arg("uninstall").output().await?;
            ensure!(output.status.success(), "sluice uninstall: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(())
    }
}

// === impl ClusterStage ===

impl ClusterStage {
    /// Installs Sluice, labels a namespace, deploys the services. Tells `progress` what it is about to do.
    pub async fn set_up(found: &Found, progress: impl Fn(&str)) -> Result<Self> {
        let cluster = found.cluster.clone();
        progress("sluice install: the control plane, two replicas");
        let images = Images::load(&cluster).await?;
        images.install(&cluster, Stdio::piped()).await?;
        progress("kubectl label namespace … sluice.dev/inject=enabled: pods get the agent from now on");
        let namespace = cluster.labelled_namespace("sluice-demo", &[("sluice.dev/inject", "enabled")]).await?;
        progress("deploying add (two pods) and tictac");
        deploy_demo(&namespace, &images.demo).await?;
        let add = format!("http://add.{}.svc:{HTTP_PORT}/sum", namespace.name());
        // Pods are ready before every node knows the way to them.
        eventually(LIMIT, "tictac reaches add", || async {
            let told = namespace.exec("deployment/tictac", &["/call", &add]).await?;
            ensure!(told.contains("\"failed\":0"), "{told}");
            Ok(())
        })
        .await?;
        progress("starting an add of your own on this machine, and a caller of tictac's Service");
        let local_grpc = free_port()?;
        let mut local = Command::new(binaries::find("add")?);
        local.args(["--signed", "laptop", "--http", &format!("127.0.0.1:{}", free_port()?)]);
        local.args(["--grpc", &format!("127.0.0.1:{local_grpc}")]).stderr(Stdio::null()).kill_on_drop(true);
        let local = local.spawn().context("starting add")?;
        let (forward, port) = forward(&namespace).await?;
        let connection = Http1Caller::over(TcpStream::connect(("127.0.0.1", port)).await?)?;
        Ok(Self { cluster, namespace, local_grpc, client: None, connection, forward, local })
    }

    /// The commands that a person would type, for those who go on alone.
    pub fn invite(&self) -> Vec<(&'static str, String)> {
        let (namespace, config) = (self.namespace.name(), self.cluster.kubeconfig().display());
        let sluice = format!("KUBECONFIG={config} cargo xtask intercept");
        vec![
            ("What is intercepted, and whether it works", format!("{sluice} list --namespace {namespace}")),
            (
                "An intercept of your own, to port 9000 of this machine",
                format!(
                    "{sluice} add mine --namespace {namespace} --workload Deployment/add --port 9000:http --header x-user=me"
                ),
            ),
            ("kubectl, with pods and Services within reach", "cargo xtask cluster shell".to_owned()),
        ]
    }

    /// Ends everything and removes the namespace.
    pub async fn finish(mut self) -> Result<()> {
        self.end_client().await?;
        let _ = self.local.kill().await;
        let _ = self.forward.kill().await;
        self.namespace.finish().await
    }

    async fn end_client(&mut self) -> Result<()> {
        let Some(mut client) = self.client.take() else { return Ok(()) };
        let pid = i32::try_from(client.id().context("the client has ended by itself")?)?;
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGTERM)?;
        let status = tokio::time::timeout(LIMIT, client.wait()).await.context("the client does not end")??;
        ensure!(status.success(), "sluice intercept add: {status}");
        Ok(())
    }
}

impl Set for ClusterStage {
    async fn intercept(&mut self, rule: Rule) -> Result<()> {
        self.end_client().await?;
        let mut command = Command::from(product::sluice(&self.cluster)?);
        let port = format!("{}:grpc", self.local_grpc);
        let namespace = self.namespace.name();
        command.args(["intercept", "add", "demo", "--namespace", namespace, "--workload", "Deployment/add"]);
        command.args(["--port", &port]);
        if let Rule::Header { name, value } = rule {
            command.arg("--header").arg(format!("{name}={value}"));
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
        let mut client = command.spawn().context("starting sluice")?;
        let mut lines = BufReader::new(client.stdout.take().context("no output")?).lines();
        let mut said = String::new();
        // The last line of its summary: from then on everything that fits is taken.
        while !said.contains("\nOwner") {
            let line = tokio::time::timeout(LIMIT, lines.next_line()).await.context("not ready in time")??;
            let line = line.with_context(|| format!("sluice intercept add ended: {said}"))?;
            said = format!("{said}\n{line}");
        }
        tokio::spawn(async move { while matches!(lines.next_line().await, Ok(Some(_))) {} });
        self.client = Some(client);
        Ok(())
    }

    async fn request(&mut self, method: &str, path: &str, headers: &[(&str, &str)]) -> Result<Response> {
        self.connection.call(method, path, headers, b"").await.with_context(|| format!("{method} {path}"))
    }
}

/// `kubectl port-forward` to `tictac`'s Service, and the local port.
async fn forward(namespace: &Namespace) -> Result<(Child, u16)> {
    let kubectl = namespace.kubectl(&["port-forward", "service/tictac", &format!(":{HTTP_PORT}")]);
    let mut command = Command::from(kubectl.command()?);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true).spawn()?;
    let mut lines = BufReader::new(child.stdout.take().context("no output")?).lines();
    let line = tokio::time::timeout(LIMIT, lines.next_line()).await.context("no port-forward in time")??;
    // `Forwarding from 127.0.0.1:40123 -> 8080`
    let line = line.context("kubectl port-forward ended")?;
    let port = line.split(" -> ").next().and_then(|from| from.rsplit(':').next()).and_then(|port| port.parse().ok());
    tokio::spawn(async move { while matches!(lines.next_line().await, Ok(Some(_))) {} });
    Ok((child, port.with_context(|| format!("kubectl port-forward said {line:?}"))?))
}

fn free_port() -> Result<u16> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}
