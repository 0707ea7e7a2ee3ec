//! What the controller writes: status, deletions, events.
//!
//! Owns the tasks that write, one at a time for each Intercept, and what was written last. Never waits for the API server
//! itself: what cannot be written now is tried again at the next look.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Api, Client, Resource as _, ResourceExt as _,
    api::{DeleteParams, Patch, PatchParams, Preconditions},
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use serde_json::json;
use sluice_api::{
    Intercept, TargetKind,
    contract::object,
    status::{InterceptStatus, condition},
};
use tokio::{
    task::{JoinError, JoinSet},
    time::Instant,
};

use super::plan::End;

/// Longest that the API server may take for one request.
const LIMIT: Duration = Duration::from_secs(10);

/// Counters alone are written that often at most.
const COUNTERS: Duration = Duration::from_secs(5);

/// Pause behind a request that failed.
const AGAIN: Duration = Duration::from_secs(1);

/// Everything that is written, and by whom.
pub(super) struct Deeds {
    client: Client,
    recorder: Recorder,
    written: BTreeMap<String, Written>,
    /// Uids of Intercepts about which somebody writes.
    busy: BTreeSet<String>,
    tasks: JoinSet<Done>,
}

struct Written {
    status: InterceptStatus,
    at: Instant,
    /// Not before.
    again: Option<Instant>,
}

struct Done {
    uid: String,
    status: Option<InterceptStatus>,
    worked: bool,
}

// === impl Deeds ===

impl Deeds {
    pub(super) fn new(client: Client, replica: String) -> Self {
        let reporter = Reporter { controller: object::MANAGER_STATUS.to_owned(), instance: Some(replica) };
        let recorder = Recorder::new(client.clone(), reporter);
        Self { client, recorder, written: BTreeMap::new(), busy: BTreeSet::new(), tasks: JoinSet::new() }
    }

    /// Waits until something has been written. Cancel safe.
    pub(super) async fn done(&mut self) {
        match self.tasks.join_next().await {
            None => std::future::pending().await,
            Some(done) => self.take(done),
        }
        // Of hundreds that are written at once, all that have been.
        while let Some(done) = self.tasks.try_join_next() {
            self.take(done);
        }
    }

    fn take(&mut self, done: Result<Done, JoinError>) {
        let Done { uid, status, worked } = match done {
            Ok(done) => done,
            Err(error) => {
                // A panic: who was busy is not known any more, so nobody is.
                tracing::error!(%error, "writing failed");
                return self.busy.clear();
            }
        };
        self.busy.remove(&uid);
        let now = Instant::now();
        match (status, worked) {
            (Some(status), true) => drop(self.written.insert(uid, Written { status, at: now, again: None })),
            (_, true) => {}
            (_, false) => {
                let unknown = || Written { status: InterceptStatus::default(), at: now, again: None };
                self.written.entry(uid).or_insert_with(unknown).again = Some(now + AGAIN);
            }
        }
    }

    /// Writes `status` if it is not what stands there.
    pub(super) fn report(&mut self, intercept: &Arc<Intercept>, mut status: InterceptStatus) {
        let uid = intercept.uid().unwrap_or_default();
        let now = Instant::now();
        if self.busy.contains(&uid) || !self.may(&uid, now) {
            return;
        }
        let last = self.written.get(&uid);
        // Between our writing and our watch the copy is older than what we wrote.
        if let Some(last) = last {
            keep_times(&mut status, &last.status);
        }
        let known = last.map(|last| &last.status).or(intercept.status.as_ref());
        if known == Some(&status) {
            return;
        }
        let recent = last.is_some_and(|last| now.duration_since(last.at) < COUNTERS);
        if recent && known.is_some_and(|known| without_counters(known) == without_counters(&status)) {
            return;
        }
        let news = news(known, &status);
        let (client, recorder, intercept) = (self.client.clone(), self.recorder.clone(), intercept.clone());
        self.busy.insert(uid.clone());
        self.tasks.spawn(async move {
            let worked = write(client, &intercept, &status).await;
            if worked && let Some((type_, reason, note)) = news {
                tell(&recorder, &intercept, type_, reason, note).await;
            }
            Done { uid, status: Some(status), worked }
        });
    }

    /// Deletes it and says why.
    pub(super) fn end(&mut self, intercept: &Arc<Intercept>, end: End) {
        let uid = intercept.uid().unwrap_or_default();
        if self.busy.contains(&uid) || !self.may(&uid, Instant::now()) {
            return;
        }
        let (client, recorder, intercept) = (self.client.clone(), self.recorder.clone(), intercept.clone());
        self.busy.insert(uid.clone());
        self.tasks.spawn(async move {
            let (reason, note) = end.words(&intercept);
            tracing::info!(intercept = intercept.name_any(), namespace = intercept.namespace(), note, "intercept ends");
            let worked = delete(client, &intercept).await;
            if worked {
                tell(&recorder, &intercept, EventType::Normal, reason, note).await;
            }
            Done { uid, status: None, worked }
        });
    }

    /// Forgets those that are gone.
    pub(super) fn forget(&mut self, there: &[Arc<Intercept>]) {
        let there: BTreeSet<_> = there.iter().filter_map(|intercept| intercept.metadata.uid.as_deref()).collect();
        self.written.retain(|uid, _| there.contains(uid.as_str()));
    }

    fn may(&self, uid: &str, now: Instant) -> bool {
        self.written.get(uid).is_none_or(|written| written.again.is_none_or(|again| again <= now))
    }
}

