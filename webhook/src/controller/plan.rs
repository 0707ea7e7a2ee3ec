//! What follows from the Intercepts, the pods and what the agents say.
//!
//! Owns the decision which agent gets which rules, what stands in each Intercept's status, and which Intercept ends. A pure
//! function of what is known and the time: the controller does what it says. It knows no connection and no API.

use std::{collections::BTreeMap, sync::Arc};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::ResourceExt as _;
use sluice_api::{
    Intercept, PortRef,
    contract::label,
    status::{InterceptStatus, MAX_PODS, PodStatus, condition},
};
use sluice_protocol::{
    control::{Assigned, Held, Report},
    rules,
};

use super::world::PodFacts;
use crate::overlap;

/// An Intercept whose client has been away for so long is removed.
pub const ABANDONED: SignedDuration = SignedDuration::from_mins(10);

/// One whose client has been away for so long gives way to a newcomer.
pub const SILENT: SignedDuration = SignedDuration::from_mins(1);

/// An Intercept with its pods.
#[derive(Debug)]
pub(crate) struct Case<'a> {
    pub(crate) intercept: &'a Intercept,
    /// The target exists.
    pub(crate) exists: bool,
    /// Its pods.
    pub(crate) pods: Vec<PodFacts>,
}

/// What an agent has said last. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Heard {
    report: Arc<Report>,
    /// Where in the report each Intercept is, by its uid: there may be hundreds.
    places: Arc<BTreeMap<String, usize>>,
}

/// Which Intercepts of a namespace want the same, in the order in which they are accepted. Comparing them all is what takes
/// long with many, and depends on nothing but their specifications: it is done again only from the first that changes on.
#[derive(Debug, Default)]
pub(crate) struct Overlaps {
    /// Uid and generation.
    of: Vec<(String, i64)>,
    /// For each, the older ones that it overlaps with.
    older: Vec<Vec<usize>>,
}

/// What is to be done.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    /// By the pods' uids. Every agent that is not here gets no rules.
    pub(crate) rules: BTreeMap<String, Vec<Assigned>>,
    /// By the Intercepts' uids.
    pub(crate) status: BTreeMap<String, InterceptStatus>,
    /// Uids of Intercepts to delete, and why.
    pub(crate) ends: BTreeMap<String, End>,
}

/// Why an Intercept ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum End {
    /// Its time to live is over.
    Expired,
    /// Its client has been away for [`ABANDONED`].
    Abandoned,
    /// Its client has been away for [`SILENT`], and somebody else wants the same.
    TakenOver {
        /// Name of the newer one.
        by: String,
        /// Whose it is.
        owner: String,
    },
}

/// Since when no agent has a connection to the client, although some wait for it.
pub(crate) fn away_since(intercept: &Intercept) -> Option<Timestamp> {
    intercept.status.as_ref()?.client_away_since.as_ref()?.parse().ok()
}

/// Whether a newcomer may have its requests: its client has been away for [`SILENT`].
#[must_use]
pub fn is_silent(intercept: &Intercept, now: Timestamp) -> bool {
    away_since(intercept).is_some_and(|since| now.duration_since(since) >= SILENT)
}

