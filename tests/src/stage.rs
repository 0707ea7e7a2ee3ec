//! The smallest network in which Sluice does its work: somebody who calls, a pod, and a developer's laptop.
//!
//! Also the rules that go with it, put together the way a person writes them. Starts no agent and no client: what runs
//! where, and when, is what the tests differ in.

use anyhow::Result;
use serde_json::{Value, json};

use crate::{ClientKey, Host, Lab, Link};

/// The header of requests that fit a rule made by [`Rule::header`].
pub const MATCHING: (&str, &str) = ("x-user", "adam");

/// A header of requests that fit no rule.
pub const OTHER: (&str, &str) = ("x-user", "bertil");

/// The three hosts, joined to the pod by a link each, and the key of the client on the laptop.
#[derive(Debug)]
pub struct Stage {
    /// The lab that they are in.
    pub lab: Lab,
    /// Calls the pod.
    pub caller: Host,
    /// Where app and agent run.
    pub pod: Host,
    /// Where client and local process run.
    pub laptop: Host,
    /// From the caller (first end) to the pod.
    pub to_pod: Link,
    /// From the pod (first end) to the laptop.
    pub to_laptop: Link,
    /// The client's key.
    pub key: ClientKey,
}

/// One intercept of a rules file.
#[derive(Clone, Debug)]
pub struct Rule {
    intercept: Value,
}

// === impl Stage ===

impl Stage {
    /// A stage whose hosts have an address of each family.
    pub fn new(name: &str) -> Result<Self> {
        Self::build(name, |lab, host| lab.host(host).build())
    }

    /// A stage whose hosts have IPv6 addresses only.
    pub fn v6_only(name: &str) -> Result<Self> {
        let mut number = 0;
        Self::build(name, |lab, host| {
            number += 1;
            lab.host(host).v6(&format!("fd66::{number}")).build()
        })
    }

    fn build(name: &str, mut host: impl FnMut(&Lab, &str) -> Result<Host>) -> Result<Self> {
        let lab = Lab::new(name)?;
        let (caller, pod, laptop) = (host(&lab, "caller")?, host(&lab, "pod")?, host(&lab, "laptop")?);
        let to_pod = lab.connect(&caller, &pod)?;
        let to_laptop = lab.connect(&pod, &laptop)?;
        let key = ClientKey::new(&lab, "laptop")?;
        Ok(Self { lab, caller, pod, laptop, to_pod, to_laptop, key })
    }

    /// A rule for all TCP on these ports, for this stage's client.
    pub fn tcp(&self, name: &str, ports: &[u16]) -> Rule {
        Rule::tcp(name, ports, &self.key)
    }

    /// A rule for requests with [`MATCHING`] on these ports, for this stage's client.
    pub fn header(&self, name: &str, ports: &[u16]) -> Rule {
        Rule::header(name, ports, &self.key)
    }

    /// Takes everything down and proves that nothing is left: see [`Lab::finish`].
    pub fn finish(self) -> Result<()> {
        self.lab.finish()
    }
}

// === impl Rule ===

impl Rule {
    /// All TCP on these ports goes to the client with this key.
    pub fn tcp(name: &str, ports: &[u16], key: &ClientKey) -> Self {
        let ports: Vec<_> = ports.iter().map(|port| json!({ "port": port })).collect();
        Self { intercept: json!({ "name": name, "ports": ports, "client": { "keyHash": key.hash() } }) }
    }

    /// Requests with the header [`MATCHING`] do.
    pub fn header(name: &str, ports: &[u16], key: &ClientKey) -> Self {
        let (header, value) = MATCHING;
        let mut rule = Self::tcp(name, ports, key);
        rule.intercept["match"] = json!({ "headers": [{ "name": header, "value": value }] });
        rule
    }

    /// The same, but refused instead of passed on when the client is not available.
    #[must_use]
    pub fn reject(mut self) -> Self {
        self.intercept["onUnavailable"] = json!("Reject");
        self
    }

    /// The same with another field, such as `mode` or `match`.
    #[must_use]
    pub fn with(mut self, field: &str, value: Value) -> Self {
        self.intercept[field] = value;
        self
    }

    /// The text of a rules file with these intercepts.
    pub fn file(rules: &[Self]) -> String {
        let intercepts: Vec<_> = rules.iter().map(|rule| &rule.intercept).collect();
        json!({ "intercepts": intercepts }).to_string()
    }
}
