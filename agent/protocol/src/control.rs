//! What an agent and the controller say to each other.
//!
//! The agent opens one HTTP/2 stream to the controller ([`PATH`], `POST`, with its token as bearer) and keeps it. Both
//! bodies are lines of JSON and do not end by themselves: [`ToAgent`] one way, [`Report`] the other. The token says which
//! pod the agent is in; the header [`UID_HEADER`] says which pod the agent believes to be in, and the two must agree.
//!
//! Safe edits: new optional fields (unknown ones are ignored, missing ones have defaults). Anything else needs a new
//! [`PATH`], served beside the old one for as long as pods that were injected with it may live.

use std::{fmt, time::Duration};

use bytes::{Buf as _, Bytes, BytesMut};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{key::KeyHash, rules::Intercept};

/// Where the controller takes agents.
pub const PATH: &str = "/v1/agents";

/// Header with the uid of the pod that the agent believes to be in.
pub const UID_HEADER: &str = "sluice-pod-uid";

/// How often each side says something at least.
pub const HEARTBEAT: Duration = Duration::from_secs(5);

/// After this much silence the other side is taken for gone.
pub const SILENCE: Duration = Duration::from_secs(15);

/// Longest line: rules for some thousand intercepts.
pub const MAX_LINE: usize = 4 << 20;

/// A line of the controller.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ToAgent {
    /// All rules of the pod, in place of those before.
    Rules(Assignment),
    /// Nothing has changed.
    Alive,
}

/// All that one pod's agent intercepts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Assignment {
    /// Number of this version, for logs: higher is newer, from one controller.
    pub revision: u64,
    /// The intercepts.
    pub intercepts: Vec<Assigned>,
}

/// One intercept of a pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Assigned {
    /// The resource's uid: another one of the same name is another intercept.
    pub uid: String,
    /// The generation of its specification.
    pub generation: i64,
    /// The rule.
    pub rule: Intercept,
}

/// A line of an agent: all there is to say, in place of what it said before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// The agent's version.
    pub version: String,
    /// Hash of its key, which clients must meet.
    pub key_hash: KeyHash,
    /// The UDP port on which it accepts clients.
    pub tunnel_port: u16,
    /// Why it cannot steer at all: the kernel or the privileges; in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
    /// Why the newest rules are not in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// What it holds.
    #[serde(default)]
    pub intercepts: Vec<Held>,
}

/// What an agent holds of one intercept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Held {
    /// The resource's uid.
    pub uid: String,
    /// The generation of its specification that is in force.
    pub generation: i64,
    /// Its ports are in the kernel's map, and the program is attached.
    pub programmed: bool,
    /// Its client is connected.
    pub connected: bool,
    /// What was counted for it.
    #[serde(default)]
    pub counters: Counters,
    /// Connections to its ports that were open before these were steered, and so are not taken.
    #[serde(default)]
    pub existing_connections: u64,
    /// Why they were not reset although it asks for that; in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reset_error: Option<String>,
    /// Which way each of its ports is intercepted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ways: Vec<PortWay>,
    /// Why it is not the one that it asks for; in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steering_error: Option<String>,
}

/// Which way a port is intercepted.
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PortWay {
    /// The port's number.
    #[cfg_attr(feature = "schema", schemars(schema_with = "port"))]
    pub port: u16,
    /// The way.
    pub way: Way,
    /// Why it is this one, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// How requests to a port come to the agent.
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Way {
    /// Callers keep talking to the app, and the agent joins a connection only when a request may match.
    Insertion,
    /// All connections to the port pass through the agent.
    Lookup,
}

/// What an agent has counted for one intercept since it holds it.
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Counters {
    /// Connections that the kernel gave to the agent on its ports.
    #[cfg_attr(feature = "schema", schemars(schema_with = "count"))]
    pub steered: u64,
    /// Requests or connections that matched.
    #[cfg_attr(feature = "schema", schemars(schema_with = "count"))]
    pub matched: u64,
    /// Those of them that the client took.
    #[cfg_attr(feature = "schema", schemars(schema_with = "count"))]
    pub taken: u64,
    /// Those that went to the app because the client could not take them.
    #[cfg_attr(feature = "schema", schemars(schema_with = "count"))]
    pub passed_through: u64,
    /// Those that were refused because the client could not take them.
    #[cfg_attr(feature = "schema", schemars(schema_with = "count"))]
    pub rejected: u64,
    /// Those that a wiretap's client got a copy of.
    #[cfg_attr(feature = "schema", schemars(schema_with = "count"))]
    pub copied: u64,
    /// Those whose copy was lost: the client was away or too slow, or the caller broke off.
    #[cfg_attr(feature = "schema", schemars(schema_with = "count"))]
    pub lost: u64,
}

/// Why lines cannot be read on.
#[derive(Debug, thiserror::Error)]
pub enum LineError {
    /// Longer than [`MAX_LINE`].
    #[error("a line of more than {MAX_LINE} bytes")]
    TooLong,
    /// Not what was expected.
    #[error("a line that cannot be understood")]
    Content(#[source] serde_json::Error),
}

/// Puts lines together from what arrives.
#[derive(Debug, Default)]
pub struct Lines {
    buffer: BytesMut,
    /// So many bytes have been searched for an end already.
    searched: usize,
}

/// A line with `value`.
#[must_use]
pub fn line<T: Serialize>(value: &T) -> Bytes {
    // None of these types has a map with keys other than strings, which is all that can fail.
    let mut line = serde_json::to_vec(value).unwrap_or_default();
    line.push(b'\n');
    line.into()
}

#[cfg(feature = "schema")]
fn port(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({"type": "integer", "format": "int32", "minimum": 1, "maximum": 65535})
}

/// Kubernetes warns of every format that it does not know, `uint64` among them.
#[cfg(feature = "schema")]
fn count(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({"type": "integer", "format": "int64", "minimum": 0})
}

// === impl PortWay ===

impl fmt::Display for PortWay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "port {}: {}", self.port, self.way)?;
        self.why.as_ref().map_or(Ok(()), |why| write!(f, " ({why})"))
    }
}

