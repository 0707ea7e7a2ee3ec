//! The controller: from Intercepts to rules in agents, and from what agents report to the Intercepts' status.
//!
//! Owns the conversations with agents and everything that is written about Intercepts. Works only while this replica leads;
//! the others let no agent in. Holds nothing that is not in the API or said again by the agents when they come back, so a
//! new leader knows all within the time that they take for that.
//!
//! | Module | Owns |
//! |---|---|
//! | `world` | copies of Intercepts, workloads and pods |
//! | [`door`] | who agents are, and their conversations |
//! | [`plan`] | what follows from all of that, as a pure function |
//! | `deeds` | status, deletions and events in the API |

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use jiff::Timestamp;
use kube::{Client, ResourceExt as _};
use sluice_protocol::control::{Assigned, Assignment};
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};

mod deeds;
pub mod door;
pub mod plan;
mod world;

use self::{
    deeds::Deeds,
    door::{PodIdentity, Said},
    plan::{Case, Heard, Overlaps, Plan},
    world::{PodFacts, World},
};

/// Lines of agents that may wait to be looked at.
const SAID: usize = 1024;

/// Pause between two looks at everything, in which changes come together.
const PAUSE: Duration = Duration::from_millis(5);

/// The same where a look takes long: looks take a third of the time at most, and changes come together instead.
const LONG_PAUSE: Duration = Duration::from_millis(250);

/// How often everything is looked at without a change: for what only time brings.
const PERIOD: Duration = Duration::from_secs(1);

/// How long nothing is concluded from an agent's silence, behind the end of its conversation or the beginning of ours.
const GRACE: Duration = Duration::from_secs(12);

/// The controller of one replica.
pub struct Controller {
    client: Client,
    world: Arc<World>,
    /// agents --what they say--> controller
    said_tx: mpsc::Sender<Said>,
    said_rx: mpsc::Receiver<Said>,
    /// watches --something is different--> controller
    changed_rx: watch::Receiver<()>,
    replica: String,
}

/// An agent.
struct Agent {
    session: u64,
    pod: PodIdentity,
    /// `None` when it has gone.
    rules_tx: Option<watch::Sender<Option<Assignment>>>,
    sent: Option<Vec<Assigned>>,
    heard: Option<Heard>,
    gone: Option<Instant>,
}

/// What a leader knows besides the world.
struct Reign {
    began: Instant,
    revision: u64,
    agents: BTreeMap<String, Agent>,
    /// By namespace.
    overlaps: BTreeMap<String, Overlaps>,
    deeds: Deeds,
}

// === impl Controller ===

impl Controller {
    /// A controller, and the work that keeps its view of the cluster current.
    #[must_use]
    pub fn new(client: Client, replica: String) -> (Self, BoxFuture<'static, ()>) {
        let (said_tx, said_rx) = mpsc::channel(SAID);
        let (changed_tx, changed_rx) = watch::channel(());
        let (world, following) = World::new(&client, &changed_tx);
        (Self { client, world: Arc::new(world), said_tx, said_rx, changed_rx, replica }, following)
    }

    /// Works whenever `leads_rx` says so, for ever.
    pub async fn run(mut self, mut leads_rx: watch::Receiver<bool>) {
        self.world.ready().await;
        loop {
            if leads_rx.wait_for(|leads| *leads).await.is_err() {
                return;
            }
            self.lead(&mut leads_rx).await;
        }
    }

    async fn lead(&mut self, leads_rx: &mut watch::Receiver<bool>) {
        let deeds = Deeds::new(self.client.clone(), self.replica.clone());
        let (began, revision) = (Instant::now(), 0);
        let mut reign = Reign { began, revision, agents: BTreeMap::new(), overlaps: BTreeMap::new(), deeds };
        let (mut tick, mut pause) = (tokio::time::interval(PERIOD), PAUSE);
        loop {
            // Each arm is cancel safe: what is not taken now is taken next time.
            tokio::select! {
                biased;
                _ = leads_rx.wait_for(|leads| !*leads) => return,
                said = self.said_rx.recv() => match said {
                    Some(said) => reign.hear(said),
                    None => return,
                },
                Ok(()) = self.changed_rx.changed() => {}
                () = reign.deeds.done() => {}
                _ = tick.tick() => {}
            }
            tokio::time::sleep(pause).await;
            while let Ok(said) = self.said_rx.try_recv() {
                reign.hear(said);
            }
            let began = Instant::now();
            reign.look(&self.world);
            pause = (began.elapsed() * 2).clamp(PAUSE, LONG_PAUSE);
        }
    }
}

