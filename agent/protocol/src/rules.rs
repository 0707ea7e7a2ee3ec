//! What is intercepted and for whom: the types of the rules file, which the `Intercept` resource uses as well.
//!
//! Owns the vocabulary (names and meanings follow the Gateway API's `HTTPRouteMatch` where it has a word), its
//! validation, and the reading of a rules file. Runs wherever rules are read or written. Deciding which rule a
//! request fits is [`matcher`]'s; steering and relaying are the agent's.

use std::{collections::BTreeMap, num::NonZeroU16};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_saphyr::Spanned;

use crate::key::KeyHash;

mod baggage;
pub mod matcher;
mod pattern;
#[cfg(feature = "schema")]
mod schema;

pub use baggage::BaggageMatch;
pub use pattern::{HeaderMatch, HeaderName, MatchType, Method, PathMatch, PathMatchType, PatternError};

/// Most bytes a rules file may have: far above any real one, low enough that a wrong path cannot fill the memory.
pub const MAX_FILE_BYTES: usize = 4 << 20;

/// Why a rules file cannot be used. Each variant says where in the file.
#[derive(Debug, thiserror::Error)]
pub enum RulesError {
    /// The text is not YAML or JSON, or a field is missing, unknown or has a value that cannot be used.
    #[error("{0}")]
    Parse(#[source] Box<serde_saphyr::Error>),
    /// Two intercepts have the same name.
    #[error("line {line}: the name {name:?} is used twice, first in line {first}: give each intercept its own")]
    DuplicateName {
        /// The name.
        name: String,
        /// Line of the second use, from 1.
        line: u64,
        /// Line of the first use, from 1.
        first: u64,
    },
    /// An intercept without a port takes nothing.
    #[error("line {line}: intercept {name:?} has no ports: name at least one, such as `ports: [{{port: 8080}}]`")]
    NoPorts {
        /// The intercept.
        name: String,
        /// Its line, from 1.
        line: u64,
    },
    /// HTTP rules need TCP, and UDP is not steered yet.
    #[error("line {line}: intercept {name:?}, port {port}: UDP cannot be intercepted yet, use `protocol: TCP`")]
    Udp {
        /// The intercept.
        name: String,
        /// The port.
        port: u16,
        /// Its line, from 1.
        line: u64,
    },
    /// A wiretap takes nothing, so there is nothing to reject.
    #[error(
        "line {line}: intercept {name:?} is a wiretap and rejects nothing: leave out `onUnavailable`, since the app answers"
    )]
    WiretapRejects {
        /// The intercept.
        name: String,
        /// Its line, from 1.
        line: u64,
    },
    /// An agent joins a connection for the sake of requests, and all TCP has none.
    #[error(
        "line {line}: intercept {name:?} is for all TCP connections, and insertion needs HTTP conditions: add a `match`, or \
         leave out `steering`"
    )]
    InsertionWithoutConditions {
        /// The intercept.
        name: String,
        /// Its line, from 1.
        line: u64,
    },
    /// Larger than [`MAX_FILE_BYTES`].
    #[error("{bytes} bytes: a rules file has at most {MAX_FILE_BYTES}")]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
}

/// A rules file: all that one agent intercepts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RuleFile {
    /// The intercepts, in the order of the file.
    pub intercepts: Vec<Intercept>,
    /// Source addresses whose connections are never steered: the node's, for the kubelet's probes.
    pub exempt: Vec<IpNet>,
}

/// One developer's wish: these ports, these requests, to this client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Intercept {
    /// Unique name, for people and logs.
    pub name: String,
    /// Whose it is; for people and logs only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// When it was made. Of two rules that fit with equally many conditions the older one wins; one without a time
    /// counts as younger than any with one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<jiff::Timestamp>,
    /// The pod's ports that it takes from; at least one.
    pub ports: Vec<Port>,
    /// Which HTTP requests; left out (or without any condition) all TCP connections.
    #[serde(rename = "match", default, skip_serializing_if = "Match::is_empty")]
    pub matches: Match,
    /// Whether its client answers, or only sees.
    #[serde(default, skip_serializing_if = "Mode::is_intercept")]
    pub mode: Mode,
    /// What happens with what matches while its client cannot take it. Nothing that a wiretap could need.
    #[serde(default)]
    pub on_unavailable: OnUnavailable,
    /// Whether HTTP requests of the kubelet's probes may match: those whose user agent begins with `kube-probe/`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub include_probes: bool,
    /// Whether connections to its ports that are open already, of all callers, are reset when it comes into force. They
    /// stay with the app otherwise.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub reset_existing: bool,
    /// Which way its ports are intercepted: by `insertion` callers keep talking to the app, and the agent joins a connection
    /// only when a request may match; by `lookup` all connections to the ports pass through the agent. With `auto` the agent
    /// chooses for each port.
    #[serde(default, skip_serializing_if = "Steering::is_auto")]
    pub steering: Steering,
    /// To whom it goes.
    pub client: Client,
}

