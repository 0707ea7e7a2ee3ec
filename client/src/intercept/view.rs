//! An Intercept as it is printed.
//!
//! Owns the one shape that all commands print as JSON or YAML, and the same as text. The shape is stable: fields may be
//! added, none is renamed or removed.

use std::fmt;
use std::fmt::Write as _;
use std::io;
use std::io::Write as _;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::ResourceExt as _;
use serde::Serialize;
use sluice_api::Counters;
use sluice_api::Intercept;
use sluice_api::InterceptSpec;
use sluice_api::PortWay;
use sluice_api::Target;
use sluice_api::status::condition;
use sluice_protocol::rules::Match;
use sluice_protocol::rules::MatchType;
use sluice_protocol::rules::Mode;
use sluice_protocol::rules::OnUnavailable;
use sluice_protocol::rules::PathMatchType;
use sluice_protocol::rules::Steering;

use crate::cli::Output;

/// Annotation: the host of `--to`, if it was given.
pub(crate) const TO: &str = "sluice.dev/to";

/// Annotation: what the user called the ports, in their order, separated by commas.
pub(crate) const PORT_IDENTIFIERS: &str = "sluice.dev/port-identifiers";

/// An Intercept.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct View {
    name: String,
    namespace: String,
    owner: String,
    pub(crate) state: State,
    /// What is missing, in words; empty when nothing is.
    pub(crate) message: String,
    workload: Target,
    ports: Vec<Port>,
    /// In words.
    intercepts: String,
    #[serde(rename = "match")]
    matches: Match,
    mode: Mode,
    on_unavailable: OnUnavailable,
    include_probes: bool,
    reset_existing: bool,
    steering: Steering,
    pods_ready: usize,
    pods_total: usize,
    pods: Vec<Pod>,
    #[serde(skip_serializing_if = "Option::is_none")]
    created_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<String>,
}

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) enum State {
    /// The control plane has not looked at it yet.
    Pending,
    /// It cannot be.
    Rejected,
    /// Agents or connections are missing.
    Waiting,
    /// Every pod serves it.
    Ready,
    /// It is being deleted.
    Terminating,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Port {
    /// What the user called it, with its protocol.
    identifier: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    container_port: Option<u16>,
    /// The local address that answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    destination: Option<String>,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Pod {
    #[serde(skip)]
    uid: String,
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<String>,
    programmed: bool,
    connected: bool,
    /// How this client reaches it; only its own process knows.
    #[serde(skip_serializing_if = "Option::is_none")]
    way: Option<&'static str>,
    #[serde(skip_serializing_if = "String::is_empty")]
    reason: String,
    /// Open since before the agent took the ports, and so not taken.
    #[serde(skip_serializing_if = "Option::is_none")]
    existing_connections: Option<u64>,
    /// Which way its agent intercepts each port.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ways: Vec<PortWay>,
    #[serde(skip_serializing_if = "Option::is_none")]
    counters: Option<Counters>,
}

/// The condition of a type, if it is about the specification as it is now.
pub(crate) fn current<'a>(intercept: &'a Intercept, kind: &str) -> Option<&'a Condition> {
    let status = intercept.status.as_ref()?;
    let generation = intercept.metadata.generation;
    let condition = status.conditions.iter().find(|condition| condition.type_ == kind)?;
    let observed = condition.observed_generation.or(status.observed_generation);
    (generation.is_none() || observed >= generation).then_some(condition)
}

// === impl View ===