// === impl Reign ===

impl Reign {
    fn hear(&mut self, said: Said) {
        match said {
            Said::Hello { pod, session, rules_tx } => {
                let before = self.agents.remove(&pod.uid);
                let heard = before.and_then(|agent| agent.heard);
                let agent =
                    Agent { session, pod, rules_tx: Some(rules_tx), sent: None, heard, gone: Some(Instant::now()) };
                self.agents.insert(agent.pod.uid.clone(), agent);
            }
            Said::Report { pod, session, report } => {
                if let Some(agent) = self.agents.get_mut(&pod).filter(|agent| agent.session == session) {
                    agent.heard = Some(Heard::new(report));
                    agent.gone = None;
                }
            }
            Said::Bye { pod, session } => {
                if let Some(agent) = self.agents.get_mut(&pod).filter(|agent| agent.session == session) {
                    agent.rules_tx = None;
                    agent.gone = Some(Instant::now());
                }
            }
        }
    }

    /// Looks at everything and does what follows.
    fn look(&mut self, world: &World) {
        self.agents.retain(|_, agent| {
            let recent = agent.gone.is_none_or(|gone| gone.elapsed() < GRACE);
            if !recent {
                agent.heard = None;
            }
            recent || agent.rules_tx.is_some()
        });
        let intercepts = world.intercepts();
        let pods = world.pods();
        let heard: BTreeMap<_, _> =
            self.agents.iter().filter_map(|(uid, agent)| Some((uid.clone(), agent.heard.clone()?))).collect();
        let young = self.began.elapsed() < GRACE;
        let mut namespaces = BTreeMap::<String, Vec<Case<'_>>>::new();
        for intercept in &intercepts {
            let namespace = intercept.namespace().unwrap_or_default();
            let target = &intercept.spec.target;
            let own = pods.iter().filter(|pod| pod.metadata.namespace.as_deref() == Some(namespace.as_str()));
            let own = own.filter(|pod| world.belongs(pod, target)).map(|pod| PodFacts::of(pod)).collect();
            let case = Case { intercept, exists: world.exists(&namespace, target), pods: own };
            namespaces.entry(namespace).or_default().push(case);
        }
        let (now, mut whole) = (Timestamp::now(), Plan::default());
        self.overlaps.retain(|namespace, _| namespaces.contains_key(namespace));
        for (namespace, cases) in namespaces {
            let overlaps = self.overlaps.entry(namespace).or_default();
            let mut plan = plan::plan(cases, overlaps, &heard, &|_| young, now);
            whole.rules.append(&mut plan.rules);
            whole.status.append(&mut plan.status);
            whole.ends.append(&mut plan.ends);
        }
        self.send(&mut whole.rules);
        for intercept in &intercepts {
            let uid = intercept.metadata.uid.as_deref().unwrap_or_default();
            if let Some(end) = whole.ends.remove(uid) {
                self.deeds.end(intercept, end);
            } else if let Some(status) = whole.status.remove(uid) {
                self.deeds.report(intercept, status);
            }
        }
        self.deeds.forget(&intercepts);
    }

    /// Sends each agent its rules, where they are not what it was sent last.
    fn send(&mut self, rules: &mut BTreeMap<String, Vec<Assigned>>) {
        for (uid, agent) in &mut self.agents {
            let Some(rules_tx) = &agent.rules_tx else { continue };
            let wanted = rules.remove(uid).unwrap_or_default();
            if agent.sent.as_ref() == Some(&wanted) {
                continue;
            }
            self.revision += 1;
            tracing::info!(
                target: "agents",
                namespace = agent.pod.namespace,
                pod = agent.pod.name,
                revision = self.revision,
                intercepts = wanted.len(),
                "rules sent"
            );
            rules_tx.send_replace(Some(Assignment { revision: self.revision, intercepts: wanted.clone() }));
            agent.sent = Some(wanted);
        }
    }
}