/// Makes the plan for the Intercepts of one namespace. `heard` are the agents by their pods' uids; `fresh` are those pods of
/// which nothing has been heard yet because this controller, or their agent, has just started to talk: what the status says
/// about them stays.
pub(crate) fn plan(
    mut cases: Vec<Case<'_>>,
    overlaps: &mut Overlaps,
    heard: &BTreeMap<String, Heard>,
    fresh: &dyn Fn(&str) -> bool,
    now: Timestamp,
) -> Plan {
    let mut plan = Plan::default();
    cases.retain(|case| case.intercept.metadata.deletion_timestamp.is_none());
    // The order in which they are accepted: older ones go first, and of equally old ones chance must not decide.
    cases.sort_by_key(|case| (created(case.intercept), case.intercept.name_any()));
    overlaps.update(&cases);
    let mut accepted = vec![false; cases.len()];
    for (at, case) in cases.iter().enumerate() {
        let (intercept, uid) = (case.intercept, uid(case.intercept));
        if let Some(end) = ends(intercept, now) {
            plan.ends.insert(uid, end);
            continue;
        }
        let rivals = overlaps.older[at].iter().filter(|&&rival| accepted[rival]);
        let (silent, others): (Vec<_>, Vec<_>) = rivals.partition(|&&rival| is_silent(cases[rival].intercept, now));
        let conflict = others.first().and_then(|&&rival| overlap::conflict(intercept, [cases[rival].intercept]));
        let refusal = match conflict {
            Some(conflict) => Some(("Conflict", conflict.to_string())),
            None if !case.exists => {
                let target = &intercept.spec.target;
                Some(("NoTarget", format!("there is no {:?} {:?} in this namespace", target.kind, target.name)))
            }
            None => None,
        };
        let status = match refusal {
            Some((reason, message)) => refused(intercept, reason, &message, now),
            None => {
                for &older in silent {
                    accepted[older] = false;
                    let older = self::uid(cases[older].intercept);
                    plan.rules.values_mut().for_each(|rules| rules.retain(|rule| rule.uid != older));
                    plan.status.remove(&older);
                    let by = (intercept.name_any(), intercept.owner().to_owned());
                    plan.ends.insert(older, End::TakenOver { by: by.0, owner: by.1 });
                }
                accepted[at] = true;
                for (pod, rule) in case.pods.iter().filter_map(|pod| Some((pod, rule(intercept, pod).ok()?))) {
                    let assigned = Assigned { uid: uid.clone(), generation: generation(intercept), rule };
                    plan.rules.entry(pod.uid.clone()).or_default().push(assigned);
                }
                status(case, heard, fresh, now)
            }
        };
        plan.status.insert(uid, status);
    }
    plan
}

// === impl Heard ===

impl Heard {
    pub(crate) fn new(report: Report) -> Self {
        let places = report.intercepts.iter().enumerate().map(|(at, held)| (held.uid.clone(), at)).collect();
        Self { report: Arc::new(report), places: Arc::new(places) }
    }

    fn about(&self, intercept: &Intercept) -> Option<&Held> {
        self.report.intercepts.get(*self.places.get(intercept.metadata.uid.as_deref()?)?)
    }
}

// === impl Overlaps ===

impl Overlaps {
    fn update(&mut self, cases: &[Case<'_>]) {
        let of: Vec<_> = cases.iter().map(|case| (uid(case.intercept), generation(case.intercept))).collect();
        let overlaps = |new: usize, old: &usize| {
            let (new, old) = (&cases[new].intercept.spec, &cases[*old].intercept.spec);
            overlap::relation(new, old) != overlap::Relation::Disjoint
        };
        // A newcomer is mostly the last one: what is known of those before it still holds.
        let known = self.of.iter().zip(&of).take_while(|(before, now)| before == now).count();
        self.older.truncate(known);
        self.older.extend((known..of.len()).map(|new| (0..new).filter(|old| overlaps(new, old)).collect::<Vec<_>>()));
        self.of = of;
    }
}

fn ends(intercept: &Intercept, now: Timestamp) -> Option<End> {
    if expires(intercept).is_some_and(|at| at <= now) {
        return Some(End::Expired);
    }
    away_since(intercept).is_some_and(|since| now.duration_since(since) >= ABANDONED).then_some(End::Abandoned)
}

fn expires(intercept: &Intercept) -> Option<Timestamp> {
    let life = SignedDuration::try_from(std::time::Duration::from(intercept.spec.ttl?)).ok()?;
    created(intercept)?.checked_add(life).ok()
}

fn created(intercept: &Intercept) -> Option<Timestamp> {
    intercept.metadata.creation_timestamp.as_ref().map(|time| time.0)
}

fn uid(intercept: &Intercept) -> String {
    intercept.metadata.uid.clone().unwrap_or_default()
}

fn generation(intercept: &Intercept) -> i64 {
    intercept.metadata.generation.unwrap_or_default()
}

/// The rule for one pod; the name of a port that the pod does not have, if there is one.
fn rule<'a>(intercept: &'a Intercept, pod: &PodFacts) -> Result<rules::Intercept, &'a str> {
    let mut ports = Vec::new();
    for port in &intercept.spec.ports {
        let number = match port.reference() {
            Some(PortRef::Number(number)) => number,
            Some(PortRef::Name(name)) => {
                let named = pod.ports.iter().find(|(known, _)| known == name);
                named.and_then(|(_, number)| std::num::NonZeroU16::new(*number)).ok_or(name)?
            }
            None => continue,
        };
        ports.push(rules::Port { port: number, protocol: port.protocol });
    }
    Ok(rules::Intercept {
        name: intercept.name_any(),
        owner: intercept.spec.owner.clone(),
        created: created(intercept),
        ports,
        matches: intercept.spec.matches.clone(),
        mode: intercept.spec.mode,
        on_unavailable: intercept.spec.on_unavailable,
        include_probes: intercept.spec.include_probes,
        reset_existing: intercept.spec.reset_existing,
        steering: intercept.spec.steering,
        client: intercept.spec.client,
    })
}

