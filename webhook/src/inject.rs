//! Adds the agent to pods, as a pure function on their JSON.
//!
//! Owns the decision whether a pod gets the agent, and the patch that adds it. The patch only adds, works on the JSON
//! as it came (a typed pod would lose the fields of newer servers), and is empty for a pod that has the agent, since
//! the API server calls again whenever something else has changed the pod. Runs in the admission server; knows no
//! HTTP, asks no API server, keeps nothing.

use json_patch::Patch;
use k8s_openapi::api::core::v1::{LimitRangeSpec, ResourceQuotaSpec};
use serde_json::Value;
use sluice_api::contract::{NAMESPACE, SYSTEM_NAMESPACES, annotation, label, pod};
use sluice_protocol::{DEFAULT_ADMIN_PORT, DEFAULT_TUNNEL_PORT};

use std::collections::BTreeMap;

mod additions;
mod container;
mod quantity;
mod resources;

pub use resources::Sizes;

/// What is injected, from the command line and the certificates in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// The agent's image; its entry point is the agent.
    pub image: String,
    /// When the kubelet pulls it; `None`: Kubernetes decides by the tag.
    pub pull_policy: Option<PullPolicy>,
    /// As what kind of container.
    pub sidecar: Sidecar,
    /// Address of the controller's endpoint for agents.
    pub controller: String,
    /// The authorities that its certificate may come from, in PEM. They are public, so the environment is good enough,
    /// and better than a ConfigMap: a pod never waits for one that is missing, nothing has to be kept in every
    /// namespace, and nothing remains there. The price is that a pod knows the authorities of its first day only, which
    /// is why an authority overlaps with its successor for years (`tls::rotation`).
    pub authorities: String,
    /// What the agent asks for where the namespace does not demand otherwise.
    pub sizes: Sizes,
    /// Pod Security level of namespaces without a label, which the API server is told in a file that nobody else sees.
    pub default_level: Level,
}

/// `imagePullPolicy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum PullPolicy {
    /// Always.
    Always,
    /// Only if the node does not have it.
    IfNotPresent,
    /// Never.
    Never,
}

/// Kind of container that the agent becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Sidecar {
    /// An init container that is restarted always: up before the app, ended after it, no obstacle to a Job's end.
    Native,
    /// An ordinary container, for servers and kubelets that do not know the former.
    Container,
}

/// Pod Security level.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Level {
    /// Everything goes.
    Privileged,
    /// No capabilities beyond the container runtime's usual ones.
    Baseline,
    /// Hardly any.
    Restricted,
}

/// What has to be known about the pod's namespace.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct NamespaceFacts {
    /// Its name; a pod does not always carry it yet.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its LimitRanges.
    pub limit_ranges: Vec<LimitRangeSpec>,
    /// Its ResourceQuotas.
    pub quotas: Vec<ResourceQuotaSpec>,
}

/// What is to be done with a pod.
#[derive(Debug, Clone, PartialEq)]
pub struct Decision {
    /// What to add; empty for a pod that is left alone.
    pub patch: Patch,
    /// For the person who creates the pod.
    pub warnings: Vec<String>,
    /// Why it is left alone.
    pub skipped: Option<Skip>,
}

/// Why a pod is left alone.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Skip {
    /// The request has no pod.
    #[error("this is no pod")]
    NoPod,
    /// Neither it nor its namespace has the label.
    #[error("neither the pod nor its namespace asks for the agent")]
    NotAsked,
    /// Its own label or annotation says no.
    #[error("the pod opts out")]
    OptedOut,
    /// Nothing to do.
    #[error("the pod has the agent")]
    HasAgent,
    /// One of Kubernetes' own namespaces, or Sluice's.
    #[error("pods of the namespace {namespace} are never changed")]
    SystemNamespace {
        /// Its name.
        namespace: String,
    },
    /// The kubelet's own.
    #[error("the pod mirrors a static one")]
    MirrorPod,
    /// The kernel program would steer the whole node.
    #[error("the pod uses the node's network")]
    HostNetwork,
    /// The agent is a Linux program.
    #[error("the pod runs on Windows")]
    Windows,
    /// The kernel refuses BPF there.
    #[error("the pod has a user namespace of its own (hostUsers: false), in which the kernel allows no BPF")]
    UserNamespace,
    /// The pod would be refused.
    #[error(
        "the namespace {namespace} enforces the Pod Security level {level}, which forbids the agent's capabilities BPF, \
         NET_ADMIN and PERFMON"
    )]
    PodSecurity {
        /// The namespace.
        namespace: String,
        /// The level.
        level: Level,
    },
    /// The pod has a volume of the name that ours would have.
    #[error("the pod has a volume {volume} that is not the agent's")]
    VolumeTaken {
        /// Its name.
        volume: &'static str,
    },
    /// The app uses a port that the agent needs.
    #[error("the pod uses port {port}/{protocol}, which the agent needs")]
    PortTaken {
        /// Its number.
        port: u16,
        /// Its protocol.
        protocol: &'static str,
    },
    /// An ordinary container that never ends would keep it from ever completing.
    #[error("the pod runs to completion, which an agent as an ordinary container would prevent")]
    RunsToCompletion,
}

/// Decides about `pod`, which is about to be created in `namespace`.
#[must_use]
pub fn decide(pod: &Value, namespace: &NamespaceFacts, options: &Options) -> Decision {
    match obstacle(pod, namespace, options) {
        None => Decision { patch: additions::patch(pod, namespace, options), warnings: Vec::new(), skipped: None },
        Some(skip) => {
            let warnings = skip.warning().into_iter().collect();
            Decision { patch: Patch(Vec::new()), warnings, skipped: Some(skip) }
        }
    }
}

