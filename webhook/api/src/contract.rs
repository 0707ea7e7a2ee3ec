//! The names by which injector, agent, controller and manifests know each other.
//!
//! Owns every label, annotation, environment variable, path, port and object name that more than one of them writes or
//! reads: the constant that writes a pod's specification is the one that the process in the pod reads. Has no
//! dependencies, so that the agent can use it without the Kubernetes libraries. Changing a value is a breaking change:
//! pods injected before it live on for as long as they like.

use std::fmt;

/// Prefix of all labels and annotations, and the API group.
pub const GROUP: &str = "sluice.dev";

/// Namespace that the control plane is installed into.
pub const NAMESPACE: &str = "sluice-system";

/// Namespaces whose pods are never changed, whatever their labels say; [`NAMESPACE`] is another.
pub const SYSTEM_NAMESPACES: [&str; 3] = ["kube-system", "kube-node-lease", "kube-public"];

/// Audience of the agents' tokens: a token for the API server does not fit here, and the reverse.
pub const TOKEN_AUDIENCE: &str = "sluice";

/// Seconds that an agent's token is valid; the kubelet renews it at 80 % of that.
pub const TOKEN_SECONDS: u32 = 3600;

/// Labels.
pub mod label {
    /// On a namespace or a pod: whether pods get the agent, by [`ENABLED`] or [`DISABLED`]. A pod's goes before its
    /// namespace's. On a pod an annotation of this name is understood as well, but only to opt out.
    pub const INJECT: &str = "sluice.dev/inject";
    /// Asks for the agent.
    pub const ENABLED: &str = "enabled";
    /// Refuses it.
    pub const DISABLED: &str = "disabled";
    /// On a pod that has the agent; the value is [`INJECTED_VALUE`].
    pub const INJECTED: &str = "sluice.dev/agent";
    /// Value of [`INJECTED`].
    pub const INJECTED_VALUE: &str = "injected";
    /// On a namespace: the Pod Security level that its pods must meet.
    pub const POD_SECURITY: &str = "pod-security.kubernetes.io/enforce";
}

/// Annotations.
pub mod annotation {
    /// On a pod that has the agent: a hash of all that was injected, to tell pods injected by another version.
    pub const CONFIG: &str = "sluice.dev/agent-config";
    /// On mirror pods, by the kubelet.
    pub const MIRROR: &str = "kubernetes.io/config.mirror";
}

/// Names inside an injected pod.
pub mod pod {
    /// The agent's container, which is also what marks a pod as injected.
    pub const CONTAINER: &str = "sluice-agent";
    /// The program in its image.
    pub const PROGRAM: &str = "/sluice-agent";
    /// The volume with its token.
    pub const VOLUME: &str = "sluice-agent-token";
    /// Where that is mounted: the place where the API server would otherwise mount the app's own token, with the
    /// app's rights on the API. It leaves a container alone that has something there already.
    pub const MOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
    /// File of the agent's token below [`MOUNT`].
    pub const TOKEN: &str = "token";
    /// The token's whole path.
    pub const TOKEN_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";
}

/// Objects of the control plane.
pub mod object {
    /// The Deployment, its ServiceAccount, Service and PodDisruptionBudget.
    pub const WEBHOOK: &str = "sluice-webhook";
    /// The Secret with all keys and certificates.
    pub const SECRET: &str = "sluice-webhook-tls";
    /// The Lease of the replica that does what only one may do.
    pub const LEASE: &str = "sluice-webhook";
    /// The MutatingWebhookConfiguration.
    pub const CONFIGURATION: &str = "sluice";
    /// Its webhook for pods of labelled namespaces.
    pub const HOOK_NAMESPACE: &str = "namespace.inject.sluice.dev";
    /// Its webhook for labelled pods of other namespaces.
    pub const HOOK_POD: &str = "pod.inject.sluice.dev";
    /// Its webhook for Intercepts.
    pub const HOOK_INTERCEPTS: &str = "intercepts.sluice.dev";
    /// All of them.
    pub const HOOKS: [&str; 3] = [HOOK_NAMESPACE, HOOK_POD, HOOK_INTERCEPTS];
    /// Field manager of the configuration's `caBundle`, and of nothing else.
    pub const MANAGER_CA: &str = "sluice-webhook-ca";
    /// Field manager of Intercepts' status.
    pub const MANAGER_STATUS: &str = "sluice-controller";
}

