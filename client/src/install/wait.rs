//! Waiting until what was installed works, with a line for each change.

use std::time::Duration;

use anyhow::bail;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::ListParams;
use kube::api::PostParams;
use sluice::Identity;
use sluice_api::Intercept;
use sluice_api::InterceptPort;
use sluice_api::InterceptSpec;
use sluice_api::Target;
use sluice_api::TargetKind;
use sluice_api::contract;
use sluice_protocol::rules::Client;
use tokio::time::Instant;

use super::DEFINITION;
use super::definitions;
use crate::cluster::Cluster;

/// Pause between two looks.
const PAUSE: Duration = Duration::from_millis(300);

/// Says what is waited for, once each time it changes.
struct Progress {
    said: String,
    deadline: Instant,
}

impl Progress {
    fn until(deadline: Instant) -> Self {
        Self { said: String::new(), deadline }
    }

    /// Waits a moment; an error if there is no time left.
    async fn pause(&mut self, waiting_for: String) -> anyhow::Result<()> {
        if Instant::now() >= self.deadline {
            bail!("not done in time: {waiting_for}");
        }
        if waiting_for != self.said {
            eprintln!("{waiting_for}");
            self.said = waiting_for;
        }
        tokio::time::sleep(PAUSE).await;
        Ok(())
    }
}

/// Waits until the API server serves Intercepts.
pub(crate) async fn established(cluster: &Cluster, deadline: Instant) -> anyhow::Result<()> {
    let mut progress = Progress::until(deadline);
    loop {
        let definition = definitions(cluster).get(DEFINITION).await;
        let definition = definition.map_err(|error| cluster.explain("read the resource definition", error))?;
        let conditions = definition.status.into_iter().filter_map(|status| status.conditions).flatten();
        let mut refused = None;
        for condition in conditions {
            match (condition.type_.as_str(), condition.status.as_str()) {
                ("Established", "True") => return Ok(()),
                ("NamesAccepted", "False") => refused = condition.message,
                _ => {}
            }
        }
        let why = refused.map(|message| format!(": {message}")).unwrap_or_default();
        progress.pause(format!("waiting until the API server serves Intercepts{why}")).await?;
    }
}

/// The control plane's Deployment, if it is there.
pub(crate) async fn deployment(cluster: &Cluster) -> anyhow::Result<Option<Deployment>> {
    let api: Api<Deployment> = Api::namespaced(cluster.client.clone(), contract::NAMESPACE);
    let found = api.get_opt(contract::object::WEBHOOK).await;
    found.map_err(|error| cluster.explain("read the control plane's Deployment", error))
}

/// Waits until all replicas of the control plane are those of the last change, and ready.
pub(crate) async fn rolled_out(cluster: &Cluster, deadline: Instant) -> anyhow::Result<()> {
    let mut progress = Progress::until(deadline);
    loop {
        let waiting_for = match deployment(cluster).await? {
            Some(deployment) => match missing(&deployment) {
                None => return Ok(()),
                Some(missing) => missing,
            },
            None => "the control plane's Deployment is gone".to_owned(),
        };
        let why = troubles(cluster).await;
        progress.pause(format!("{waiting_for}{why}")).await?;
    }
}

/// What a Deployment waits for.
fn missing(deployment: &Deployment) -> Option<String> {
    let wanted = deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
    let status = deployment.status.clone().unwrap_or_default();
    if status.observed_generation < deployment.metadata.generation {
        return Some("waiting until Kubernetes takes the Deployment in".to_owned());
    }
    let (updated, available) = (status.updated_replicas.unwrap_or(0), status.available_replicas.unwrap_or(0));
    let old = status.replicas.unwrap_or(0) - updated;
    if updated >= wanted && available >= wanted && old <= 0 {
        return None;
    }
    Some(format!("control plane: {} of {wanted} replicas ready", available.min(updated)))
}