// === impl Way ===

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Insertion => "insertion",
            Self::Lookup => "lookup",
        })
    }
}

// === impl Lines ===

impl Lines {
    /// Takes what has arrived.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next line, if it is complete.
    ///
    /// # Errors
    /// [`LineError`]: the stream is of no use any more.
    pub fn next_line<T: DeserializeOwned>(&mut self) -> Result<Option<T>, LineError> {
        let Some(end) = self.buffer[self.searched..].iter().position(|&byte| byte == b'\n') else {
            self.searched = self.buffer.len();
            return if self.searched > MAX_LINE { Err(LineError::TooLong) } else { Ok(None) };
        };
        let line = self.buffer.split_to(self.searched + end);
        self.buffer.advance(1);
        self.searched = 0;
        serde_json::from_slice(&line).map(Some).map_err(LineError::Content)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        Report {
            version: "1".to_owned(),
            key_hash: crate::key::Identity::generate().unwrap().hash(),
            tunnel_port: 17443,
            refused: None,
            error: Some("x\ny".to_owned()),
            intercepts: Vec::new(),
        }
    }

    #[test]
    fn lines_are_found_wherever_they_are_split() {
        let reports = [report(), report()];
        let text: Vec<u8> = reports.iter().flat_map(line).collect();
        for split in 0..=text.len() {
            let (mut lines, mut read) = (Lines::default(), Vec::new());
            for part in [&text[..split], &text[split..]] {
                lines.push(part);
                while let Some(report) = lines.next_line::<Report>().unwrap() {
                    read.push(report);
                }
            }
            assert_eq!(read, reports, "split at {split}");
        }
    }

    #[test]
    fn a_line_without_end_and_one_without_sense_are_errors() {
        let mut lines = Lines::default();
        lines.push(&vec![b' '; MAX_LINE]);
        assert!(matches!(lines.next_line::<Report>(), Ok(None)));
        lines.push(b"  ");
        assert!(matches!(lines.next_line::<Report>(), Err(LineError::TooLong)));
        let mut lines = Lines::default();
        lines.push(b"{}\n");
        assert!(matches!(lines.next_line::<Report>(), Err(LineError::Content(_))));
    }

    #[test]
    fn what_a_newer_side_adds_is_ignored_and_what_an_older_one_lacks_has_a_default() {
        let mut json = serde_json::to_value(report()).unwrap();
        json["later"] = 1.into();
        json.as_object_mut().unwrap().remove("intercepts");
        json.as_object_mut().unwrap().remove("error");
        let expected = Report { error: None, ..serde_json::from_value(json.clone()).unwrap() };
        assert_eq!(serde_json::from_value::<Report>(json).unwrap(), expected);
    }

    #[test]
    fn ways_are_told_and_lacking_in_older_reports() {
        let old = serde_json::json!({"uid": "u", "generation": 1, "programmed": true, "connected": true});
        let mut held: Held = serde_json::from_value(old).unwrap();
        assert_eq!((&held.ways[..], &held.steering_error), (&[][..], &None));
        held.ways = vec![
            PortWay { port: 80, way: Way::Lookup, why: Some("all TCP".to_owned()) },
            PortWay { port: 81, way: Way::Insertion, why: None },
        ];
        let json = serde_json::to_value(&held).unwrap();
        let expected = [r#"{"port":80,"way":"lookup","why":"all TCP"}"#, r#"{"port":81,"way":"insertion"}"#];
        assert_eq!(
            json["ways"],
            serde_json::from_str::<serde_json::Value>(&format!("[{}]", expected.join(","))).unwrap()
        );
        assert_eq!(serde_json::from_value::<Held>(json).unwrap(), held);
        let words: Vec<_> = held.ways.iter().map(PortWay::to_string).collect();
        assert_eq!(words, ["port 80: lookup (all TCP)", "port 81: insertion"]);
    }
}
