//! Conditions on a request, each checked while it is read: what stands in a value of these types can be used.

use serde::{Deserialize, Serialize};

/// Largest compiled size of one regular expression, in bytes, and most that it may remember while it runs: the `regex`
/// crate runs in linear time, so only its memory needs a bound.
const MAX_REGEX_BYTES: usize = 256 << 10;

/// Why a condition cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PatternError {
    /// Not a token (RFC 9110 §5.6.2), so no header can have this name.
    #[error("{name:?} cannot be a header name: letters, digits and !#$%&'*+-.^_`|~ only")]
    HeaderName {
        /// As written.
        name: String,
    },
    /// Not a token, so no request can have this method.
    #[error("{method:?} cannot be a method: write it as in a request, such as GET")]
    Method {
        /// As written.
        method: String,
    },
    /// Bytes that no header value can hold.
    #[error("the value {value:?} of header {name} can never arrive: no line breaks, NUL, or blanks at either end")]
    HeaderValue {
        /// The header.
        name: String,
        /// As written.
        value: String,
    },
    /// A path begins with a slash.
    #[error("the path {path:?} must begin with / and have no query")]
    Path {
        /// As written.
        path: String,
    },
    /// Not a token, so no member of the `baggage` header can have this name.
    #[error("{name:?} cannot be the name of a baggage member: letters, digits and !#$%&'*+-.^_`|~ only")]
    BaggageName {
        /// As written.
        name: String,
    },
    /// Not a regular expression. The reason is part of the message: readers of a file show no causes.
    #[error(
        "the regular expression {expression:?} cannot be used, write it in the syntax of RE2, without look-around and \
         back-references: {reason}"
    )]
    Regex {
        /// As written.
        expression: String,
        /// What is wrong with it.
        reason: Box<regex::Error>,
    },
    /// Too large a regular expression.
    #[error(
        "the regular expression {expression:?} takes more than {} KiB when compiled: make its repetitions smaller",
        MAX_REGEX_BYTES >> 10
    )]
    RegexTooLarge {
        /// As written.
        expression: String,
    },
}

/// How a header's value is compared.
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum MatchType {
    /// Byte for byte.
    #[default]
    Exact,
    /// The whole value fits the expression (syntax of the `regex` crate, RE2-like).
    RegularExpression,
}

/// How a path is compared.
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum PathMatchType {
    /// Byte for byte.
    Exact,
    /// By path elements: `/v1` fits `/v1` and `/v1/x`, not `/v10` (Gateway API `PathPrefix`).
    PathPrefix,
    /// The whole path fits the expression.
    RegularExpression,
}

/// A header name, in lower case.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HeaderName(String);

/// A request method; methods are case-sensitive (RFC 9110 §9.1).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Method(String);

/// A condition on one header. Where the header occurs several times, any occurrence may fit.
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema), schemars(transform = super::schema::header))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "RawHeader", into = "RawHeader")]
pub struct HeaderMatch {
    kind: MatchType,
    name: HeaderName,
    value: String,
}

/// A condition on the path without its query.
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema), schemars(transform = super::schema::path))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "RawPath", into = "RawPath")]
pub struct PathMatch {
    kind: PathMatchType,
    value: String,
}

#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename = "HeaderMatch", deny_unknown_fields)]
struct RawHeader {
    #[serde(rename = "type", default)]
    kind: MatchType,
    name: HeaderName,
    value: String,
}

#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename = "PathMatch", deny_unknown_fields)]
struct RawPath {
    #[serde(rename = "type", default = "path_prefix")]
    kind: PathMatchType,
    value: String,
}

// === impl HeaderName ===

impl HeaderName {
    /// The name in lower case.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for HeaderName {
    type Error = PatternError;

    fn try_from(name: String) -> Result<Self, PatternError> {
        if !is_token(&name) {
            return Err(PatternError::HeaderName { name });
        }
        Ok(Self(name.to_ascii_lowercase()))
    }
}

impl From<HeaderName> for String {
    fn from(name: HeaderName) -> Self {
        name.0
    }
}