fn refused(intercept: &Intercept, reason: &str, message: &str, now: Timestamp) -> InterceptStatus {
    let unknown = |kind| (kind, "Unknown", reason, "the Intercept is not accepted".to_owned());
    let conditions = [
        (condition::ACCEPTED, "False", reason, message.to_owned()),
        unknown(condition::AGENTS_READY),
        unknown(condition::CONNECTED),
        (condition::READY, "False", reason, message.to_owned()),
    ];
    InterceptStatus {
        observed_generation: intercept.metadata.generation,
        conditions: conditions.map(|condition| stamped(intercept, condition, now)).to_vec(),
        expires_at: expires(intercept).map(|at| at.to_string()),
        ..InterceptStatus::default()
    }
}

fn status(
    case: &Case<'_>,
    heard: &BTreeMap<String, Heard>,
    fresh: &dyn Fn(&str) -> bool,
    now: Timestamp,
) -> InterceptStatus {
    let intercept = case.intercept;
    let before = intercept.status.as_ref();
    let staying = case.pods.iter().filter(|pod| !pod.leaving);
    let pods: Vec<_> = staying
        .map(|pod| {
            let known = before.and_then(|status| status.pods.iter().find(|known| known.uid == pod.uid));
            match (heard.get(&pod.uid), known) {
                (None, Some(known)) if fresh(&pod.uid) => known.clone(),
                (heard, _) => pod_status(intercept, pod, heard),
            }
        })
        .collect();
    let count = |test: fn(&PodStatus) -> bool| pods.iter().filter(|pod| test(pod)).count();
    let (all, programmed, connected) = (pods.len(), count(|pod| pod.programmed), count(|pod| pod.connected));
    let ready = count(|pod| pod.programmed && pod.connected);
    let first = |test: fn(&PodStatus) -> bool| {
        let pod = pods.iter().find(|pod| !test(pod));
        pod.map(|pod| format!("pod {}: {}", pod.name, pod.reason)).unwrap_or_default()
    };
    let target = &intercept.spec.target;
    let none = || format!("{:?} {} has no pods", target.kind, target.name);
    let agents = match (all, programmed) {
        (0, _) => ("False", "NoPods", none()),
        (all, programmed) if programmed == all => ("True", "Programmed", format!("{all} of {all} pods have the rule")),
        _ => ("False", "NotProgrammed", first(|pod| pod.programmed)),
    };
    let client = match (programmed, connected) {
        (0, _) => ("Unknown", "NoAgents", "no agent waits for the client".to_owned()),
        (_, 0) => ("False", "ClientAway", "the client is not connected to any agent".to_owned()),
        (programmed, connected) if connected >= programmed => {
            ("True", "Connected", format!("the client is connected to {connected} of {all} agents"))
        }
        _ => ("False", "PartlyConnected", format!("the client is connected to {connected} of {all} agents")),
    };
    let whole = match (agents.0, client.0) {
        ("True", "True") => ("True", "Ready", format!("{ready} of {all} pods ready")),
        ("True", _) => ("False", client.1, client.2.clone()),
        _ => ("False", agents.1, agents.2.clone()),
    };
    let conditions = [
        (condition::ACCEPTED, "True", "Accepted", "the target exists and nobody else wants the same".to_owned()),
        (condition::AGENTS_READY, agents.0, agents.1, agents.2),
        (condition::CONNECTED, client.0, client.1, client.2),
        (condition::READY, whole.0, whole.1, whole.2),
    ];
    let away = (programmed > 0 && connected == 0).then(|| away_since(intercept).unwrap_or(now).to_string());
    InterceptStatus {
        observed_generation: intercept.metadata.generation,
        conditions: conditions.map(|condition| stamped(intercept, condition, now)).to_vec(),
        pods_ready: Some(format!("{ready}/{all}")),
        pods: pods.into_iter().take(MAX_PODS).collect(),
        client_away_since: away,
        expires_at: expires(intercept).map(|at| at.to_string()),
    }
}

