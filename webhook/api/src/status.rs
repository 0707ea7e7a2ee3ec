//! What is reported about an Intercept: conditions, and one entry for each pod.
//!
//! Owns the vocabulary. The controller writes it by server-side apply on the `status` subresource.

#![expect(unreachable_pub, reason = "the derive of KubeSchema repeats the types inside a function")]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
pub use sluice_protocol::control::{Counters, PortWay};
use sluice_protocol::key::KeyHash;

/// Most pods that are listed one by one; `podsReady` counts them all.
pub const MAX_PODS: usize = 256;

/// Types of condition.
pub mod condition {
    /// The Intercept is possible: its target exists, its ports are known, it overlaps with no older one.
    pub const ACCEPTED: &str = "Accepted";
    /// Every pod of the target has an agent that reports the rule in its kernel.
    pub const AGENTS_READY: &str = "AgentsReady";
    /// The client has a connection to every one of these agents.
    pub const CONNECTED: &str = "Connected";
    /// All of the above: what matches is answered by the client, whichever pod it reaches.
    pub const READY: &str = "Ready";
    /// All of them.
    pub const ALL: [&str; 4] = [ACCEPTED, AGENTS_READY, CONNECTED, READY];
}

/// What is known about an Intercept.
#[derive(KubeSchema, Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InterceptStatus {
    /// The generation of the specification that this is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Accepted, AgentsReady, Connected and Ready, each with its reason in words.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// Pods that are ready, of all, such as `3/4`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pods_ready: Option<String>,
    /// One entry for each pod of the target.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["uid".into()]))]
    pub pods: Vec<PodStatus>,
    /// Since when none of the agents that wait for the client has a connection to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "optional_time")]
    pub client_away_since: Option<String>,
    /// When it ends by its time to live.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "optional_time")]
    pub expires_at: Option<String>,
}

/// What is known about one pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PodStatus {
    /// The pod's uid: a StatefulSet gives the same name to another pod.
    pub uid: String,
    /// Its name.
    pub name: String,
    /// Its node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Where its agent accepts clients.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tunnel: Option<String>,
    /// Hash of its agent's key, which the client must meet there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_hash: Option<KeyHash>,
    /// Its agent has the rule in its kernel.
    pub programmed: bool,
    /// The client is connected to its agent.
    pub connected: bool,
    /// What is missing, in words; empty when nothing is.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Connections to its ports that were open before the agent took these, and so stay with the app.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "optional_count")]
    pub existing_connections: Option<u64>,
    /// Which way each of its ports is intercepted there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub ways: Vec<PortWay>,
    /// What the agent has counted for this Intercept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counters: Option<Counters>,
}

fn optional_count(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({"type": "integer", "format": "int64", "minimum": 0, "nullable": true})
}

fn optional_time(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({"type": "string", "format": "date-time", "nullable": true})
}