// === impl Method ===

impl Method {
    /// As it stands in a request.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Method {
    type Error = PatternError;

    fn try_from(method: String) -> Result<Self, PatternError> {
        if !is_token(&method) {
            return Err(PatternError::Method { method });
        }
        Ok(Self(method))
    }
}

impl From<Method> for String {
    fn from(method: Method) -> Self {
        method.0
    }
}

// === impl HeaderMatch ===

impl HeaderMatch {
    /// A condition on `name`.
    ///
    /// # Errors
    /// When no request could ever fit, or the expression cannot be compiled.
    pub fn new(kind: MatchType, name: HeaderName, value: String) -> Result<Self, PatternError> {
        match kind {
            MatchType::Exact => {
                let bad = |b: u8| b == 0 || b == b'\r' || b == b'\n';
                if value.bytes().any(bad) || value.trim_matches([' ', '\t']).len() != value.len() {
                    return Err(PatternError::HeaderValue { name: name.0, value });
                }
            }
            MatchType::RegularExpression => drop(compile(&value)?),
        }
        Ok(Self { kind, name, value })
    }

    /// How the value is compared.
    #[must_use]
    pub fn kind(&self) -> MatchType {
        self.kind
    }

    /// Of which header.
    #[must_use]
    pub fn name(&self) -> &HeaderName {
        &self.name
    }

    /// The value or the expression.
    #[must_use]
    pub fn value(&self) -> &str {
        &self.value
    }
}

impl TryFrom<RawHeader> for HeaderMatch {
    type Error = PatternError;

    fn try_from(raw: RawHeader) -> Result<Self, PatternError> {
        Self::new(raw.kind, raw.name, raw.value)
    }
}

impl From<HeaderMatch> for RawHeader {
    fn from(HeaderMatch { kind, name, value }: HeaderMatch) -> Self {
        Self { kind, name, value }
    }
}

// === impl PathMatch ===

impl PathMatch {
    /// A condition on the path.
    ///
    /// # Errors
    /// When no request could ever fit, or the expression cannot be compiled.
    pub fn new(kind: PathMatchType, value: String) -> Result<Self, PatternError> {
        match kind {
            PathMatchType::RegularExpression => drop(compile(&value)?),
            _ if !value.starts_with('/') || value.contains(['?', '#', ' ', '\r', '\n', '\0']) => {
                return Err(PatternError::Path { path: value });
            }
            _ => {}
        }
        Ok(Self { kind, value })
    }

    /// How it is compared.
    #[must_use]
    pub fn kind(&self) -> PathMatchType {
        self.kind
    }

    /// The path, prefix or expression.
    #[must_use]
    pub fn value(&self) -> &str {
        &self.value
    }
}

impl TryFrom<RawPath> for PathMatch {
    type Error = PatternError;

    fn try_from(raw: RawPath) -> Result<Self, PatternError> {
        Self::new(raw.kind, raw.value)
    }
}

impl From<PathMatch> for RawPath {
    fn from(PathMatch { kind, value }: PathMatch) -> Self {
        Self { kind, value }
    }
}

/// Compiles an expression that must fit a whole value, as Envoy and the Gateway API's implementations do.
pub(super) fn compile(expression: &str) -> Result<regex::bytes::Regex, PatternError> {
    let build = |text: &str| {
        regex::bytes::RegexBuilder::new(text)
            .unicode(false)
            .size_limit(MAX_REGEX_BYTES)
            .dfa_size_limit(MAX_REGEX_BYTES)
            .build()
            .map_err(|error| match error {
                regex::Error::CompiledTooBig(_) => PatternError::RegexTooLarge { expression: expression.to_owned() },
                error => PatternError::Regex { expression: expression.to_owned(), reason: Box::new(error) },
            })
    };
    // By itself first: an expression such as `a)|(b` would close our group and escape the anchors.
    build(expression)?;
    build(&format!("^(?:{expression})$"))
}

fn path_prefix() -> PathMatchType {
    PathMatchType::PathPrefix
}

pub(super) fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
}
