//! The workload that the user means, as it is in the cluster.
//!
//! Owns how workloads are written on the command line and finding them. It reads one object for each kind that is asked
//! for, and nothing of their pods.

use std::str::FromStr;

use anyhow::bail;
use futures_util::future::join_all;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::Api;
use kube::api::ApiResource;
use kube::api::DynamicObject;
use kube::api::ListParams;
use kube::core::GroupVersionKind;
use sluice_api::Target;
use sluice_api::TargetKind;

use crate::cluster::Cluster;
use crate::cluster::is_not_found;

/// Where a bare name is looked for.
const KINDS: [TargetKind; 5] =
    [TargetKind::Deployment, TargetKind::StatefulSet, TargetKind::DaemonSet, TargetKind::ReplicaSet, TargetKind::Pod];

/// Most names that an error lists.
const MAX_LISTED: u32 = 20;

/// What the user typed behind `--workload`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct WorkloadAsk {
    kind: Option<TargetKind>,
    name: String,
}

/// Why a text names no workload.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ParseWorkloadError {
    #[error(
        "{text:?} is no kind that can be intercepted: Deployment, StatefulSet, DaemonSet, ReplicaSet, Rollout, Pod"
    )]
    Kind { text: String },
    #[error("give KIND/NAME or NAME")]
    Name,
}

/// A workload that is there.
#[derive(Clone, Debug)]
pub(crate) struct Workload {
    pub(crate) target: Target,
    /// What its pods are made from; a Pod's own labels and specification.
    pub(crate) template: PodTemplateSpec,
}

impl WorkloadAsk {
    /// The name alone, without a kind.
    pub(crate) fn named(name: &str) -> Self {
        Self { kind: None, name: name.to_owned() }
    }

    /// Looks it up.
    pub(crate) async fn find(&self, cluster: &Cluster) -> anyhow::Result<Workload> {
        let kinds = self.kind.as_ref().map_or(KINDS.as_slice(), std::slice::from_ref);
        let looked_up = join_all(kinds.iter().map(|kind| get(cluster, *kind, &self.name))).await;
        let mut found = Vec::new();
        let mut failed = None;
        for (kind, outcome) in kinds.iter().zip(looked_up) {
            match outcome {
                Ok(Some(object)) => found.push((*kind, object)),
                Ok(None) => {}
                // A right on some kinds is enough if it is one of those.
                Err(error) => failed = failed.or(Some((*kind, error))),
            }
        }
        match (found.len(), found.pop(), failed) {
            (1, Some((kind, object)), _) => workload(kind, &self.name, object),
            (0, _, Some((kind, error))) => Err(cluster.explain(&format!("read the {kind:?} {}", self.name), error)),
            (_, None, _) => {
                let kinds = kinds.iter().map(|kind| format!("{kind:?}")).collect::<Vec<_>>().join(", ");
                let (name, namespace) = (&self.name, &cluster.namespace);
                bail!(
                    "there is no {kinds} named {name} in the namespace {namespace}: give --workload KIND/NAME or --namespace; \
                     Deployments there: {}",
                    deployments(cluster).await
                )
            }
            (_, Some(last), _) => {
                let choices = found.iter().chain([&last]).map(|(kind, _)| format!("--workload {kind:?}/{}", self.name));
                bail!(
                    "several workloads are named {}: give one of: {}",
                    self.name,
                    choices.collect::<Vec<_>>().join(", ")
                )
            }
        }
    }
}

impl FromStr for WorkloadAsk {
    type Err = ParseWorkloadError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (kind, name) = match text.split_once('/') {
            Some((kind, name)) => (Some(parse_kind(kind)?), name),
            None => (None, text),
        };
        if name.is_empty() || name.contains('/') {
            return Err(ParseWorkloadError::Name);
        }
        Ok(Self { kind, name: name.to_owned() })
    }
}

/// The ways in which kubectl takes them.
fn parse_kind(text: &str) -> Result<TargetKind, ParseWorkloadError> {
    Ok(match text.to_ascii_lowercase().as_str() {
        "deployment" | "deployments" | "deploy" => TargetKind::Deployment,
        "statefulset" | "statefulsets" | "sts" => TargetKind::StatefulSet,
        "daemonset" | "daemonsets" | "ds" => TargetKind::DaemonSet,
        "replicaset" | "replicasets" | "rs" => TargetKind::ReplicaSet,
        "rollout" | "rollouts" | "ro" => TargetKind::Rollout,
        "pod" | "pods" | "po" => TargetKind::Pod,
        _ => return Err(ParseWorkloadError::Kind { text: text.to_owned() }),
    })
}