/// Ports and paths of the control plane.
pub mod endpoint {
    /// Port of the Service for admission.
    pub const SERVICE_PORT: u16 = 443;
    /// Port on which the webhook serves admission by HTTPS.
    pub const ADMISSION_PORT: u16 = 8443;
    /// Port, of Service and webhook, on which agents ask for their rules by HTTPS.
    pub const AGENT_PORT: u16 = 8444;
    /// Port on which the webhook answers the kubelet's probes by HTTP.
    pub const HEALTH_PORT: u16 = 8080;
    /// Admission of pods.
    pub const INJECT: &str = "/inject";
    /// Admission of Intercepts.
    pub const INTERCEPTS: &str = "/intercepts";
    /// The process works.
    pub const HEALTHZ: &str = "/healthz";
    /// What is counted, for Prometheus.
    pub const METRICS: &str = "/metrics";
    /// It has a certificate, listens, and knows the cluster.
    pub const READYZ: &str = "/readyz";
}

/// Environment of an injected agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Env {
    /// Base address of the controller's endpoint for agents, such as `https://sluice-webhook.sluice-system.svc:8444`.
    Controller,
    /// The certificates in PEM of the authorities, one of which has issued the controller's certificate.
    ControllerCa,
    /// File with the token to show to the controller; read again for each connection, since the kubelet renews it.
    TokenFile,
    /// The pod's name.
    PodName,
    /// The pod's uid.
    PodUid,
    /// The pod's namespace.
    PodNamespace,
    /// The pod's addresses, separated by commas. Empty until the pod has any.
    PodIps,
    /// The node's name.
    NodeName,
    /// The node's addresses, separated by commas: connections from these are the kubelet's probes and never taken.
    HostIps,
}

// === impl Env ===

impl Env {
    /// All of them, in the order in which they stand in a pod.
    pub const ALL: [Self; 9] = [
        Self::Controller,
        Self::ControllerCa,
        Self::TokenFile,
        Self::PodName,
        Self::PodUid,
        Self::PodNamespace,
        Self::PodIps,
        Self::NodeName,
        Self::HostIps,
    ];

    /// The variable's name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Controller => "SLUICE_CONTROLLER",
            Self::ControllerCa => "SLUICE_CONTROLLER_CA",
            Self::TokenFile => "SLUICE_TOKEN_FILE",
            Self::PodName => "SLUICE_POD_NAME",
            Self::PodUid => "SLUICE_POD_UID",
            Self::PodNamespace => "SLUICE_POD_NAMESPACE",
            Self::PodIps => "SLUICE_POD_IPS",
            Self::NodeName => "SLUICE_NODE_NAME",
            Self::HostIps => "SLUICE_HOST_IPS",
        }
    }

    /// The field of the pod that the kubelet fills the variable from; `None` where the injector knows the value.
    #[must_use]
    pub const fn field_path(self) -> Option<&'static str> {
        match self {
            Self::Controller | Self::ControllerCa | Self::TokenFile => None,
            Self::PodName => Some("metadata.name"),
            Self::PodUid => Some("metadata.uid"),
            Self::PodNamespace => Some("metadata.namespace"),
            Self::PodIps => Some("status.podIPs"),
            Self::NodeName => Some("spec.nodeName"),
            Self::HostIps => Some("status.hostIPs"),
        }
    }
}

impl fmt::Display for Env {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
