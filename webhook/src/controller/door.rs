//! Where agents come in.
//!
//! Owns the proof of who an agent is, and its conversation as long as it lasts. Each is a request whose two bodies are lines
//! ([`sluice_protocol::control`]). An agent proves itself by a token that Kubernetes has made for its pod and for nobody
//! but us; which pod that is stands in the API server's answer about the token, never in what the agent says. What is
//! said goes to the controller; nothing is decided here.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    response::{IntoResponse, Response},
    routing::post,
};
use futures_util::StreamExt as _;
use http::{HeaderMap, StatusCode, header};
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, UserInfo};
use kube::{Api, Client, api::PostParams};
use sluice_api::contract::TOKEN_AUDIENCE;
use sluice_protocol::control::{Assignment, HEARTBEAT, Lines, PATH, Report, SILENCE, ToAgent, UID_HEADER, line};
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::{Controller, world::World};
use crate::refusals::{Refusals, Why};

/// How long a pod that the API server vouches for may be unknown here: its agent can be faster than our watch.
const UNKNOWN_LIMIT: Duration = Duration::from_secs(3);

/// Longest that the API server may take to judge a token.
const REVIEW_LIMIT: Duration = Duration::from_secs(4);

/// What is said by agents.
#[derive(Debug)]
pub(crate) enum Said {
    /// One has begun to talk.
    Hello {
        pod: PodIdentity,
        session: u64,
        /// controller --rules--> the agent's conversation
        rules_tx: watch::Sender<Option<Assignment>>,
    },
    /// It reports.
    Report { pod: String, session: u64, report: Report },
    /// It has ended.
    Bye { pod: String, session: u64 },
}

/// The pod that an agent is in, as the API server says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PodIdentity {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) uid: String,
}

/// What the door needs.
#[derive(Clone)]
pub struct Door {
    client: Client,
    world: Arc<World>,
    /// agents --what they say--> controller
    said_tx: mpsc::Sender<Said>,
    leads_rx: watch::Receiver<bool>,
    refusals: Refusals,
    stop: CancellationToken,
}

/// Why an agent is not let in.
struct Refused {
    status: StatusCode,
    why: Why,
    reason: String,
}

/// Ends a conversation when the body that goes to the agent is dropped: its connection is gone.
struct Conversation {
    rules_rx: watch::Receiver<Option<Assignment>>,
    leads_rx: watch::Receiver<bool>,
    ended: CancellationToken,
    heartbeat: tokio::time::Interval,
}

// === impl Door ===

impl Door {
    /// For agents of the pods that `controller` knows; it is open while this replica leads.
    #[must_use]
    pub fn new(
        client: Client,
        controller: &Controller,
        leads_rx: watch::Receiver<bool>,
        refusals: Refusals,
        stop: CancellationToken,
    ) -> Self {
        let (world, said_tx) = (controller.world.clone(), controller.said_tx.clone());
        Self { client, world, said_tx, leads_rx, refusals, stop }
    }

    /// The routes.
    pub fn router(self) -> Router {
        Router::new().route(PATH, post(enter)).with_state(self)
    }

