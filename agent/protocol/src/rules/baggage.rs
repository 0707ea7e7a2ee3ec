//! W3C Baggage (<https://www.w3.org/TR/baggage/>): a condition on one member, and the reading of the header's value.
//!
//! Owns the grammar. A member that breaks it never fits; the others of the header still do. Properties, which follow a
//! member's value, are skipped.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use super::pattern::{PatternError, is_token};

/// The header, in lower case.
pub(super) const HEADER: &str = "baggage";

/// A condition on one member of the `baggage` header. Where the name occurs several times, any occurrence may fit.
///
/// A list of its own beside the conditions on headers: the header's value is a list that every service on the way may add
/// to, in any order and encoding, so comparing it as a whole finds nobody.
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema), schemars(transform = super::schema::baggage))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "RawBaggage", into = "RawBaggage")]
pub struct BaggageMatch {
    name: String,
    value: String,
}

#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename = "BaggageMatch", deny_unknown_fields)]
struct RawBaggage {
    name: String,
    value: String,
}

// === impl BaggageMatch ===

impl BaggageMatch {
    /// A condition on the member `name`; `value` as it is meant, not percent-encoded.
    ///
    /// # Errors
    /// When no member can have this name.
    pub fn new(name: String, value: String) -> Result<Self, PatternError> {
        if !is_token(&name) {
            return Err(PatternError::BaggageName { name });
        }
        Ok(Self { name, value })
    }

    /// The member's name; told apart by case.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its value, decoded.
    #[must_use]
    pub fn value(&self) -> &str {
        &self.value
    }
}

impl TryFrom<RawBaggage> for BaggageMatch {
    type Error = PatternError;

    fn try_from(raw: RawBaggage) -> Result<Self, PatternError> {
        Self::new(raw.name, raw.value)
    }
}

impl From<BaggageMatch> for RawBaggage {
    fn from(BaggageMatch { name, value }: BaggageMatch) -> Self {
        Self { name, value }
    }
}

/// The members of a header's value: name, and value as it was sent. Neither can contain a comma or a semicolon (§3.3.1.3),
/// so these are where they end.
pub(super) fn members(header: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    header.split(|&byte| byte == b',').filter_map(|member| {
        let pair = member.split(|&byte| byte == b';').next()?;
        let equals = pair.iter().position(|&byte| byte == b'=')?;
        Some((trim(&pair[..equals]), trim(&pair[equals + 1..])))
    })
}

/// What a member's value means; `None` if it breaks the grammar. Allocates only where something is encoded.
pub(super) fn decode(value: &[u8]) -> Option<Cow<'_, [u8]>> {
    if !value.iter().copied().all(is_octet) {
        return None;
    }
    let Some(first) = value.iter().position(|&byte| byte == b'%') else { return Some(Cow::Borrowed(value)) };
    let mut decoded = value[..first].to_vec();
    let mut rest = &value[first..];
    while let Some((&byte, behind)) = rest.split_first() {
        rest = behind;
        if byte != b'%' {
            decoded.push(byte);
            continue;
        }
        let (digits, behind) = rest.split_first_chunk::<2>()?;
        let [high, low] = digits.map(|digit| char::from(digit).to_digit(16).and_then(|digit| u8::try_from(digit).ok()));
        decoded.push(high? << 4 | low?);
        rest = behind;
    }
    Some(Cow::Owned(decoded))
}

/// `OWS` of RFC 9110 §5.6.3.
fn trim(text: &[u8]) -> &[u8] {
    let blank = |byte: &u8| *byte == b' ' || *byte == b'\t';
    let begin = text.iter().position(|byte| !blank(byte)).unwrap_or(text.len());
    let end = text.iter().rposition(|byte| !blank(byte)).map_or(begin, |last| last + 1);
    &text[begin..end]
}

/// `baggage-octet` of §3.3.1.3.
fn is_octet(byte: u8) -> bool {
    matches!(byte, 0x21 | 0x23..=0x2b | 0x2d..=0x3a | 0x3c..=0x5b | 0x5d..=0x7e)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Name and meaning of the members that are sound.
    fn read(header: &str) -> Vec<(String, Option<String>)> {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        members(header.as_bytes()).map(|(name, value)| (text(name), decode(value).map(|value| text(&value)))).collect()
    }

    #[test]
    fn members_are_told_apart() {
        let read = |header| read(header).into_iter().map(|(name, value)| format!("{name}={}", value.unwrap()));
        let list = |header| read(header).collect::<Vec<_>>().join("|");
        assert_eq!(list("a=1,sluice=adam;p=q"), "a=1|sluice=adam");
        assert_eq!(list(" a = 1 \t,\tsluice = adam ; p = q ; r,b="), "a=1|sluice=adam|b=");
        assert_eq!(list("a=b=c,,;x=y,none"), "a=b=c");
        assert_eq!(list("a=%C3%A4%20%2c%3B,b=x%25y"), "a=ä ,;|b=x%y");
        assert_eq!(list(""), "");
    }

    #[test]
    fn what_breaks_the_grammar_means_nothing() {
        for value in ["a b", "a\"b", "a\\b", "%", "%4", "%4g", "a%zz", "ä", "a\tb"] {
            assert_eq!(decode(value.as_bytes()), None, "{value}");
        }
        assert_eq!(decode(b"%00%ff").as_deref(), Some(&b"\0\xff"[..]));
    }
}
