//! How many agents were not let in, by reason.
//!
//! Owns the counter and its text for Prometheus, which the health port serves under `/metrics`.

use std::sync::Arc;

use prometheus_client::{
    encoding::text::encode,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};

/// Why an agent was not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// It shows no token.
    NoToken,
    /// Its token is false, has expired, or is for another audience.
    BadToken,
    /// Its token is bound to no pod.
    NoPod,
    /// Its token is that of another pod.
    OtherPod,
    /// Its pod is gone, or has no agent.
    UnknownPod,
    /// The API server did not judge its token.
    NotReviewed,
}

/// The counter; clones count into the same one.
#[derive(Debug, Clone)]
pub struct Refusals {
    counters: Family<[(&'static str, &'static str); 1], Counter>,
    registry: Arc<Registry>,
}

// === impl Refusals ===

impl Refusals {
    /// With every reason at zero.
    #[must_use]
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("sluice_webhook");
        let counters = Family::<[(&'static str, &'static str); 1], Counter>::default();
        registry.register("agents_refused", "Agents that were not let in, by reason", counters.clone());
        let all = [Why::NoToken, Why::BadToken, Why::NoPod, Why::OtherPod, Why::UnknownPod, Why::NotReviewed];
        for why in all {
            drop(counters.get_or_create(&[("reason", why.name())]));
        }
        Self { counters, registry: Arc::new(registry) }
    }

    /// One more.
    pub fn count(&self, why: Why) {
        self.counters.get_or_create(&[("reason", why.name())]).inc();
    }

    /// In OpenMetrics text.
    #[must_use]
    pub fn encode(&self) -> String {
        let mut text = String::new();
        // Writing into a string does not fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

impl Default for Refusals {
    fn default() -> Self {
        Self::new()
    }
}

// === impl Why ===

impl Why {
    fn name(self) -> &'static str {
        match self {
            Self::NoToken => "no_token",
            Self::BadToken => "bad_token",
            Self::NoPod => "no_pod",
            Self::OtherPod => "other_pod",
            Self::UnknownPod => "unknown_pod",
            Self::NotReviewed => "not_reviewed",
        }
    }
}
