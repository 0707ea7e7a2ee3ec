//! The agent as a whole: starts its parts in the order in which they depend on each other, and stops them in the other.
//!
//! Runs in one thread, in the network namespace that it serves. Start: key, rules, kernel program, endpoints; traffic is
//! steered only when all of them are there. Stop: first nothing new is steered, then what runs may finish, then the rest
//! is cut.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering},
    time::Duration,
};

use anyhow::Context as _;
use arc_swap::ArcSwap;
use nix::sys::signal::SigSet;
use sluice_protocol::{
    DEFAULT_TUNNEL_PORT,
    close::CloseCode,
    control::{Assignment, Report},
    key::Identity,
    rules::{RuleFile, matcher::RuleSet},
    tls,
    way::{Direct, endpoint},
};
use tokio::{
    net::TcpListener,
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

mod rules;
mod steered;

use self::rules::{Rules, Source};
use crate::{
    admin::Admin,
    config::Config,
    connection::Shared,
    control::{Control, Settings},
    dialer::AppDialer,
    forwarded, gateway,
    hub::{Admission, Hub},
    insertion::Insertion,
    kernel::{Kernel, LoadError, LoadOptions},
    limits,
    metrics::Metrics,
    rules_file::{RulesFile, RulesFileError},
    supervise::Supervisor,
    wiretap::Wiretaps,
};

/// How long a closed QUIC endpoint may take to tell its peers.
const GOODBYE: Duration = Duration::from_secs(1);

/// How long after a change of the rules what is unclear about connections from before is looked at again.
const CLEARING: Duration = Duration::from_millis(100);

/// How often ports whose rules have gone are looked at, whether connections still depend on them.
const LEAVING: Duration = Duration::from_millis(500);

/// Why the agent does not run, as far as it has an exit status of its own.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The kernel or the privileges: exit status 3.
    #[error("the kernel part cannot be loaded")]
    Kernel(#[source] LoadError),
    /// The rules file: exit status 4.
    #[error("no rules at start")]
    Rules(#[source] RulesFileError),
}

/// SIGTERM and SIGINT.
struct Stop {
    terminate: Signal,
    interrupt: Signal,
}

/// Runs the agent until SIGTERM or SIGINT. `supervisor`: the parent process, where there is one.
///
/// # Errors
/// What could not be started; [`StartError`] among the causes where it is one of those. In a pod, where the kernel or
/// the privileges are no reason to end: the controller is told, and the app goes on without being intercepted.
pub async fn run(config: Config, supervisor: Option<Supervisor>) -> anyhow::Result<()> {
    // First of all, so that a signal at any moment ends in an orderly way.
    let mut stop = Stop::new()?;
    limits::raise_open_files();
    let identity = match &config.key_file {
        Some(path) => Identity::load_or_create(path)?,
        None => own_identity(supervisor.as_ref())?,
    };
    let settings = config.settings();
    let (news_tx, news_rx) = watch::channel(());
    let (rules_tx, rules_rx) = watch::channel(None);
    let (mut source, first_rules) = match &config.rules {
        Some(path) => {
            let (file, rules) = RulesFile::open(path).map_err(StartError::Rules)?;
            (Source::File { file: Box::new(file), read: None }, rules)
        }
        None => {
            let exempt: Vec<_> =
                config.host_ips.0.iter().copied().chain(gateway::gateways()).map(ipnet::IpNet::from).collect();
            (Source::Controller { rules_rx, exempt: exempt.clone() }, RuleFile { intercepts: Vec::new(), exempt })
        }
    };
    let mut kernel = match (Kernel::load(LoadOptions { log: config.kernel_log }), settings.clone()) {
        (Ok(kernel), _) => kernel,
        (Err(error), Some(settings)) => {
            return Box::pin(refused(settings, &identity, error, news_rx, rules_tx, stop)).await;
        }
        (Err(error), None) => return Err(StartError::Kernel(error).into()),
    };
    let listeners = kernel.take_listeners().context("the kernel part has no listeners")?;
    let spare_listeners = listeners.try_clone().context("the listeners cannot be shared")?;

    let metrics = Metrics::new();
    let admission = Arc::new(Admission::new(metrics.clone()));
    let shared = Arc::new(Shared {
        rules: ArcSwap::from_pointee(RuleSet::default()),
        hub: Arc::new(Hub::new(news_tx.clone())),
        dialer: AppDialer::new(),
        metrics,
        wiretaps: Wiretaps::default(),
        stopping: CancellationToken::new(),
    });
    let server = tls::server_config(&identity, admission.clone())?;
    let tunnel = endpoint(&Direct::new(config.tunnel), &identity, Some(server))?;
    let tunnel_address = tunnel.local_addr().context("the tunnel endpoint has no address")?;
    let admin_listener = TcpListener::bind(config.admin)
        .await
        .with_context(|| format!("cannot listen on {} for the admin endpoint: choose another --admin", config.admin))?;
    let forwarded = forwarded_listener(tunnel_address).await;

    let (services, connections, cut) = (TaskTracker::new(), TaskTracker::new(), CancellationToken::new());
    let insertion = Arc::new(Insertion::new(
        spare_listeners,
        supervisor,
        shared.clone(),
        services.clone(),
        connections.clone(),
        cut.clone(),
    ));
    let rules = Rules {
        shared: shared.clone(),
        steering: config.steering,
        insertion,
        kernel: Arc::new(Mutex::new(kernel)),
        existing: Arc::default(),
        admission: admission.clone(),
        status: Arc::default(),
        assigned: Arc::default(),
        ready: Arc::default(),
        news_tx,
    };
    for listener in [Some(listeners.v4), listeners.v6].into_iter().flatten() {
        let listener = TcpListener::from_std(listener).context("cannot use the listener for steered connections")?;
        services.spawn(cut.clone().run_until_cancelled_owned(steered::accept(
            listener,
            shared.clone(),
            connections.clone(),
            cut.clone(),
        )));
    }
    services.spawn(Hub::accept(shared.hub.clone(), tunnel.clone(), admission.clone(), services.clone()));
    if let Some(listener) = forwarded {
        let serving = forwarded::serve(listener, loopback(tunnel_address), services.clone());
        services.spawn(cut.clone().run_until_cancelled_owned(serving));
    }
    let admin = Arc::new(Admin {
        shared: shared.clone(),
        kernel: rules.kernel.clone(),
        insertion: rules.insertion.clone(),
        existing: rules.existing.clone(),
        key_hash: identity.hash(),
        tunnel: tunnel_address,
        rules: rules.status.clone(),
        ready: rules.ready.clone(),
    });
    services.spawn(cut.clone().run_until_cancelled_owned(admin.clone().serve(admin_listener, services.clone())));
    rules.apply(&first_rules)?;
    match settings {
        Some(settings) => {
            let report = rules.report(identity.hash(), tunnel_address.port());
            let control = Control::new(settings, report, news_rx, rules_tx)?;
            services.spawn(cut.clone().run_until_cancelled_owned(control.run()));
        }
        None => rules.ready.store(true, Ordering::Relaxed),
    }
    tracing::info!(key = %identity.hash(), tunnel = %admin.tunnel, admin = %config.admin, "ready");

    let mut leaving = false;
    loop {
        // Cancel safe: signals, file events and rules stay until they are taken.
        tokio::select! {
            biased;
            () = stop.asked() => break,
            () = source.follow(&rules) => leaving = rules.insertion.clear(),
            () = tokio::time::sleep(LEAVING), if leaving => leaving = rules.insertion.clear(),
            () = tokio::time::sleep(CLEARING), if lock(&rules.existing).is_unclear() => {
                lock(&rules.existing).look();
                rules.news_tx.send_replace(());
            }
        }
    }

    tracing::info!("stopping: new connections go to the app from now on");
    admin.ready.store(false, Ordering::Relaxed);
    lock(&rules.kernel).detach();
    shared.stopping.cancel();
    connections.close();
    if tokio::time::timeout(config.drain, connections.wait()).await.is_err() {
        tracing::warn!(open = connections.len(), "ending connections that are still open");
    }
    cut.cancel();
    connections.wait().await;
    rules.insertion.end_shifted();
    shared.wiretaps.stop().await;
    let bye = CloseCode::AgentStopping;
    tunnel.close(bye.code(), bye.to_string().as_bytes());
    // Clients that are not told find out by themselves.
    let _ = tokio::time::timeout(GOODBYE, tunnel.wait_idle()).await;
    Ok(())
}

/// A key of this agent alone: the one that the worker before had, or else a new one.
fn own_identity(supervisor: Option<&Supervisor>) -> anyhow::Result<Identity> {
    if let Some(pkcs8) = supervisor.and_then(Supervisor::noted) {
        return Ok(Identity::from_secret(pkcs8)?);
    }
    let (identity, secret) = Identity::generate_with_secret()?;
    if let Some(supervisor) = supervisor {
        supervisor.note(&secret).context("the parent process does not keep the key")?;
    }
    Ok(identity)
}

/// In a pod whose kernel or privileges do not allow steering: says so to the controller until it is stopped.
async fn refused(
    settings: Settings,
    identity: &Identity,
    error: LoadError,
    news_rx: watch::Receiver<()>,
    rules_tx: watch::Sender<Option<Assignment>>,
    mut stop: Stop,
) -> anyhow::Result<()> {
    let why = format!("{:#}", anyhow::Error::from(error));
    tracing::error!(why, "nothing can be intercepted in this pod; the app is not affected");
    let report = Report {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        key_hash: identity.hash(),
        tunnel_port: DEFAULT_TUNNEL_PORT,
        refused: Some(why),
        error: None,
        intercepts: Vec::new(),
    };
    let control = Control::new(settings, Box::new(move || report.clone()), news_rx, rules_tx)?;
    tokio::select! {
        biased;
        () = stop.asked() => Ok(()),
        () = control.run() => Ok(()),
    }
}

/// For tunnels that come by TCP, through a port-forward of Kubernetes, which connects to a loopback address of the pod.
/// Without it there are the other ways.
async fn forwarded_listener(tunnel: SocketAddr) -> Option<TcpListener> {
    let address = loopback(tunnel);
    let bound = TcpListener::bind(address).await;
    bound.inspect_err(|error| tracing::warn!(%address, %error, "no tunnels through port-forwards")).ok()
}

/// The same port on this machine only.
fn loopback(tunnel: SocketAddr) -> SocketAddr {
    SocketAddr::from((std::net::Ipv4Addr::LOCALHOST, tunnel.port()))
}

// === impl Stop ===

impl Stop {
    fn new() -> anyhow::Result<Self> {
        let stop = Self {
            terminate: signal(SignalKind::terminate()).context("cannot handle SIGTERM")?,
            interrupt: signal(SignalKind::interrupt()).context("cannot handle SIGINT")?,
        };
        // A worker has inherited its parent's mask, behind which signals have waited until now.
        SigSet::all().thread_unblock().context("cannot receive signals")?;
        Ok(stop)
    }

    /// Waits for the first of the signals. Cancel safe.
    async fn asked(&mut self) {
        tokio::select! {
            biased;
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
