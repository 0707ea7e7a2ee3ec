//! The resource `Intercept`: one developer's wish to answer some of a workload's requests.
//!
//! Owns the shape, what the API server checks by itself (schema and CEL rules) and the words it refuses with. What
//! needs to know other objects, such as overlaps and the owner, is the admission server's.

#![expect(clippy::duplicated_attributes, reason = "columns of the same type are no mistake")]
#![expect(unreachable_pub, reason = "the derive of KubeSchema repeats the types inside a function")]

use std::{fmt, num::NonZeroU16};

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sluice_protocol::rules::{Client, Match, Mode, OnUnavailable, Protocol, Steering};

use crate::status::InterceptStatus;

/// Most ports one Intercept may have: bounds the cost of the rules below.
pub const MAX_PORTS: usize = 16;

/// Takes requests away from a workload's pods and has them answered by a developer's machine.
#[derive(CustomResource, KubeSchema, Debug, Clone, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "sluice.dev",
    version = "v1alpha1",
    kind = "Intercept",
    plural = "intercepts",
    shortname = "ic",
    namespaced,
    status = "InterceptStatus",
    derive = "PartialEq",
    doc = "Takes requests away from a workload's pods and has them answered by a developer's machine.",
    selectable = ".spec.target.kind",
    selectable = ".spec.target.name",
    printcolumn(name = "Kind", type_ = "string", json_path = ".spec.target.kind"),
    printcolumn(name = "Target", type_ = "string", json_path = ".spec.target.name"),
    printcolumn(name = "Owner", type_ = "string", json_path = ".spec.owner"),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status",
        description = "Whether every pod has the rule in its kernel and the client's connection open"
    ),
    printcolumn(
        name = "Pods",
        type_ = "string",
        json_path = ".status.podsReady",
        description = "Pods that are ready, of all"
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].message",
        priority = 1
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[cfg_attr(test, kube(cel))]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.owner) == has(oldSelf.owner) && (!has(self.owner) || self.owner == oldSelf.owner)")
        .message("the owner is who created the Intercept and cannot be changed: delete it and create your own")
        .field_path(".owner"),
    validation = Rule::new("self.mode != 'Wiretap' || self.onUnavailable != 'Reject'")
        .message("a wiretap rejects nothing: leave onUnavailable out, since the app answers")
        .field_path(".onUnavailable"),
    validation = Rule::new(
        "self.steering != 'insertion' || has(self.match) && (has(self.match.path) || has(self.match.method) \
         || has(self.match.headers) && self.match.headers.size() > 0 || has(self.match.baggage) && self.match.baggage.size() > 0)"
    )
        .message("insertion needs HTTP conditions: add a match, or leave steering out")
        .field_path(".steering")
)]
pub struct InterceptSpec {
    /// Whose pods.
    #[x_kube(validation = Rule::new("self == oldSelf").message("the target cannot be changed: delete the Intercept and create another"))]
    pub target: Target,