/// Whether `namespace` asks for the agent in all its pods.
#[must_use]
pub fn asks(labels: &BTreeMap<String, String>) -> bool {
    labels.get(label::INJECT).is_some_and(|value| value == label::ENABLED)
}

fn obstacle(pod: &Value, namespace: &NamespaceFacts, options: &Options) -> Option<Skip> {
    let (Some(Value::Object(_)), Some(Value::Array(_))) = (pod.get("spec"), pod.pointer("/spec/containers")) else {
        return Some(Skip::NoPod);
    };
    if SYSTEM_NAMESPACES.contains(&namespace.name.as_str()) || namespace.name == NAMESPACE {
        return Some(Skip::SystemNamespace { namespace: namespace.name.clone() });
    }
    if text(pod, &["metadata", "annotations", annotation::MIRROR]).is_some() {
        return Some(Skip::MirrorPod);
    }
    if containers(pod).any(|container| text(container, &["name"]) == Some(pod::CONTAINER)) {
        return Some(Skip::HasAgent);
    }
    asked(pod, namespace).or_else(|| impossible(pod)).or_else(|| refused(pod, namespace, options))
}

/// Whether anybody wants it.
fn asked(pod: &Value, namespace: &NamespaceFacts) -> Option<Skip> {
    let says = |place| text(pod, &["metadata", place, label::INJECT]);
    if [says("labels"), says("annotations")].contains(&Some(label::DISABLED)) {
        return Some(Skip::OptedOut);
    }
    let wanted = says("labels") == Some(label::ENABLED) || asks(&namespace.labels);
    (!wanted).then_some(Skip::NotAsked)
}

/// Whether the agent could work in it.
fn impossible(pod: &Value) -> Option<Skip> {
    if pod.pointer("/spec/hostNetwork") == Some(&Value::Bool(true)) {
        return Some(Skip::HostNetwork);
    }
    let systems = [
        text(pod, &["spec", "os", "name"]),
        text(pod, &["spec", "nodeSelector", "kubernetes.io/os"]),
        text(pod, &["spec", "nodeSelector", "beta.kubernetes.io/os"]),
    ];
    if systems.contains(&Some("windows")) {
        return Some(Skip::Windows);
    }
    (pod.pointer("/spec/hostUsers") == Some(&Value::Bool(false))).then_some(Skip::UserNamespace)
}

/// Whether the pod would still be accepted and work.
fn refused(pod: &Value, namespace: &NamespaceFacts, options: &Options) -> Option<Skip> {
    let level = namespace.labels.get(label::POD_SECURITY).map_or(options.default_level, |value| Level::of(value));
    if level > Level::Privileged {
        return Some(Skip::PodSecurity { namespace: namespace.name.clone(), level });
    }
    if list(pod, "volumes").any(|volume| text(volume, &["name"]) == Some(pod::VOLUME)) {
        return Some(Skip::VolumeTaken { volume: pod::VOLUME });
    }
    for (port, protocol) in [(DEFAULT_TUNNEL_PORT, "UDP"), (DEFAULT_ADMIN_PORT, "TCP")] {
        let takes = |declared: &Value| {
            declared.get("containerPort").and_then(Value::as_u64) == Some(port.into())
                && text(declared, &["protocol"]).unwrap_or("TCP") == protocol
        };
        if containers(pod).flat_map(|c| c.get("ports").and_then(Value::as_array)).flatten().any(takes) {
            return Some(Skip::PortTaken { port, protocol });
        }
    }
    let completes = text(pod, &["spec", "restartPolicy"]).is_some_and(|policy| policy != "Always");
    (completes && options.sidecar == Sidecar::Container).then_some(Skip::RunsToCompletion)
}

/// All containers that the pod starts with.
fn containers(pod: &Value) -> impl Iterator<Item = &Value> {
    list(pod, "initContainers").chain(list(pod, "containers"))
}

fn list<'a>(pod: &'a Value, name: &str) -> impl Iterator<Item = &'a Value> + use<'a> {
    pod.get("spec").and_then(|spec| spec.get(name)).and_then(Value::as_array).into_iter().flatten()
}

fn text<'a>(value: &'a Value, path: &[&str]) -> Option<&'a str> {
    path.iter().try_fold(value, |value, key| value.get(*key)).and_then(Value::as_str)
}

// === impl Skip ===

impl Skip {
    /// What to tell the person who creates the pod, if they asked for the agent and do not get it.
    #[must_use]
    pub fn warning(&self) -> Option<String> {
        let remedy = match self {
            Self::NoPod | Self::NotAsked | Self::OptedOut | Self::HasAgent | Self::SystemNamespace { .. } => {
                return None;
            }
            Self::MirrorPod => return None,
            Self::PodSecurity { .. } => {
                format!("; label the namespace {}=privileged to allow it", label::POD_SECURITY)
            }
            Self::HostNetwork
            | Self::Windows
            | Self::UserNamespace
            | Self::VolumeTaken { .. }
            | Self::PortTaken { .. }
            | Self::RunsToCompletion => String::new(),
        };
        Some(format!("starts without Sluice's agent: {self}{remedy}"))
    }
}

// === impl Level ===

impl Level {
    /// The level of a label's value; the API server, too, takes one that it does not know for the strictest.
    #[must_use]
    pub fn of(value: &str) -> Self {
        match value {
            "privileged" => Self::Privileged,
            "baseline" => Self::Baseline,
            _ => Self::Restricted,
        }
    }
}

impl std::fmt::Display for Level {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Privileged => "privileged",
            Self::Baseline => "baseline",
            Self::Restricted => "restricted",
        })
    }
}

#[cfg(test)]
mod tests;
