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
use nix::sys::signal::SigSet;
use sluice_protocol::{
    DEFAULT_TUNNEL_PORT,
    close::CloseCode,
    control::{Assignment, Held, Report},
    key::{Identity, KeyHash},
    rules::{RuleFile, matcher::RuleSet},
    tls,
    way::{Direct, endpoint},
};
use tokio::{
    net::{TcpListener, TcpStream},
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    admin::{Admin, RulesStatus},
    config::{self, Config},
    connection::{Shared, Steered},
    control::{Control, Settings},
    dialer::{AppDialer, is_own_source},
    existing::Existing,
    forwarded, gateway,
    hub::{Admission, Hub},
    insertion::{Insertion, Position},
    kernel::{Kernel, LoadError, LoadOptions, PortKey, Protocol},
    limits,
    metrics::Metrics,
    rules_file::{RulesFile, RulesFileError},
    socket::Socket,
    supervise::Supervisor,
    ways,
    wiretap::Wiretaps,
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

/// How long after a change of the rules what is unclear about connections from before is looked at again.
const CLEARING: Duration = Duration::from_millis(100);

/// How often ports whose rules have gone are looked at, whether connections still depend on them.
const LEAVING: Duration = Duration::from_millis(500);

/// Makes rules come into force, in the agent and in the kernel.
struct Rules {
    shared: Arc<Shared>,
    /// What is done about ports whose rules leave it open.
    steering: config::Steering,
    insertion: Arc<Insertion>,
    kernel: Arc<Mutex<Kernel>>,
    existing: Arc<Mutex<Existing>>,
    admission: Arc<Admission>,
    status: Arc<Mutex<RulesStatus>>,
    /// What of the controller is in force.
    assigned: Arc<Mutex<Assignment>>,
    /// Whether there are rules, if only to intercept nothing.
    ready: Arc<AtomicBool>,
    news_tx: watch::Sender<()>,
}

/// Where rules come from.
enum Source {
    File(Box<RulesFile>),
    Controller {
        /// controller --rules--> here; only the newest count
        rules_rx: watch::Receiver<Option<Assignment>>,
        exempt: Vec<ipnet::IpNet>,
    },
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
            (Source::File(Box::new(file)), rules)
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
        services.spawn(cut.clone().run_until_cancelled_owned(accept(
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
    Some(Steered {
        shared: shared.clone(),
        caller: Socket::new(caller),
        peer,
        destination,
        port: destination.port(),
        app: None,
        position: Position::default(),
        inserted: None,
    })
}

/// An IPv4 address as such, also where it came through an IPv6 socket.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
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

// === impl Source ===

impl Source {
    /// Waits for new rules and brings them into force. Cancel safe, as nothing is waited for behind the change.
    async fn follow(&mut self, rules: &Rules) {
        match self {
            Self::File(file) => {
                let changed = file.changed().await.map_err(anyhow::Error::from);
                rules.take(changed.and_then(|file| rules.apply(&file)));
            }
            Self::Controller { rules_rx, exempt } => {
                if rules_rx.changed().await.is_err() {
                    // The conversation is over, which it is at the end only.
                    std::future::pending::<()>().await;
                }
                let Some(assignment) = rules_rx.borrow_and_update().clone() else { return };
                rules.take(rules.assign(assignment, exempt));
                rules.ready.store(true, Ordering::Relaxed);
                rules.news_tx.send_replace(());
            }
        }
    }
}

// === impl Rules ===

impl Rules {
    /// Notes how an attempt to change the rules ended.
    fn take(&self, result: anyhow::Result<()>) {
        if let Err(error) = result {
            let error = format!("{error:#}");
            tracing::error!(error, "the rules stay as they were");
            self.shared.metrics.rules_refused();
            lock(&self.status).error = Some(error);
        }
    }

    /// Brings what the controller says into force.
    fn assign(&self, assignment: Assignment, exempt: &[ipnet::IpNet]) -> anyhow::Result<()> {
        let intercepts = assignment.intercepts.iter().map(|assigned| assigned.rule.clone()).collect();
        self.apply(&RuleFile { intercepts, exempt: exempt.to_vec() })?;
        *lock(&self.assigned) = assignment;
        Ok(())
    }

    /// What there is to report to the controller, whenever it is called.
    fn report(&self, key_hash: KeyHash, tunnel_port: u16) -> Box<dyn Fn() -> Report + Send + Sync> {
        let (shared, kernel, existing) = (self.shared.clone(), self.kernel.clone(), self.existing.clone());
        let (assigned, status, insertion) = (self.assigned.clone(), self.status.clone(), self.insertion.clone());
        Box::new(move || {
            let held = lock(&kernel).held();
            let inserted = insertion.look().unwrap_or_default();
            let has = |port: u16| {
                let key = PortKey { port, protocol: Protocol::Tcp };
                (inserted.attached && inserted.ports.contains(&port))
                    || held.as_ref().is_ok_and(|held| held.attached && held.ports.contains(&key))
            };
            let mut existing = lock(&existing);
            existing.look();
            let assigned = lock(&assigned);
            let status = lock(&status);
            let intercepts = assigned.intercepts.iter().map(|assigned| {
                let rule = &assigned.rule;
                let ports = || rule.ports.iter().map(|port| port.port.get());
                let ways = ways::of_rule(rule, &status.ways);
                Held {
                    uid: assigned.uid.clone(),
                    generation: assigned.generation,
                    programmed: ports().all(has),
                    connected: shared.hub.is_connected(&rule.client.key_hash),
                    counters: shared.metrics.counters(&rule.name, ports()),
                    existing_connections: ports().map(|port| existing.count(port) as u64).sum(),
                    reset_error: existing.reset_error().filter(|_| rule.reset_existing).map(str::to_owned),
                    steering_error: ways::error(rule, &ways),
                    ways,
                }
            });
            Report {
                version: env!("CARGO_PKG_VERSION").to_owned(),
                key_hash,
                tunnel_port,
                refused: None,
                error: status.error.clone(),
                intercepts: intercepts.collect(),
            }
        })
    }

    /// Brings `file` into force. The agent knows a rule before the kernel steers for it.
    fn apply(&self, file: &RuleFile) -> anyhow::Result<()> {
        let set = RuleSet::compile(file)?;
        let ports: BTreeSet<PortKey> = set.ports().map(|port| PortKey { port, protocol: Protocol::Tcp }).collect();
        let resetting = file.intercepts.iter().filter(|intercept| intercept.reset_existing);
        let reset = resetting.flat_map(|intercept| intercept.ports.iter().map(|port| port.port.get())).collect();
        let choose = || ways::of_ports(&file.intercepts, self.steering, || self.insertion.available());
        let (mut ways, mut inserted) = choose();
        let keys: BTreeSet<_> = file.intercepts.iter().map(|i| i.client.key_hash).collect();
        let before = self.shared.rules.swap(Arc::new(set));
        if let Err(error) = self.insertion.apply(&inserted, &file.exempt) {
            self.insertion.give_up(&error);
            (ways, inserted) = choose();
            // What has been begun is taken back, as far as that goes.
            let _ = self.insertion.apply(&inserted, &file.exempt);
        }
        let steered: BTreeSet<PortKey> =
            ports.iter().copied().filter(|key| !inserted.contains_key(&key.port)).collect();
        if let Err(error) = lock(&self.kernel).apply(&steered, &file.exempt) {
            self.shared.rules.store(before);
            return Err(anyhow::Error::from(error).context("the kernel does not take the rules"));
        }
        // Only now: what had come in between would have been missed by both.
        lock(&self.existing).change(&steered.iter().map(|key| key.port).collect(), reset, &file.exempt);
        self.admission.allow(keys.clone());
        self.shared.hub.keep_only(&keys);
        let named = |name: &str| file.intercepts.iter().any(|intercept| intercept.name == name);
        self.shared.wiretaps.keep_only(named);
        self.shared.metrics.keep_only(named, |port| ports.iter().any(|key| key.port == port));
        for rule in &file.intercepts {
            if let Some(error) = ways::error(rule, &ways::of_rule(rule, &ways)) {
                tracing::warn!(intercept = rule.name, error, "not the way that is asked for");
            }
        }
        let mut status = lock(&self.status);
        status.generation += 1;
        (status.error, status.ways) = (None, ways);
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
