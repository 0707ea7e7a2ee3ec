//! What the agent counts, for Prometheus and the status page.
//!
//! Owns the names and labels; labels have a fixed set of values each. Counting is one atomic addition, so it may be
//! done for every request. What the kernel counts is read when somebody asks.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use prometheus_client::{
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};
use sluice_protocol::{control::Counters, rules::matcher::Rule};

use crate::{http1::Doubt, insertion::FlowCounters};

/// How a connection is served from its beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnectionMode {
    /// By a rule for all TCP.
    Tcp,
    /// By HTTP rules, request by request.
    Http,
    /// Passed to the app: its port has no rule any more.
    Passed,
}

/// What became of a request (for rules about all TCP: of a connection).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// It fits no rule: the app answered.
    Passed,
    /// It fits a rule: the client answered.
    Diverted,
    /// It fits a rule whose client was not available: the app answered.
    UnavailablePassed,
    /// It fits a rule whose client was not available: refused.
    Rejected,
    /// The client took it and went away in the middle.
    Failed,
}

/// What became of a copy for a wiretap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// All of it went into the connection to the client.
    Sent,
    /// The client was away or too slow, or the caller broke off.
    Lost,
}

/// All counters of an agent. Clones count into the same ones.
#[derive(Debug, Clone)]
pub struct Metrics(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    registry: Registry,
    connections: [Counter; 3],
    open: Gauge,
    requests: [Counter; 5],
    wires: [Counter; Doubt::ALL.len()],
    copies: [Counter; 2],
    app_unreachable: Counter,
    loops: Counter,
    keys_refused: Counter,
    rules_refused: Counter,
    rules_generation: Gauge,
    insertions: Histogram,
    returned: Counter,
    not_inserted: [Counter; 6],
    /// What of the kernel's own decisions is in the counters.
    native: Mutex<FlowCounters>,
    /// Not in the registry: names are no labels with a fixed set of values.
    tallies: Mutex<Tallies>,
}

/// What is counted for the controller, which shows it with each Intercept.
#[derive(Debug, Default)]
struct Tallies {
    /// Connections that were steered, by port.
    ports: BTreeMap<u16, u64>,
    /// By the intercept's name.
    intercepts: BTreeMap<String, Tally>,
}

/// What is counted for one intercept.
#[derive(Debug, Clone, Copy, Default)]
struct Tally {
    decisions: [u64; 5],
    copies: [u64; 2],
}

/// Why the agent was not inserted into a connection that was held for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NotInserted {
    /// Too many are held already.
    Busy,
    /// It never stood still.
    NeverReady,
    /// The app's socket is not there, or not open.
    NoSocket,
    /// The kernel refused.
    Failed,
    /// An answer is running whose end is known to nobody but who has read it from the beginning.
    OpenAnswer,
    /// The app has said that it answers nothing more on this connection.
    Closing,
}

/// Counts a connection as open until dropped.
#[derive(Debug)]
pub(crate) struct OpenConnection(Metrics);

/// One label and its value.
type Label = [(&'static str, &'static str); 1];

// === impl Metrics ===

