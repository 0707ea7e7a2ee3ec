//! The Intercept that this command makes in the cluster.
//!
//! Owns its creation, or adoption if it is there already by this user's key, and its deletion, with the promise that
//! nothing is left behind: whatever became of a request, what carries this key is looked for and deleted. It waits for
//! nothing else.

use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::bail;
use kube::Api;
use kube::ResourceExt as _;
use kube::api::DeleteParams;
use kube::api::PostParams;
use kube::api::Preconditions;
use sluice_api::Intercept;

use super::view;
use crate::cluster::Cluster;
use crate::cluster::is_not_found;
use crate::cluster::is_refusal;

/// Field manager of what is written here.
const MANAGER: &str = "sluice";

/// How long one request of the cleaning up may take, and all of it.
const REQUEST_LIMIT: Duration = Duration::from_secs(3);
const CLEAN_UP_LIMIT: Duration = Duration::from_secs(10);

/// Pause between two looks.
const PAUSE: Duration = Duration::from_millis(250);

/// A request that was cut may still be under way: so often it must be seen that there is nothing.
const LOOKS: u32 = 4;

/// Most attempts to create one: each time another one with that name was in the way and went.
const ATTEMPTS: u32 = 40;

/// An Intercept as the user wants it.
pub(crate) struct Wanted {
    cluster: Cluster,
    intercept: Intercept,
    may_be_left: AtomicBool,
}

impl Wanted {
    pub(crate) fn new(cluster: Cluster, intercept: Intercept) -> Self {
        Self { cluster, intercept, may_be_left: AtomicBool::new(false) }
    }

    /// Whether cleaning up came to nothing.
    pub(crate) fn may_be_left(&self) -> bool {
        self.may_be_left.load(Ordering::Relaxed)
    }

    pub(crate) fn api(&self) -> Api<Intercept> {
        Api::namespaced(self.cluster.client.clone(), &self.cluster.namespace)
    }

    pub(crate) fn name(&self) -> String {
        self.intercept.name_any()
    }

    /// Creates it, or finds it: after a crash of this command it may be there still.
    ///
    /// Cancelled or failed, it may exist all the same: [`Self::clean_up`] then.
    pub(crate) async fn create(&self) -> anyhow::Result<Intercept> {
        let doing = format!("create the Intercept {} in the namespace {}", self.name(), self.cluster.namespace);
        let parameters = PostParams { field_manager: Some(MANAGER.to_owned()), ..PostParams::default() };
        for _ in 0..ATTEMPTS {
            match self.api().create(&parameters, &self.intercept).await {
                Ok(created) => return Ok(created),
                Err(kube::Error::Api(status)) if status.reason == "AlreadyExists" => {
                    if let Some(adopted) = Box::pin(self.adopt()).await? {
                        return Ok(adopted);
                    }
                    tokio::time::sleep(PAUSE).await;
                }
                Err(error) => {
                    if !is_refusal(&error) {
                        Box::pin(self.clean_up()).await;
                    }
                    return Err(Box::pin(self.cluster.explain_intercepts(&doing, error)).await);
                }
            }
        }
        bail!("cannot {doing}: another one with that name is being deleted and does not go")
    }

    /// The existing one, if it is what is wanted. `None` if it was in the way and is gone or about to be.
    async fn adopt(&self) -> anyhow::Result<Option<Intercept>> {
        let name = self.name();
        let doing = format!("read the existing Intercept {name}");
        let existing = self.api().get_opt(&name).await.map_err(|error| self.cluster.explain(&doing, error))?;
        let Some(existing) = existing.filter(|existing| existing.metadata.deletion_timestamp.is_none()) else {
            return Ok(None);
        };
        let namespace = &self.cluster.namespace;
        if !self.is_ours(&existing) {
            bail!(
                "there is an Intercept {name} in the namespace {namespace} already, of {} for {}: take another name, or \
                 remove it with `sluice intercept remove {name} --namespace {namespace}`",
                existing.owner(),
                existing.spec.target
            );
        }
        if self.is_same(&existing) {
            tracing::info!("the Intercept {name} is there already, of an earlier run: going on with it");
            return Ok(Some(existing));
        }
        if existing.status.iter().flat_map(|status| &status.pods).any(|pod| pod.connected) {
            bail!(
                "the Intercept {name} runs already with other options, from this machine: stop that one first, or remove it \
                 with `sluice intercept remove {name} --namespace {namespace}`"
            );
        }
        tracing::info!("replacing the Intercept {name} of an earlier run, which had other options");
        self.delete(&existing).await.map_err(|error| self.cluster.explain("replace it", error))?;
        Ok(None)
    }

