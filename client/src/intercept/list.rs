//! `sluice intercept list`, `sluice intercept remove` and `sluice status`.

use std::process::ExitCode;

use anyhow::bail;
use k8s_openapi::api::apps::v1::Deployment;
use kube::Api;
use kube::ResourceExt as _;
use kube::api::DeleteParams;
use kube::api::ListParams;
use serde::Serialize;
use sluice_api::Intercept;
use sluice_api::contract;

use super::view;
use super::view::View;
use crate::cli;
use crate::cluster::Cluster;
use crate::cluster::is_not_found;

/// The control plane, as far as the user may see it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ControlPlane {
    image: String,
    replicas_ready: i32,
    replicas: i32,
}

/// What `sluice status` prints.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    #[serde(skip_serializing_if = "Option::is_none")]
    control_plane: Option<ControlPlane>,
    intercepts: Vec<View>,
}

/// Runs `sluice intercept list`.
pub(crate) async fn list(options: &cli::List) -> anyhow::Result<ExitCode> {
    let cluster = Cluster::connect(&options.cluster).await?;
    let views = views(&cluster, options.all_namespaces).await?;
    let text = || match views.is_empty() {
        true => format!("no intercepts in {}\n", place(&cluster, options)),
        false => views.iter().map(View::to_string).collect::<Vec<_>>().join("\n"),
    };
    view::show(&view::render(options.output, &views, text)?)?;
    Ok(ExitCode::SUCCESS)
}

/// Runs `sluice intercept remove`.
pub(crate) async fn remove(options: &cli::Remove) -> anyhow::Result<ExitCode> {
    let cluster = Cluster::connect(&options.cluster).await?;
    let (name, namespace) = (&options.name, &cluster.namespace);
    let api: Api<Intercept> = Api::namespaced(cluster.client.clone(), namespace);
    match api.delete(name, &DeleteParams::default()).await {
        Ok(_) => {
            println!("removed the Intercept {name} in the namespace {namespace}");
            Ok(ExitCode::SUCCESS)
        }
        Err(error) if is_not_found(&error) => {
            let known = views(&cluster, false).await?;
            bail!("{}", missing(name, namespace, &known))
        }
        Err(error) => Err(Box::pin(cluster.explain_intercepts(&format!("remove the Intercept {name}"), error)).await),
    }
}

/// Runs `sluice status`.
pub(crate) async fn status(options: &cli::Status) -> anyhow::Result<ExitCode> {
    let cluster = Cluster::connect(&options.list.cluster).await?;
    let (views, control_plane) =
        tokio::join!(views(&cluster, options.list.all_namespaces), Box::pin(control_plane(&cluster)));
    let mut intercepts = views?;
    if let Some(name) = &options.name {
        let chosen: Vec<_> = intercepts.iter().filter(|view| view.name() == name).cloned().collect();
        if chosen.is_empty() {
            bail!("{}", missing(name, &cluster.namespace, &intercepts));
        }
        intercepts = chosen;
    }
    let status = Status { control_plane, intercepts };
    let text = || {
        let mut parts = Vec::new();
        if let Some(ControlPlane { image, replicas_ready, replicas }) = &status.control_plane {
            parts.push(format!("{:<14}{replicas_ready}/{replicas} ready, {image}\n", "Control plane"));
        }
        if status.intercepts.is_empty() {
            parts.push(format!("no intercepts in {}\n", place(&cluster, &options.list)));
        }
        parts.extend(status.intercepts.iter().map(|view| format!("{view}{}", view.pods())));
        parts.join("\n")
    };
    view::show(&view::render(options.list.output, &status, text)?)?;
    Ok(ExitCode::SUCCESS)
}

async fn views(cluster: &Cluster, everywhere: bool) -> anyhow::Result<Vec<View>> {
    let client = cluster.client.clone();
    let api: Api<Intercept> = if everywhere { Api::all(client) } else { Api::namespaced(client, &cluster.namespace) };
    let list = api.list(&ListParams::default()).await;
    let mut items = match list {
        Ok(list) => list.items,
        Err(error) => return Err(Box::pin(cluster.explain_intercepts("list the Intercepts", error)).await),
    };
    items.sort_by_key(|intercept| (intercept.namespace(), intercept.name_any()));
    Ok(items.iter().map(View::of).collect())
}

/// Nothing is said where the user may not look.
async fn control_plane(cluster: &Cluster) -> Option<ControlPlane> {
    let api: Api<Deployment> = Api::namespaced(cluster.client.clone(), contract::NAMESPACE);
    let deployment = api.get(contract::object::WEBHOOK).await.ok()?;
    let containers = deployment.spec.as_ref()?.template.spec.as_ref()?.containers.first()?;
    Some(ControlPlane {
        image: containers.image.clone().unwrap_or_default(),
        replicas_ready: deployment.status.as_ref().and_then(|status| status.ready_replicas).unwrap_or(0),
        replicas: deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1),
    })
}

fn missing(name: &str, namespace: &str, known: &[View]) -> String {
    let names =
        known.iter().map(|view| format!("{} (of {})", view.name(), view.owner())).collect::<Vec<_>>().join(", ");
    let names = if names.is_empty() { "none".to_owned() } else { names };
    format!("there is no Intercept {name} in the namespace {namespace}: check the name and --namespace; there: {names}")
}

fn place(cluster: &Cluster, options: &cli::List) -> String {
    if options.all_namespaces { "any namespace".to_owned() } else { format!("the namespace {}", cluster.namespace) }
}
