//! What the kernel has to know of a port's rules to prove that a request fits none of them.
//!
//! Of each rule one condition is enough: a request that fails it fits the rule in no case. The best is an exact header,
//! then a pattern or a `baggage` member, of which the kernel knows the name only. A rule without either cannot be
//! disproved, and every request would come to the agent.

use std::collections::BTreeMap;

use sluice_ebpf_common::{
    insertion::{Interest, NameKey},
    name_hash, value_hash,
};
use sluice_protocol::rules::{Intercept, MatchType};

/// Names and values of one port.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hints {
    names: BTreeMap<u64, u32>,
    values: BTreeMap<u64, ()>,
}

/// Headers that frame a message, and what the kernel does about them.
const FRAMING: [(&str, Interest); 5] = [
    ("content-length", Interest::Length),
    ("connection", Interest::Connection),
    ("transfer-encoding", Interest::Coding),
    ("upgrade", Interest::Framing),
    ("expect", Interest::Framing),
];

/// Whether the kernel reads a name as one of those it knows: it passes over names with rarer characters.
fn is_plain(name: &str) -> bool {
    name.len() <= 64 && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
}

// === impl Hints ===

impl Hints {
    /// Of the rules of one port.
    ///
    /// # Errors
    /// The name of a rule that the kernel cannot disproof.
    pub fn new<'a>(rules: impl IntoIterator<Item = &'a Intercept>) -> Result<Self, String> {
        let mut hints = Self::default();
        for rule in rules {
            let known = rule.matches.headers.iter().filter(|header| is_plain(header.name().as_str()));
            let exact = known.clone().find(|header| header.kind() == MatchType::Exact);
            if let Some(header) = exact {
                let name = name_hash(header.name().as_str().as_bytes());
                hints.add(name, Interest::Exact);
                hints.values.insert(value_hash(name, header.value().as_bytes()), ());
            } else if let Some(header) = known.clone().next() {
                hints.add(name_hash(header.name().as_str().as_bytes()), Interest::Present);
            } else if !rule.matches.baggage.is_empty() {
                hints.add(name_hash(b"baggage"), Interest::Present);
            } else {
                return Err(rule.name.clone());
            }
        }
        for (name, interest) in FRAMING {
            // Where a rule asks for one of these by value, only the agent says.
            let name = name_hash(name.as_bytes());
            let interest = if hints.names.contains_key(&name) { Interest::Present } else { interest };
            hints.names.insert(name, interest as u32);
        }
        Ok(hints)
    }

    fn add(&mut self, name: u64, interest: Interest) {
        let held = self.names.entry(name).or_insert(interest as u32);
        // Whoever asks for the name alone is content with nothing less.
        if interest == Interest::Present {
            *held = interest as u32;
        }
    }

    /// The entries of the map of names.
    pub(super) fn names(&self, port: u16) -> impl Iterator<Item = (NameKey, u32)> + '_ {
        self.names.iter().map(move |(&hash, &interest)| (NameKey::new(hash, port), interest))
    }

    /// The entries of the map of values.
    pub(super) fn values(&self, port: u16) -> impl Iterator<Item = NameKey> + '_ {
        self.values.keys().map(move |&hash| NameKey::new(hash, port))
    }

    /// A bit for each name.
    pub(super) fn bitmap(&self) -> [u64; 2] {
        let mut bitmap = [0; 2];
        for name in self.names.keys() {
            bitmap[usize::from(name & 0x40 != 0)] |= 1 << (name & 0x3f);
        }
        bitmap
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(text: &str) -> Vec<Intercept> {
        text.lines()
            .map(|matches| {
                let key = "0".repeat(64);
                let text = format!(
                    r#"{{"name":"a","client":{{"keyHash":"sha256:{key}"}},"ports":[{{"port":1}}],"match":{matches}}}"#
                );
                serde_json::from_str(&text).unwrap()
            })
            .collect()
    }

    #[test]
    fn one_condition_of_each_rule_is_enough() {
        let hints = Hints::new(&rules(
            "{\"headers\":[{\"name\":\"X-A\",\"type\":\"RegularExpression\",\"value\":\"a\"},{\"name\":\"X-B\",\"value\":\"b\"}]}\n\
             {\"baggage\":[{\"name\":\"user\",\"value\":\"u\"}],\"method\":\"GET\"}",
        ))
        .unwrap();
        let names: BTreeMap<_, _> = hints.names(80).map(|(key, interest)| (key.hash, interest)).collect();
        assert_eq!(names.get(&name_hash(b"x-b")), Some(&(Interest::Exact as u32)));
        assert_eq!(names.get(&name_hash(b"x-a")), None, "the exact one is enough");
        assert_eq!(names.get(&name_hash(b"baggage")), Some(&(Interest::Present as u32)));
        assert_eq!(hints.values(80).count(), 1);
        assert!(names.keys().all(|name| hints.bitmap()[usize::from(name & 64 != 0)] >> (name & 63) & 1 == 1));
    }

    #[test]
    fn a_name_that_only_the_agent_can_decide_stays_so() {
        let both = "{\"headers\":[{\"name\":\"a\",\"value\":\"1\"}]}\n{\"headers\":[{\"name\":\"A\",\"type\":\"RegularExpression\",\"value\":\"2\"}]}";
        for text in [both.to_owned(), both.lines().rev().collect::<Vec<_>>().join("\n")] {
            let hints = Hints::new(&rules(&text)).unwrap();
            let (_, interest) = hints.names(1).find(|(key, _)| key.hash == name_hash(b"a")).unwrap();
            assert_eq!(interest, Interest::Present as u32);
        }
        let hints = Hints::new(&rules("{\"headers\":[{\"name\":\"Connection\",\"value\":\"x\"}]}")).unwrap();
        let (_, interest) = hints.names(1).find(|(key, _)| key.hash == name_hash(b"connection")).unwrap();
        assert_eq!(interest, Interest::Present as u32);
    }

    #[test]
    fn a_rule_that_cannot_be_disproved_is_named() {
        assert_eq!(Hints::new(&rules("{\"method\":\"GET\"}")), Err("a".to_owned()));
        assert_eq!(Hints::new(&rules("{\"headers\":[{\"name\":\"a.b\",\"value\":\"1\"}]}")), Err("a".to_owned()));
    }
}