/// Why pods of the control plane do not start, as the kubelet says it.
async fn troubles(cluster: &Cluster) -> String {
    let api: Api<Pod> = Api::namespaced(cluster.client.clone(), contract::NAMESPACE);
    let selector = format!("app.kubernetes.io/name={}", contract::object::WEBHOOK);
    let Ok(pods) = api.list(&ListParams::default().labels(&selector)).await else { return String::new() };
    let statuses = pods.items.iter().filter_map(|pod| pod.status.as_ref());
    let containers = statuses.flat_map(|status| status.container_statuses.iter().flatten());
    let waiting = containers.filter_map(|container| container.state.as_ref()?.waiting.as_ref());
    let trouble = waiting.filter_map(|waiting| {
        let reason = waiting
            .reason
            .as_deref()
            .filter(|reason| *reason != "ContainerCreating" && *reason != "PodInitializing")?;
        Some(format!(": {reason}: {}", waiting.message.as_deref().unwrap_or_default()))
    });
    trouble.min().unwrap_or_default()
}

/// Waits until the API server asks the control plane about Intercepts.
pub(crate) async fn admission(cluster: &Cluster, deadline: Instant) -> anyhow::Result<()> {
    let api: Api<Intercept> = Api::namespaced(cluster.client.clone(), contract::NAMESPACE);
    let probe = probe()?;
    let dry = PostParams { dry_run: true, ..PostParams::default() };
    let mut progress = Progress::until(deadline);
    loop {
        let waiting_for = match api.create(&dry, &probe).await {
            // The owner is the webhook's stamp.
            Ok(answer) if answer.spec.owner.is_some() => return Ok(()),
            Ok(_) => "waiting until the API server asks the control plane".to_owned(),
            Err(kube::Error::Api(status)) if status.message.contains(" denied the request: ") => return Ok(()),
            Err(kube::Error::Api(status)) if status.code >= 500 || status.code == 404 => {
                format!("waiting until the API server reaches the control plane: {}", status.message)
            }
            Err(error) => return Err(cluster.explain("try out the control plane", error)),
        };
        progress.pause(waiting_for).await?;
    }
}

/// An Intercept that is never stored.
fn probe() -> anyhow::Result<Intercept> {
    let port = InterceptPort { port: 80.try_into().ok(), name: None, protocol: Default::default(), local: None };
    let spec = InterceptSpec {
        target: Target { kind: TargetKind::Pod, name: "installation-probe".to_owned() },
        ports: vec![port],
        matches: Default::default(),
        mode: Default::default(),
        on_unavailable: Default::default(),
        include_probes: false,
        reset_existing: false,
        steering: Default::default(),
        client: Client { key_hash: Identity::generate()?.hash() },
        owner: None,
        ttl: None,
    };
    Ok(Intercept::new("installation-probe", spec))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn e03_a_rollout_is_over_when_no_old_replica_is_left() {
        let missing = |status: serde_json::Value| {
            let json = json!({"metadata": {"generation": 2}, "spec": {"replicas": 2, "selector": {}, "template": {}}, "status": status});
            missing(&serde_json::from_value(json).unwrap())
        };
        let done = json!({"observedGeneration": 2, "replicas": 2, "updatedReplicas": 2, "availableReplicas": 2});
        assert_eq!(missing(done), None);
        assert!(
            missing(json!({"observedGeneration": 1, "replicas": 2, "updatedReplicas": 2, "availableReplicas": 2}))
                .is_some()
        );
        let one_old = json!({"observedGeneration": 2, "replicas": 3, "updatedReplicas": 2, "availableReplicas": 3});
        assert_eq!(missing(one_old).unwrap(), "control plane: 2 of 2 replicas ready");
        let starting = json!({"observedGeneration": 2, "replicas": 2, "updatedReplicas": 2, "availableReplicas": 1});
        assert_eq!(missing(starting).unwrap(), "control plane: 1 of 2 replicas ready");
        assert_eq!(missing(json!({"observedGeneration": 2})).unwrap(), "control plane: 0 of 2 replicas ready");
    }
}
