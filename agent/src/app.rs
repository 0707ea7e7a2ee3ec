//! The agent as a whole: starts its parts in the order in which they depend on each other, and stops them in the other.
//!
//! Runs in one thread, in the network namespace that it serves. Start: key, rules, kernel program, endpoints; traffic is
//! steered only when all of them are there. Stop: first nothing new is steered, then what runs may finish, then the rest
//! is cut.

use std::{
    collections::BTreeSet,
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::Context as _;
use arc_swap::ArcSwap;
use sluice_protocol::{
    close::CloseCode,
    key::Identity,
    rules::{RuleFile, matcher::RuleSet},
    tls,
    way::{Direct, endpoint},
};
use tokio::{
    net::{TcpListener, TcpStream},
    signal::unix::{SignalKind, signal},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    admin::{Admin, RulesStatus},
    config::Config,
    connection::{Shared, Steered},
    dialer::{AppDialer, is_own_source},
    hub::{Admission, Hub},
    kernel::{Kernel, LoadError, LoadOptions, PortKey, Protocol},
    metrics::Metrics,
    rules_file::{RulesFile, RulesFileError},
};

/// How long a closed QUIC endpoint may take to tell its peers.
const GOODBYE: Duration = Duration::from_secs(1);

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

/// Makes rules come into force, in the agent and in the kernel.
struct Rules {
    shared: Arc<Shared>,
    kernel: Arc<Mutex<Kernel>>,
    admission: Arc<Admission>,
    status: Arc<Mutex<RulesStatus>>,
}

/// Runs the agent until SIGTERM or SIGINT.
///
/// # Errors
/// What could not be started; [`StartError`] among the causes where it is one of those.
pub async fn run(config: Config) -> anyhow::Result<()> {
    // First of all, so that a signal at any moment ends in an orderly way.
    let mut terminate = signal(SignalKind::terminate()).context("cannot handle SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot handle SIGINT")?;
    let identity = match &config.key_file {
        Some(path) => Identity::load_or_create(path)?,
        None => Identity::generate()?,
    };
    let (mut rules_file, first_rules) = RulesFile::open(&config.rules).map_err(StartError::Rules)?;
    let mut kernel = Kernel::load(LoadOptions { log: config.kernel_log }).map_err(StartError::Kernel)?;
    let listeners = kernel.take_listeners().context("the kernel part has no listeners")?;

    let metrics = Metrics::new();
    let admission = Arc::new(Admission::new(metrics.clone()));
    let shared = Arc::new(Shared {
        rules: ArcSwap::from_pointee(RuleSet::default()),
        hub: Arc::new(Hub::default()),
        dialer: AppDialer::new(),
        metrics,
        stopping: CancellationToken::new(),
    });
    let server = tls::server_config(&identity, admission.clone())?;
    let tunnel = endpoint(&Direct::new(config.tunnel), &identity, Some(server))?;
    let admin_listener = TcpListener::bind(config.admin)
        .await
        .with_context(|| format!("cannot listen on {} for the admin endpoint: choose another --admin", config.admin))?;

    let kernel = Arc::new(Mutex::new(kernel));
    let status = Arc::new(Mutex::new(RulesStatus::default()));
    let rules =
        Rules { shared: shared.clone(), kernel: kernel.clone(), admission: admission.clone(), status: status.clone() };
    let (services, connections, cut) = (TaskTracker::new(), TaskTracker::new(), CancellationToken::new());
    for listener in [Some(listeners.v4), listeners.v6].into_iter().flatten() {
        let listener = TcpListener::from_std(listener).context("cannot use the listener for steered connections")?;
        services.spawn(cut.clone().run_until_cancelled_owned(accept(
            listener,
            shared.clone(),
            connections.clone(),
            cut.clone(),
        )));
    }
    services.spawn(Hub::accept(shared.hub.clone(), tunnel.clone(), admission.clone(), services.clone()));
    let admin = Arc::new(Admin {
        shared: shared.clone(),
        kernel: kernel.clone(),
        key_hash: identity.hash(),
        tunnel: tunnel.local_addr().context("the tunnel endpoint has no address")?,
        rules: status,
        ready: AtomicBool::new(false),
    });
    services.spawn(cut.clone().run_until_cancelled_owned(admin.clone().serve(admin_listener, services.clone())));
    rules.apply(&first_rules)?;
    admin.ready.store(true, Ordering::Relaxed);
    tracing::info!(key = %identity.hash(), tunnel = %admin.tunnel, admin = %config.admin, "ready");

    loop {
        // Cancel safe: signals and file events stay until they are taken.
        tokio::select! {
            biased;
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            changed = rules_file.changed() => rules.change(changed),
        }
    }

    tracing::info!("stopping: new connections go to the app from now on");
    admin.ready.store(false, Ordering::Relaxed);
    lock(&kernel).detach();
    shared.stopping.cancel();
    connections.close();
    if tokio::time::timeout(config.drain, connections.wait()).await.is_err() {
        tracing::warn!(open = connections.len(), "ending connections that are still open");
    }
    cut.cancel();
    connections.wait().await;
    let bye = CloseCode::AgentStopping;
    tunnel.close(bye.code(), bye.to_string().as_bytes());
    // Clients that are not told find out by themselves.
    let _ = tokio::time::timeout(GOODBYE, tunnel.wait_idle()).await;
    Ok(())
}

/// Accepts steered connections for ever; each is a task in `connections`, ended early by `cut`.
async fn accept(listener: TcpListener, shared: Arc<Shared>, connections: TaskTracker, cut: CancellationToken) {
    let port = listener.local_addr().map_or(0, |address| address.port());
    loop {
        let (caller, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            // The caller gave up before it was accepted.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
            Err(error) => {
                tracing::error!(%error, "cannot accept a connection; trying again");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        if let Some(steered) = take(&shared, caller, peer, port) {
            let open = shared.metrics.open();
            let cut = cut.clone();
            connections.spawn(async move {
                if let Some(Err(end)) = cut.run_until_cancelled(steered.serve()).await {
                    tracing::debug!(error = &end as &dyn std::error::Error, %peer, "a connection broke");
                }
                drop(open);
            });
        }
    }
}

fn take(shared: &Arc<Shared>, caller: TcpStream, peer: SocketAddr, listener_port: u16) -> Option<Steered> {
    use sluice_protocol::duplex::Duplex as _;
    let mut caller = caller;
    if is_own_source(peer.ip()) {
        // The kernel program lets these through to the app, so one that comes here would come again and again.
        shared.metrics.looped();
        tracing::error!(%peer, "refused a connection of the agent itself: is another steering program in this pod?");
        caller.abort();
        return None;
    }
    // Gone already, where it fails.
    let destination = canonical(caller.local_addr().ok()?);
    if destination.port() == listener_port {
        // Not steered: somebody in the pod has found the port of the listener itself.
        caller.abort();
        return None;
    }
    caller.set_nodelay(true).ok()?;
    let peer = canonical(peer);
    Some(Steered { shared: shared.clone(), caller, peer, destination, port: destination.port() })
}

/// An IPv4 address as such, also where it came through an IPv6 socket.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

// === impl Rules ===

impl Rules {
    fn change(&self, changed: Result<RuleFile, RulesFileError>) {
        let result = changed.map_err(anyhow::Error::from).and_then(|file| self.apply(&file));
        if let Err(error) = result {
            let error = format!("{error:#}");
            tracing::error!(error, "the rules stay as they were");
            self.shared.metrics.rules_refused();
            lock(&self.status).error = Some(error);
        }
    }

    /// Brings `file` into force. The agent knows a rule before the kernel steers for it.
    fn apply(&self, file: &RuleFile) -> anyhow::Result<()> {
        let set = RuleSet::compile(file)?;
        let ports: BTreeSet<PortKey> = set.ports().map(|port| PortKey { port, protocol: Protocol::Tcp }).collect();
        let keys: BTreeSet<_> = file.intercepts.iter().map(|i| i.client.key_hash).collect();
        let before = self.shared.rules.swap(Arc::new(set));
        if let Err(error) = lock(&self.kernel).apply(&ports, &file.exempt) {
            self.shared.rules.store(before);
            return Err(anyhow::Error::from(error).context("the kernel does not take the rules"));
        }
        self.admission.allow(keys.clone());
        self.shared.hub.keep_only(&keys);
        let mut status = lock(&self.status);
        status.generation += 1;
        status.error = None;
        self.shared.metrics.rules_in_force(status.generation);
        tracing::info!(
            generation = status.generation,
            intercepts = file.intercepts.len(),
            ports = ports.len(),
            "rules in force"
        );
        Ok(())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