async fn get(cluster: &Cluster, kind: TargetKind, name: &str) -> kube::Result<Option<DynamicObject>> {
    let (group, version) = match kind {
        TargetKind::Pod => ("", "v1"),
        TargetKind::Rollout => ("argoproj.io", "v1alpha1"),
        TargetKind::Deployment | TargetKind::StatefulSet | TargetKind::DaemonSet | TargetKind::ReplicaSet => {
            ("apps", "v1")
        }
    };
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, &format!("{kind:?}")));
    let api: Api<DynamicObject> = Api::namespaced_with(cluster.client.clone(), &cluster.namespace, &resource);
    match api.get(name).await {
        Ok(object) => Ok(Some(object)),
        Err(error) if is_not_found(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

fn workload(kind: TargetKind, name: &str, object: DynamicObject) -> anyhow::Result<Workload> {
    let target = Target { kind, name: name.to_owned() };
    let owner = owner(object.metadata.owner_references.as_deref().unwrap_or_default());
    let template = if kind == TargetKind::Pod {
        let pod: Pod = object.try_parse()?;
        PodTemplateSpec { metadata: Some(pod.metadata), spec: pod.spec }
    } else {
        match object.data.pointer("/spec/template").cloned() {
            Some(template) if !template.is_null() => serde_json::from_value(template)?,
            _ => bail!("{target} has no pod template: name the workload that makes its pods with --workload"),
        }
    };
    if let Some(owner) = owner {
        tracing::warn!(
            "{target} belongs to {owner}: pods that replace its own are not intercepted; --workload {owner} would"
        );
    }
    Ok(Workload { target, template })
}

/// The workload that makes and replaces this one.
fn owner(references: &[OwnerReference]) -> Option<String> {
    let owner = references.iter().find(|reference| reference.controller == Some(true))?;
    parse_kind(&owner.kind).ok().map(|kind| format!("{kind:?}/{}", owner.name))
}

/// Names for an error, as far as the user may see them.
async fn deployments(cluster: &Cluster) -> String {
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("apps", "v1", "Deployment"));
    let api: Api<DynamicObject> = Api::namespaced_with(cluster.client.clone(), &cluster.namespace, &resource);
    match api.list_metadata(&ListParams::default().limit(MAX_LISTED)).await {
        Ok(list) if list.items.is_empty() => "none".to_owned(),
        Ok(list) => list.items.iter().map(kube::ResourceExt::name_any).collect::<Vec<_>>().join(", "),
        Err(_) => "unknown, you may not list them".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn a03_workloads_are_written_as_for_kubectl() {
        let ask = |text: &str| text.parse::<WorkloadAsk>();
        assert_eq!(ask("web").unwrap(), WorkloadAsk::named("web"));
        for (text, kind) in [
            ("Deployment/web", TargetKind::Deployment),
            ("deploy/web", TargetKind::Deployment),
            ("sts/web", TargetKind::StatefulSet),
            ("daemonsets/web", TargetKind::DaemonSet),
            ("RS/web", TargetKind::ReplicaSet),
            ("rollout/web", TargetKind::Rollout),
            ("po/web", TargetKind::Pod),
        ] {
            assert_eq!(ask(text).unwrap(), WorkloadAsk { kind: Some(kind), name: "web".to_owned() }, "{text}");
        }
        assert_eq!(ask("job/web"), Err(ParseWorkloadError::Kind { text: "job".to_owned() }));
        assert_eq!(ask("deploy/"), Err(ParseWorkloadError::Name));
        assert_eq!(ask("deploy/a/b"), Err(ParseWorkloadError::Name));
    }

    #[test]
    fn a03_the_template_is_found_in_each_kind() {
        let object = |json: Value| serde_json::from_value::<DynamicObject>(json).unwrap();
        let spec = serde_json::json!({"containers": [{"name": "app"}]});
        let deployment = object(serde_json::json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"},
            "spec": {"template": {"metadata": {"labels": {"a": "b"}}, "spec": spec}},
        }));
        let found = workload(TargetKind::Deployment, "web", deployment).unwrap();
        assert_eq!(found.template.spec.unwrap().containers[0].name, "app");
        assert_eq!(found.target.to_string(), "Deployment/web");
        let pod = object(serde_json::json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web", "labels": {"a": "b"}}, "spec": spec,
        }));
        let found = workload(TargetKind::Pod, "web", pod).unwrap();
        assert_eq!(found.template.metadata.unwrap().labels.unwrap()["a"], "b");
        let by_reference = object(serde_json::json!({
            "apiVersion": "argoproj.io/v1alpha1", "kind": "Rollout", "metadata": {"name": "web"},
            "spec": {"workloadRef": {"kind": "Deployment", "name": "web"}},
        }));
        assert!(
            workload(TargetKind::Rollout, "web", by_reference).unwrap_err().to_string().contains("no pod template")
        );
    }
}
