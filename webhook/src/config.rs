//! The command line of `sluice-webhook`.

use std::net::SocketAddr;

use clap::{Parser, ValueEnum};
use jiff::SignedDuration;
use sluice_api::contract::{NAMESPACE, endpoint, object};

use crate::{
    inject::{self, Level, Options, PullPolicy, Sizes},
    tls::rotation::{Policy, PolicyError},
};

/// Sluice's control plane: adds the agent to pods, stamps and checks Intercepts.
#[derive(Debug, Clone, Parser)]
#[command(name = "sluice-webhook", version)]
pub struct Config {
    /// Image of the agent that pods get
    #[arg(long, env = "SLUICE_AGENT_IMAGE", value_name = "IMAGE")]
    pub agent_image: String,

    /// When nodes pull it; left out, Kubernetes decides by the tag
    #[arg(long, value_name = "WHEN")]
    pub agent_pull_policy: Option<PullPolicy>,

    /// Kind of container that the agent becomes; `auto` asks the server for its version
    #[arg(long, value_name = "KIND", default_value = "auto")]
    pub sidecar: SidecarChoice,

    /// CPU that is set aside for an agent
    #[arg(long, value_name = "QUANTITY", default_value = "10m")]
    pub agent_cpu: String,

    /// Memory that is set aside for an agent
    #[arg(long, value_name = "QUANTITY", default_value = "32Mi")]
    pub agent_memory: String,

    /// Memory that an agent may use at most
    #[arg(long, value_name = "QUANTITY", default_value = "256Mi")]
    pub agent_memory_limit: String,

    /// Pod Security level that the cluster enforces in namespaces without a label
    #[arg(long, value_name = "LEVEL", default_value = "privileged")]
    pub default_pod_security: Level,

    /// Namespace of the control plane
    #[arg(long, env = "SLUICE_NAMESPACE", value_name = "NAME", default_value = NAMESPACE)]
    pub namespace: String,

    /// Name of this replica among the others
    #[arg(long, env = "SLUICE_REPLICA", value_name = "NAME")]
    pub replica: String,

    /// TCP address for admission
    #[arg(long, value_name = "ADDR", default_value_t = everywhere(endpoint::ADMISSION_PORT))]
    pub admission: SocketAddr,

    /// TCP address for agents
    #[arg(long, value_name = "ADDR", default_value_t = everywhere(endpoint::AGENT_PORT))]
    pub agents: SocketAddr,

    /// TCP address for the kubelet's probes and for metrics
    #[arg(long, value_name = "ADDR", default_value_t = everywhere(endpoint::HEALTH_PORT))]
    pub health: SocketAddr,

    /// How long an authority is valid, in hours and less, such as `87600h`
    #[arg(long, value_name = "DURATION", default_value = "87600h")]
    pub authority_life: SignedDuration,

    /// How long a certificate is valid
    #[arg(long, value_name = "DURATION", default_value = "2160h")]
    pub certificate_life: SignedDuration,

    /// What to log, such as `info` or `sluice_webhook=debug`
    #[arg(long, value_name = "FILTER", default_value = "info")]
    pub log: String,

    /// How to log
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub log_format: LogFormat,
}

/// Kind of container that the agent becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SidecarChoice {
    /// The best that server and kubelets surely know.
    Auto,
    /// Native sidecar.
    Native,
    /// Ordinary container.
    Container,
}

/// Shape of the log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For machines: one JSON object a line.
    Json,
}

// === impl Config ===

impl Config {
    /// What to inject, with a server of version 1.`minor`; the authorities come later.
    #[must_use]
    pub fn options(&self, minor: u32) -> Options {
        Options {
            image: self.agent_image.clone(),
            pull_policy: self.agent_pull_policy,
            sidecar: self.sidecar.resolve(minor),
            controller: format!("https://{}.{}.svc:{}", object::WEBHOOK, self.namespace, endpoint::AGENT_PORT),
            authorities: String::new(),
            sizes: Sizes {
                cpu: self.agent_cpu.clone(),
                memory: self.agent_memory.clone(),
                memory_limit: self.agent_memory_limit.clone(),
            },
            default_level: self.default_pod_security,
        }
    }

    /// Lives of certificates.
    ///
    /// # Errors
    /// When they do not go together.
    pub fn policy(&self) -> Result<Policy, PolicyError> {
        Policy::new(self.authority_life, self.certificate_life)
    }
}

// === impl SidecarChoice ===

impl SidecarChoice {
    /// Kubelets may be three minor versions older than the server and must know native sidecars too, which are on from 1.29.
    fn resolve(self, minor: u32) -> inject::Sidecar {
        match self {
            Self::Native => inject::Sidecar::Native,
            Self::Auto if minor >= 32 => inject::Sidecar::Native,
            Self::Auto | Self::Container => inject::Sidecar::Container,
        }
    }
}

fn everywhere(port: u16) -> SocketAddr {
    (std::net::Ipv6Addr::UNSPECIFIED, port).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manifest_starts_it() {
        let manifest = include_str!("../../manifests/base/deployment.yaml");
        for name in ["SLUICE_AGENT_IMAGE", "SLUICE_REPLICA"] {
            assert!(manifest.contains(&format!("- name: {name}\n")), "{name}");
        }
        for port in [endpoint::ADMISSION_PORT, endpoint::AGENT_PORT, endpoint::HEALTH_PORT] {
            assert!(manifest.contains(&format!("containerPort: {port}\n")), "{port}");
        }
        for path in [endpoint::HEALTHZ, endpoint::READYZ] {
            assert!(manifest.contains(&format!("path: {path}\n")), "{path}");
        }
    }

    /// Names that the manifests written by hand must have from the code.
    #[test]
    fn the_manifests_use_the_names_of_the_code() {
        let rbac = include_str!("../../manifests/base/rbac.yaml");
        for name in [object::SECRET, object::LEASE, object::CONFIGURATION] {
            assert!(rbac.contains(&format!("resourceNames: [{name}]\n")), "{name}");
        }
        let service = include_str!("../../manifests/base/service.yaml");
        assert!(service.contains(&format!("name: {}\n  namespace: {NAMESPACE}\n", object::WEBHOOK)));
        for port in [endpoint::SERVICE_PORT, endpoint::AGENT_PORT] {
            assert!(service.contains(&format!("port: {port}\n")), "{port}");
        }
        assert!(include_str!("../../manifests/base/namespace.yaml").contains(&format!("name: {NAMESPACE}\n")));
    }

    #[test]
    fn native_only_where_the_oldest_kubelet_knows_it() {
        assert_eq!(SidecarChoice::Auto.resolve(31), inject::Sidecar::Container);
        assert_eq!(SidecarChoice::Auto.resolve(32), inject::Sidecar::Native);
        assert_eq!(SidecarChoice::Container.resolve(37), inject::Sidecar::Container);
    }

    #[test]
    fn the_defaults_go_together() {
        let config = Config::try_parse_from(["sluice-webhook", "--agent-image", "a", "--replica", "r"]).unwrap();
        assert_eq!(config.policy().unwrap(), Policy::DEFAULT);
        assert_eq!(config.options(33).controller, "https://sluice-webhook.sluice-system.svc:8444");
    }
}
