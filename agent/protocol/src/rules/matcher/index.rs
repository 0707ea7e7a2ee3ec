//! All conditions on headers of one port's rules, each once, found by name and value.
//!
//! A request shows each header once. One that no rule asks for costs a look at its name's length; one that is asked for
//! costs a look-up of its value, and a run of each regular expression on it. What was found is a set of numbers, in which
//! each rule then looks for its own.

use std::collections::{BTreeMap, HashMap};

use regex::bytes::Regex;

use super::super::{BaggageMatch, HeaderMatch, MatchType, PatternError, baggage, pattern::compile};

/// Words of the set that need no memory of their own: enough for 512 different conditions on one port.
const INLINE: usize = 8;

/// What the user agent of each HTTP and gRPC probe of a kubelet begins with (pkg/probe/http, pkg/probe/grpc).
const PROBE: &[u8] = b"kube-probe/";

const USER_AGENT: &str = "user-agent";

/// The conditions, numbered.
#[derive(Debug, Default)]
pub(super) struct Index {
    count: usize,
    /// By the length of the header's name.
    headers: BTreeMap<usize, Vec<(String, Values)>>,
    /// By the member's name.
    baggage: BTreeMap<String, Values>,
}

/// The conditions on one header or member.
#[derive(Debug, Default)]
struct Values {
    exact: HashMap<Box<[u8]>, usize>,
    expressions: Vec<(Regex, String, usize)>,
}

/// What the headers of a request have been found to fit.
#[derive(Debug)]
pub struct Seen<'i> {
    index: &'i Index,
    found: Set,
    probe: bool,
}

/// A set of numbers.
#[derive(Debug)]
struct Set {
    inline: [u64; INLINE],
    more: Vec<u64>,
}

// === impl Index ===

impl Index {
    /// The number of a condition on a header.
    pub(super) fn header(&mut self, condition: &HeaderMatch) -> Result<usize, PatternError> {
        let (name, value) = (condition.name().as_str(), condition.value());
        let same_length = self.headers.entry(name.len()).or_default();
        let at = same_length.iter().position(|(known, _)| known == name).unwrap_or_else(|| {
            same_length.push((name.to_owned(), Values::default()));
            same_length.len() - 1
        });
        let values = &mut same_length[at].1;
        match condition.kind() {
            MatchType::Exact => Ok(values.exact(value, &mut self.count)),
            MatchType::RegularExpression => values.expression(value, &mut self.count),
        }
    }

    /// The number of a condition on a member of `baggage`.
    pub(super) fn baggage(&mut self, condition: &BaggageMatch) -> usize {
        let values = self.baggage.entry(condition.name().to_owned()).or_default();
        values.exact(condition.value(), &mut self.count)
    }

    fn values(&self, name: &str) -> Option<&Values> {
        let same_length = self.headers.get(&name.len())?;
        same_length.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, values)| values)
    }
}

// === impl Values ===

impl Values {
    fn exact(&mut self, value: &str, count: &mut usize) -> usize {
        *self.exact.entry(value.as_bytes().into()).or_insert_with(|| next(count))
    }

    fn expression(&mut self, expression: &str, count: &mut usize) -> Result<usize, PatternError> {
        if let Some((_, _, number)) = self.expressions.iter().find(|(_, known, _)| known == expression) {
            return Ok(*number);
        }
        let number = next(count);
        self.expressions.push((compile(expression)?, expression.to_owned(), number));
        Ok(number)
    }

    fn find(&self, value: &[u8], found: &mut Set) {
        if let Some(&number) = self.exact.get(value) {
            found.insert(number);
        }
        for &(ref regex, _, number) in &self.expressions {
            if !found.contains(number) && regex.is_match(value) {
                found.insert(number);
            }
        }
    }
}

fn next(count: &mut usize) -> usize {
    *count += 1;
    *count - 1
}

// === impl Seen ===

impl<'i> Seen<'i> {
    pub(super) fn new(index: &'i Index) -> Self {
        Self { index, found: Set::new(index.count), probe: false }
    }

    /// Whether any rule asks for this header, `name` in lower case: for what costs something to show.
    #[must_use]
    pub fn asks_for(&self, name: &str) -> bool {
        self.index.values(name).is_some()
    }

    /// A header of the request, `name` in any case.
    pub fn header(&mut self, name: &str, value: &[u8]) {
        if let Some(values) = self.index.values(name) {
            values.find(value, &mut self.found);
        }
        if name.len() == USER_AGENT.len() && name.eq_ignore_ascii_case(USER_AGENT) {
            self.probe |= value.starts_with(PROBE);
        }
        if !self.index.baggage.is_empty() && name.eq_ignore_ascii_case(baggage::HEADER) {
            self.members(value);
        }
    }

    fn members(&mut self, header: &[u8]) {
        for (name, value) in baggage::members(header) {
            let values = std::str::from_utf8(name).ok().and_then(|name| self.index.baggage.get(name));
            if let Some(values) = values
                && let Some(value) = baggage::decode(value)
            {
                values.find(&value, &mut self.found);
            }
        }
    }

    pub(super) fn all(&self, numbers: &[usize]) -> bool {
        numbers.iter().all(|&number| self.found.contains(number))
    }

    /// Whether it is a probe of a kubelet, by its user agent.
    pub(super) fn is_probe(&self) -> bool {
        self.probe
    }
}

// === impl Set ===

impl Set {
    fn new(count: usize) -> Self {
        // Without elements this allocates nothing.
        Self { inline: [0; INLINE], more: vec![0; count.div_ceil(64).saturating_sub(INLINE)] }
    }

    fn insert(&mut self, number: usize) {
        let word = number / 64;
        let word = if word < INLINE { &mut self.inline[word] } else { &mut self.more[word - INLINE] };
        *word |= 1 << (number % 64);
    }

    fn contains(&self, number: usize) -> bool {
        let word = number / 64;
        let word = if word < INLINE { self.inline[word] } else { self.more[word - INLINE] };
        word & 1 << (number % 64) != 0
    }
}