async fn write(client: Client, intercept: &Intercept, status: &InterceptStatus) -> bool {
    let (name, namespace) = (intercept.name_any(), intercept.namespace().unwrap_or_default());
    let api = Api::<Intercept>::namespaced(client, &namespace);
    let patch = json!({
        "apiVersion": Intercept::api_version(&()),
        "kind": Intercept::kind(&()),
        // With the uid, so that another one of the same name is left alone.
        "metadata": {"name": name, "uid": intercept.metadata.uid},
        "status": status,
    });
    let params = PatchParams::apply(object::MANAGER_STATUS).force();
    let patch = Patch::Apply(patch);
    judge("status not written", intercept, Box::pin(api.patch_status(&name, &params, &patch))).await
}

async fn delete(client: Client, intercept: &Intercept) -> bool {
    let api = Api::<Intercept>::namespaced(client, &intercept.namespace().unwrap_or_default());
    let preconditions = Preconditions { uid: intercept.metadata.uid.clone(), resource_version: None };
    let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
    let name = intercept.name_any();
    judge("not deleted", intercept, Box::pin(api.delete(&name, &params))).await
}

/// Whether the request worked, or there is nothing left that it could be about.
async fn judge<T>(what: &str, intercept: &Intercept, request: impl Future<Output = kube::Result<T>>) -> bool {
    let (name, namespace) = (intercept.name_any(), intercept.namespace());
    match tokio::time::timeout(LIMIT, request).await {
        Ok(Ok(_)) => true,
        // Gone, or another one of the same name.
        Ok(Err(kube::Error::Api(status))) if status.code == 404 || status.code == 409 => true,
        Ok(Err(error)) => {
            let error = format!("{:#}", anyhow::Error::new(error));
            tracing::warn!(intercept = name, namespace, error, "{what}");
            false
        }
        Err(_) => {
            tracing::warn!(intercept = name, namespace, "{what}: the API server does not answer");
            false
        }
    }
}

/// Publishes an event about the workload.
async fn tell(recorder: &Recorder, intercept: &Intercept, type_: EventType, reason: &str, note: String) {
    let target = &intercept.spec.target;
    let api_version = match target.kind {
        TargetKind::Pod => "v1",
        TargetKind::Rollout => "argoproj.io/v1alpha1",
        _ => "apps/v1",
    };
    let workload = ObjectReference {
        api_version: Some(api_version.to_owned()),
        kind: Some(format!("{:?}", target.kind)),
        name: Some(target.name.clone()),
        namespace: intercept.namespace(),
        ..ObjectReference::default()
    };
    let event = Event {
        type_,
        reason: reason.to_owned(),
        note: Some(note),
        action: "Intercept".to_owned(),
        secondary: Some(intercept.object_ref(&())),
    };
    // An event that is lost is no reason to do anything again.
    match tokio::time::timeout(LIMIT, Box::pin(recorder.publish(&event, &workload))).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(error = format!("{:#}", anyhow::Error::new(error)), "event not published"),
        Err(_) => tracing::debug!("event not published in time"),
    }
}

/// What is worth an event in the change from `before` to `after`.
fn news(before: Option<&InterceptStatus>, after: &InterceptStatus) -> Option<(EventType, &'static str, String)> {
    let find = |status: &InterceptStatus, kind: &str| {
        let found = status.conditions.iter().find(|condition| condition.type_ == kind);
        found.map(|condition| (condition.status == "True", condition.message.clone()))
    };
    let was = |kind| before.and_then(|before| find(before, kind)).is_some_and(|(yes, _)| yes);
    let (accepted, why_not) = find(after, condition::ACCEPTED)?;
    if !accepted {
        let told = before.and_then(|before| find(before, condition::ACCEPTED)) == Some((false, why_not.clone()));
        return (!told).then_some((EventType::Warning, "InterceptRefused", why_not));
    }
    let (ready, message) = find(after, condition::READY)?;
    match (was(condition::READY), ready) {
        (false, true) => Some((EventType::Normal, "Intercepted", message)),
        (true, false) => Some((EventType::Warning, "InterceptNotReady", message)),
        _ => None,
    }
}

fn without_counters(status: &InterceptStatus) -> InterceptStatus {
    let mut status = status.clone();
    status.pods.iter_mut().for_each(|pod| (pod.counters, pod.existing_connections) = (None, None));
    status
}

/// What has not changed since `last` has not changed since the time that stands there.
fn keep_times(status: &mut InterceptStatus, last: &InterceptStatus) {
    for condition in &mut status.conditions {
        let before = last.conditions.iter().find(|before| before.type_ == condition.type_);
        if let Some(before) = before.filter(|before| before.status == condition.status) {
            condition.last_transition_time = before.last_transition_time.clone();
        }
    }
    if status.client_away_since.is_some() && last.client_away_since.is_some() {
        status.client_away_since = last.client_away_since.clone();
    }
}

// === impl End ===

impl End {
    fn words(&self, intercept: &Intercept) -> (&'static str, String) {
        let (name, owner) = (intercept.name_any(), intercept.owner());
        match self {
            Self::Expired => ("InterceptExpired", format!("intercept {name} of {owner} has reached its time to live")),
            Self::Abandoned => (
                "InterceptAbandoned",
                format!(
                    "intercept {name} of {owner} was removed: its client was away for {} min",
                    super::plan::ABANDONED.as_mins()
                ),
            ),
            Self::TakenOver { by, owner: newer } => (
                "InterceptTakenOver",
                format!("intercept {name} of {owner}, whose client is away, gave way to {by} of {newer}"),
            ),
        }
    }
}