impl Metrics {
    /// New counters, all zero, registered under the names that the README lists.
    #[must_use]
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("sluice_agent");
        let connections = Family::<Label, Counter>::default();
        registry.register("connections", "Steered connections by how they are served", connections.clone());
        let requests = Family::<Label, Counter>::default();
        registry.register(
            "requests",
            "Requests, or connections under a rule for all TCP, by decision",
            requests.clone(),
        );
        let wires = Family::<Label, Counter>::default();
        registry.register("wires", "Connections passed on as bytes from some point on, by reason", wires.clone());
        let copies = Family::<Label, Counter>::default();
        registry.register("copies", "Copies for wiretaps, by what became of them", copies.clone());
        let not_inserted = Family::<Label, Counter>::default();
        registry.register("not_inserted", "Held requests that the app answered, by reason", not_inserted.clone());
        let not_inserted = ["busy", "never_ready", "no_socket", "failed", "open_answer", "closing"]
            .map(|reason| not_inserted.get_or_create_owned(&[("reason", reason)]));
        // From 16 µs to half a second.
        let insertions = Histogram::new(exponential_buckets(16e-6, std::f64::consts::SQRT_2, 32));
        registry.register(
            "insertion_seconds",
            "Time from a held request to the agent's insertion into its connection",
            insertions.clone(),
        );
        let mode = |mode| connections.get_or_create_owned(&[("mode", mode)]);
        let decision = |decision| requests.get_or_create_owned(&[("decision", decision)]);
        let connections = ["tcp", "http", "passed"].map(mode);
        let requests = ["passed", "diverted", "unavailable_passed", "rejected", "failed"].map(decision);
        let wires = Doubt::ALL.map(|doubt| wires.get_or_create_owned(&[("reason", doubt.name())]));
        let copies = ["sent", "lost"].map(|outcome| copies.get_or_create_owned(&[("outcome", outcome)]));
        let mut counter = |name, help: &str| {
            let counter = Counter::default();
            registry.register(name, help, counter.clone());
            counter
        };
        let app_unreachable = counter("app_unreachable", "Connections reset because the app takes none");
        let loops = counter("loops", "Connections refused because they came from the agent itself");
        let keys_refused = counter("keys_refused", "Clients refused because no rule names their key");
        let rules_refused = counter("rules_refused", "Versions of the rules that could not be used");
        let returned = counter("returned", "Inserted connections that were given back to their caller and app");
        let mut gauge = |name, help: &str| {
            let gauge = Gauge::default();
            registry.register(name, help, gauge.clone());
            gauge
        };
        let open = gauge("connections_open", "Steered connections that are open");
        let rules_generation = gauge("rules_generation", "How many versions of the rules have come into force");
        Self(Arc::new(Inner {
            registry,
            connections,
            open,
            requests,
            wires,
            copies,
            app_unreachable,
            loops,
            keys_refused,
            rules_refused,
            rules_generation,
            insertions,
            returned,
            not_inserted,
            native: Mutex::default(),
            tallies: Mutex::default(),
        }))
    }

    pub(crate) fn open(&self) -> OpenConnection {
        self.0.open.inc();
        OpenConnection(self.clone())
    }

    pub(crate) fn connection(&self, mode: ConnectionMode) {
        self.0.connections[mode as usize].inc();
    }

    pub(crate) fn request(&self, decision: Decision) {
        self.0.requests[decision as usize].inc();
    }

    /// A request, or a connection, that fits `rule`.
    pub(crate) fn rule(&self, rule: &Rule, decision: Decision) {
        self.request(decision);
        self.tally(rule, |tally| tally.decisions[decision as usize] += 1);
    }

    /// A copy for the wiretap `rule` has come to its end.
    pub(crate) fn copy(&self, rule: &Rule, outcome: Outcome) {
        self.0.copies[outcome as usize].inc();
        self.tally(rule, |tally| tally.copies[outcome as usize] += 1);
    }

    fn tally(&self, rule: &Rule, count: impl FnOnce(&mut Tally)) {
        let mut tallies = self.tallies();
        // Looked up first, so that only the first one of an intercept copies its name.
        match tallies.intercepts.get_mut(&rule.intercept.name) {
            Some(tally) => count(tally),
            None => count(tallies.intercepts.entry(rule.intercept.name.clone()).or_default()),
        }
    }

    /// What the kernel has decided alone, so far.
    pub(crate) fn native(&self, counted: &FlowCounters) {
        let mut before = self.0.native.lock().unwrap_or_else(PoisonError::into_inner);
        let more = |of: fn(&FlowCounters) -> u64| of(counted).saturating_sub(of(&before));
        self.0.requests[Decision::Passed as usize].inc_by(more(|counted| counted.passed));
        self.0.wires[Doubt::NotHttp as usize].inc_by(more(|counted| counted.not_http));
        self.0.copies[Outcome::Lost as usize].inc_by(more(|counted| counted.copies_lost));
        self.0.not_inserted[NotInserted::NoSocket as usize].inc_by(more(|counted| counted.no_socket));
        *before = *counted;
    }

    /// The agent has been inserted into a connection, so long after it was held.
    pub(crate) fn inserted(&self, after: std::time::Duration) {
        self.0.insertions.observe(after.as_secs_f64());
    }

    /// An inserted connection has gone back.
    pub(crate) fn returned(&self) {
        self.0.returned.inc();
    }

    /// A held request was let go.
    pub(crate) fn not_inserted(&self, why: NotInserted) {
        self.0.not_inserted[why as usize].inc();
    }

    /// A connection that the kernel has given to the agent.
    pub(crate) fn steered(&self, port: u16) {
        *self.tallies().ports.entry(port).or_default() += 1;
    }

    /// What was counted for the intercept `name` with these ports. All its ports' connections are counted as steered, also
    /// those of other intercepts on them.
    pub(crate) fn counters(&self, name: &str, ports: impl Iterator<Item = u16>) -> Counters {
        let tallies = self.tallies();
        let Tally { decisions, copies } = tallies.intercepts.get(name).copied().unwrap_or_default();
        let of = |decision: Decision| decisions[decision as usize];
        Counters {
            steered: ports.filter_map(|port| tallies.ports.get(&port)).sum(),
            matched: decisions.iter().chain(&copies).sum(),
            taken: of(Decision::Diverted) + of(Decision::Failed),
            passed_through: of(Decision::UnavailablePassed),
            rejected: of(Decision::Rejected),
            copied: copies[Outcome::Sent as usize],
            lost: copies[Outcome::Lost as usize],
        }
    }

    /// Forgets the counts of all intercepts but these, and of all ports but these.
    pub(crate) fn keep_only(&self, name: impl Fn(&str) -> bool, port: impl Fn(u16) -> bool) {
        let mut tallies = self.tallies();
        tallies.intercepts.retain(|known, _| name(known));
        tallies.ports.retain(|&known, _| port(known));
    }

    /// A panic while it is held cannot leave it half changed.
    fn tallies(&self) -> MutexGuard<'_, Tallies> {
        self.0.tallies.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn wire(&self, doubt: Doubt) {
        self.0.wires[doubt as usize].inc();
    }

    pub(crate) fn app_unreachable(&self) {
        self.0.app_unreachable.inc();
    }

    pub(crate) fn looped(&self) {
        self.0.loops.inc();
    }

    pub(crate) fn key_refused(&self) {
        self.0.keys_refused.inc();
    }

    pub(crate) fn rules_refused(&self) {
        self.0.rules_refused.inc();
    }

    pub(crate) fn rules_in_force(&self, generation: u64) {
        self.0.rules_generation.set(i64::try_from(generation).unwrap_or(i64::MAX));
    }

    /// All of them in OpenMetrics text, without the closing `# EOF`.
    ///
    /// # Errors
    /// Never for a `String`; the writer's errors are passed on.
    pub fn encode(&self, to: &mut String) -> std::fmt::Result {
        prometheus_client::encoding::text::encode_registry(to, &self.0.registry)
    }

    /// How many requests had this decision.
    #[must_use]
    pub fn requests(&self, decision: Decision) -> u64 {
        self.0.requests[decision as usize].get()
    }

    /// How many steered connections were accepted.
    #[must_use]
    pub fn accepted(&self) -> u64 {
        self.0.connections.iter().map(Counter::get).sum()
    }

    /// How many connections are open.
    #[must_use]
    pub fn open_now(&self) -> i64 {
        self.0.open.get()
    }

    /// How many connections were passed on as bytes from some point on.
    #[must_use]
    pub fn wires(&self) -> u64 {
        self.0.wires.iter().map(Counter::get).sum()
    }

    /// How many copies for wiretaps had this outcome.
    #[must_use]
    pub fn copies(&self, outcome: Outcome) -> u64 {
        self.0.copies[outcome as usize].get()
    }

    /// How many clients were refused for their key.
    #[must_use]
    pub fn keys_refused(&self) -> u64 {
        self.0.keys_refused.get()
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

// === impl OpenConnection ===

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.0.open.dec();
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Names in `text` that stand between `before` and one of `after`.
    fn names<'a>(text: &'a str, before: &str, after: &[char]) -> BTreeSet<&'a str> {
        text.split(before).skip(1).filter_map(|rest| rest.split(after).next()).collect()
    }

    #[test]
    fn the_readme_lists_every_metric_and_label_and_no_other() {
        let mut text = String::new();
        Metrics::new().encode(&mut text).unwrap();
        let readme = include_str!("../../README.md");
        let table = readme.split("| Metric | Counts |").nth(1).unwrap().split("\n\n").next().unwrap();
        let listed = names(table, "\n| `", &['`', '{']);
        // A histogram has three.
        let parts = ["_bucket", "_sum", "_count"];
        let whole = |name| parts.iter().find_map(|part| str::strip_suffix(name, part)).unwrap_or(name);
        let encoded: BTreeSet<_> = text
            .lines()
            .filter(|l| !l.starts_with('#'))
            .filter_map(|l| l.split(['{', ' ']).next())
            .map(whole)
            .collect();
        for name in &encoded {
            let name = name.strip_prefix("sluice_agent_").unwrap();
            assert!(listed.contains(name), "{name} is missing in the README");
        }
        let elsewhere = |name: &str| name.starts_with("kernel_") || name.starts_with("flows_") || name == "clients";
        for name in listed.iter().filter(|name| !elsewhere(name)) {
            assert!(encoded.contains(format!("sluice_agent_{name}").as_str()), "{name} is in the README only");
        }
        // The bounds of a histogram are numbers.
        for value in names(&text, "=\"", &['"']).into_iter().filter(|value| value.parse::<f64>().is_err()) {
            assert!(table.contains(&format!("`{value}`")), "the value {value} is missing in the README");
        }
    }
}