fn pod_status(intercept: &Intercept, pod: &PodFacts, heard: Option<&Heard>) -> PodStatus {
    let report = heard.map(|heard| &*heard.report);
    let held = heard.and_then(|heard| heard.about(intercept));
    let current = held.filter(|held| held.generation == generation(intercept));
    let programmed = current.is_some_and(|held| held.programmed);
    let connected = held.is_some_and(|held| held.connected);
    let namespace = intercept.namespace().unwrap_or_default();
    let reason = match (report, rule(intercept, pod)) {
        _ if !pod.agent => format!(
            "it has no agent: run `kubectl label namespace {namespace} {}={}` and restart the workload",
            label::INJECT,
            label::ENABLED
        ),
        (_, Err(name)) => format!("no container of it names a port {name:?}"),
        (None, _) => "its agent has not reported: it starts, or cannot reach the control plane".to_owned(),
        (Some(Report { refused: Some(why), .. }), _) => format!("its agent cannot work: {why}"),
        (Some(Report { error: Some(why), .. }), _) if !programmed => {
            format!("its agent does not take the rules: {why}")
        }
        _ if !programmed => "its agent has not taken the rule yet".to_owned(),
        _ if !connected => "the client is not connected to it".to_owned(),
        _ => current.map(unmet).unwrap_or_default(),
    };
    let reachable = report.filter(|report| report.refused.is_none() && !pod.ip.is_empty());
    PodStatus {
        uid: pod.uid.clone(),
        name: pod.name.clone(),
        node: pod.node.clone(),
        tunnel: reachable.map(|report| address(&pod.ip, report.tunnel_port)),
        key_hash: reachable.map(|report| report.key_hash),
        programmed,
        connected,
        reason,
        existing_connections: held.map(|held| held.existing_connections),
        ways: held.map(|held| held.ways.clone()).unwrap_or_default(),
        counters: held.map(|held| held.counters),
    }
}

/// What it asks for and does not get although it is in force.
fn unmet(held: &Held) -> String {
    let errors: Vec<_> = [&held.reset_error, &held.steering_error].into_iter().flatten().map(String::as_str).collect();
    errors.join("; ")
}

fn address(ip: &str, port: u16) -> String {
    if ip.contains(':') { format!("[{ip}]:{port}") } else { format!("{ip}:{port}") }
}

/// A condition, with the time of its last change.
fn stamped(
    intercept: &Intercept,
    (kind, status, reason, message): (&str, &str, &str, String),
    now: Timestamp,
) -> Condition {
    let before = intercept.status.iter().flat_map(|status| &status.conditions).find(|before| before.type_ == kind);
    let unchanged = before.filter(|before| before.status == status);
    Condition {
        type_: kind.to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message,
        observed_generation: intercept.metadata.generation,
        last_transition_time: unchanged.map_or(Time(now), |before| before.last_transition_time.clone()),
    }
}

#[cfg(test)]
mod tests;
