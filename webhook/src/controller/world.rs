//! Intercepts, workloads and pods, as far as the controller needs them.
//!
//! Owns copies of them, kept current by watches, without what is not needed of them: a cluster has many pods. Knows which
//! pods a workload has; decides nothing and writes nothing.

use std::sync::Arc;

use futures_util::{
    FutureExt as _,
    future::{BoxFuture, join_all},
};
use k8s_openapi::{
    api::{
        apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet},
        core::v1::{Container, Pod},
    },
    apimachinery::pkg::apis::meta::v1::OwnerReference,
};
use kube::{
    Api, Client, Resource, ResourceExt as _,
    core::PartialObjectMeta,
    runtime::reflector::{self, ObjectRef, Store},
};
use sluice_api::{Intercept, Target, TargetKind, contract::label};
use tokio::sync::watch;

use crate::cluster::follow;

/// The cluster, as far as intercepts are concerned.
pub(crate) struct World {
    intercepts: Store<Intercept>,
    pods: Store<Pod>,
    deployments: Store<PartialObjectMeta<Deployment>>,
    stateful_sets: Store<PartialObjectMeta<StatefulSet>>,
    daemon_sets: Store<PartialObjectMeta<DaemonSet>>,
    replica_sets: Store<PartialObjectMeta<ReplicaSet>>,
}

/// What there is to know of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PodFacts {
    pub(crate) uid: String,
    pub(crate) name: String,
    pub(crate) node: Option<String>,
    /// Empty until it has one.
    pub(crate) ip: String,
    /// It was injected.
    pub(crate) agent: bool,
    /// The ports that its containers name.
    pub(crate) ports: Vec<(String, u16)>,
    /// It is being deleted. It serves until Services have forgotten it, and the client keeps its tunnel for as long as the
    /// agent lives; nobody waits for it.
    pub(crate) leaving: bool,
}

// === impl World ===

impl World {
    /// A view of the cluster, and the work that keeps it current and says on `changed_tx` when something has changed.
    pub(crate) fn new(client: &Client, changed_tx: &watch::Sender<()>) -> (Self, BoxFuture<'static, ()>) {
        let mut following = Vec::new();
        let world = Self {
            intercepts: full(client, changed_tx, &mut following, |_: &mut Intercept| {}),
            pods: full(client, changed_tx, &mut following, trim),
            deployments: names(client, changed_tx, &mut following),
            stateful_sets: names(client, changed_tx, &mut following),
            daemon_sets: names(client, changed_tx, &mut following),
            replica_sets: names(client, changed_tx, &mut following),
        };
        (world, join_all(following).map(drop).boxed())
    }

    /// Waits until every copy is complete for the first time.
    pub(crate) async fn ready(&self) {
        let results = tokio::join!(
            self.intercepts.wait_until_ready(),
            self.pods.wait_until_ready(),
            self.deployments.wait_until_ready(),
            self.stateful_sets.wait_until_ready(),
            self.daemon_sets.wait_until_ready(),
            self.replica_sets.wait_until_ready()
        );
        // The only error is that the writer is gone, with which nothing will ever be ready.
        let results = [results.0, results.1, results.2, results.3, results.4, results.5];
        if results.iter().any(Result::is_err) {
            std::future::pending::<()>().await;
        }
    }

    pub(crate) fn intercepts(&self) -> Vec<Arc<Intercept>> {
        self.intercepts.state()
    }

    /// The injected pod with this uid.
    pub(crate) fn injected(&self, namespace: &str, name: &str, uid: &str) -> bool {
        let pod = self.pods.get(&ObjectRef::new(name).within(namespace));
        pod.is_some_and(|pod| pod.metadata.uid.as_deref() == Some(uid) && is_injected(&pod))
    }

    /// The pods of every namespace that are worth looking at, in the order of their names.
    pub(crate) fn pods(&self) -> Vec<Arc<Pod>> {
        let mut pods = self.pods.state();
        pods.retain(|pod| may_run(pod));
        pods.sort_by_key(|pod| pod.metadata.name.clone());
        pods
    }

    /// Whether `target` exists. Of kinds that not every cluster has it is taken for granted.
    pub(crate) fn exists(&self, namespace: &str, target: &Target) -> bool {
        let name = target.name.as_str();
        match target.kind {
            TargetKind::Deployment => has(&self.deployments, namespace, name),
            TargetKind::StatefulSet => has(&self.stateful_sets, namespace, name),
            TargetKind::DaemonSet => has(&self.daemon_sets, namespace, name),
            TargetKind::ReplicaSet => has(&self.replica_sets, namespace, name),
            TargetKind::Pod => self.pods.get(&ObjectRef::new(name).within(namespace)).is_some_and(|pod| may_run(&pod)),
            TargetKind::Rollout => true,
        }
    }

