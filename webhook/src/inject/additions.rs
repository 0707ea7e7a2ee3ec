//! The patch that adds the agent to a pod.
//!
//! Owns the places: what goes where, and what to do when the place does not exist yet. Every operation is an `add`,
//! and lists only grow at their end, so that containers that are there keep their order.

use json_patch::{AddOperation, Patch, PatchOperation, jsonptr::PointerBuf};
use ring::digest::{SHA256, digest};
use serde_json::{Map, Value, json};
use sluice_api::contract::{annotation, label};

use super::{NamespaceFacts, Options, Sidecar, container};

pub(super) fn patch(pod: &Value, namespace: &NamespaceFacts, options: &Options) -> Patch {
    let (container, volume) = (container::agent(pod, namespace, options), container::volume());
    let hash = hash(&[&container, &volume]);
    let mut operations = Vec::new();
    if !is_present(pod, &["metadata"]) {
        operations.push(add(&["metadata"], json!({})));
    }
    member(pod, &mut operations, "labels", label::INJECTED, label::INJECTED_VALUE);
    member(pod, &mut operations, "annotations", annotation::CONFIG, &hash);
    element(pod, &mut operations, "volumes", volume);
    // At the end, since nothing that runs before needs the agent, and a mesh's sidecar, which some of it may need, may be there.
    let list = match options.sidecar {
        Sidecar::Native => "initContainers",
        Sidecar::Container => "containers",
    };
    element(pod, &mut operations, list, container);
    Patch(operations)
}

/// Adds a label or annotation, unless the pod has one of that name: replacing it would not be adding.
fn member(pod: &Value, operations: &mut Vec<PatchOperation>, map: &str, key: &str, value: &str) {
    if !is_present(pod, &["metadata", map]) {
        operations.push(add(&["metadata", map], Value::Object(Map::from_iter([(key.to_owned(), json!(value))]))));
    } else if !is_present(pod, &["metadata", map, key]) {
        operations.push(add(&["metadata", map, key], json!(value)));
    }
}

fn element(pod: &Value, operations: &mut Vec<PatchOperation>, list: &str, value: Value) {
    operations.push(if is_present(pod, &["spec", list]) {
        add(&["spec", list, "-"], value)
    } else {
        add(&["spec", list], json!([value]))
    });
}

/// A `null` is as good as nothing, and an `add` may take its place.
fn is_present(pod: &Value, path: &[&str]) -> bool {
    path.iter().try_fold(pod, |value, key| value.get(*key)).is_some_and(|value| !value.is_null())
}

fn add(path: &[&str], value: Value) -> PatchOperation {
    PatchOperation::Add(AddOperation { path: PointerBuf::from_tokens(path.iter().copied()), value })
}

/// Not for security: 64 bits tell versions of one cluster apart.
fn hash(parts: &[&Value]) -> String {
    let text: String = parts.iter().map(ToString::to_string).collect();
    digest(&SHA256, text.as_bytes()).as_ref().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}
