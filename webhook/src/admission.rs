//! The admission endpoints: what the API server asks before a pod or an Intercept comes into being.
//!
//! Owns the HTTP side: limits, and an answer to whatever comes in, since silence makes every creation of a pod wait.
//! The decisions are [`crate::inject`]'s and `intercepts`'. Runs in every replica at once and keeps nothing.
//! The caller is not authenticated, as API servers have no certificate by default: nothing secret is ever answered, and
//! an answer changes nothing by itself.

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    body::Bytes,
    extract::{DefaultBodyLimit, State, rejection::BytesRejection},
    response::{IntoResponse, Response},
    routing::post,
};
use http::StatusCode;
use sluice_api::contract::{endpoint, label};
use tower_http::{catch_panic::CatchPanicLayer, timeout::TimeoutLayer};

use crate::{
    cluster::Cluster,
    inject::{self, Options},
    tls::Current,
};

mod intercepts;
mod review;

pub use intercepts::Verdict;
pub use review::{Operation, Reply, Request, ReviewError};

/// Largest review: an object has at most 1.5 MiB in etcd, and an update carries two.
pub const MAX_BYTES: usize = 3 << 20;

/// Longest that a review may take, its arrival included; the API server gives up after 5 s.
pub const DEADLINE: Duration = Duration::from_secs(4);

/// What the handlers share; cheap to clone.
#[derive(Clone)]
pub struct AppState {
    cluster: Arc<Cluster>,
    options: Arc<Options>,
    certificate: Arc<Current>,
}

// === impl AppState ===

impl AppState {
    /// `options.authorities` is replaced by those of `certificate` whenever a pod is injected.
    #[must_use]
    pub fn new(cluster: Arc<Cluster>, options: Options, certificate: Arc<Current>) -> Self {
        Self { cluster, options: Arc::new(options), certificate }
    }

    /// What the cluster looks like from here.
    #[must_use]
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// What is injected now.
    fn options(&self) -> Options {
        let mut options = (*self.options).clone();
        if let Some(authorities) = self.certificate.authorities() {
            options.authorities = authorities;
        }
        options
    }
}

/// The routes.
pub fn router(state: AppState) -> Router {
    Router::new()
        .route(endpoint::INJECT, post(inject))
        .route(endpoint::INTERCEPTS, post(intercepts))
        .with_state(state)
        .layer(DefaultBodyLimit::max(MAX_BYTES))
        .layer(TimeoutLayer::with_status_code(StatusCode::REQUEST_TIMEOUT, DEADLINE))
        .layer(CatchPanicLayer::new())
}

async fn inject(State(state): State<AppState>, body: Result<Bytes, BytesRejection>) -> Response {
    let request = match read(body) {
        Ok(request) => request,
        Err(reply) => return reply.into_response(),
    };
    let Request { uid, namespace, object, .. } = &request;
    let asks = object.pointer("/metadata/labels").and_then(|labels| labels.get(label::INJECT)).is_some();
    let facts = match state.cluster.facts(namespace, asks).await {
        Ok(facts) => facts,
        Err(error) => {
            tracing::warn!(namespace, error = format!("{:#}", anyhow::Error::new(error)), "pod not injected");
            let warning = "starts without Sluice's agent: its namespace cannot be read at the moment";
            return Reply::allowed(uid).warn(warning).into_response();
        }
    };
    let decision = inject::decide(object, &facts, &state.options());
    let pod = request.display_name();
    match &decision.skipped {
        None => tracing::info!(target: "admission", namespace, pod, uid, "injected"),
        Some(skip) if decision.warnings.is_empty() => {
            tracing::debug!(target: "admission", namespace, pod, uid, reason = %skip, "not injected");
        }
        Some(skip) => tracing::info!(target: "admission", namespace, pod, uid, reason = %skip, "not injected"),
    }
    let reply = Reply::allowed(uid).patch(&decision.patch);
    decision.warnings.into_iter().fold(reply, Reply::warn).into_response()
}

async fn intercepts(State(state): State<AppState>, body: Result<Bytes, BytesRejection>) -> Response {
    let request = match read(body) {
        Ok(request) => request,
        Err(reply) => return reply.into_response(),
    };
    let verdict = intercepts::review(&request, &state.cluster).await;
    let Request { uid, namespace, user_info, .. } = &request;
    let (intercept, user) = (request.display_name(), &user_info.username);
    match &verdict {
        Verdict::Accepted { .. } => tracing::info!(target: "admission", namespace, intercept, user, uid, "accepted"),
        Verdict::Refused { message, .. } => {
            tracing::info!(target: "admission", namespace, intercept, user, uid, reason = message, "refused");
        }
    }
    verdict.reply(uid).into_response()
}

/// Reads a review, or answers that it cannot be read.
fn read(body: Result<Bytes, BytesRejection>) -> Result<Request, Unread> {
    let body = body.map_err(|rejection| {
        tracing::warn!(reason = rejection.body_text(), "review not read");
        Unread::Body(rejection)
    })?;
    Request::read(&body).map_err(|error| {
        tracing::warn!(error = format!("{:#}", anyhow::Error::new(error.reason)), "review not understood");
        let message = "this is no AdmissionReview of admission.k8s.io/v1 with a request";
        Unread::Review(Reply::refused(&error.uid, StatusCode::BAD_REQUEST, message))
    })
}

/// What to answer to a review that cannot be read.
enum Unread {
    /// Too large, or it broke off.
    Body(BytesRejection),
    /// Not a review.
    Review(Reply),
}

impl IntoResponse for Unread {
    fn into_response(self) -> Response {
        match self {
            Self::Body(rejection) => rejection.into_response(),
            Self::Review(reply) => reply.into_response(),
        }
    }
}

#[cfg(test)]
mod tests;
