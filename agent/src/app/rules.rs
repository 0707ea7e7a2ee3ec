//! Where rules come from, and how they come into force: in the agent and in the kernel, and told to the controller.
//!
//! Runs in the agent's thread. Owns the order of the steps; what each part makes of a rule is its own business.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use sluice_protocol::{
    control::{Assignment, Held, Report},
    key::KeyHash,
    rules::{Intercept, RuleFile, matcher::RuleSet},
};
use tokio::sync::watch;

use super::lock;
use crate::{
    admin::RulesStatus,
    config,
    connection::Shared,
    existing::Existing,
    hub::Admission,
    insertion::Insertion,
    kernel::{Kernel, PortKey, Protocol},
    rules_file::RulesFile,
    ways,
};

/// Makes rules come into force, in the agent and in the kernel.
pub(super) struct Rules {
    pub(super) shared: Arc<Shared>,
    /// What is done about ports whose rules leave it open.
    pub(super) steering: config::Steering,
    pub(super) insertion: Arc<Insertion>,
    pub(super) kernel: Arc<Mutex<Kernel>>,
    pub(super) existing: Arc<Mutex<Existing>>,
    pub(super) admission: Arc<Admission>,
    pub(super) status: Arc<Mutex<RulesStatus>>,
    /// What of the controller is in force.
    pub(super) assigned: Arc<Mutex<Assignment>>,
    /// Whether there are rules, if only to intercept nothing.
    pub(super) ready: Arc<AtomicBool>,
    pub(super) news_tx: watch::Sender<()>,
}

/// Where rules come from.
pub(super) enum Source {
    File {
        file: Box<RulesFile>,
        /// What has been read and is not in force yet.
        read: Option<RuleFile>,
    },
    Controller {
        /// controller --rules--> here; only the newest count
        rules_rx: watch::Receiver<Option<Assignment>>,
        exempt: Vec<ipnet::IpNet>,
    },
}

// === impl Source ===

impl Source {
    /// Waits for new rules and brings them into force. Cancel safe: what has come is kept until it is in force, or refused.
    pub(super) async fn follow(&mut self, rules: &Rules) {
        match self {
            Self::File { file, read } => {
                let changed = match read {
                    Some(read) => read,
                    None => match file.changed().await {
                        Ok(changed) => read.insert(changed),
                        Err(error) => return rules.take(Err(error.into())),
                    },
                };
                rules.prepare(&changed.intercepts).await;
                if let Some(changed) = read.take() {
                    rules.take(rules.apply(&changed));
                }
            }
            Self::Controller { rules_rx, exempt } => {
                if rules_rx.changed().await.is_err() {
                    // The conversation is over, which it is at the end only.
                    std::future::pending::<()>().await;
                }
                // Still new if this is cancelled meanwhile. Those that come then are newer, and come into force instead.
                rules_rx.mark_changed();
                let intercepts = intercepts(rules_rx.borrow().as_ref());
                rules.prepare(&intercepts).await;
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

    /// Does beforehand, on another thread, what takes long of bringing these rules into force: loading the packet programs.
    /// This thread goes on meanwhile, or clients would think that the agent cannot be reached.
    async fn prepare(&self, intercepts: &[Intercept]) {
        let mut wanted = false;
        ways::of_ports(intercepts, self.steering, || {
            wanted = true;
            Ok(())
        });
        if wanted && self.insertion.loaded().is_none() {
            let insertion = self.insertion.clone();
            // Whether it works is asked again by `apply`, and known by then.
            let _ = tokio::task::spawn_blocking(move || insertion.available()).await;
        }
    }

    /// Brings what the controller says into force.
    fn assign(&self, assignment: Assignment, exempt: &[ipnet::IpNet]) -> anyhow::Result<()> {
        let intercepts = intercepts(Some(&assignment));
        self.apply(&RuleFile { intercepts, exempt: exempt.to_vec() })?;
        *lock(&self.assigned) = assignment;
        Ok(())
    }

    /// What there is to report to the controller, whenever it is called.
    pub(super) fn report(&self, key_hash: KeyHash, tunnel_port: u16) -> Box<dyn Fn() -> Report + Send + Sync> {
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
    pub(super) fn apply(&self, file: &RuleFile) -> anyhow::Result<()> {
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

fn intercepts(assignment: Option<&Assignment>) -> Vec<Intercept> {
    assignment.into_iter().flat_map(|assignment| &assignment.intercepts).map(|assigned| assigned.rule.clone()).collect()
}
