//! What the texts on the command line mean. Each function says what is wrong and what is right instead.

use std::time::Duration;

use anyhow::anyhow;
use anyhow::bail;
use anyhow::ensure;
use clap::builder::TypedValueParser;
use sluice_protocol::rules::BaggageMatch;
use sluice_protocol::rules::HeaderMatch;
use sluice_protocol::rules::HeaderName;
use sluice_protocol::rules::MatchType;
use sluice_protocol::rules::Method;
use sluice_protocol::rules::PathMatch;
use sluice_protocol::rules::PathMatchType;

/// Longest name that Kubernetes takes.
const MAX_NAME: usize = 253;

/// The name of an object.
pub(crate) fn name(text: &str) -> anyhow::Result<String> {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
    let outer = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let sound = text.len() <= MAX_NAME && text.chars().all(inner) && text.starts_with(outer) && text.ends_with(outer);
    ensure!(sound, "a name has lower case letters, digits, '-' and '.' and begins and ends with a letter or digit");
    Ok(text.to_owned())
}

/// `NAME=VALUE` or `NAME~=REGEX`.
pub(crate) fn header(text: &str) -> anyhow::Result<HeaderMatch> {
    let Some((name, value)) = text.split_once('=') else {
        bail!("give NAME=VALUE, or NAME~=REGEX for a regular expression");
    };
    // `~` may be the last character of a header's name, but nobody has such a header.
    let (name, kind) = match name.strip_suffix('~') {
        Some(name) => (name, MatchType::RegularExpression),
        None => (name, MatchType::Exact),
    };
    let name = HeaderName::try_from(name.to_owned())?;
    HeaderMatch::new(kind, name, value.to_owned()).map_err(chained)
}

/// `NAME=VALUE` of a member of `baggage`.
pub(crate) fn baggage(text: &str) -> anyhow::Result<BaggageMatch> {
    let Some((name, value)) = text.split_once('=') else { bail!("give NAME=VALUE") };
    Ok(BaggageMatch::new(name.to_owned(), value.to_owned())?)
}

/// A path that is compared in a certain way.
pub(crate) fn path(kind: PathMatchType) -> impl TypedValueParser<Value = PathMatch> {
    clap::builder::StringValueParser::new().try_map(move |text| PathMatch::new(kind, text).map_err(chained))
}

/// A request's method.
pub(crate) fn method(text: &str) -> anyhow::Result<Method> {
    Ok(Method::try_from(text.to_owned())?)
}

/// A time to live, as the resource has it.
pub(crate) fn ttl(text: &str) -> anyhow::Result<kube::core::Duration> {
    let span = duration(text)?;
    ensure!(span >= Duration::from_secs(60), "the shortest time to live is 1m");
    ensure!(span.subsec_nanos() == 0, "give whole seconds, such as 90s, 30m or 2h");
    Ok(span.into())
}

/// A span of time above zero.
pub(crate) fn duration(text: &str) -> anyhow::Result<Duration> {
    let unclear = || anyhow!("give a number and a unit, such as 30s, 5m or 2h");
    let duration: kube::core::Duration = text.parse().map_err(|_| unclear())?;
    let zero = Duration::ZERO;
    ensure!(!duration.is_negative() && Duration::from(duration) > zero, "it must be longer than nothing, such as 30s");
    Ok(duration.into())
}

/// clap prints no causes, so they are put into the message.
fn chained(error: impl std::error::Error + Send + Sync + 'static) -> anyhow::Error {
    anyhow!("{:#}", anyhow::Error::new(error))
}
