//! What the control plane knows of the cluster when it is asked.
//!
//! Owns copies of namespaces, LimitRanges and ResourceQuotas, kept current by watches, so that a pod's admission waits
//! for nobody; and reads what must not be a moment old directly. Writes nothing.

use std::{future::Future, time::Duration};

use futures_util::{
    StreamExt as _,
    future::{BoxFuture, join_all},
};
use k8s_openapi::{
    NamespaceResourceScope,
    api::core::v1::{LimitRange, Namespace, ResourceQuota},
};
use kube::{
    Api, Client, Resource, ResourceExt as _,
    api::ListParams,
    runtime::{
        WatchStreamExt as _,
        reflector::{self, ObjectRef, Store, store::Writer},
        watcher,
    },
};
use serde::de::DeserializeOwned;
use sluice_api::Intercept;

use crate::inject::{NamespaceFacts, asks};

/// Longest that a direct read may take, within the time that admission has.
const READ_DEADLINE: Duration = Duration::from_secs(2);

/// Why the cluster cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The API server answered with an error, or the connection failed.
    #[error("cannot read {what} of the namespace {namespace}")]
    Api {
        /// What was read.
        what: &'static str,
        /// Where.
        namespace: String,
        /// Why not.
        #[source]
        source: Box<kube::Error>,
    },
    /// No answer in time.
    #[error("{what} of the namespace {namespace} did not arrive within {} s", READ_DEADLINE.as_secs())]
    Slow {
        /// What was read.
        what: &'static str,
        /// Where.
        namespace: String,
    },
}

/// The cluster, as seen from here.
pub struct Cluster {
    client: Client,
    namespaces: Store<Namespace>,
    limit_ranges: Store<LimitRange>,
    quotas: Store<ResourceQuota>,
}

// === impl Cluster ===

impl Cluster {
    /// A view of the cluster, and the work that keeps it current, which ends only when it is dropped.
    pub fn new(client: Client) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (namespaces, namespaces_writer) = reflector::store();
        let (limit_ranges, limit_ranges_writer) = reflector::store();
        let (quotas, quotas_writer) = reflector::store();
        let following: [BoxFuture<'static, ()>; 3] = [
            Box::pin(follow(Api::all(client.clone()), namespaces_writer, |_| {}, || {})),
            Box::pin(follow(Api::all(client.clone()), limit_ranges_writer, |_| {}, || {})),
            Box::pin(follow(Api::all(client.clone()), quotas_writer, |_| {}, || {})),
        ];
        let work = async move {
            join_all(following).await;
        };
        (Self { client, namespaces, limit_ranges, quotas }, work)
    }

    /// For what is not read here.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Waits until every copy is complete for the first time.
    pub async fn ready(&self) {
        // The only error is that the writer is gone, with which nothing will ever be ready.
        let results = tokio::join!(
            self.namespaces.wait_until_ready(),
            self.limit_ranges.wait_until_ready(),
            self.quotas.wait_until_ready()
        );
        if results.0.is_err() || results.1.is_err() || results.2.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// What injection has to know about a namespace. The API server asks only about pods whose namespace has the label,
    /// or that have it themselves (`pod_asks`): if the copy says otherwise, it is old, and the original is read.
    ///
    /// # Errors
    /// When the original had to be read and could not be.
    pub async fn facts(&self, name: &str, pod_asks: bool) -> Result<NamespaceFacts, ReadError> {
        let copy = self.namespaces.get(&ObjectRef::new(name)).map(|namespace| namespace.labels().clone());
        let labels = match copy {
            Some(labels) if pod_asks || asks(&labels) => labels,
            _ => self.labels(name).await?,
        };
        Ok(NamespaceFacts {
            name: name.to_owned(),
            labels,
            limit_ranges: in_namespace(&self.limit_ranges, name, |range| range.spec.clone()),
            quotas: in_namespace(&self.quotas, name, |quota| quota.spec.clone()),
        })
    }

    async fn labels(&self, name: &str) -> Result<std::collections::BTreeMap<String, String>, ReadError> {
        let api = Api::<Namespace>::all(self.client.clone());
        Ok(read("the labels", name, Box::pin(api.get(name))).await?.metadata.labels.unwrap_or_default())
    }

    /// All Intercepts of a namespace, as they are at this moment.
    ///
    /// # Errors
    /// When they cannot be read.
    pub async fn intercepts(&self, namespace: &str) -> Result<Vec<Intercept>, ReadError> {
        let api = Api::<Intercept>::namespaced(self.client.clone(), namespace);
        let params = ListParams::default();
        Ok(read("the Intercepts", namespace, Box::pin(api.list(&params))).await?.items)
    }
}

async fn read<T>(what: &'static str, namespace: &str, request: BoxFuture<'_, kube::Result<T>>) -> Result<T, ReadError> {
    match tokio::time::timeout(READ_DEADLINE, request).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(ReadError::Api { what, namespace: namespace.to_owned(), source: Box::new(error) }),
        Err(_) => Err(ReadError::Slow { what, namespace: namespace.to_owned() }),
    }
}

fn in_namespace<K, T>(store: &Store<K>, namespace: &str, take: impl Fn(&K) -> Option<T>) -> Vec<T>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + 'static,
{
    let objects = store.state();
    let there = objects.iter().filter(|object| object.meta().namespace.as_deref() == Some(namespace));
    there.filter_map(|object| take(object)).collect()
}

/// Keeps a copy current for as long as it is polled: `trim` takes away what is not needed of an object, `changed` is called
/// behind each change of the copy.
pub(crate) async fn follow<K>(api: Api<K>, writer: Writer<K>, trim: fn(&mut K), changed: impl Fn())
where
    K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned + Send + Sync + 'static,
{
    let stream = watcher(api, watcher::Config::default())
        .default_backoff()
        .modify(move |object| {
            object.managed_fields_mut().clear();
            trim(object);
        })
        .reflect(writer);
    let mut stream = std::pin::pin!(stream);
    while let Some(event) = stream.next().await {
        match event {
            Ok(_) => changed(),
            Err(error) => {
                let error = format!("{:#}", anyhow::Error::new(error));
                tracing::warn!(kind = %K::kind(&()), error, "watch interrupted");
            }
        }
    }
}