    /// Whether `pod` is one of `target`'s, both in one namespace.
    pub(crate) fn belongs(&self, pod: &Pod, target: &Target) -> bool {
        if target.kind == TargetKind::Pod {
            return pod.metadata.name.as_deref() == Some(target.name.as_str());
        }
        let Some(owner) = controller(pod.owner_references()) else { return false };
        if is(owner, target) {
            return true;
        }
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let replica_set = (owner.kind == "ReplicaSet")
            .then(|| self.replica_sets.get(&ObjectRef::new(&owner.name).within(namespace)))
            .flatten();
        let above = replica_set.as_ref().and_then(|set| controller(set.owner_references()));
        above.is_some_and(|owner| is(owner, target))
    }
}

// === impl PodFacts ===

impl PodFacts {
    pub(crate) fn of(pod: &Pod) -> Self {
        let spec = pod.spec.as_ref();
        let init = spec.and_then(|spec| spec.init_containers.as_ref()).into_iter().flatten();
        // Of those that run before the others, only the ones that go on running listen.
        let init = init.filter(|container| container.restart_policy.as_deref() == Some("Always"));
        let containers = spec.map(|spec| spec.containers.iter()).into_iter().flatten().chain(init);
        Self {
            uid: pod.metadata.uid.clone().unwrap_or_default(),
            name: pod.name_any(),
            node: spec.and_then(|spec| spec.node_name.clone()),
            ip: pod.status.as_ref().and_then(|status| status.pod_ip.clone()).unwrap_or_default(),
            agent: is_injected(pod),
            ports: containers.flat_map(named_ports).collect(),
            leaving: pod.metadata.deletion_timestamp.is_some(),
        }
    }
}

fn named_ports(container: &Container) -> impl Iterator<Item = (String, u16)> {
    let ports = container.ports.iter().flatten();
    ports.filter_map(|port| Some((port.name.clone()?, u16::try_from(port.container_port).ok()?)))
}

fn is_injected(pod: &Pod) -> bool {
    pod.labels().get(label::INJECTED).is_some_and(|value| value == label::INJECTED_VALUE)
}

fn may_run(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    !matches!(phase, Some("Succeeded" | "Failed"))
}

fn controller(owners: &[OwnerReference]) -> Option<&OwnerReference> {
    owners.iter().find(|owner| owner.controller == Some(true))
}

fn is(owner: &OwnerReference, target: &Target) -> bool {
    owner.name == target.name && owner.kind == format!("{:?}", target.kind)
}

fn has<K>(store: &Store<K>, namespace: &str, name: &str) -> bool
where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    store.get(&ObjectRef::new(name).within(namespace)).is_some_and(|object| object.meta().deletion_timestamp.is_none())
}

/// What is large and not looked at.
fn trim(pod: &mut Pod) {
    pod.annotations_mut().clear();
    let Some(spec) = &mut pod.spec else { return };
    (spec.volumes, spec.affinity, spec.tolerations, spec.ephemeral_containers) = (None, None, None, None);
    let init = spec.init_containers.iter_mut().flatten();
    for container in init.chain(&mut spec.containers) {
        (container.env, container.env_from, container.args, container.command) = (None, None, None, None);
        (container.volume_mounts, container.security_context, container.resources) = (None, None, None);
        (container.liveness_probe, container.readiness_probe, container.startup_probe) = (None, None, None);
    }
    if let Some(status) = &mut pod.status {
        (status.conditions, status.container_statuses, status.init_container_statuses) = (None, None, None);
    }
}

type Following = Vec<BoxFuture<'static, ()>>;

fn full<K>(client: &Client, changed_tx: &watch::Sender<()>, following: &mut Following, trim: fn(&mut K)) -> Store<K>
where
    K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + serde::de::DeserializeOwned + Send + Sync + 'static,
{
    let (store, writer) = reflector::store();
    let changed_tx = changed_tx.clone();
    let changed = move || {
        changed_tx.send_replace(());
    };
    following.push(follow(Api::<K>::all(client.clone()), writer, trim, changed).boxed());
    store
}

/// Names and owners only, which is all that the API server sends then.
fn names<K>(client: &Client, changed_tx: &watch::Sender<()>, following: &mut Following) -> Store<PartialObjectMeta<K>>
where
    K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + serde::de::DeserializeOwned + Send + Sync + 'static,
{
    full(client, changed_tx, following, |object: &mut PartialObjectMeta<K>| {
        object.annotations_mut().clear();
        object.labels_mut().clear();
    })
}
