//! What Sluice takes in a cluster: from `sluice intercept add` until it is ready, and the webhook's share of making a pod.
//!
//! On the cluster that is there (or that `KUBECONFIG` names), or on one of its own; what was not there before is taken
//! away again by [`ClusterBench::take_down`]: the namespace, Sluice if it was not installed, the cluster if it was not up.
//!
//! **What the numbers are good for.** All of Kubernetes and the client share the processors of one machine where the
//! cluster is one of our own. Each command is a new process, and its time is that of a person who waits for it.

mod adding;
mod report;
mod reviews;

use std::{process::Stdio, time::Duration};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::{
    cluster::{self, Cluster, Folder, Namespace},
    demo::on_cluster::Found,
    product::Images,
    run_id::RunId,
};

use adding::{Adding, Place};
pub use report::{Document, Measured, Row, Target, Webhook};

/// How long anything may take that is waited for.
const LIMIT: Duration = Duration::from_secs(120);

/// The workload that is intercepted.
const WORKLOAD: &str = "add";

/// How many pods it has, in turn.
const REPLICAS: [u32; 2] = [1, 4];

/// Runs of each case where nothing else is asked for.
const RUNS: usize = 10;

/// What to measure.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Another number of runs of each case.
    pub rounds: Option<usize>,
}

/// A benchmark on a cluster: everything that has to be taken away when it ends, however it ends.
#[derive(Debug, Default)]
pub struct ClusterBench {
    /// A cluster of ours that is being started.
    starting: Option<Folder>,
    found: Option<Found>,
    /// From when on there may be a namespace of ours in it.
    cluster: Option<Cluster>,
    namespace: Option<Namespace>,
}

// === impl ClusterBench ===

impl ClusterBench {
    /// Measures everything. `progress` is told what is being done. May be dropped at any time; in any case
    /// [`ClusterBench::take_down`] is due afterwards.
    pub async fn measure(&mut self, options: Options, progress: impl Fn(&str)) -> Result<Document> {
        let runs = options.rounds.unwrap_or(RUNS).max(1);
        let load_before = super::run::load_average()?;
        Box::pin(self.find(&progress)).await?;
        let cluster = Cluster::get().await?;
        progress("sluice install: the control plane, two replicas");
        let images = Images::load(&cluster).await?;
        images.install(&cluster, Stdio::piped()).await?;
        self.cluster = Some(cluster.clone());
        let namespace = cluster.labelled_namespace("sluice-bench", &[("sluice.dev/inject", "enabled")]).await?;
        let namespace = self.namespace.insert(namespace);
        progress("deploying add");
        namespace.apply(&workload(&images.demo)).await?;

        let mut measured = Measured { kubernetes: version(&cluster).await?, ..Measured::default() };
        // The node's network is at hand only where the node is.
        let near = if cluster.is_own() { Place::Node } else { Place::Machine };
        let adding = Adding::new(&cluster, namespace)?;
        let mut turns: Vec<_> = REPLICAS.into_iter().map(|replicas| (near, replicas)).collect();
        if cluster.is_own() {
            turns.insert(1, (Place::Machine, REPLICAS[0]));
        }
        for (place, replicas) in turns {
            scale(namespace, replicas).await?;
            progress(&format!("sluice intercept add, {place}, pods: {replicas}; {runs} times"));
            measured.rows.push(Box::pin(adding.measure(place, replicas, runs)).await?);
        }
        if cluster.is_own() {
            progress(&format!("{} reviews a second for {} s", reviews::RATE, reviews::SECONDS));
            measured.webhook = Some(Box::pin(reviews::measure(&cluster, namespace.name())).await?);
        } else {
            progress("the webhook is left out: its Service's network is not on this machine");
        }
        let cpus = std::thread::available_parallelism()?.get();
        Ok(Document { cluster: measured, cpus, load_before, ..Document::default() })
    }

    /// Takes away what was not there.
    pub async fn take_down(self) -> Result<()> {
        let removed = async {
            match (self.namespace, &self.cluster) {
                (Some(namespace), _) => namespace.finish().await,
                // Stopped while it was being made.
                (None, Some(cluster)) => remove_namespaces(cluster).await,
                (None, None) => Ok(()),
            }
        };
        let removed = removed.await;
        let restored = match (self.found, self.starting) {
            (Some(found), _) => Box::pin(found.restore()).await,
            (None, Some(folder)) => cluster::down(&folder).map(drop),
            (None, None) => Ok(()),
        };
        removed.and(restored)
    }

    async fn find(&mut self, progress: impl Fn(&str)) -> Result<()> {
        let folder = Folder::of_checkout()?;
        if cluster::given().is_none() && Cluster::at(&folder).is_err() {
            self.starting = Some(folder);
            self.found = Some(Found::get(progress).await?);
        } else {
            // What it says is about starting one.
            self.found = Some(Found::get(|_| {}).await?);
        }
        Ok(())
    }
}

/// `add` as a Deployment with a Service of the same name.
fn workload(image: &str) -> Value {
    let labels = json!({ "app": WORKLOAD });
    let container = json!({
        "name": "add", "image": image, "imagePullPolicy": "IfNotPresent",
        "command": ["/add", "--http", "[::]:8080", "--grpc", "[::]:9090"],
        "ports": [{ "name": "http", "containerPort": 8080 }, { "name": "grpc", "containerPort": 9090 }],
        "readinessProbe": { "tcpSocket": { "port": "http" }, "periodSeconds": 1 },
    });
    let template = json!({ "metadata": { "labels": labels },
        "spec": { "terminationGracePeriodSeconds": 1, "containers": [container] } });
    json!({ "apiVersion": "v1", "kind": "List", "items": [
        { "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": WORKLOAD },
            "spec": { "replicas": REPLICAS[0], "selector": { "matchLabels": labels }, "template": template } },
        { "apiVersion": "v1", "kind": "Service", "metadata": { "name": WORKLOAD }, "spec": { "selector": labels,
            "ports": [{ "name": "http", "port": 80, "targetPort": "http" }] } }] })
}

async fn scale(namespace: &Namespace, replicas: u32) -> Result<()> {
    let (workload, replicas) = (format!("deployment/{WORKLOAD}"), format!("--replicas={replicas}"));
    namespace.kubectl(&["scale", &workload, &replicas]).run().await?;
    namespace.rolled_out(&workload, LIMIT).await
}

async fn version(cluster: &Cluster) -> Result<String> {
    let found: Value = cluster.kubectl(&["version"]).json().await?;
    let version = found["serverVersion"]["gitVersion"].as_str();
    Ok(version.with_context(|| format!("a server without version: {found}"))?.to_owned())
}

/// Removes the namespaces that this process has made, known by their label.
async fn remove_namespaces(cluster: &Cluster) -> Result<()> {
    let ours = format!("sluice.dev/test-run={}", RunId::ours());
    let delete = ["delete", "namespace", "--selector", &ours, "--wait", "--ignore-not-found"];
    cluster.kubectl(&delete).within(LIMIT).run().await.map(drop)
}