/// A port of the pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Port {
    /// Its number, as the app listens on it.
    pub port: NonZeroU16,
    /// Its protocol.
    #[serde(default)]
    pub protocol: Protocol,
}

/// Transport protocol of a [`Port`].
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Protocol {
    /// TCP.
    #[default]
    #[serde(rename = "TCP")]
    Tcp,
    /// UDP.
    #[serde(rename = "UDP")]
    Udp,
}

/// Conditions on an HTTP request; all of them must hold.
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema), schemars(transform = schema::open))]
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Match {
    /// Conditions on headers (gRPC: metadata).
    #[cfg_attr(feature = "schema", schemars(length(max = 16)))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<HeaderMatch>,
    /// Conditions on members of the `baggage` header (W3C Baggage).
    #[cfg_attr(feature = "schema", schemars(length(max = 16)))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub baggage: Vec<BaggageMatch>,
    /// Condition on the path, without the query.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathMatch>,
    /// The method, compared exactly.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<Method>,
}

/// What an intercept's client has to do with what matches.
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mode {
    /// It answers in the app's place.
    #[default]
    Intercept,
    /// It gets a copy, and the app answers (or whoever else does).
    Wiretap,
}

/// What happens with what matches while its client cannot take it.
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum OnUnavailable {
    /// The app answers.
    #[default]
    PassThrough,
    /// HTTP: `503` with `Retry-After: 1`; other TCP: a reset.
    Reject,
}

/// Which way an intercept's ports are intercepted.
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Steering {
    /// The agent chooses, for each port: insertion where it works, lookup elsewhere.
    #[default]
    Auto,
    /// Callers keep talking to the app, and the agent joins a connection only when a request may match.
    Insertion,
    /// All connections to the ports pass through the agent.
    Lookup,
}

/// The client that an intercept's traffic goes to.
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema), schemars(transform = schema::open))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Client {
    /// Hash of the client's public key, as `sluice key` prints it.
    pub key_hash: KeyHash,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RawFile {
    #[serde(default)]
    intercepts: Vec<Spanned<Intercept>>,
    #[serde(default)]
    exempt: Vec<IpNet>,
}

// === impl RuleFile ===

impl RuleFile {
    /// Reads a rules file in YAML or JSON. An empty file is a file without rules.
    ///
    /// # Errors
    /// [`RulesError`] says which line cannot be used and why; nothing is half accepted.
    pub fn parse(text: &str) -> Result<Self, RulesError> {
        if text.len() > MAX_FILE_BYTES {
            return Err(RulesError::TooLarge { bytes: text.len() });
        }
        let Some(raw) = serde_saphyr::from_str::<Option<RawFile>>(text).map_err(|e| RulesError::Parse(Box::new(e)))?
        else {
            return Ok(Self::default());
        };
        let mut names = BTreeMap::new();
        for intercept in &raw.intercepts {
            check(&intercept.value, intercept.referenced.line(), &mut names)?;
        }
        Ok(Self { intercepts: raw.intercepts.into_iter().map(|i| i.value).collect(), exempt: raw.exempt })
    }
}

// === impl Match ===

impl Match {
    /// Whether it has no condition: all TCP connections fit.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.conditions() == 0
    }

    /// How many conditions it has: the more, the earlier it is tried.
    #[must_use]
    pub fn conditions(&self) -> usize {
        self.headers.len() + self.baggage.len() + usize::from(self.path.is_some()) + usize::from(self.method.is_some())
    }
}

// === impl Mode ===

impl Mode {
    /// Whether it is the default one.
    #[must_use]
    pub fn is_intercept(&self) -> bool {
        *self == Self::Intercept
    }
}

// === impl Steering ===

impl Steering {
    /// Whether it is the default one.
    #[must_use]
    pub fn is_auto(&self) -> bool {
        *self == Self::Auto
    }
}

fn check(intercept: &Intercept, line: u64, names: &mut BTreeMap<String, u64>) -> Result<(), RulesError> {
    let name = intercept.name.clone();
    if let Some(&first) = names.get(&name) {
        return Err(RulesError::DuplicateName { name, line, first });
    }
    names.insert(name.clone(), line);
    if intercept.ports.is_empty() {
        return Err(RulesError::NoPorts { name, line });
    }
    if intercept.mode == Mode::Wiretap && intercept.on_unavailable == OnUnavailable::Reject {
        return Err(RulesError::WiretapRejects { name, line });
    }
    if intercept.steering == Steering::Insertion && intercept.matches.is_empty() {
        return Err(RulesError::InsertionWithoutConditions { name, line });
    }
    match intercept.ports.iter().find(|p| p.protocol == Protocol::Udp) {
        Some(udp) => Err(RulesError::Udp { name, port: udp.port.get(), line }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests;
