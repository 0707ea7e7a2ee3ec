//! One tunnel for each pod of an intercept.
//!
//! Owns which tunnels there are, by what the Intercept's status lists, and what the user is told about each. A tunnel
//! keeps itself up; here they are only begun and ended.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;

use kube::Client;
use sluice::Config;
use sluice::Identity;
use sluice::KeyHash;
use sluice::LocalHost;
use sluice::Ports;
use sluice::State;
use sluice::TakenOver;
use sluice::Tunnel;
use sluice::Ways;
use sluice_api::PodStatus;
use sluice_protocol::chain::Chain;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::forward::PodForward;

/// A new pod's agent may not know this client yet, and one that goes away is not listed for long: nobody needs to read of
/// what passes within this time.
const QUIET: Duration = Duration::from_secs(2);

/// All tunnels of one intercept.
pub(crate) struct Fleet {
    client: Client,
    namespace: String,
    identity: Identity,
    ports: Ports,
    to: LocalHost,
    ways: Ways,
    /// By the pod's uid.
    members: BTreeMap<String, Member>,
    watchers: JoinSet<Seen>,
}

struct Member {
    address: String,
    key: KeyHash,
    tunnel: Tunnel,
    /// It is not listed any more.
    leaving: Arc<AtomicBool>,
}

/// How a tunnel ended, as its watcher saw it.
enum Seen {
    /// Another client with the same key has come.
    TakenOver(TakenOver),
    /// The pod with this uid was not listed any more, and now its agent is gone.
    Left(String),
    /// It was ended here.
    Stopped,
}

impl Fleet {
    pub(crate) fn new(client: Client, namespace: &str, identity: Identity, ports: Ports, to: LocalHost) -> Self {
        Self {
            client,
            namespace: namespace.to_owned(),
            identity,
            ports,
            to,
            ways: Ways::default(),
            members: BTreeMap::new(),
            watchers: JoinSet::new(),
        }
    }

    /// Begins tunnels to agents that are new here. Those to pods that are not listed any more go on until the agent ends
    /// them: Services still send to a pod that has just begun to end, and the rules of one that has left the workload are
    /// taken from its agent.
    pub(crate) fn follow(&mut self, pods: &[PodStatus]) {
        self.members.retain(|uid, member| {
            let listed = pods.iter().find(|pod| pod.uid == *uid);
            member.leaving.store(listed.is_none(), Ordering::Relaxed);
            // Dropping a tunnel says goodbye to its agent.
            match listed {
                Some(pod) => pod.tunnel.as_ref() == Some(&member.address) && pod.key_hash == Some(member.key),
                None => matches!(*member.tunnel.state().borrow(), State::Connected { .. }),
            }
        });
        for pod in pods {
            if let (Some(address), Some(key), false) = (&pod.tunnel, pod.key_hash, self.members.contains_key(&pod.uid))
            {
                match self.begin(&pod.name, address, key) {
                    Ok(tunnel) => {
                        let leaving = Arc::<AtomicBool>::default();
                        let watcher = Watcher { pod: pod.name.clone(), uid: pod.uid.clone(), leaving: leaving.clone() };
                        self.watchers.spawn(watcher.watch(tunnel.state()));
                        let member = Member { address: address.clone(), key, tunnel, leaving };
                        self.members.insert(pod.uid.clone(), member);
                    }
                    Err(error) => tracing::warn!("pod {}: {error:#}", pod.name),
                }
            }
        }
    }

    fn begin(&self, pod: &str, address: &str, agent_key: KeyHash) -> anyhow::Result<Tunnel> {
        let forward = PodForward::new(self.client.clone(), &self.namespace, pod);
        Ok(Tunnel::start(Config {
            agent: address.parse()?,
            agent_key,
            identity: self.identity.clone(),
            ports: self.ports.clone(),
            to: self.to.clone(),
            ways: self.ways.with_forward(Arc::new(forward)),
        })?)
    }

    /// The way to a pod that is connected.
    pub(crate) fn way(&self, uid: &str) -> Option<&'static str> {
        match *self.members.get(uid)?.tunnel.state().borrow() {
            State::Connected { way, .. } => Some(way),
            _ => None,
        }
    }

    /// Waits until another client with the same key has taken over anywhere. Cancel safe.
    pub(crate) async fn taken_over(&mut self) -> TakenOver {
        loop {
            match self.watchers.join_next().await {
                Some(Ok(Seen::TakenOver(taken_over))) => return taken_over,
                // Unless it has been replaced by one that is listed.
                Some(Ok(Seen::Left(uid))) => {
                    self.members
                        .extract_if(.., |of, member| *of == uid && member.leaving.load(Ordering::Relaxed))
                        .count();
                }
                Some(_) => {}
                // New ones come by `follow`, for which the caller drops this future.
                None => std::future::pending().await,
            }
        }
    }

    /// Says goodbye to all agents.
    pub(crate) async fn stop(mut self) {
        let members = std::mem::take(&mut self.members);
        // That another client took over changes nothing for somebody who stops.
        futures_util::future::join_all(members.into_values().map(|member| member.tunnel.stop())).await;
    }
}

/// Tells the user what becomes of one tunnel.
struct Watcher {
    pod: String,
    uid: String,
    leaving: Arc<AtomicBool>,
}

// === impl Watcher ===

impl Watcher {
    async fn watch(self, mut state: watch::Receiver<State>) -> Seen {
        // The sender is gone when the tunnel is: nothing to tell any more.
        self.follow(&mut state).await.unwrap_or(Seen::Stopped)
    }

    async fn follow(&self, state: &mut watch::Receiver<State>) -> Result<Seen, watch::error::RecvError> {
        let pod = &self.pod;
        let mut told = false;
        let mut lost = None;
        loop {
            let now = state.borrow_and_update().clone();
            match now {
                State::Connected { way, .. } => {
                    if std::mem::take(&mut told) {
                        tracing::info!("pod {pod}: connected again ({way})");
                    } else {
                        tracing::debug!("pod {pod}: connected ({way})");
                    }
                    lost = None;
                    state.changed().await?;
                    continue;
                }
                State::TakenOver(taken_over) => return Ok(Seen::TakenOver(taken_over)),
                State::Stopped => return Ok(Seen::Stopped),
                _ if self.leaving.load(Ordering::Relaxed) => return Ok(Seen::Left(self.uid.clone())),
                State::Lost(reason) => lost = Some(reason),
                State::Connecting | State::Failed(_) => {}
            }
            if told {
                state.changed().await?;
                continue;
            }
            match tokio::time::timeout(QUIET, state.wait_for(is_settled)).await {
                Ok(settled) => {
                    settled?;
                    continue;
                }
                Err(_) => told = true,
            }
            match (&lost, &*state.borrow()) {
                (Some(lost), _) => tracing::warn!("pod {pod}: connection lost ({lost}); trying again"),
                (None, State::Failed(error)) => tracing::warn!("pod {pod}: {}; trying again", Chain(&**error)),
                (None, _) => tracing::warn!("pod {pod}: cannot be reached yet; trying again"),
            }
        }
    }
}

fn is_settled(state: &State) -> bool {
    matches!(state, State::Connected { .. } | State::TakenOver(_) | State::Stopped)
}
