//! The manifests that are built into this program.
//!
//! Owns reading them, their order, and what is changed in them: the images, and the label that kustomize adds too.

use std::collections::BTreeMap;
use std::fmt;

use anyhow::Context as _;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Container;
use kube::Api;
use kube::ResourceExt as _;
use kube::api::ApiResource;
use kube::api::DynamicObject;
use kube::core::GroupVersionKind;
use serde_json::Value;
use sluice_api::contract;

use crate::cluster::Cluster;

/// In the order in which they are applied: what others need comes first; webhooks come last, when their server is on its
/// way.
const FILES: [(&str, &str); 9] = [
    ("namespace.yaml", include_str!("../../../manifests/base/namespace.yaml")),
    ("crd.yaml", include_str!("../../../manifests/base/crd.yaml")),
    ("rbac.yaml", include_str!("../../../manifests/base/rbac.yaml")),
    ("roles.yaml", include_str!("../../../manifests/base/roles.yaml")),
    ("service.yaml", include_str!("../../../manifests/base/service.yaml")),
    ("network.yaml", include_str!("../../../manifests/base/network.yaml")),
    ("disruption.yaml", include_str!("../../../manifests/base/disruption.yaml")),
    ("deployment.yaml", include_str!("../../../manifests/base/deployment.yaml")),
    ("webhooks.yaml", include_str!("../../../manifests/base/webhooks.yaml")),
];

/// Kinds without a namespace.
const OF_CLUSTER: [&str; 5] =
    ["Namespace", "CustomResourceDefinition", "ClusterRole", "ClusterRoleBinding", "MutatingWebhookConfiguration"];

const LABEL: (&str, &str) = ("app.kubernetes.io/part-of", "sluice");

/// Annotation of the Deployment: which version of this program put its images there.
const VERSION: &str = "sluice.dev/installed-version";

/// The environment variable of the control plane that names the agent's image.
const AGENT_IMAGE: &str = "SLUICE_AGENT_IMAGE";

/// The control plane's container.
const CONTAINER: &str = "webhook";

/// The two images.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Images {
    pub(crate) webhook: String,
    pub(crate) agent: String,
}

/// One object.
#[derive(Clone, Debug)]
pub(crate) struct Manifest {
    pub(crate) object: DynamicObject,
    resource: ApiResource,
}

/// All objects, in the order in which they are applied.
pub(crate) fn all(images: &Images) -> anyhow::Result<Vec<Manifest>> {
    let mut manifests = Vec::new();
    for (file, text) in FILES {
        for document in documents(file, text)? {
            manifests.push(Manifest::new(document, images).with_context(|| format!("{file} cannot be used"))?);
        }
    }
    Ok(manifests)
}

fn documents(file: &str, text: &str) -> anyhow::Result<Vec<Value>> {
    serde_saphyr::from_multiple(text).with_context(|| format!("{file} is no YAML"))
}

// === impl Images ===

impl Images {
    /// As the manifests name them.
    pub(crate) fn of_this_version() -> anyhow::Result<Self> {
        let (_, text) = FILES.iter().find(|(file, _)| *file == "deployment.yaml").context("no deployment.yaml")?;
        let deployment: Deployment = serde_saphyr::from_str(text).context("deployment.yaml cannot be used")?;
        Self::of(&deployment).context("deployment.yaml names no images")
    }

    /// Those of a Deployment that this version installed.
    pub(crate) fn installed(deployment: &Deployment) -> Option<Self> {
        let version = deployment.annotations().get(VERSION)?;
        if version == env!("CARGO_PKG_VERSION") { Self::of(deployment) } else { None }
    }

    fn of(deployment: &Deployment) -> Option<Self> {
        let containers = &deployment.spec.as_ref()?.template.spec.as_ref()?.containers;
        let Container { image, env, .. } = containers.iter().find(|container| container.name == CONTAINER)?;
        let agent = env.iter().flatten().find(|variable| variable.name == AGENT_IMAGE)?.value.clone()?;
        Some(Self { webhook: image.clone()?, agent })
    }

    fn set(&self, deployment: &mut Value) -> anyhow::Result<()> {
        let containers = deployment.pointer_mut("/spec/template/spec/containers").and_then(Value::as_array_mut);
        let named = |list: &'_ Value, name: &str| list.get("name").and_then(Value::as_str) == Some(name);
        let container = containers.and_then(|all| all.iter_mut().find(|container| named(container, CONTAINER)));
        let container = container.context("the Deployment has no container for the control plane")?;
        container["image"] = self.webhook.clone().into();
        let variables = container.get_mut("env").and_then(Value::as_array_mut);
        let variable = variables.and_then(|all| all.iter_mut().find(|variable| named(variable, AGENT_IMAGE)));
        variable.context("the Deployment does not name the agent's image")?["value"] = self.agent.clone().into();
        Ok(())
    }
}