    /// Which of their ports; at least one.
    #[schemars(length(min = 1, max = 16))]
    #[x_kube(
        validation = Rule::new(
            "self.all(a, self.filter(b, a.protocol == b.protocol && (has(a.port) && has(b.port) && a.port == b.port \
             || has(a.name) && has(b.name) && a.name == b.name)).size() == 1)"
        ).message("a port may be listed only once")
    )]
    pub ports: Vec<InterceptPort>,

    /// Which HTTP requests; left out (or without any condition) all TCP connections.
    #[serde(rename = "match", default, skip_serializing_if = "Match::is_empty")]
    pub matches: Match,

    /// Whether the client answers what matches, or gets a copy of it while the app answers.
    #[serde(default)]
    pub mode: Mode,

    /// What happens with what matches while its client cannot take it.
    #[serde(default)]
    pub on_unavailable: OnUnavailable,

    /// Whether HTTP requests of the kubelet's probes may match: those whose user agent begins with `kube-probe/`.
    #[serde(default)]
    pub include_probes: bool,

    /// Whether connections to these ports that are open already, of all callers, are reset when it comes into force. They
    /// stay with the app otherwise.
    #[serde(default)]
    pub reset_existing: bool,

    /// Which way its ports are intercepted: by `insertion` callers keep talking to the app, and the agent joins a connection
    /// only when a request may match; by `lookup` all connections to the ports pass through the agent. With `auto` each port
    /// has insertion where its Intercepts match HTTP requests by a header and the pod's kernel allows it, and lookup
    /// otherwise. The status says which way each port has in each pod, and why not insertion.
    #[serde(default)]
    pub steering: Steering,

    /// The client that it goes to.
    #[x_kube(validation = Rule::new("self == oldSelf").message("the client's key cannot be changed: delete the Intercept and create another"))]
    pub client: Client,

    /// Who created it, as the API server knows them. Set on creation, whatever was written here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    pub owner: Option<String>,

    /// How long it may exist, such as `2h` or `90m`; left out: for as long as its client is connected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "ttl_schema")]
    #[x_kube(
        validation = Rule::new("duration(self) >= duration('1m')").message("the shortest time to live is 1m")
    )]
    pub ttl: Option<kube::core::Duration>,
}

/// The workload whose pods are intercepted.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Target {
    /// Its kind.
    pub kind: TargetKind,
    /// Its name.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$"))]
    pub name: String,
}

/// The kinds of workload that can be a [`Target`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
pub enum TargetKind {
    /// apps/v1.
    Deployment,
    /// apps/v1.
    StatefulSet,
    /// apps/v1.
    DaemonSet,
    /// apps/v1.
    ReplicaSet,
    /// argoproj.io/v1alpha1.
    Rollout,
    /// A single pod.
    Pod,
}

/// A port of the pods.
#[derive(KubeSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.port) != has(self.name)").message("give either the port's number or its name"),
    validation = Rule::new("self.protocol == 'TCP'").message("UDP cannot be intercepted yet").field_path(".protocol")
)]
pub struct InterceptPort {
    /// Its number, as the app in the pod listens on it (not the Service's).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "optional_port")]
    pub port: Option<NonZeroU16>,
    /// Its name among the ports that the pod's containers declare.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$"))]
    pub name: Option<String>,
    /// Its protocol.
    #[serde(default)]
    pub protocol: Protocol,
    /// The port on the developer's machine; the client's own command line decides, this is for people to read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "optional_port")]
    pub local: Option<NonZeroU16>,
}

/// How an [`InterceptPort`] says which port it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PortRef<'a> {
    /// By its number.
    Number(NonZeroU16),
    /// By the name that a container gives it.
    Name(&'a str),
}

// === impl Intercept ===

impl Intercept {
    /// Who created it; for those that admission never saw, nobody.
    #[must_use]
    pub fn owner(&self) -> &str {
        self.spec.owner.as_deref().unwrap_or("nobody")
    }
}

// === impl InterceptPort ===

impl InterceptPort {
    /// The port's number, or else its name. `None` for one that has both or neither, which the schema refuses.
    #[must_use]
    pub fn reference(&self) -> Option<PortRef<'_>> {
        match (self.port, self.name.as_deref()) {
            (Some(number), None) => Some(PortRef::Number(number)),
            (None, Some(name)) => Some(PortRef::Name(name)),
            _ => None,
        }
    }
}

// === impl PortRef ===

impl fmt::Display for PortRef<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::Name(name) => f.write_str(name),
        }
    }
}

// === impl Target ===

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}/{}", self.kind, self.name)
    }
}

/// Kubernetes warns of every format that it does not know, `uint16` among them.
fn optional_port(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({"type": "integer", "format": "int32", "minimum": 1, "maximum": 65535, "nullable": true})
}

fn ttl_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({"type": "string", "maxLength": 32, "pattern": "^([0-9]+(h|m|s))+$", "nullable": true})
}

#[cfg(test)]
mod tests;
