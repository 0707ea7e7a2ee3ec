//! Decides which rules a connection or a request fits.
//!
//! Owns the order of rules: more conditions first, then the older one, then the order of the file. Knows nothing of
//! sockets or parsers: a request is whatever implements [`Request`]. What a request is compared with is `index`'s: all
//! conditions of a port's rules in one pass over its headers, however many rules there are.

use std::{collections::BTreeMap, sync::Arc};

use regex::bytes::Regex;

use super::{
    BaggageMatch, HeaderMatch, Intercept, MatchType, Mode, PathMatch, PathMatchType, PatternError, RuleFile, baggage,
    pattern::compile,
};

mod index;

use index::Index;
pub use index::Seen;

/// What a rule asks of a request head, whatever the HTTP version.
pub trait Request {
    /// The method, as sent.
    fn method(&self) -> &[u8];
    /// The path without query and fragment.
    fn path(&self) -> &[u8];
    /// Shows each header to `seen`, once, values without the blanks around them.
    fn headers(&self, seen: &mut Seen<'_>);
}

/// A compiled intercept.
#[derive(Debug)]
pub struct Rule {
    /// The intercept it was made from.
    pub intercept: Intercept,
    path: Option<Path>,
}

/// All rules of an agent, by port, in the order in which they are tried.
#[derive(Debug, Default)]
pub struct RuleSet {
    ports: BTreeMap<u16, PortRules>,
}

/// The rules of one port.
#[derive(Debug, Default)]
pub struct PortRules {
    all_tcp: Option<Arc<Rule>>,
    tcp_wiretaps: Vec<Arc<Rule>>,
    http: Vec<HttpRule>,
    index: Index,
}

/// What is to become of a request.
#[derive(Debug, Default)]
pub struct Fits {
    /// The rule whose client answers; without one the app does.
    pub taken_by: Option<Arc<Rule>>,
    /// The rules whose clients get a copy.
    pub copied_to: Vec<Arc<Rule>>,
}

/// A rule with the numbers of its conditions in the port's index.
#[derive(Debug)]
struct HttpRule {
    rule: Arc<Rule>,
    needs: Vec<usize>,
}

#[derive(Debug)]
enum Path {
    Exact(String),
    Prefix(String),
    Regex(Regex),
}

/// Whether a header's value fits one condition. Compiles it anew: for comparing rules, not for serving requests.
///
/// # Errors
/// When the condition's expression does not compile.
pub fn header_fits(condition: &HeaderMatch, value: &[u8]) -> Result<bool, PatternError> {
    Ok(match condition.kind() {
        MatchType::Exact => condition.value().as_bytes() == value,
        MatchType::RegularExpression => compile(condition.value())?.is_match(value),
    })
}

/// Whether the value of a `baggage` header has a member that fits a condition.
#[must_use]
pub fn baggage_fits(condition: &BaggageMatch, header: &[u8]) -> bool {
    baggage::members(header).any(|(name, value)| {
        let decoded = || baggage::decode(value).is_some_and(|value| *value == *condition.value().as_bytes());
        name == condition.name().as_bytes() && decoded()
    })
}

/// Whether a path fits a condition. Compiles it anew: for comparing rules, not for serving requests.
///
/// # Errors
/// When the condition's expression does not compile.
pub fn path_fits(condition: &PathMatch, path: &[u8]) -> Result<bool, PatternError> {
    Ok(Path::compile(condition)?.fits(path))
}

// === impl RuleSet ===

impl RuleSet {
    /// Compiles the rules of a file.
    ///
    /// # Errors
    /// When an expression does not compile; it did when the file was read, so this names a rule made otherwise.
    pub fn compile(file: &RuleFile) -> Result<Self, PatternError> {
        let mut rules = Vec::with_capacity(file.intercepts.len());
        for intercept in &file.intercepts {
            let path = intercept.matches.path.as_ref().map(Path::compile).transpose()?;
            rules.push(Arc::new(Rule { intercept: intercept.clone(), path }));
        }
        // Stable, so that equals stay in the order of the file. None sorts before Some, hence the flag before the time.
        rules.sort_by_key(|r| {
            let i = &r.intercept;
            (std::cmp::Reverse(i.matches.conditions()), i.created.is_none(), i.created)
        });
        let mut ports = BTreeMap::<u16, PortRules>::new();
        for rule in rules {
            for port in &rule.intercept.ports {
                ports.entry(port.port.get()).or_default().add(&rule)?;
            }
        }
        Ok(Self { ports })
    }

