//! `AdmissionReview` of admission.k8s.io/v1, as far as it is used here.
//!
//! Owns reading and writing. The object stays JSON: a typed one would lose what a newer server put into it.

use axum::{Json, response::IntoResponse, response::Response};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use http::StatusCode;
use json_patch::Patch;
use serde::Deserialize;
use serde_json::{Value, json};

const API_VERSION: &str = "admission.k8s.io/v1";

/// What the API server asks.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Request {
    /// Names this question; the answer must carry it.
    pub uid: String,
    /// What is about to happen.
    pub operation: Operation,
    /// The object's name; empty while it has none but a `generateName`.
    #[serde(default)]
    pub name: String,
    /// Where.
    #[serde(default)]
    pub namespace: String,
    /// Who wants it.
    #[serde(default)]
    pub user_info: UserInfo,
    /// The object as it would be.
    #[serde(default)]
    pub object: Value,
    /// The object as it was.
    #[serde(default)]
    pub old_object: Value,
}

/// What is about to happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum Operation {
    /// Creation.
    #[serde(rename = "CREATE")]
    Create,
    /// Change.
    #[serde(rename = "UPDATE")]
    Update,
    /// Whatever the configuration does not ask for.
    #[serde(other)]
    Other,
}

/// Who wants it, as the API server knows them.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct UserInfo {
    /// Their name.
    pub username: String,
}

/// A review that cannot be read.
#[derive(Debug)]
pub struct ReviewError {
    /// The question's name, if that much could be read.
    pub uid: String,
    /// What is wrong.
    pub reason: serde_json::Error,
}

/// The answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Reply(Value);

// === impl Request ===

impl Request {
    /// Reads a review's body.
    ///
    /// # Errors
    /// When it is no JSON, or not the JSON of a review with a question.
    pub fn read(body: &[u8]) -> Result<Self, ReviewError> {
        let mut review: Value =
            serde_json::from_slice(body).map_err(|reason| ReviewError { uid: String::new(), reason })?;
        let request = review.get_mut("request").map(Value::take).unwrap_or_default();
        let uid = request.get("uid").and_then(Value::as_str).unwrap_or_default().to_owned();
        serde_json::from_value(request).map_err(|reason| ReviewError { uid, reason })
    }

    /// The object's name for people.
    #[must_use]
    pub fn display_name(&self) -> &str {
        let metadata = |key| self.object.pointer(key).and_then(Value::as_str);
        let name = Some(self.name.as_str()).filter(|name| !name.is_empty());
        name.or_else(|| metadata("/metadata/name")).or_else(|| metadata("/metadata/generateName")).unwrap_or_default()
    }
}

// === impl Reply ===

impl Reply {
    /// It may happen.
    #[must_use]
    pub fn allowed(uid: &str) -> Self {
        Self(json!({"uid": uid, "allowed": true}))
    }

    /// It may not, and why.
    #[must_use]
    pub fn refused(uid: &str, code: StatusCode, message: &str) -> Self {
        let reason = match code {
            StatusCode::BAD_REQUEST => "BadRequest",
            StatusCode::CONFLICT => "Conflict",
            StatusCode::SERVICE_UNAVAILABLE => "ServiceUnavailable",
            StatusCode::UNPROCESSABLE_ENTITY => "Invalid",
            _ => "Forbidden",
        };
        let status = json!({"status": "Failure", "code": code.as_u16(), "reason": reason, "message": message});
        Self(json!({"uid": uid, "allowed": false, "status": status}))
    }

    /// With a change; an empty one is none.
    #[must_use]
    pub fn patch(mut self, patch: &Patch) -> Self {
        if !patch.is_empty() {
            self.0["patchType"] = "JSONPatch".into();
            self.0["patch"] = BASE64_STANDARD.encode(json!(patch).to_string()).into();
        }
        self
    }

    /// With a warning for the person who asked.
    #[must_use]
    pub fn warn(mut self, warning: impl Into<String>) -> Self {
        match &mut self.0["warnings"] {
            Value::Array(warnings) => warnings.push(Value::String(warning.into())),
            none => *none = json!([warning.into()]),
        }
        self
    }
}

impl IntoResponse for Reply {
    fn into_response(self) -> Response {
        Json(json!({"apiVersion": API_VERSION, "kind": "AdmissionReview", "response": self.0})).into_response()
    }
}
