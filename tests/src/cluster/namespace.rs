//! A namespace of a test's own, and what tests do in it.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::{Cluster, Kubectl};
use crate::run_id::RunId;

/// Label of test namespaces: the run that made it, so that later ones can tell whether it still lives.
const LABEL: &str = "sluice.dev/test-run";

/// How long removing a namespace with all that is in it may take: pods get their grace period.
const REMOVED_WITHIN: Duration = Duration::from_secs(120);

static MADE: AtomicUsize = AtomicUsize::new(0);

/// A namespace with a unique name. One that is dropped without [`Namespace::finish`] belongs to a failed test; it is
/// removed by the next run.
#[derive(Debug)]
#[must_use = "`finish` removes it"]
pub struct Namespace {
    cluster: Cluster,
    name: String,
}

// === impl Namespace ===

impl Namespace {
    pub(crate) async fn new(cluster: &Cluster, name: &str, labels: &[(&str, &str)]) -> Result<Self> {
        sweep(cluster).await?;
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let name = format!("{name}-{}-{number}", RunId::ours().to_string().replace('.', "-"));
        let mut all = json!({ LABEL: RunId::ours().to_string() });
        labels.iter().for_each(|&(label, value)| all[label] = json!(value));
        let manifest = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name, "labels": all } });
        cluster.kubectl(&["create", "-f", "-"]).input(&manifest.to_string()).run().await?;
        let namespace = Self { cluster: cluster.clone(), name };
        // Before, no pod can be made in it.
        namespace.kubectl(&["wait", "--for=create", "serviceaccount/default", "--timeout=30s"]).run().await?;
        Ok(namespace)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// kubectl in this namespace.
    pub fn kubectl(&self, arguments: &[&str]) -> Kubectl {
        self.cluster.kubectl(&["--namespace", &self.name]).arguments(arguments)
    }

    /// Applies a manifest, YAML or JSON.
    pub async fn apply(&self, manifest: &Value) -> Result<()> {
        self.kubectl(&["apply", "-f", "-"]).input(&manifest.to_string()).run().await.map(drop)
    }

    /// One object as JSON.
    pub async fn get(&self, object: &str) -> Result<Value> {
        self.kubectl(&["get", object]).json().await
    }

    /// Waits until all pods of a workload (`deployment/NAME`) are the newest and available. The error shows the pods.
    pub async fn rolled_out(&self, workload: &str, within: Duration) -> Result<()> {
        let timeout = format!("--timeout={}s", within.as_secs());
        let waited = self.kubectl(&["rollout", "status", workload, &timeout]).within(within + Duration::from_secs(10));
        self.explained(waited).await
    }

    /// Waits until an object meets a condition, in the words of `kubectl wait --for`.
    pub async fn wait(&self, object: &str, condition: &str, within: Duration) -> Result<()> {
        let (condition, timeout) = (format!("--for={condition}"), format!("--timeout={}s", within.as_secs()));
        let waited = self.kubectl(&["wait", object, &condition, &timeout]).within(within + Duration::from_secs(10));
        self.explained(waited).await
    }

    /// Runs a command in a pod (`pod/NAME`, `deployment/NAME`) and returns what it printed.
    pub async fn exec(&self, target: &str, command: &[&str]) -> Result<String> {
        self.kubectl(&["exec", target, "--"]).arguments(command).run().await
    }

    /// Removes it with all that is in it, and waits until it is gone.
    pub async fn finish(self) -> Result<()> {
        let delete = ["delete", "namespace", &self.name, "--wait", "--ignore-not-found"];
        self.cluster.kubectl(&delete).within(REMOVED_WITHIN).run().await.map(drop)
    }

    async fn explained(&self, command: Kubectl) -> Result<()> {
        let Err(error) = command.run().await else { return Ok(()) };
        let pods = self.kubectl(&["get", "pods", "-o", "wide"]).run().await.unwrap_or_default();
        let events = self.kubectl(&["get", "events", "--sort-by=.lastTimestamp"]).run().await.unwrap_or_default();
        Err(error).with_context(|| format!("namespace {}:\n{pods}\n{events}", self.name))
    }
}

/// Removes the namespaces of runs that have ended without doing so.
async fn sweep(cluster: &Cluster) -> Result<()> {
    let found: Value = cluster.kubectl(&["get", "namespaces", "--selector", LABEL]).json().await?;
    for item in found["items"].as_array().into_iter().flatten() {
        let run = item["metadata"]["labels"][LABEL].as_str().and_then(|run| run.parse::<RunId>().ok());
        let (Some(run), Some(name)) = (run, item["metadata"]["name"].as_str()) else { continue };
        // On a cluster that others use too the run may be another machine's.
        if cluster.is_own() && !run.is_alive() {
            cluster.kubectl(&["delete", "namespace", name, "--wait=false", "--ignore-not-found"]).run().await?;
        }
    }
    Ok(())
}