// === impl Manifest ===

impl Manifest {
    fn new(mut document: Value, images: &Images) -> anyhow::Result<Self> {
        if document.get("kind").and_then(Value::as_str) == Some("Deployment") {
            images.set(&mut document)?;
        }
        let mut object: DynamicObject = serde_json::from_value(document)?;
        object.labels_mut().insert(LABEL.0.to_owned(), LABEL.1.to_owned());
        let types = object.types.as_ref().context("no apiVersion or kind")?;
        let kind = GroupVersionKind::try_from(types).context("no apiVersion or kind")?;
        if kind.kind == "Deployment" {
            let version = BTreeMap::from([(VERSION.to_owned(), env!("CARGO_PKG_VERSION").to_owned())]);
            object.annotations_mut().extend(version);
        }
        Ok(Self { object, resource: ApiResource::from_gvk(&kind) })
    }

    pub(crate) fn name(&self) -> String {
        self.object.name_any()
    }

    pub(crate) fn kind(&self) -> &str {
        &self.resource.kind
    }

    /// Whether it belongs to no namespace and so does not go with one.
    pub(crate) fn is_of_cluster(&self) -> bool {
        OF_CLUSTER.contains(&self.kind())
    }

    pub(crate) fn api(&self, cluster: &Cluster) -> Api<DynamicObject> {
        let client = cluster.client.clone();
        match self.object.metadata.namespace.as_deref() {
            Some(namespace) => Api::namespaced_with(client, namespace, &self.resource),
            None if self.is_of_cluster() => Api::all_with(client, &self.resource),
            None => Api::namespaced_with(client, contract::NAMESPACE, &self.resource),
        }
    }
}

impl fmt::Display for Manifest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind(), self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn images() -> Images {
        Images { webhook: "registry/webhook:1".to_owned(), agent: "registry/agent:2".to_owned() }
    }

    #[test]
    fn every_manifest_of_the_base_is_built_in() {
        let base = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests/base");
        let files: Vec<_> = std::fs::read_dir(base).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        for file in files.iter().filter_map(|name| name.to_str()).filter(|name| *name != "kustomization.yaml") {
            assert!(FILES.iter().any(|(known, _)| *known == file), "{file}");
        }
    }

    #[test]
    fn the_order_lets_each_find_what_it_needs() {
        let kinds: Vec<_> = all(&images()).unwrap().iter().map(|manifest| manifest.kind().to_owned()).collect();
        assert_eq!(kinds.first().map(String::as_str), Some("Namespace"));
        assert_eq!(kinds.get(1).map(String::as_str), Some("CustomResourceDefinition"));
        assert_eq!(kinds.last().map(String::as_str), Some("MutatingWebhookConfiguration"));
        assert!(kinds.iter().filter(|kind| *kind == "ClusterRole").count() >= 3);
    }

    #[test]
    fn kinds_have_the_plural_that_the_api_server_knows() {
        let plural = |kind: &str| {
            let all = all(&images()).unwrap();
            all.iter()
                .find(|manifest| manifest.kind() == kind)
                .map(|manifest| manifest.resource.plural.clone())
                .unwrap()
        };
        assert_eq!(plural("NetworkPolicy"), "networkpolicies");
        assert_eq!(plural("PodDisruptionBudget"), "poddisruptionbudgets");
        assert_eq!(plural("MutatingWebhookConfiguration"), "mutatingwebhookconfigurations");
        assert_eq!(plural("CustomResourceDefinition"), "customresourcedefinitions");
    }

    #[test]
    fn images_are_set_and_read_back() {
        let all = all(&images()).unwrap();
        let deployment = all.iter().find(|manifest| manifest.kind() == "Deployment").unwrap();
        let deployment: Deployment = deployment.object.clone().try_parse().unwrap();
        assert_eq!(Images::installed(&deployment), Some(images()));
        assert!(Images::of_this_version().unwrap().agent.contains("agent:"));
    }

    #[test]
    fn the_authority_of_webhooks_is_not_touched() {
        let text = serde_json::to_string(&all(&images()).unwrap().last().unwrap().object).unwrap();
        assert!(text.contains("clientConfig") && !text.contains("caBundle"));
    }
}