    async fn identify(&self, headers: &HeaderMap) -> Result<PodIdentity, Refused> {
        let bearer = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
        let Some(token) = bearer else {
            return Err(Refused::new(StatusCode::UNAUTHORIZED, Why::NoToken, "no bearer token".to_owned()));
        };
        let user = self.review(token).await?;
        let identity = identity(&user).ok_or_else(|| {
            let reason = format!("the token of {} is bound to no pod", user.username.as_deref().unwrap_or("nobody"));
            Refused::new(StatusCode::FORBIDDEN, Why::NoPod, reason)
        })?;
        let claimed = headers.get(UID_HEADER).and_then(|value| value.to_str().ok()).unwrap_or_default();
        if claimed != identity.uid {
            let PodIdentity { namespace, name, uid } = &identity;
            let reason = format!("the token is that of pod {namespace}/{name} ({uid}), and not of {claimed:?}");
            return Err(Refused::new(StatusCode::FORBIDDEN, Why::OtherPod, reason));
        }
        let deadline = Instant::now() + UNKNOWN_LIMIT;
        while !self.world.injected(&identity.namespace, &identity.name, &identity.uid) {
            if Instant::now() > deadline {
                let PodIdentity { namespace, name, .. } = &identity;
                let reason = format!("pod {namespace}/{name} does not exist any more, or has no agent");
                return Err(Refused::new(StatusCode::FORBIDDEN, Why::UnknownPod, reason));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(identity)
    }

    async fn review(&self, token: &str) -> Result<UserInfo, Refused> {
        let spec = TokenReviewSpec { token: Some(token.to_owned()), audiences: Some(vec![TOKEN_AUDIENCE.to_owned()]) };
        let review = TokenReview { spec, ..TokenReview::default() };
        let (api, params) = (Api::<TokenReview>::all(self.client.clone()), PostParams::default());
        let reviewed = tokio::time::timeout(REVIEW_LIMIT, Box::pin(api.create(&params, &review))).await;
        let unavailable = |reason: String| Refused::new(StatusCode::SERVICE_UNAVAILABLE, Why::NotReviewed, reason);
        let status = match reviewed {
            Ok(Ok(review)) => review.status.unwrap_or_default(),
            Ok(Err(error)) => {
                let error = anyhow::Error::new(error);
                return Err(unavailable(format!("the API server did not judge the token: {error:#}")));
            }
            Err(_) => return Err(unavailable("the API server did not judge the token in time".to_owned())),
        };
        // The audiences that fit are said only by servers that look at them.
        let ours = status.audiences.iter().flatten().any(|audience| audience == TOKEN_AUDIENCE);
        match status.user {
            Some(user) if status.authenticated == Some(true) && ours => Ok(user),
            _ => {
                let error = status.error.unwrap_or_else(|| format!("not valid for the audience {TOKEN_AUDIENCE:?}"));
                Err(Refused::new(StatusCode::UNAUTHORIZED, Why::BadToken, format!("the token is not valid: {error}")))
            }
        }
    }
}

async fn enter(State(door): State<Door>, request: Request) -> Response {
    if !*door.leads_rx.borrow() {
        return (StatusCode::MISDIRECTED_REQUEST, "another replica leads: try again\n").into_response();
    }
    let (parts, body) = request.into_parts();
    let pod = match door.identify(&parts.headers).await {
        Ok(pod) => pod,
        Err(refused) => {
            door.refusals.count(refused.why);
            tracing::warn!(target: "agents", status = refused.status.as_u16(), reason = refused.reason, "agent refused");
            return (refused.status, format!("{}\n", refused.reason)).into_response();
        }
    };
    let session = next_session();
    let ended = door.stop.child_token();
    let (rules_tx, rules_rx) = watch::channel(None);
    let uid = pod.uid.clone();
    tracing::info!(target: "agents", namespace = pod.namespace, pod = pod.name, uid, "agent connected");
    if door.said_tx.send(Said::Hello { pod, session, rules_tx }).await.is_err() {
        return (StatusCode::SERVICE_UNAVAILABLE, "stopping\n").into_response();
    }
    tokio::spawn(listen(body, uid, session, door.said_tx, ended.clone()));
    let heartbeat = tokio::time::interval(HEARTBEAT);
    let conversation = Conversation { rules_rx, leads_rx: door.leads_rx, ended, heartbeat };
    let lines = futures_util::stream::unfold(conversation, |mut conversation| async move {
        let said = conversation.next().await?;
        Some((Ok::<_, Infallible>(line(&said)), conversation))
    });
    ([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)).into_response()
}

/// Hands on what the agent says until it is silent, gone, or the conversation has ended.
async fn listen(body: Body, pod: String, session: u64, said_tx: mpsc::Sender<Said>, ended: CancellationToken) {
    let reading = async {
        let (mut data, mut lines) = (body.into_data_stream(), Lines::default());
        loop {
            match tokio::time::timeout(SILENCE, data.next()).await {
                Ok(Some(Ok(bytes))) => lines.push(&bytes),
                Ok(_) => return "it closed the conversation".to_owned(),
                Err(_) => return format!("it was silent for {} s", SILENCE.as_secs()),
            }
            loop {
                match lines.next_line::<Report>() {
                    Ok(Some(report)) => {
                        if said_tx.send(Said::Report { pod: pod.clone(), session, report }).await.is_err() {
                            return "this replica stops".to_owned();
                        }
                    }
                    Ok(None) => break,
                    Err(error) => return format!("{:#}", anyhow::Error::new(error)),
                }
            }
        }
    };
    let reason = ended.run_until_cancelled(reading).await.unwrap_or_else(|| "this replica ended it".to_owned());
    ended.cancel();
    tracing::info!(target: "agents", uid = pod, reason, "agent gone");
    // Nobody to tell at the end.
    let _ = said_tx.send(Said::Bye { pod, session }).await;
}

/// The pod in what the API server says of a token: `system:serviceaccount:NAMESPACE:NAME`, with the pod among the extras
/// (KEP-4193 and the bound tokens before it).
fn identity(user: &UserInfo) -> Option<PodIdentity> {
    let namespace = user.username.as_deref()?.strip_prefix("system:serviceaccount:")?.split(':').next()?;
    let extra = |name| user.extra.as_ref()?.get(name)?.first().cloned();
    Some(PodIdentity {
        namespace: namespace.to_owned(),
        name: extra("authentication.kubernetes.io/pod-name")?,
        uid: extra("authentication.kubernetes.io/pod-uid")?,
    })
}

/// Tells a pod's conversations apart: a new one may begin before the end of the old one is noticed.
fn next_session() -> u64 {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

// === impl Refused ===

impl Refused {
    fn new(status: StatusCode, why: Why, reason: String) -> Self {
        Self { status, why, reason }
    }
}

// === impl Conversation ===

impl Conversation {
    /// What the agent is to hear next; `None` at the end.
    async fn next(&mut self) -> Option<ToAgent> {
        loop {
            // Each arm is cancel safe.
            tokio::select! {
                biased;
                () = self.ended.cancelled() => return None,
                changed = self.leads_rx.changed() => {
                    if changed.is_err() || !*self.leads_rx.borrow() {
                        return None;
                    }
                }
                changed = self.rules_rx.changed() => {
                    // The controller has taken a newer conversation of the same pod.
                    changed.ok()?;
                    if let Some(assignment) = self.rules_rx.borrow_and_update().clone() {
                        return Some(ToAgent::Rules(assignment));
                    }
                }
                _ = self.heartbeat.tick() => return Some(ToAgent::Alive),
            }
        }
    }
}

impl Drop for Conversation {
    fn drop(&mut self) {
        self.ended.cancel();
    }
}
