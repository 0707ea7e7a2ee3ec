//! Sluice itself in a cluster: its images, made of the programs beside the running one, its installation by the real
//! command, and the demo's services.

use std::{
    env,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use ring::digest::{Context as Hasher, SHA256};
use serde_json::{Value, json};

use crate::{
    binaries,
    cluster::{Cluster, Namespace},
    demo::stage::{GRPC_PORT, HTTP_PORT},
    image::{Image, Program, push},
};

/// Names the registry, and the path in it, to which images for the cluster of `KUBECONFIG` are pushed, such as
/// `registry.example/me`.
const REGISTRY: &str = "SLUICE_TEST_REGISTRY";

/// How long rolling out may take on a busy machine.
const LIMIT: Duration = Duration::from_secs(120);

/// Root, which the agent needs.
const ROOT: &str = "0:0";
const NOBODY: &str = "65532:65532";

/// Names of the images that a cluster has been given.
#[derive(Clone, Debug)]
pub struct Images {
    /// The agent's.
    pub agent: String,
    /// The control plane's.
    pub webhook: String,
    /// That of the demo's services and of the caller.
    pub demo: String,
}

// === impl Images ===

impl Images {
    /// Makes them of the programs, under names that tell the programs' content, and makes them known to the cluster.
    pub async fn load(cluster: &Cluster) -> Result<Self> {
        Ok(Self {
            agent: load(cluster, "agent", &["sluice-agent"], ROOT).await?,
            webhook: load(cluster, "webhook", &["sluice-webhook"], NOBODY).await?,
            demo: Self::load_demo(cluster).await?,
        })
    }

    /// The image of the demo's services alone; gives its name.
    pub async fn load_demo(cluster: &Cluster) -> Result<String> {
        load(cluster, "test-demo", &["add", "tictac", "call"], NOBODY).await
    }

    /// Installs Sluice with them, as an administrator does. What `sluice install` says on its way goes to `said`.
    pub async fn install(&self, cluster: &Cluster, said: Stdio) -> Result<()> {
        let mut command = tokio::process::Command::from(sluice(cluster)?);
        command.arg("install").args(["--webhook-image", &self.webhook, "--agent-image", &self.agent]);
        let output = command.stdin(Stdio::null()).stderr(said).kill_on_drop(true).output().await?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "sluice install: {}: {errors}", output.status);
        Ok(())
    }
}

/// The demo's services in a namespace: two pods of `add`, and one of `tictac`, which finds `add` by its name. Returns when
/// both have rolled out, which is a moment before every node knows the way to them.
pub async fn deploy_demo(namespace: &Namespace, image: &str) -> Result<()> {
    let (http, grpc) = (format!("[::]:{HTTP_PORT}"), format!("[::]:{GRPC_PORT}"));
    let add = ["/add", "--http", &http, "--grpc", &grpc];
    let address = format!("http://add.{}.svc:{GRPC_PORT}", namespace.name());
    let tictac = ["/tictac", "--http", &http, "--add", &address];
    namespace.apply(&workload("add", 2, image, &add)).await?;
    namespace.apply(&workload("tictac", 1, image, &tictac)).await?;
    namespace.rolled_out("deployment/add", LIMIT).await?;
    namespace.rolled_out("deployment/tictac", LIMIT).await
}

/// A Deployment of the demo's image with a Service of the same name, on the ports [`HTTP_PORT`] and [`GRPC_PORT`].
pub fn workload(name: &str, replicas: u32, image: &str, command: &[&str]) -> Value {
    let labels = json!({ "app": name });
    let container = json!({
        "name": name, "image": image, "imagePullPolicy": "IfNotPresent", "command": command,
        "ports": [{ "name": "http", "containerPort": HTTP_PORT }, { "name": "grpc", "containerPort": GRPC_PORT }],
        "readinessProbe": { "tcpSocket": { "port": "http" }, "periodSeconds": 1 },
        "securityContext": { "runAsNonRoot": true, "readOnlyRootFilesystem": true, "allowPrivilegeEscalation": false },
    });
    json!({ "apiVersion": "v1", "kind": "List", "items": [
        { "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": name }, "spec": {
            "replicas": replicas, "selector": { "matchLabels": labels }, "template": { "metadata": { "labels": labels },
                "spec": { "terminationGracePeriodSeconds": 1, "containers": [container] } } } },
        { "apiVersion": "v1", "kind": "Service", "metadata": { "name": name }, "spec": { "selector": labels, "ports": [
            { "name": "http", "port": HTTP_PORT, "targetPort": "http" },
            { "name": "grpc", "port": GRPC_PORT, "targetPort": "grpc" } ] } } ] })
}

/// `sluice` as the cluster's administrator.
pub fn sluice(cluster: &Cluster) -> Result<Command> {
    let mut command = Command::new(binaries::find("sluice")?);
    command.env("KUBECONFIG", cluster.kubeconfig());
    Ok(command)
}

async fn load(cluster: &Cluster, name: &str, programs: &[&str], user: &str) -> Result<String> {
    let folder = tempfile::tempdir()?;
    let (mut stripped, mut hasher) = (Vec::new(), Hasher::new(&SHA256));
    for program in programs {
        // Debug information is most of it, and of no use in a pod.
        let (from, to) = (binaries::find(program)?, folder.path().join(program));
        let status = Command::new("strip").arg("-o").args([&to, &from]).status();
        ensure!(status.context("running strip (package binutils)")?.success(), "strip {program}");
        hasher.update(&std::fs::read(&to)?);
        stripped.push(Program::new(to, &format!("/{program}")));
    }
    let digest: String = hasher.finish().as_ref().iter().take(6).map(|byte| format!("{byte:02x}")).collect();
    let registry = env::var(REGISTRY).ok().filter(|_| !cluster.is_own());
    let name = format!("{}/{name}:test-{digest}", registry.as_deref().unwrap_or("sluice.dev"));
    let mut stripped = stripped.into_iter();
    let first = Image::new(&name, stripped.next().context("an image without program")?).user(user);
    let image = stripped.fold(first, Image::with);
    if registry.is_some() {
        Box::pin(push::push(&image.pack()?, &name)).await?;
    } else {
        let file = folder.path().join("image.tar");
        image.save(&file)?;
        let imported = cluster.import(&file).await;
        imported.with_context(|| format!("to push images to a registry instead, name it in {REGISTRY}"))?;
    }
    Ok(name)
}
