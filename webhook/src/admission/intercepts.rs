//! Admission of Intercepts: who owns them, whether they can be used, and whether they overlap.
//!
//! The right to intercept is the API server's to check (RBAC on `intercepts`), before anything arrives here. What the
//! API server cannot know is who asks and what else there is. Two that are created at the same moment do not see each
//! other here; the controller decides between them.

use http::StatusCode;
use json_patch::{AddOperation, Patch, PatchOperation, jsonptr::PointerBuf};
use serde_json::{Value, json};
use sluice_api::Intercept;

use super::review::{Operation, Reply, Request};
use crate::{cluster::Cluster, controller::plan::is_silent, overlap};

/// The answer about an Intercept.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    /// It may come into being, changed like this.
    Accepted {
        /// The owner, if it is not there yet.
        patch: Patch,
        /// For the person who creates it.
        warning: Option<String>,
    },
    /// It may not.
    Refused {
        /// Status for programs.
        code: StatusCode,
        /// Reason for people.
        message: String,
    },
}

pub(super) async fn review(request: &Request, cluster: &Cluster) -> Verdict {
    let (owner, written) = match request.operation {
        Operation::Create => (request.user_info.username.as_str(), owner(&request.object)),
        Operation::Update => {
            let (old, new) = (owner(&request.old_object), owner(&request.object));
            match (old, new) {
                (Some(old), Some(new)) if old != new => {
                    return Verdict::refused(
                        StatusCode::FORBIDDEN,
                        format!(
                            "the owner cannot be changed from {old} to {new}: delete the Intercept and create your own"
                        ),
                    );
                }
                // One that admission never saw has none, and gets none later: whose would it be?
                (None, new) => (new.unwrap_or_default(), new),
                (Some(old), new) => (old, new),
            }
        }
        Operation::Other => return Verdict::Accepted { patch: Patch(Vec::new()), warning: None },
    };
    if request.operation == Operation::Create && owner.is_empty() {
        return Verdict::refused(StatusCode::FORBIDDEN, "the API server does not say who asks".to_owned());
    }
    let mut object = request.object.clone();
    if !owner.is_empty() && object.get("spec").is_some_and(Value::is_object) {
        object["spec"]["owner"] = json!(owner);
    }
    let intercept: Intercept = match serde_json::from_value(object) {
        Ok(intercept) => intercept,
        Err(error) => return Verdict::refused(StatusCode::UNPROCESSABLE_ENTITY, format!("cannot be used: {error}")),
    };
    match cluster.intercepts(&request.namespace).await {
        Ok(others) => {
            // One whose client is away gives way; the controller removes it when it sees the newcomer.
            let now = jiff::Timestamp::now();
            let others = others.iter().filter(|other| !is_silent(other, now));
            if let Some(conflict) = overlap::conflict(&intercept, others) {
                return Verdict::refused(StatusCode::CONFLICT, conflict.to_string());
            }
        }
        Err(error) => {
            tracing::warn!(error = format!("{:#}", anyhow::Error::new(error)), "overlaps not checked");
            let message =
                "cannot be checked for overlaps at the moment, since the API server does not answer: try again";
            return Verdict::refused(StatusCode::SERVICE_UNAVAILABLE, message.to_owned());
        }
    }
    if written == Some(owner) || owner.is_empty() {
        return Verdict::Accepted { patch: Patch(Vec::new()), warning: None };
    }
    let path = PointerBuf::from_tokens(["spec", "owner"]);
    let patch = Patch(vec![PatchOperation::Add(AddOperation { path, value: json!(owner) })]);
    let warning = written.map(|other| format!("spec.owner is who creates the Intercept: {owner}, not {other}"));
    Verdict::Accepted { patch, warning }
}

fn owner(object: &Value) -> Option<&str> {
    object.pointer("/spec/owner").and_then(Value::as_str)
}

// === impl Verdict ===

impl Verdict {
    fn refused(code: StatusCode, message: String) -> Self {
        Self::Refused { code, message }
    }

    pub(super) fn reply(self, uid: &str) -> Reply {
        match self {
            Self::Accepted { patch, warning } => {
                warning.into_iter().fold(Reply::allowed(uid).patch(&patch), Reply::warn)
            }
            Self::Refused { code, message } => Reply::refused(uid, code, &message),
        }
    }
}