impl View {
    pub(crate) fn of(intercept: &Intercept) -> Self {
        let status = intercept.status.clone().unwrap_or_default();
        let (state, message) = state(intercept);
        let is_ready = |pod: &&sluice_api::PodStatus| pod.programmed && pod.connected;
        let (pods_ready, pods_total) = (status.pods.iter().filter(is_ready).count(), status.pods.len());
        // The status lists a limited number of pods and counts them all.
        let counted = status.pods_ready.as_deref().and_then(|text| text.split_once('/'));
        let counted = counted.and_then(|(ready, total)| Some((ready.parse().ok()?, total.parse().ok()?)));
        let (pods_ready, pods_total) = counted.unwrap_or((pods_ready, pods_total));
        Self {
            name: intercept.name_any(),
            namespace: intercept.namespace().unwrap_or_default(),
            owner: intercept.owner().to_owned(),
            state,
            message,
            workload: intercept.spec.target.clone(),
            ports: ports(intercept),
            intercepts: words(&intercept.spec),
            matches: intercept.spec.matches.clone(),
            mode: intercept.spec.mode,
            on_unavailable: intercept.spec.on_unavailable,
            include_probes: intercept.spec.include_probes,
            reset_existing: intercept.spec.reset_existing,
            steering: intercept.spec.steering,
            pods_ready,
            pods_total,
            pods: status.pods.into_iter().map(Pod::from).collect(),
            created_at: intercept.metadata.creation_timestamp.as_ref().map(|time| time.0.to_string()),
            expires_at: status.expires_at,
        }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn owner(&self) -> &str {
        &self.owner
    }

    /// The same with the way to each pod, where `way` knows one by the pod's uid.
    pub(crate) fn with_ways(mut self, way: impl Fn(&str) -> Option<&'static str>) -> Self {
        for pod in &mut self.pods {
            pod.way = way(&pod.uid);
        }
        self
    }

    /// Whether there is more than one pod.
    pub(crate) fn lists_several(&self) -> bool {
        self.pods.len() > 1
    }

    /// A table of the pods with what was counted, and which way each port is intercepted there.
    pub(crate) fn pods(&self) -> String {
        let mut text = String::new();
        for pod in &self.pods {
            let connected = match (pod.connected, pod.way) {
                (true, Some(way)) => format!("connected ({way})"),
                (true, None) => "connected".to_owned(),
                (false, _) => "not connected".to_owned(),
            };
            let programmed = if pod.programmed { "programmed" } else { "not programmed" };
            let _ = write!(text, "  pod {}: {programmed}, {connected}", pod.name);
            if let Some(Counters { steered, matched, taken, passed_through, rejected, copied, lost }) = pod.counters {
                let _ = write!(text, ", {steered} steered, {matched} matched");
                let _ = match self.mode {
                    Mode::Wiretap => write!(text, ", {copied} copied, {lost} lost"),
                    Mode::Intercept => {
                        write!(text, ", {taken} taken, {passed_through} passed through, {rejected} rejected")
                    }
                };
            }
            if let Some(existing @ 1..) = pod.existing_connections {
                let _ = write!(text, ", {existing} from before");
            }
            let _ = if pod.reason.is_empty() { writeln!(text) } else { writeln!(text, ": {}", pod.reason) };
            for way in &pod.ways {
                let _ = writeln!(text, "    {way}");
            }
        }
        text
    }
}

impl fmt::Display for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut line = |name: &str, value: &dyn fmt::Display| writeln!(f, "{name:<14}{value}");
        line("Intercept", &format_args!("{} (namespace {})", self.name, self.namespace))?;
        match self.message.as_str() {
            "" => line("State", &format_args!("{:?}", self.state))?,
            message => line("State", &format_args!("{:?}: {message}", self.state))?,
        }
        line("Workload", &format_args!("{:?} {}", self.workload.kind, self.workload.name))?;
        for port in &self.ports {
            line("Destination", &port.destination.as_deref().unwrap_or("unknown"))?;
            match port.container_port {
                Some(number) => line("Port", &format_args!("{} (container port {number})", port.identifier))?,
                None => line("Port", &port.identifier)?,
            }
        }
        line("Intercepts", &self.intercepts)?;
        let ways: std::collections::BTreeSet<_> = self.pods.iter().filter_map(|pod| pod.way).collect();
        let ways = ways.into_iter().collect::<Vec<_>>().join(", ");
        let ways = if ways.is_empty() { ways } else { format!(" ({ways})") };
        line("Pods", &format_args!("{}/{}{ways}", self.pods_ready, self.pods_total))?;
        let existing: u64 = self.pods.iter().filter_map(|pod| pod.existing_connections).sum();
        if existing > 0 {
            let hint = if self.reset_existing { "" } else { "; --reset-existing ends them" };
            line("Not taken", &format_args!("{existing} connections from before{hint}"))?;
        }
        line("Owner", &self.owner)
    }
}

