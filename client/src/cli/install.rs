//! `sluice install` and `sluice uninstall`: what may be typed.

use std::time::Duration;

use clap::Args;

use super::parse;

/// Options of `sluice install`.
#[derive(Clone, Debug, Args)]
pub(crate) struct Install {
    /// The control plane's image [default: the running one's if this version is installed, or else this version's].
    #[arg(long, value_name = "IMAGE")]
    pub(crate) webhook_image: Option<String>,

    /// The agent's image, which is put into pods [default: as above].
    #[arg(long, value_name = "IMAGE")]
    pub(crate) agent_image: Option<String>,

    #[command(flatten)]
    pub(crate) common: Common,
}

/// Options of both.
#[derive(Clone, Debug, Args)]
pub(crate) struct Common {
    /// The kubeconfig's context [default: its current one].
    #[arg(long, value_name = "CONTEXT")]
    pub(crate) context: Option<String>,

    /// How long it may take.
    #[arg(long, value_name = "DURATION", default_value = "3m", value_parser = parse::duration)]
    pub(crate) timeout: Duration,
}

/// Options of `sluice uninstall`.
#[derive(Clone, Debug, Args)]
pub(crate) struct Uninstall {
    #[command(flatten)]
    pub(crate) common: Common,
}

// === impl Common ===

impl Common {
    pub(crate) fn cluster(&self) -> super::Cluster {
        super::Cluster { context: self.context.clone(), namespace: None }
    }
}