    fn is_ours(&self, existing: &Intercept) -> bool {
        existing.spec.client.key_hash == self.intercept.spec.client.key_hash
    }

    /// But for what others add: the owner.
    fn is_same(&self, existing: &Intercept) -> bool {
        let mut spec = existing.spec.clone();
        spec.owner = None;
        let to = |intercept: &Intercept| intercept.annotations().get(view::TO).cloned();
        spec == self.intercept.spec && to(existing) == to(&self.intercept)
    }

    /// Deletes exactly `existing`, not another one that has its name meanwhile.
    pub(crate) async fn delete(&self, existing: &Intercept) -> kube::Result<()> {
        let preconditions = Preconditions { uid: existing.uid(), resource_version: None };
        let parameters = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
        match self.api().delete(&self.name(), &parameters).await {
            Ok(_) => Ok(()),
            Err(error) if is_not_found(&error) => Ok(()),
            // The uid is another one.
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Sees to it that nothing with this key is left, and tells the user if that cannot be had.
    pub(crate) async fn clean_up(&self) {
        let look = async {
            let mut absent = 0;
            while absent < LOOKS {
                match tokio::time::timeout(REQUEST_LIMIT, Box::pin(self.delete_ours())).await {
                    Ok(Ok(true)) => return,
                    Ok(Ok(false)) => absent += 1,
                    Ok(Err(error)) => tracing::debug!(%error, "cannot clean up yet"),
                    Err(_) => tracing::debug!("cannot clean up yet: no answer"),
                }
                tokio::time::sleep(PAUSE).await;
            }
        };
        if tokio::time::timeout(CLEAN_UP_LIMIT, look).await.is_err() {
            self.warn_of_leftover();
        }
    }

    /// Deletes `created` and tells the user if that cannot be had; true if it is gone.
    pub(crate) async fn remove(&self, created: &Intercept) -> bool {
        let attempts = async {
            loop {
                match tokio::time::timeout(REQUEST_LIMIT, Box::pin(self.delete(created))).await {
                    Ok(Ok(())) => return true,
                    Ok(Err(error)) if is_refusal(&error) => {
                        tracing::warn!("{:#}", self.cluster.explain("delete the Intercept", error));
                        return false;
                    }
                    Ok(Err(error)) => tracing::debug!(%error, "cannot delete the Intercept yet"),
                    Err(_) => tracing::debug!("cannot delete the Intercept yet: no answer"),
                }
                tokio::time::sleep(PAUSE).await;
            }
        };
        let gone = tokio::time::timeout(CLEAN_UP_LIMIT, attempts).await.unwrap_or(false);
        if !gone {
            self.warn_of_leftover();
        }
        gone
    }

    /// True if there was one; false if there is none, or another's.
    async fn delete_ours(&self) -> kube::Result<bool> {
        match self.api().get_opt(&self.name()).await? {
            Some(existing) if self.is_ours(&existing) => self.delete(&existing).await.map(|()| true),
            Some(_) | None => Ok(false),
        }
    }

    fn warn_of_leftover(&self) {
        self.may_be_left.store(true, Ordering::Relaxed);
        let (name, namespace) = (self.name(), &self.cluster.namespace);
        tracing::warn!(
            "the Intercept {name} may be left in the cluster, which does not answer: it takes no requests without this \
             client, and the control plane removes it after 10 minutes; or run `sluice intercept remove {name} --namespace \
             {namespace}`"
        );
    }
}
