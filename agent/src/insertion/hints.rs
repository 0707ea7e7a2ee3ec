//! What the kernel has to know of a port's rules to prove that a request fits none of them.
//!
//! Of each rule one condition is enough: a request that fails it fits the rule in no case. The best is an exact header,
//! then a pattern or a `baggage` member, of which the kernel knows the name only. A rule without either cannot be
//! disproved, and every request would come to the agent.

use std::collections::{BTreeMap, BTreeSet};

use sluice_ebpf_common::{
    insertion::{ACTIVE_COPY, ACTIVE_HOLD, Asked, FRAMING, Interest, NameKey},
    name_bit, name_hash, value_hash, word_of,
};
use sluice_protocol::rules::{Intercept, MatchType, Mode};

/// Names and values of one port.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hints {
    names: BTreeMap<u64, u32>,
    values: BTreeSet<u64>,
    bitmap: [u64; 2],
    /// All rules are wiretaps.
    copies: bool,
}

/// Whether the kernel can look for a name: it passes over names with rarer characters, and those that frame a message mean
/// something else to it.
fn is_usable(name: &str) -> bool {
    name.len() <= 64
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
        && FRAMING.iter().all(|framing| !framing.eq_ignore_ascii_case(name))
}

/// The only one; 0 where there is none, or more.
fn only(mut hashes: impl Iterator<Item = u64>) -> u64 {
    match (hashes.next(), hashes.next()) {
        (Some(hash), None) => hash,
        _ => 0,
    }
}

// === impl Hints ===

impl Hints {
    /// Of the rules of one port.
    ///
    /// # Errors
    /// The name of a rule that the kernel cannot disproof.
    pub fn new<'a>(rules: impl IntoIterator<Item = &'a Intercept>) -> Result<Self, String> {
        let mut hints = Self { copies: true, ..Self::default() };
        for rule in rules {
            hints.copies &= rule.mode == Mode::Wiretap;
            let usable = || rule.matches.headers.iter().filter(|header| is_usable(header.name().as_str()));
            if let Some(header) = usable().find(|header| header.kind() == MatchType::Exact) {
                let name = hints.add(header.name().as_str(), Interest::Exact);
                hints.values.insert(value_hash(name, header.value().as_bytes()));
            } else if let Some(header) = usable().next() {
                hints.add(header.name().as_str(), Interest::Present);
            } else if !rule.matches.baggage.is_empty() {
                hints.add("baggage", Interest::Present);
            } else {
                return Err(rule.name.clone());
            }
        }
        for name in FRAMING {
            hints.mark(name);
        }
        Ok(hints)
    }

    /// The name's hash.
    fn add(&mut self, name: &str, interest: Interest) -> u64 {
        self.mark(name);
        let hash = name_hash(name.as_bytes());
        let held = self.names.entry(hash).or_insert(interest as u32);
        // Whoever asks for the name alone is content with nothing less.
        if interest == Interest::Present {
            *held = interest as u32;
        }
        hash
    }

    fn mark(&mut self, name: &str) {
        #[expect(clippy::cast_possible_truncation, reason = "a name that matters is short")]
        let bit = name_bit(word_of(name.as_bytes()), name.len() as u32);
        self.bitmap[usize::from(bit >= 64)] |= 1 << (bit & 63);
    }

    /// The entries of the map of names.
    pub(super) fn names(&self, port: u16) -> impl Iterator<Item = (NameKey, u32)> + '_ {
        self.names.iter().map(move |(&hash, &interest)| (NameKey::new(hash, port), interest))
    }

    /// The entries of the map of values.
    pub(super) fn values(&self, port: u16) -> impl Iterator<Item = NameKey> + '_ {
        self.values.iter().map(move |&hash| NameKey::new(hash, port))
    }

    /// How the kernel looks at requests.
    pub(super) const fn active(&self) -> u16 {
        if self.copies { ACTIVE_COPY } else { ACTIVE_HOLD }
    }

    /// What the kernel knows without its maps.
    pub(super) fn asked(&self) -> Asked {
        let exact =
            self.names.iter().filter(|(_, interest)| **interest == Interest::Exact as u32).map(|(&hash, _)| hash);
        let name = only(exact);
        let value = only(self.values.iter().copied());
        // Without the name nobody asks for the value, which may be another's as well.
        Asked { bitmap: self.bitmap, name, value: if name == 0 { 0 } else { value } }
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
        let is_marked = |name: &str| {
            let bit = name_bit(word_of(name.as_bytes()), u32::try_from(name.len()).unwrap());
            hints.asked().bitmap[usize::from(bit >= 64)] >> (bit & 63) & 1 == 1
        };
        assert!(["X-B", "baggage", "Content-Length", "expect"].into_iter().all(is_marked));
        assert!(!is_marked("x-a"));
    }

    #[test]
    fn a_single_header_is_known_without_the_maps() {
        let asked = |text: &str| {
            let asked = Hints::new(&rules(text)).unwrap().asked();
            (asked.name, asked.value)
        };
        let (name, other) = (name_hash(b"a"), name_hash(b"b"));
        let rule = |name: &str, value: &str| format!("{{\"headers\":[{{\"name\":\"{name}\",\"value\":\"{value}\"}}]}}");
        let pattern = "{\"headers\":[{\"name\":\"A\",\"type\":\"RegularExpression\",\"value\":\"2\"}]}";
        assert_eq!(asked(&rule("A", "1")), (name, value_hash(name, b"1")));
        assert_eq!(asked(&[rule("a", "1"), rule("a", "2")].join("\n")), (name, 0), "two values");
        assert_eq!(asked(&[rule("a", "1"), rule("b", "1")].join("\n")), (0, 0), "two names");
        assert_eq!(
            asked(&[rule("b", "1"), "{\"baggage\":[{\"name\":\"user\",\"value\":\"u\"}]}".to_owned()].join("\n")),
            (other, value_hash(other, b"1"))
        );
        assert_eq!(asked(&[rule("a", "1"), pattern.to_owned()].join("\n")), (0, 0), "only the agent can decide");
        assert_eq!(
            asked(&[rule("a", "1"), pattern.to_owned(), rule("b", "1")].join("\n")),
            (other, 0),
            "a value that nobody asks for any more counts"
        );
    }

    #[test]
    fn a_name_that_only_the_agent_can_decide_stays_so() {
        let both = "{\"headers\":[{\"name\":\"a\",\"value\":\"1\"}]}\n{\"headers\":[{\"name\":\"A\",\"type\":\"RegularExpression\",\"value\":\"2\"}]}";
        for text in [both.to_owned(), both.lines().rev().collect::<Vec<_>>().join("\n")] {
            let hints = Hints::new(&rules(&text)).unwrap();
            let (_, interest) = hints.names(1).find(|(key, _)| key.hash == name_hash(b"a")).unwrap();
            assert_eq!(interest, Interest::Present as u32);
        }
    }

    #[test]
    fn a_rule_that_cannot_be_disproved_is_named() {
        assert_eq!(Hints::new(&rules("{\"method\":\"GET\"}")), Err("a".to_owned()));
        for name in ["a.b", "Connection"] {
            let rule = format!("{{\"headers\":[{{\"name\":\"{name}\",\"value\":\"1\"}}]}}");
            assert_eq!(Hints::new(&rules(&rule)), Err("a".to_owned()), "{name}");
        }
    }
}
