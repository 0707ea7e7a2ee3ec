//! Copies for wiretaps: their clients see what matches, while somebody else answers.
//!
//! Owns the queues to these clients and the promise that nobody ever waits for one of them: what does not fit the queue is
//! lost, to that client only, and counted. Runs as one task per stream to a client. What a local process answers is thrown
//! away. Copies of HTTP/2 requests have their frames made by `http2`; this module brings the bytes of TCP
//! connections and of HTTP/1 requests there (`bytes`), and keeps the limits for all.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use sluice_protocol::rules::matcher::Rule;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::metrics::{Metrics, Outcome};

mod bytes;

pub(crate) use bytes::{ConnectionTaps, RequestTaps};

/// Bytes that may wait for the client of one wiretap, all its streams together.
const MAX_WAITING: usize = 4 << 20;

/// What a piece in a queue counts for beside its bytes.
const PIECE: usize = 256;

/// Streams that may be open for one wiretap.
const MAX_STREAMS: usize = 1024;

/// All wiretaps of an agent.
#[derive(Debug, Default)]
pub struct Wiretaps {
    limits: Mutex<BTreeMap<String, Limits>>,
    tasks: TaskTracker,
    cut: CancellationToken,
}

/// What one wiretap may still use.
#[derive(Debug, Clone)]
pub(crate) struct Limits {
    waiting: Arc<Semaphore>,
    streams: Arc<Semaphore>,
}

/// One copy, of a request or of a connection: counted as lost when dropped, unless it was sent.
#[derive(Debug)]
pub(crate) struct Copy {
    metrics: Metrics,
    rule: Arc<Rule>,
    outcome: Outcome,
}

// === impl Wiretaps ===

impl Wiretaps {
    /// The limits of the wiretap with this name.
    pub(crate) fn limits(&self, name: &str) -> Limits {
        let mut limits = self.lock();
        match limits.get(name) {
            Some(known) => known.clone(),
            None => limits.entry(name.to_owned()).or_default().clone(),
        }
    }

    /// Forgets all wiretaps but these.
    pub(crate) fn keep_only(&self, name: impl Fn(&str) -> bool) {
        self.lock().retain(|known, _| name(known));
    }

    /// Lets a task deliver copies until it has ended or the agent stops.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let cut = self.cut.clone();
        self.tasks.spawn(async move {
            // What is cut is dropped, and so counts as lost.
            let _ = cut.run_until_cancelled(task).await;
        });
    }

    /// Ends what is still being delivered.
    pub(crate) async fn stop(&self) {
        self.cut.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// A panic while it is held cannot leave it half changed.
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Limits>> {
        self.limits.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Limits ===

impl Limits {
    /// Room for so many bytes in the queue, until the permit is dropped.
    pub(crate) fn room(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let wanted = u32::try_from(bytes + PIECE).ok()?;
        self.waiting.clone().try_acquire_many_owned(wanted).ok()
    }

    /// One more stream, until the permit is dropped.
    pub(crate) fn stream(&self) -> Option<OwnedSemaphorePermit> {
        self.streams.clone().try_acquire_owned().ok()
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self { waiting: Arc::new(Semaphore::new(MAX_WAITING)), streams: Arc::new(Semaphore::new(MAX_STREAMS)) }
    }
}

// === impl Copy ===

impl Copy {
    pub(crate) fn new(metrics: &Metrics, rule: &Arc<Rule>) -> Self {
        Self { metrics: metrics.clone(), rule: rule.clone(), outcome: Outcome::Lost }
    }

    /// All of it went into the connection to the client.
    pub(crate) fn sent(mut self) {
        self.outcome = Outcome::Sent;
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        self.metrics.copy(&self.rule, self.outcome);
    }
}
