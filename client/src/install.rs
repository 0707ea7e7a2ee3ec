//! `sluice install` and `sluice uninstall`.
//!
//! Owns what is put into a cluster, in which order, and how it is seen that it works. What is installed is the same as
//! `kubectl apply -k manifests/base` installs.

use std::process::ExitCode;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::Api;
use kube::api::Patch;
use kube::api::PatchParams;
use sluice_api::contract;
use tokio::time::Instant;

use crate::cli;
use crate::cluster::Cluster;

mod manifests;
mod remove;
mod wait;

pub(crate) use remove::uninstall;

use manifests::Images;
use manifests::Manifest;

/// Field manager of all that is installed.
const MANAGER: &str = "sluice-install";

/// The resource definition's name.
const DEFINITION: &str = "intercepts.sluice.dev";

/// Runs `sluice install`.
pub(crate) async fn install(options: &cli::Install) -> anyhow::Result<ExitCode> {
    let cluster = Cluster::connect(&options.common.cluster()).await?;
    let deadline = Instant::now() + options.common.timeout;
    let images = images(&cluster, options).await?;
    eprintln!("installing Sluice {} into the cluster (context {})", env!("CARGO_PKG_VERSION"), cluster.context);
    eprintln!("images: {}, {}", images.webhook, images.agent);
    for manifest in manifests::all(&images)? {
        let is_definition =
            manifest.object.types.as_ref().is_some_and(|types| types.kind == "CustomResourceDefinition");
        apply(&cluster, &manifest).await?;
        if is_definition {
            wait::established(&cluster, deadline).await?;
        }
    }
    eprintln!("applied; waiting for the control plane");
    wait::rolled_out(&cluster, deadline).await?;
    Box::pin(wait::admission(&cluster, deadline)).await?;
    eprintln!(
        "Sluice is installed. Next, for each namespace to intercept in:\n  kubectl label namespace NAME {}={}\n  kubectl -n \
         NAME rollout restart deployment\nThen: sluice intercept add WORKLOAD --port LOCAL:REMOTE",
        contract::label::INJECT,
        contract::label::ENABLED
    );
    Ok(ExitCode::SUCCESS)
}

/// The images that run stay if this version put them there, so that a repair changes nothing else.
async fn images(cluster: &Cluster, options: &cli::Install) -> anyhow::Result<Images> {
    let defaults = Images::of_this_version()?;
    let installed = wait::deployment(cluster).await?.and_then(|deployment| Images::installed(&deployment));
    let kept = installed.unwrap_or(defaults);
    Ok(Images {
        webhook: options.webhook_image.clone().unwrap_or(kept.webhook),
        agent: options.agent_image.clone().unwrap_or(kept.agent),
    })
}

async fn apply(cluster: &Cluster, manifest: &Manifest) -> anyhow::Result<()> {
    let parameters = PatchParams::apply(MANAGER).force();
    let api = manifest.api(cluster);
    let applied = api.patch(&manifest.name(), &parameters, &Patch::Apply(&manifest.object)).await;
    applied.map_err(|error| cluster.explain(&format!("apply the {manifest}"), error))?;
    Ok(())
}

fn definitions(cluster: &Cluster) -> Api<CustomResourceDefinition> {
    Api::all(cluster.client.clone())
}
