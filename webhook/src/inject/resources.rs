//! What the agent's container asks for, such that the namespace's LimitRanges and ResourceQuotas accept the pod.
//!
//! A CPU limit is set only where the pod would be refused without one: a throttled agent would delay other people's
//! requests, and it uses no CPU while nothing is intercepted. What quotas have left is not counted: the pod itself
//! counts against them as well, and the API server says best what is exceeded.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;
use serde_json::{Map, Value, json};

use std::collections::BTreeMap;

use super::{NamespaceFacts, quantity::Quantity};

/// What the agent asks for where the namespace does not demand otherwise. Kubernetes quantities.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sizes {
    /// CPU that is set aside.
    pub cpu: String,
    /// Memory that is set aside.
    pub memory: String,
    /// Memory above which it is restarted. 10 000 idle connections take 128 MiB.
    pub memory_limit: String,
}

/// CPU limit where a quota demands one.
const CPU_UNDER_QUOTA: &str = "1";
/// CPU request and limit where a LimitRange bounds their ratio.
const CPU_UNDER_RATIO: &str = "200m";
/// Where a quota demands it; the agent writes no files, only its log.
const STORAGE: &str = "64Mi";

/// What the namespace demands of one resource of a container.
#[derive(Default)]
struct Bounds<'a> {
    min: Option<Quantity<'a>>,
    max: Option<Quantity<'a>>,
    default_limit: Option<Quantity<'a>>,
    ratio: bool,
    limit_demanded: bool,
}

/// `None` where the pod as a whole has its own (`spec.resources`): ours could exceed them.
pub(super) fn of(pod: &Value, namespace: &NamespaceFacts, sizes: &Sizes) -> Option<Value> {
    if pod.pointer("/spec/resources").is_some_and(|resources| !resources.is_null()) {
        return None;
    }
    let (mut requests, mut limits) = (Map::new(), Map::new());

    let bounds = Bounds::of(namespace, "cpu");
    if bounds.ratio {
        let both = bounds.fit(CPU_UNDER_RATIO, false);
        requests.insert("cpu".to_owned(), json!(both));
        limits.insert("cpu".to_owned(), json!(both));
    } else if bounds.limit_demanded {
        requests.insert("cpu".to_owned(), json!(bounds.fit(&sizes.cpu, false)));
        limits.insert("cpu".to_owned(), json!(bounds.fit(CPU_UNDER_QUOTA, false)));
    } else {
        requests.insert("cpu".to_owned(), json!(bounds.fit(&sizes.cpu, true)));
    }

    let bounds = Bounds::of(namespace, "memory");
    let limit = bounds.fit(&sizes.memory_limit, false);
    let request = if bounds.ratio { limit } else { bounds.fit(&sizes.memory, false) };
    requests.insert("memory".to_owned(), json!(request));
    limits.insert("memory".to_owned(), json!(limit));

    let storage = "ephemeral-storage";
    if demanded(namespace, &[storage, "requests.ephemeral-storage", "limits.ephemeral-storage"]) {
        let bounds = Bounds::of(namespace, storage);
        requests.insert(storage.to_owned(), json!(bounds.fit(STORAGE, false)));
        limits.insert(storage.to_owned(), json!(bounds.fit(STORAGE, false)));
    }
    Some(json!({"requests": requests, "limits": limits}))
}

fn demanded(namespace: &NamespaceFacts, names: &[&str]) -> bool {
    namespace.quotas.iter().flat_map(|quota| &quota.hard).flatten().any(|(name, _)| names.contains(&name.as_str()))
}

// === impl Bounds ===

impl<'a> Bounds<'a> {
    fn of(namespace: &'a NamespaceFacts, resource: &str) -> Self {
        let mut bounds =
            Self { limit_demanded: demanded(namespace, &[&format!("limits.{resource}")]), ..Self::default() };
        let ranges = namespace.limit_ranges.iter().flat_map(|range| &range.limits);
        for item in ranges.filter(|item| item.type_ == "Container") {
            let of = |map: &'a Option<BTreeMap<String, ApiQuantity>>| {
                map.as_ref().and_then(|map| map.get(resource)).and_then(|quantity| Quantity::parse(&quantity.0))
            };
            bounds.min = bounds.min.into_iter().chain(of(&item.min)).max();
            bounds.max = bounds.max.into_iter().chain(of(&item.max)).min();
            bounds.default_limit = bounds.default_limit.into_iter().chain(of(&item.default)).min();
            bounds.ratio |= of(&item.max_limit_request_ratio).is_some();
        }
        bounds
    }

    /// `wanted`, or the nearest that is allowed. Where no limit is set, the API server fills in the LimitRange's default,
    /// which a request must not exceed either.
    fn fit<'b>(&'b self, wanted: &'b str, gets_default_limit: bool) -> &'b str
    where
        'a: 'b,
    {
        let Some(mut fitting) = Quantity::parse(wanted) else { return wanted };
        let default_limit = self.default_limit.as_ref().filter(|_| gets_default_limit);
        for bound in self.max.iter().chain(default_limit) {
            fitting = fitting.min(bound.clone());
        }
        if let Some(min) = &self.min {
            fitting = fitting.max(min.clone());
        }
        fitting.as_str()
    }
}
