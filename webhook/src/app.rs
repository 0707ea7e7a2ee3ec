//! Puts the parts together, and takes them apart in order.
//!
//! Everything that can fail at start does so before anything is served. At the end: not ready any more, requests in
//! progress answered, the lease given back.

use std::{net::SocketAddr, sync::Arc};

use anyhow::{Context as _, Result};
use kube::Client;
use rustls::crypto::ring;
use tokio::{net::TcpListener, sync::watch, task::JoinSet};
use tokio_util::sync::CancellationToken;

use crate::{
    admission::{self, AppState},
    cluster::Cluster,
    config::Config,
    controller::{Controller, door::Door},
    health::{self, Readiness},
    leader,
    refusals::Refusals,
    server,
    tls::{self, Current, keeper::Keeper},
};

/// Connections at a time. API servers need a handful; the memory of this many is bounded well below the limit.
const MAX_CONNECTIONS: usize = 512;

/// Agents at a time: all pods of a large cluster.
const MAX_AGENTS: usize = 16 << 10;

/// Runs until `stop`.
///
/// # Errors
/// When it cannot start, or a part ends that should not.
pub async fn run(config: Config, stop: CancellationToken) -> Result<()> {
    let provider = Arc::new(ring::default_provider());
    let policy = config.policy()?;
    let client = Client::try_default().await.context("cannot find out how to reach the API server")?;
    let version = client.apiserver_version().await.context("cannot reach the API server")?;
    let minor = version.minor.trim_end_matches('+').parse().unwrap_or_default();
    let options = config.options(minor);
    tracing::info!(kubernetes = version.git_version, sidecar = ?options.sidecar, image = options.image, "starts");

    let current = Arc::new(Current::default());
    let readiness = Readiness::new(current.clone());
    let admission_listener = bind(config.admission).await?;
    let agents_listener = bind(config.agents).await?;
    let health_listener = bind(config.health).await?;
    readiness.listening();

    let (cluster, following) = Cluster::new(client.clone());
    let cluster = Arc::new(cluster);
    let state = AppState::new(cluster.clone(), options, current.clone());
    let server_config = Arc::new(tls::server_config(current.clone(), provider.clone())?);
    let (leads_tx, leads_rx) = watch::channel(false);
    let (controller, observing) = Controller::new(client.clone(), config.replica.clone());
    let refusals = Refusals::new();
    let door = Door::new(client.clone(), &controller, leads_rx.clone(), refusals.clone(), stop.child_token());
    let keeper = Keeper { client: client.clone(), namespace: config.namespace.clone(), policy, current, provider };

    // Served to the end, so that the probes see the stop coming.
    let mut parts = JoinSet::new();
    let probes = health::router(readiness.clone(), refusals);
    parts.spawn(async move { axum::serve(health_listener, probes).await.context("the probes' server ended") });
    parts.spawn(async move {
        following.await;
        anyhow::bail!("the cluster is not followed any more")
    });
    parts.spawn(async move {
        observing.await;
        anyhow::bail!("workloads are not followed any more")
    });
    let leads = leads_rx.clone();
    parts.spawn(async move {
        Box::pin(controller.run(leads)).await;
        anyhow::bail!("the controller ended")
    });
    parts.spawn(async move {
        Box::pin(keeper.run(leads_rx)).await;
        anyhow::bail!("certificates are not kept any more")
    });
    let known = readiness.clone();
    let view = cluster.clone();
    let ready = async move {
        view.ready().await;
        known.cluster_known();
        tracing::info!("cluster known");
        std::future::pending::<Result<()>>().await
    };
    parts.spawn(ready);

    let mut ending = JoinSet::new();
    let (namespace, replica) = (config.namespace, config.replica);
    ending.spawn(leader::run(client, namespace, replica, leads_tx, stop.clone().cancelled_owned()));
    ending.spawn(server::serve(agents_listener, server_config.clone(), door.router(), MAX_AGENTS, stop.clone()));
    ending.spawn(server::serve(
        admission_listener,
        server_config,
        admission::router(state),
        MAX_CONNECTIONS,
        stop.clone(),
    ));

    tokio::select! {
        biased;
        () = stop.cancelled() => {}
        // Not cancel safe in general, but nothing is taken from it afterwards.
        ended = parts.join_next() => {
            stop.cancel();
            ending.join_all().await;
            return match ended {
                Some(Ok(Err(error))) => Err(error),
                other => anyhow::bail!("a part ended: {other:?}"),
            };
        }
    }
    readiness.stopping();
    ending.join_all().await;
    tracing::info!("stopped");
    Ok(())
}

/// Where IPv6 is off, the same port on IPv4.
async fn bind(address: SocketAddr) -> Result<TcpListener> {
    let listener = match TcpListener::bind(address).await {
        Err(_) if address.ip().is_unspecified() && address.is_ipv6() => {
            TcpListener::bind((std::net::Ipv4Addr::UNSPECIFIED, address.port())).await
        }
        bound => bound,
    };
    listener.with_context(|| format!("cannot listen on {address}"))
}
