//! Sluice itself in a cluster: its images, made of the programs beside the running one, and its installation by the real
//! command.

use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use ring::digest::{Context as Hasher, SHA256};

use crate::{
    binaries,
    cluster::Cluster,
    image::{Image, Program},
};

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
        let root = "0:0";
        let nobody = "65532:65532";
        Ok(Self {
            agent: load(cluster, "agent", &["sluice-agent"], root).await?,
            webhook: load(cluster, "webhook", &["sluice-webhook"], nobody).await?,
            demo: load(cluster, "test-demo", &["add", "tictac", "call"], nobody).await?,
        })
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
    let name = format!("sluice.dev/{name}:test-{digest}");
    let mut stripped = stripped.into_iter();
    let first = Image::new(&name, stripped.next().context("an image without program")?).user(user);
    let file = folder.path().join("image.tar");
    stripped.fold(first, Image::with).save(&file)?;
    cluster.import(&file).await?;
    Ok(name)
}