fn state(intercept: &Intercept) -> (State, String) {
    if intercept.metadata.deletion_timestamp.is_some() {
        return (State::Terminating, "it is being deleted".to_owned());
    }
    let message = |condition: &Condition| condition.message.clone();
    if let Some(rejected) = current(intercept, condition::ACCEPTED).filter(|condition| condition.status == "False") {
        return (State::Rejected, message(rejected));
    }
    match current(intercept, condition::READY) {
        Some(ready) if ready.status == "True" => (State::Ready, String::new()),
        Some(ready) => (State::Waiting, message(ready)),
        None => (State::Pending, "the control plane has not looked at it yet".to_owned()),
    }
}

fn ports(intercept: &Intercept) -> Vec<Port> {
    let annotation = |name: &str| intercept.metadata.annotations.as_ref().and_then(|all| all.get(name));
    let host = annotation(TO).map_or("127.0.0.1", String::as_str);
    let identifiers: Vec<&str> = annotation(PORT_IDENTIFIERS).map(|all| all.split(',').collect()).unwrap_or_default();
    let ports = intercept.spec.ports.iter().enumerate().map(|(index, port)| {
        let reference = port.reference().map(|reference| reference.to_string()).unwrap_or_default();
        let identifier = identifiers.get(index).map_or(reference, |identifier| (*identifier).to_owned());
        Port {
            identifier: format!("{identifier}/TCP"),
            container_port: port.port.map(std::num::NonZeroU16::get),
            destination: port.local.map(|local| match host.parse::<std::net::Ipv6Addr>() {
                Ok(host) => format!("[{host}]:{local}"),
                Err(_) => format!("{host}:{local}"),
            }),
        }
    });
    ports.collect()
}

/// What is intercepted, as a sentence.
fn words(InterceptSpec { matches, mode, include_probes, .. }: &InterceptSpec) -> String {
    let headers = matches.headers.iter().map(|header| match header.kind() {
        MatchType::Exact => format!("header {} = {}", header.name().as_str(), header.value()),
        MatchType::RegularExpression => format!("header {} ~= {}", header.name().as_str(), header.value()),
    });
    let baggage = matches.baggage.iter().map(|member| format!("baggage {} = {}", member.name(), member.value()));
    let path = matches.path.iter().map(|path| match path.kind() {
        PathMatchType::Exact => format!("path = {}", path.value()),
        PathMatchType::PathPrefix => format!("path begins with {}", path.value()),
        PathMatchType::RegularExpression => format!("path ~= {}", path.value()),
    });
    let method = matches.method.iter().map(|method| format!("method = {}", method.as_str()));
    let conditions: Vec<String> = headers.chain(baggage).chain(path).chain(method).collect();
    let what = match conditions.is_empty() {
        true => "all TCP connections".to_owned(),
        false if *include_probes => {
            format!("HTTP requests, probes included, that match all of: {}", conditions.join(", "))
        }
        false => format!("HTTP requests that match all of: {}", conditions.join(", ")),
    };
    match mode {
        Mode::Intercept => what,
        Mode::Wiretap => format!("copies of {what}"),
    }
}

impl From<sluice_api::PodStatus> for Pod {
    fn from(pod: sluice_api::PodStatus) -> Self {
        let sluice_api::PodStatus {
            uid,
            name,
            node,
            programmed,
            connected,
            reason,
            existing_connections,
            ways,
            counters,
            ..
        } = pod;
        Self { uid, name, node, programmed, connected, way: None, reason, existing_connections, ways, counters }
    }
}

/// Writes to standard output. Whoever reads it may have seen enough.
pub(crate) fn show(text: &str) -> io::Result<()> {
    let mut output = io::stdout().lock();
    match output.write_all(text.as_bytes()).and_then(|()| output.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        outcome => outcome,
    }
}

/// `document` as the user asked for it, or `text`.
pub(crate) fn render(
    output: Output,
    document: &impl Serialize,
    text: impl FnOnce() -> String,
) -> anyhow::Result<String> {
    Ok(match output {
        Output::Text => text(),
        Output::Json => format!("{}\n", serde_json::to_string_pretty(document)?),
        // By way of JSON, so that both have the same shape.
        Output::Yaml => serde_saphyr::to_string(&serde_json::to_value(document)?)?,
    })
}

#[cfg(test)]
mod tests;