    /// The rules of `port`; `None` where nothing is intercepted.
    #[must_use]
    pub fn port(&self, port: u16) -> Option<&PortRules> {
        self.ports.get(&port)
    }

    /// The intercepted ports.
    pub fn ports(&self) -> impl Iterator<Item = u16> + '_ {
        self.ports.keys().copied()
    }
}

// === impl PortRules ===

impl PortRules {
    fn add(&mut self, rule: &Arc<Rule>) -> Result<(), PatternError> {
        let rule = rule.clone();
        match (rule.intercept.matches.is_empty(), rule.intercept.mode) {
            (true, Mode::Intercept) => _ = self.all_tcp.get_or_insert(rule),
            (true, Mode::Wiretap) => self.tcp_wiretaps.push(rule),
            (false, _) => {
                let matches = &rule.intercept.matches;
                let mut needs = Vec::with_capacity(matches.headers.len() + matches.baggage.len());
                for header in &matches.headers {
                    needs.push(self.index.header(header)?);
                }
                needs.extend(matches.baggage.iter().map(|member| self.index.baggage(member)));
                self.http.push(HttpRule { rule, needs });
            }
        }
        Ok(())
    }

    /// The rule that takes whole connections. It goes before every HTTP rule.
    #[must_use]
    pub fn all_tcp(&self) -> Option<&Arc<Rule>> {
        self.all_tcp.as_ref()
    }

    /// The rules whose clients get a copy of each connection.
    #[must_use]
    pub fn tcp_wiretaps(&self) -> &[Arc<Rule>] {
        &self.tcp_wiretaps
    }

    /// The rules about HTTP requests, in the order in which they are tried.
    pub fn http(&self) -> impl Iterator<Item = &Rule> {
        self.http.iter().map(|http| &*http.rule)
    }

    /// Whether there are rules about HTTP requests.
    #[must_use]
    pub fn has_http(&self) -> bool {
        !self.http.is_empty()
    }

    /// The first HTTP rule that takes `request`, and all that get a copy of it.
    #[must_use]
    pub fn decide(&self, request: &impl Request) -> Fits {
        let mut seen = Seen::new(&self.index);
        request.headers(&mut seen);
        let mut fits = Fits::default();
        for HttpRule { rule, needs } in &self.http {
            let wiretap = rule.intercept.mode == Mode::Wiretap;
            if (wiretap || fits.taken_by.is_none()) && seen.all(needs) && rule.fits(request, &seen) {
                if wiretap {
                    fits.copied_to.push(rule.clone());
                } else {
                    fits.taken_by = Some(rule.clone());
                }
            }
        }
        fits
    }
}

// === impl Rule ===

impl Rule {
    /// All but the conditions on headers.
    fn fits(&self, request: &impl Request, seen: &Seen<'_>) -> bool {
        (self.intercept.include_probes || !seen.is_probe())
            && self.intercept.matches.method.as_ref().is_none_or(|m| m.as_str().as_bytes() == request.method())
            && self.path.as_ref().is_none_or(|p| p.fits(request.path()))
    }
}

// === impl Path ===

impl Path {
    fn compile(condition: &PathMatch) -> Result<Self, PatternError> {
        Ok(match condition.kind() {
            PathMatchType::Exact => Self::Exact(condition.value().to_owned()),
            PathMatchType::PathPrefix => Self::Prefix(condition.value().trim_end_matches('/').to_owned()),
            PathMatchType::RegularExpression => Self::Regex(compile(condition.value())?),
        })
    }

    fn fits(&self, path: &[u8]) -> bool {
        match self {
            Self::Exact(wanted) => wanted.as_bytes() == path,
            Self::Prefix(prefix) => {
                path.strip_prefix(prefix.as_bytes()).is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
            }
            Self::Regex(regex) => regex.is_match(path),
        }
    }
}

#[cfg(test)]
mod tests;
