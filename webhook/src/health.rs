//! Answers the kubelet's probes, and Prometheus, by plain HTTP on a port of its own.
//!
//! Owns what counts as ready: a certificate is served, the listeners are bound, the cluster has been read once. Being
//! alive means to answer at all.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use axum::{Router, extract::State, routing::get};
use http::{HeaderName, StatusCode, header};
use sluice_api::contract::endpoint;

use crate::{refusals::Refusals, tls::Current};

/// What readiness depends on; cheap to clone.
#[derive(Debug, Clone)]
pub struct Readiness {
    certificate: Arc<Current>,
    listening: Arc<AtomicBool>,
    cluster: Arc<AtomicBool>,
    stopping: Arc<AtomicBool>,
}

// === impl Readiness ===

impl Readiness {
    /// Ready as soon as `certificate` is loaded and the rest has been reported.
    #[must_use]
    pub fn new(certificate: Arc<Current>) -> Self {
        Self { certificate, listening: Arc::default(), cluster: Arc::default(), stopping: Arc::default() }
    }

    /// The listeners are bound.
    pub fn listening(&self) {
        self.listening.store(true, Ordering::Relaxed);
    }

    /// The cluster has been read.
    pub fn cluster_known(&self) {
        self.cluster.store(true, Ordering::Relaxed);
    }

    /// Nothing new should come here any more.
    pub fn stopping(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    /// What is missing.
    #[must_use]
    pub fn missing(&self) -> Vec<&'static str> {
        let checks = [
            (self.certificate.is_loaded(), "certificate"),
            (self.listening.load(Ordering::Relaxed), "listener"),
            (self.cluster.load(Ordering::Relaxed), "view of the cluster"),
            (!self.stopping.load(Ordering::Relaxed), "the process is stopping"),
        ];
        checks.into_iter().filter_map(|(met, what)| (!met).then_some(what)).collect()
    }
}

/// The routes.
pub fn router(readiness: Readiness, refusals: Refusals) -> Router {
    Router::new()
        .route(endpoint::METRICS, get(async move || metrics(&refusals)))
        .route(endpoint::HEALTHZ, get(async || "ok\n"))
        .route(endpoint::READYZ, get(ready))
        .with_state(readiness)
}

fn metrics(refusals: &Refusals) -> ([(HeaderName, &'static str); 1], String) {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], refusals.encode())
}

async fn ready(State(readiness): State<Readiness>) -> (StatusCode, String) {
    let missing = readiness.missing();
    if missing.is_empty() {
        return (StatusCode::OK, "ok\n".to_owned());
    }
    (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {}\n", missing.join(", ")))
}
