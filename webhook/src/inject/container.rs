//! The agent's container and its volume, as they stand in a pod.

use serde_json::{Map, Value, json};
use sluice_api::contract::{Env, TOKEN_AUDIENCE, TOKEN_SECONDS, pod};

use super::{NamespaceFacts, Options, PullPolicy, Sidecar, resources};

/// Seconds that a pod waits for its first rules, where the controller is away.
const RULES_WITHIN: &str = "2";

pub(super) fn agent(pod: &Value, namespace: &NamespaceFacts, options: &Options) -> Value {
    let mut container = json!({
        "name": pod::CONTAINER,
        "image": options.image,
        // Callers' connections outlive a crash of the agent proper, which its parent then starts again, sooner than the
        // kubelet would.
        "args": ["--supervised"],
        "env": env(options),
        "volumeMounts": [{"name": pod::VOLUME, "mountPath": pod::MOUNT, "readOnly": true}],
        "securityContext": security_context(),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "lifecycle": {"postStart": {"exec": {"command": [pod::PROGRAM, "--await-rules", RULES_WITHIN]}}},
    });
    // There are no probes, on purpose. An agent that does not work means that nothing is intercepted, never that the app
    // goes down: readiness would take the pod out of its Service, liveness would restart what may be in the middle of other
    // people's connections, and a startup probe would hold back every container behind the agent, the app among them, for
    // as long as it fails. The controller knows from the agent itself whether it works, and says so in the Intercept's
    // status. The one hook lets the app start when the agent has its rules, or else two seconds later: a pod that serves
    // before it has them would answer what is for somebody else.
    if let Value::Object(fields) = &mut container {
        if let Some(resources) = resources::of(pod, namespace, &options.sizes) {
            fields.insert("resources".to_owned(), resources);
        }
        if let Some(policy) = options.pull_policy {
            fields.insert("imagePullPolicy".to_owned(), json!(policy.name()));
        }
        if options.sidecar == Sidecar::Native {
            fields.insert("restartPolicy".to_owned(), json!("Always"));
        }
    }
    container
}

/// A token for the controller alone. A volume of its own, because the app's token may not be mounted at all
/// (`automountServiceAccountToken: false`) and because its rights are none of the agent's business.
pub(super) fn volume() -> Value {
    let token = json!({"audience": TOKEN_AUDIENCE, "expirationSeconds": TOKEN_SECONDS, "path": pod::TOKEN});
    json!({"name": pod::VOLUME, "projected": {"sources": [{"serviceAccountToken": token}]}})
}

fn env(options: &Options) -> Value {
    let variable = |env: Env| {
        let mut fields = Map::from_iter([("name".to_owned(), json!(env.name()))]);
        let (key, value) = match (env.field_path(), env) {
            (Some(path), _) => ("valueFrom", json!({"fieldRef": {"fieldPath": path}})),
            (None, Env::ControllerCa) => ("value", json!(options.authorities)),
            (None, Env::TokenFile) => ("value", json!(pod::TOKEN_PATH)),
            (None, _) => ("value", json!(options.controller)),
        };
        fields.insert(key.to_owned(), value);
        Value::Object(fields)
    };
    Env::ALL.into_iter().map(variable).collect()
}

fn security_context() -> Value {
    json!({
        // Root within the container, because Kubernetes has no ambient capabilities: of another user's process the
        // capabilities below would be gone with the start of the program. Without others, root can do little.
        "runAsUser": 0,
        "runAsGroup": 0,
        "runAsNonRoot": false, // the pod may demand it of all containers that do not say otherwise
        "privileged": false,
        "allowPrivilegeEscalation": false,
        "readOnlyRootFilesystem": true,
        "capabilities": {"drop": ["ALL"], "add": ["BPF", "NET_ADMIN", "PERFMON"]},
        "seccompProfile": {"type": "RuntimeDefault"}, // lets bpf() through for those who have BPF
    })
}

// === impl PullPolicy ===

impl PullPolicy {
    fn name(self) -> &'static str {
        match self {
            Self::Always => "Always",
            Self::IfNotPresent => "IfNotPresent",
            Self::Never => "Never",
        }
    }
}
