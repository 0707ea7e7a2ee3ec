//! Keeps the Secret, the `caBundle` and what is served in step.
//!
//! Owns the only loop that touches certificates. In every replica it follows the Secret and serves what is in it; in the
//! leader's it also writes the Secret, with the version that it has read, so that a replica that only believes to lead
//! changes nothing; and it puts the authorities into the webhook configuration, by a field manager that owns this
//! one field, whenever they differ: whoever applies the manifests again may have taken them away.

use std::{collections::BTreeMap, pin::pin, sync::Arc};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use futures_util::StreamExt as _;
use k8s_openapi::api::{admissionregistration::v1::MutatingWebhookConfiguration, core::v1::Secret};
use kube::{
    Api, Client,
    api::{ObjectMeta, Patch, PatchParams, PostParams},
    runtime::{WatchStreamExt as _, watcher},
};
use rustls::crypto::CryptoProvider;
use serde_json::{Value, json};
use sluice_api::contract::object;
use tokio::sync::watch;

use super::{
    Current,
    chain::{Chain, ChainError, now, service_hosts},
    rotation::{Policy, Step, next_step},
};

/// Why a round failed; the next one tries again.
#[derive(Debug, thiserror::Error)]
enum KeepError {
    #[error("cannot write the Secret {}", object::SECRET)]
    Write(#[source] Box<kube::Error>),
    #[error("cannot put the authorities into the webhook configuration {}", object::CONFIGURATION)]
    Bundle(#[source] Box<kube::Error>),
    #[error("cannot make what is due")]
    Make(#[source] ChainError),
    #[error("cannot serve what is in the Secret {}", object::SECRET)]
    Serve(#[source] ChainError),
}

/// What the loop needs.
pub struct Keeper {
    /// To read and write with.
    pub client: Client,
    /// Namespace of the Secret and the Service.
    pub namespace: String,
    /// Lives of what is made.
    pub policy: Policy,
    /// What is served.
    pub current: Arc<Current>,
    /// Makes and checks signatures.
    pub provider: Arc<CryptoProvider>,
}

/// What has been seen; `None`: nothing yet, `Some(None)`: it is not there.
#[derive(Default)]
struct Seen {
    secret: Option<Option<Secret>>,
    configuration: Option<Option<MutatingWebhookConfiguration>>,
    /// What is served, to replace it only by something else.
    served: Option<Chain>,
}

// === impl Keeper ===

impl Keeper {
    /// Works until it is dropped. `leads` says whether this replica is the leader.
    pub async fn run(self, mut leads: watch::Receiver<bool>) {
        let secrets = watcher::watch_object(self.secrets(), object::SECRET).default_backoff();
        let configurations = watcher::watch_object(self.configurations(), object::CONFIGURATION).default_backoff();
        let (mut secrets, mut configurations) = (pin!(secrets), pin!(configurations));
        let interval = self.policy.interval().unsigned_abs();
        let mut seen = Seen::default();
        loop {
            // Each arm only takes the next item of something that keeps its place: all are cancel safe.
            tokio::select! {
                biased;
                changed = leads.changed() => if changed.is_err() { return },
                secret = secrets.next() => match secret {
                    Some(Ok(secret)) => seen.secret = Some(secret),
                    Some(Err(error)) => warn("the Secret cannot be watched", error),
                    None => return,
                },
                configuration = configurations.next() => match configuration {
                    Some(Ok(configuration)) => seen.configuration = Some(configuration),
                    Some(Err(error)) => warn("the webhook configuration cannot be watched", error),
                    None => return,
                },
                () = tokio::time::sleep(interval) => {}
            }
            let leader = *leads.borrow_and_update();
            if let Err(error) = Box::pin(self.round(&mut seen, leader)).await {
                warn("certificates are not as they should be", error);
            }
        }
    }

    async fn round(&self, seen: &mut Seen, leader: bool) -> Result<(), KeepError> {
        let Some(secret) = &seen.secret else { return Ok(()) };
        let mut chain = secret.as_ref().map(|secret| Chain::from_data(&data(secret)));
        if leader && let Some((renewed, steps)) = self.due(chain.as_ref())? {
            tracing::info!(?steps, "certificates renewed");
            // On a conflict somebody else has written it; the watch brings what.
            let written = Box::pin(self.write(secret.as_ref(), &renewed)).await?;
            seen.secret = Some(Some(written));
            chain = Some(Ok(renewed));
        }
        let Some(chain) = chain else { return Ok(()) };
        let chain = chain.map_err(KeepError::Serve)?;
        if seen.served.as_ref() != Some(&chain) {
            self.current.replace(&chain, &self.host(), now(), &self.provider).map_err(KeepError::Serve)?;
            tracing::info!(until = %chain.inventory().leaf.until, "certificate in use");
            seen.served = Some(chain.clone());
        }
        if let (true, Some(Some(configuration))) = (leader, &seen.configuration)
            && let Some(patch) = bundle_patch(configuration, &chain.authorities())
        {
            let params = PatchParams::apply(object::MANAGER_CA).force();
            let api = self.configurations();
            let changed = api.patch(object::CONFIGURATION, &params, &Patch::Apply(patch)).await;
            seen.configuration = Some(Some(changed.map_err(|error| KeepError::Bundle(Box::new(error)))?));
            tracing::info!("authorities made known to the API server");
        }
        Ok(())
    }

    /// What the Secret should hold instead, if anything is due.
    fn due(&self, chain: Option<&Result<Chain, ChainError>>) -> Result<Option<(Chain, Vec<Step>)>, KeepError> {
        let (now, policy) = (now(), &self.policy);
        let hosts = service_hosts(object::WEBHOOK, &self.namespace);
        let mut steps = Vec::new();
        let mut renewed = match chain {
            Some(Ok(chain)) => match chain.certified(&self.host(), now, &self.provider) {
                Err(error) if next_step(&chain.inventory(), now, policy).is_none() => {
                    warn("the Secret holds a certificate that nobody would accept: another is made", error);
                    steps.push(Step::RenewLeaf);
                    chain.take(Step::RenewLeaf, now, policy, &hosts).map_err(KeepError::Make)?
                }
                _ => chain.clone(),
            },
            unusable => {
                if let Some(Err(error)) = unusable {
                    tracing::warn!(%error, "the Secret cannot be used: everything is made anew");
                }
                steps.push(Step::StartOver);
                Chain::new(now, policy, &hosts).map_err(KeepError::Make)?
            }
        };
        while let Some(step) = next_step(&renewed.inventory(), now, policy) {
            if steps.contains(&step) {
                break; // the next round goes on
            }
            renewed = renewed.take(step, now, policy, &hosts).map_err(KeepError::Make)?;
            steps.push(step);
        }
        Ok((!steps.is_empty()).then_some((renewed, steps)))
    }

    async fn write(&self, old: Option<&Secret>, chain: &Chain) -> Result<Secret, KeepError> {
        let api = self.secrets();
        let metadata = old.map_or_else(
            || ObjectMeta { name: Some(object::SECRET.to_owned()), ..ObjectMeta::default() },
            |old| old.metadata.clone(),
        );
        let secret = Secret {
            metadata,
            type_: Some(old.and_then(|old| old.type_.clone()).unwrap_or_else(|| "kubernetes.io/tls".to_owned())),
            string_data: Some(chain.to_data()),
            ..Secret::default()
        };
        let written = match old {
            None => api.create(&PostParams::default(), &secret).await,
            Some(_) => api.replace(object::SECRET, &PostParams::default(), &secret).await,
        };
        written.map_err(|error| KeepError::Write(Box::new(error)))
    }

    fn host(&self) -> String {
        format!("{}.{}.svc", object::WEBHOOK, self.namespace)
    }

    fn secrets(&self) -> Api<Secret> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    fn configurations(&self) -> Api<MutatingWebhookConfiguration> {
        Api::all(self.client.clone())
    }
}

/// What to apply so that every webhook of ours has the authorities; `None` if they have.
fn bundle_patch(configuration: &MutatingWebhookConfiguration, authorities: &str) -> Option<Value> {
    let hooks = configuration.webhooks.iter().flatten().filter(|hook| object::HOOKS.contains(&hook.name.as_str()));
    let differs = |bundle: Option<&[u8]>| bundle != Some(authorities.as_bytes());
    let (mut names, mut stale) = (Vec::new(), false);
    for hook in hooks {
        names.push(&hook.name);
        stale |= differs(hook.client_config.ca_bundle.as_ref().map(|bundle| bundle.0.as_slice()));
    }
    let bundle = BASE64_STANDARD.encode(authorities);
    let hook = |name| json!({"name": name, "clientConfig": {"caBundle": bundle}});
    stale.then(|| {
        json!({
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "MutatingWebhookConfiguration",
            "metadata": {"name": object::CONFIGURATION},
            // Only those that are there: one that somebody has taken out does not come back half.
            "webhooks": names.into_iter().map(hook).collect::<Vec<_>>(),
        })
    })
}

fn data(secret: &Secret) -> BTreeMap<String, Vec<u8>> {
    let data = secret.data.iter().flatten().map(|(key, value)| (key.clone(), value.0.clone()));
    // What a write answers with may still have it as text.
    let text = secret.string_data.iter().flatten().map(|(key, value)| (key.clone(), value.clone().into_bytes()));
    data.chain(text).collect()
}

fn warn(message: &str, error: impl Into<anyhow::Error>) {
    tracing::warn!(error = format!("{:#}", error.into()), "{message}");
}

#[cfg(test)]
mod tests;
