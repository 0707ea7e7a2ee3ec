//! Decides which rule a connection or a request fits.
//!
//! Owns the order of rules: more conditions first, then the older one, then the order of the file. Knows nothing of
//! sockets or parsers: a request is whatever implements [`Request`].

use std::{collections::BTreeMap, sync::Arc};

use regex::bytes::Regex;

use super::{
    HeaderMatch, Intercept, Match, MatchType, PathMatch, PathMatchType, PatternError, RuleFile, pattern::compile,
};

/// What a rule asks of a request head, whatever the HTTP version.
pub trait Request {
    /// The method, as sent.
    fn method(&self) -> &[u8];
    /// The path without query and fragment.
    fn path(&self) -> &[u8];
    /// Whether any occurrence of the header has a value that `fits`. `name` is in lower case; values come without the
    /// blanks around them.
    fn any_header(&self, name: &str, fits: &mut dyn FnMut(&[u8]) -> bool) -> bool;
}

/// A compiled intercept.
#[derive(Debug)]
pub struct Rule {
    /// The intercept it was made from.
    pub intercept: Intercept,
    matcher: Matcher,
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
    http: Vec<Arc<Rule>>,
}

#[derive(Debug)]
struct Matcher {
    headers: Vec<(String, Text)>,
    path: Option<Path>,
    method: Option<String>,
}

#[derive(Debug)]
enum Text {
    Exact(String),
    Regex(Regex),
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
    Ok(Text::compile(condition)?.fits(value))
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
            rules.push(Arc::new(Rule { matcher: Matcher::compile(&intercept.matches)?, intercept: intercept.clone() }));
        }
        // Stable, so that equals stay in the order of the file. None sorts before Some, hence the flag before the time.
        rules.sort_by_key(|r| {
            let i = &r.intercept;
            (std::cmp::Reverse(i.matches.conditions()), i.created.is_none(), i.created)
        });
        let mut ports = BTreeMap::<u16, PortRules>::new();
        for rule in rules {
            for port in &rule.intercept.ports {
                let entry = ports.entry(port.port.get()).or_default();
                if rule.intercept.matches.is_empty() {
                    entry.all_tcp.get_or_insert_with(|| rule.clone());
                } else {
                    entry.http.push(rule.clone());
                }
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

    /// Every rule, once for each of its ports.
    pub fn rules(&self) -> impl Iterator<Item = &Arc<Rule>> {
        self.ports.values().flat_map(|p| p.all_tcp.iter().chain(&p.http))
    }
}

// === impl PortRules ===

impl PortRules {
    /// The rule that takes whole connections. It goes before every HTTP rule.
    #[must_use]
    pub fn all_tcp(&self) -> Option<&Arc<Rule>> {
        self.all_tcp.as_ref()
    }

    /// The first HTTP rule that `request` fits.
    #[must_use]
    pub fn decide(&self, request: &impl Request) -> Option<&Arc<Rule>> {
        self.http.iter().find(|rule| rule.matcher.fits(request))
    }
}

// === impl Matcher ===

impl Matcher {
    fn compile(spec: &Match) -> Result<Self, PatternError> {
        let headers = spec.headers.iter().map(|h| Ok((h.name().as_str().to_owned(), Text::compile(h)?)));
        let path = spec.path.as_ref().map(Path::compile);
        Ok(Self {
            headers: headers.collect::<Result<_, _>>()?,
            path: path.transpose()?,
            method: spec.method.as_ref().map(|m| m.as_str().to_owned()),
        })
    }

    fn fits(&self, request: &impl Request) -> bool {
        self.method.as_ref().is_none_or(|m| m.as_bytes() == request.method())
            && self.path.as_ref().is_none_or(|p| p.fits(request.path()))
            && self.headers.iter().all(|(name, text)| request.any_header(name, &mut |value| text.fits(value)))
    }
}

impl Text {
    fn compile(condition: &HeaderMatch) -> Result<Self, PatternError> {
        Ok(match condition.kind() {
            MatchType::Exact => Self::Exact(condition.value().to_owned()),
            MatchType::RegularExpression => Self::Regex(compile(condition.value())?),
        })
    }

    fn fits(&self, value: &[u8]) -> bool {
        match self {
            Self::Exact(wanted) => wanted.as_bytes() == value,
            Self::Regex(regex) => regex.is_match(value),
        }
    }
}

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
