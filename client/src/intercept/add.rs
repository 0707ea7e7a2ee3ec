//! `sluice intercept add`: from the user's words to an Intercept, and the run of it.

use std::process::ExitCode;

use anyhow::Context as _;
use anyhow::bail;
use k8s_openapi::api::core::v1::Service;
use kube::Api;
use kube::api::ListParams;
use sluice::Identity;
use sluice::LocalHost;
use sluice::PortForward;
use sluice::Ports;
use sluice_api::Intercept;
use sluice_api::InterceptPort;
use sluice_api::InterceptSpec;
use sluice_protocol::rules::Client;
use sluice_protocol::rules::Protocol;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::detach;
use super::fleet::Fleet;
use super::key::Files;
use super::ports;
use super::ports::Place;
use super::ports::Resolved;
use super::resource::Wanted;
use super::session;
use super::session::End;
use super::session::Stops;
use super::view;
use super::workload::Workload;
use super::workload::WorkloadAsk;
use crate::cli;
use crate::cluster::Cluster;
use crate::signal;

/// Runs the command.
pub(crate) async fn run(options: &cli::Add) -> anyhow::Result<ExitCode> {
    let deadline = Instant::now() + options.timeout;
    let cluster = Cluster::connect(&options.cluster).await?;
    let files = Files::of(&cluster.namespace, &options.name)?;
    if options.detach && !options.in_background {
        return detach::start(&options.name, &files);
    }
    let abandoned = if options.in_background { detach::abandoned() } else { CancellationToken::new() };
    let mut stop = std::pin::pin!(signal::stop());
    let to = options.to.clone().unwrap_or_default();
    // Nothing is in the cluster yet.
    let preparing = async {
        let (resolved, _) = tokio::join!(resolve(&cluster, options), warn_of_silence(&to, options));
        resolved
    };
    let (workload, resolved) = tokio::select! {
        biased;
        stopped = &mut stop => {
            stopped.context("cannot wait for signals")?;
            bail!("stopped before the intercept was ready")
        }
        () = abandoned.cancelled() => bail!("stopped before the intercept was ready"),
        () = tokio::time::sleep_until(deadline) => bail!("the API server has not answered in time"),
        prepared = Box::pin(preparing) => prepared?,
    };
    let (identity, is_new) = files.identity()?;
    let forwards = resolved.iter().map(|port| PortForward { local: port.local, remote: port.container });
    let fleet = Fleet::new(cluster.client.clone(), &cluster.namespace, identity.clone(), Ports::new(forwards)?, to);
    let wanted = Wanted::new(cluster, intercept(options, &workload, &resolved, &identity));
    let ready = |view: &view::View| {
        let summary = view::render(options.output, view, || view.to_string())?;
        if options.in_background {
            detach::announce(&summary)?;
        } else {
            view::show(&summary)?;
            tracing::info!("intercepting; Ctrl-C ends it");
        }
        Ok(())
    };
    let ended = Box::pin(session::run(&wanted, fleet, Stops { stop: stop.as_mut(), abandoned, deadline }, ready)).await;
    // In any other case something in the cluster may still name the key.
    if matches!(ended, Ok(End::Stopped | End::Deleted)) || ended.is_err() && is_new && !wanted.may_be_left() {
        files.forget();
    }
    Ok(match ended? {
        End::Stopped => {
            tracing::info!("stopped; the Intercept {} is removed", options.name);
            ExitCode::SUCCESS
        }
        End::Deleted => {
            tracing::info!("the Intercept {} was removed: this ends as well", options.name);
            ExitCode::SUCCESS
        }
        End::LeftBehind => ExitCode::FAILURE,
        End::TakenOver(taken_over) => {
            tracing::error!(
                "the same intercept was started again elsewhere and goes on there ({})",
                taken_over.address
            );
            ExitCode::from(cli::TAKEN_OVER)
        }
    })
}

/// What the user's words mean in the cluster.
async fn resolve(cluster: &Cluster, options: &cli::Add) -> anyhow::Result<(Workload, Vec<Resolved>)> {
    let ask = options.workload.clone().unwrap_or_else(|| WorkloadAsk::named(&options.name));
    let (workload, services) = tokio::join!(ask.find(cluster), services(cluster, options.service.as_deref()));
    let (workload, services) = (workload?, services?);
    let place = Place {
        workload: &workload.target.to_string(),
        template: &workload.template,
        services: &services,
        chosen: options.service.as_deref(),
    };
    let resolved: Vec<_> = options.ports.iter().map(|ask| ports::resolve(ask, place)).collect::<Result<_, _>>()?;
    Ok((workload, resolved))
}

async fn services(cluster: &Cluster, chosen: Option<&str>) -> anyhow::Result<Vec<Service>> {
    let api: Api<Service> = Api::namespaced(cluster.client.clone(), &cluster.namespace);
    match api.list(&ListParams::default()).await {
        Ok(list) => Ok(list.items),
        // The containers' own ports can be named all the same.
        Err(kube::Error::Api(status)) if status.code == 403 && chosen.is_none() => {
            tracing::warn!("you may not list Services: a port is taken for the container's own");
            Ok(Vec::new())
        }
        Err(error) => Err(cluster.explain("list the Services", error)),
    }
}

/// Somebody who starts the local process later is right as well.
async fn warn_of_silence(to: &LocalHost, options: &cli::Add) {
    for ask in &options.ports {
        if !to.answers(ask.local.get()).await {
            let until_then = match options.mode {
                cli::Mode::Intercept => "requests get what --on-unavailable says",
                cli::Mode::Wiretap => "copies are lost",
            };
            tracing::warn!("nobody listens on {} yet: until then {until_then}", to.address(ask.local.get()));
        }
    }
}

fn intercept(options: &cli::Add, workload: &Workload, resolved: &[Resolved], identity: &Identity) -> Intercept {
    let ports = resolved.iter().map(|port| InterceptPort {
        port: Some(port.container),
        name: None,
        protocol: Protocol::Tcp,
        local: Some(port.local),
    });
    let spec = InterceptSpec {
        target: workload.target.clone(),
        ports: ports.collect(),
        matches: options.conditions.matches(),
        mode: options.mode.into(),
        on_unavailable: options.on_unavailable.into(),
        include_probes: options.conditions.include_probes,
        reset_existing: options.reset_existing,
        steering: options.steering.into(),
        client: Client { key_hash: identity.hash() },
        owner: None,
        ttl: options.ttl,
    };
    let mut intercept = Intercept::new(&options.name, spec);
    let identifiers = resolved.iter().map(|port| port.remote.to_string()).collect::<Vec<_>>().join(",");
    let to = options.to.as_ref().map(|to| (view::TO.to_owned(), to.to_string()));
    let annotations = [(view::PORT_IDENTIFIERS.to_owned(), identifiers)].into_iter().chain(to);
    intercept.metadata.annotations = Some(annotations.collect());
    intercept
}
