//! Whether two Intercepts could want the same request.
//!
//! Owns the comparison, as a pure function that errs on the safe side: where it cannot tell, it says so, and the newcomer
//! is refused. Runs in admission, where it gives the person an answer at once, and in the controller, which has the last
//! word: two that are created in the same moment do not see each other in admission. What it does not do: look at pods.
//!
//! Two overlap when some request fits both, with one exception: a request that carries a header, or a baggage member, more
//! than once counts for this only where one of the two itself has several conditions on it. Any occurrence may fit a
//! condition, so without the exception `x-user=adam` and `x-user=bertil` could not exist side by side. What carries both is
//! the older one's (more precisely: it goes by the order of rules). A regular expression counts as one that something fits.
//!
//! | one | the other | |
//! |---|---|---|
//! | all TCP | anything on that port | overlap |
//! | `x-user=adam` | `x-user=bertil` | disjoint, by the exception |
//! | `x-user=adam` | `x-user=adam`, path `/v1` | overlap |
//! | `x-user=adam` | `x-team=a` | overlap: a request may have both |
//! | `x-user=adam` | `x-user~=a.*` | overlap, since `adam` fits |
//! | `x-user=bertil` | `x-user~=a.*` | disjoint, since `bertil` does not fit |
//! | `x-user~=a.*` | `x-user~=b.*` | undecided: use exact values |
//! | `x=1` and `x=2` | `x=1` | overlap: who has to send `x` twice for one is for both |
//! | member `sluice=adam` | member `sluice=bertil` | disjoint, by the exception |
//! | member `sluice=adam` | member `team=a`, `x-user=adam` | overlap: a request may have both |
//! | member `sluice=adam` | header `baggage` | overlap: the header may come in several parts |
//! | path `/v1` | path `/v2` | disjoint |
//! | path `/v1` | path `/v1/x` | overlap |
//! | path exactly `/v1` | path exactly `/v1/` | disjoint |
//! | path `~/v1/.*` | path prefix `/v2` | undecided |
//! | method `GET` | method `POST` | disjoint |
//! | a wiretap | anything | disjoint: it takes nothing |
//! | port 8080 | port 8081 | disjoint |
//! | port 8080 | port `http` | undecided: use numbers |
//! | Deployment `web` | StatefulSet `web` | disjoint |
//! | Deployment `web` | Pod `web-5d4f-x7z`, ReplicaSet `web-5d4f` | undecided: it may be one of its own |

use kube::ResourceExt as _;
use sluice_api::{Intercept, InterceptPort, InterceptSpec, PortRef, Target, TargetKind};
use sluice_protocol::rules::{
    BaggageMatch, HeaderMatch, Match, MatchType, Mode, PathMatch, PathMatchType, PatternError, matcher,
};

use std::fmt;

/// Kubernetes cuts a name to this many characters before it appends its five random ones.
const GENERATED_BASE: usize = 58;

/// How two Intercepts are to each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Relation {
    /// No request is for both to answer.
    Disjoint,
    /// Some request is for both to answer.
    Overlap,
    /// It cannot be told without looking at pods or comparing expressions.
    Undecided(Doubt),
}

/// Why it cannot be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Doubt {
    /// A pod or ReplicaSet that may belong to the other target.
    Target,
    /// Ports given in different ways.
    Port,
    /// Regular expressions on one header.
    Header,
    /// A regular expression on the path.
    Path,
}

/// What stands in the way of an Intercept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict {
    /// Name of the other one.
    pub name: String,
    /// Whose it is.
    pub owner: String,
    /// Whose pods it is about.
    pub target: String,
    /// How certain it is.
    pub relation: Relation,
}

/// The first of `others` that `new` may not exist beside: one that surely overlaps, if there is one. `others` may
/// contain `new` itself; those that are about to be deleted do not count.
pub fn conflict<'a>(new: &Intercept, others: impl IntoIterator<Item = &'a Intercept>) -> Option<Conflict> {
    others
        .into_iter()
        .filter(|other| other.name_any() != new.name_any() && other.metadata.deletion_timestamp.is_none())
        .filter_map(|other| {
            let relation = relation(&new.spec, &other.spec);
            (relation != Relation::Disjoint).then(|| Conflict {
                name: other.name_any(),
                owner: other.owner().to_owned(),
                target: other.spec.target.to_string(),
                relation,
            })
        })
        .min_by(|a, b| (a.relation != Relation::Overlap, &a.name).cmp(&(b.relation != Relation::Overlap, &b.name)))
}

/// How two specifications in one namespace are to each other.
#[must_use]
pub fn relation(a: &InterceptSpec, b: &InterceptSpec) -> Relation {
    if a.mode == Mode::Wiretap || b.mode == Mode::Wiretap {
        return Relation::Disjoint;
    }
    [targets(&a.target, &b.target), ports(&a.ports, &b.ports), matches(&a.matches, &b.matches)]
        .into_iter()
        .fold(Relation::Overlap, Relation::and)
}

fn targets(a: &Target, b: &Target) -> Relation {
    if a == b {
        return Relation::Overlap;
    }
    let may_own = |owner: &Target, owned: &Target| {
        let prefix = format!("{}-", owner.name);
        let kinds = match owned.kind {
            TargetKind::Pod => owner.kind != TargetKind::Pod,
            TargetKind::ReplicaSet => matches!(owner.kind, TargetKind::Deployment | TargetKind::Rollout),
            _ => false,
        };
        kinds && owned.name.starts_with(prefix.get(..GENERATED_BASE).unwrap_or(&prefix))
    };
    if may_own(a, b) || may_own(b, a) { Relation::Undecided(Doubt::Target) } else { Relation::Disjoint }
}

fn ports(a: &[InterceptPort], b: &[InterceptPort]) -> Relation {
    let pairs = a.iter().flat_map(|a| b.iter().map(move |b| (a, b)));
    pairs.fold(Relation::Disjoint, |so_far, (a, b)| so_far.or(port(a, b)))
}

fn port(a: &InterceptPort, b: &InterceptPort) -> Relation {
    if a.protocol != b.protocol {
        return Relation::Disjoint;
    }
    match (a.reference(), b.reference()) {
        (Some(PortRef::Number(a)), Some(PortRef::Number(b))) if a != b => Relation::Disjoint,
        (a, b) if a.is_some() && a == b => Relation::Overlap,
        // Two names, too: nothing keeps a container from giving one port two of them.
        _ => Relation::Undecided(Doubt::Port),
    }
}

fn matches(a: &Match, b: &Match) -> Relation {
    let method = match (&a.method, &b.method) {
        (Some(a), Some(b)) if a != b => Relation::Disjoint,
        _ => Relation::Overlap,
    };
    let path = match (&a.path, &b.path) {
        (Some(a), Some(b)) => paths(a, b).unwrap_or(Relation::Undecided(Doubt::Path)),
        _ => Relation::Overlap,
    };
    let headers = comparable(&a.headers, &b.headers, HeaderMatch::name)
        .map(|(a, b)| headers(a, b).unwrap_or(Relation::Undecided(Doubt::Header)));
    let members =
        comparable(&a.baggage, &b.baggage, BaggageMatch::name).map(|(a, b)| Relation::certain(a.value() == b.value()));
    headers.chain(members).fold(method.and(path), Relation::and)
}

/// Conditions of both on the same name. A rule with two conditions on one name wants it twice, so that nothing follows from
/// one of them.
fn comparable<'m, T, N: PartialEq + ?Sized>(
    a: &'m [T],
    b: &'m [T],
    name: fn(&T) -> &N,
) -> impl Iterator<Item = (&'m T, &'m T)> {
    let once = move |all: &[T], wanted: &T| all.iter().filter(|one| name(one) == name(wanted)).count() == 1;
    let pairs = a.iter().flat_map(move |one| b.iter().map(move |other| (one, other)));
    pairs.filter(move |(one, other)| name(one) == name(other) && once(a, one) && once(b, other))
}

fn headers(a: &HeaderMatch, b: &HeaderMatch) -> Result<Relation, PatternError> {
    use MatchType::{Exact, RegularExpression};
    Ok(match (a.kind(), b.kind()) {
        (x, y) if x == y && a.value() == b.value() => Relation::Overlap,
        (Exact, Exact) => Relation::Disjoint,
        (RegularExpression, Exact) => Relation::certain(matcher::header_fits(a, b.value().as_bytes())?),
        (Exact, RegularExpression) => Relation::certain(matcher::header_fits(b, a.value().as_bytes())?),
        (RegularExpression, RegularExpression) => Relation::Undecided(Doubt::Header),
    })
}

fn paths(a: &PathMatch, b: &PathMatch) -> Result<Relation, PatternError> {
    use PathMatchType::{Exact, PathPrefix, RegularExpression};
    Ok(match (a.kind(), b.kind()) {
        (x, y) if x == y && a.value() == b.value() => Relation::Overlap,
        (_, Exact) => Relation::certain(matcher::path_fits(a, b.value().as_bytes())?),
        (Exact, _) => Relation::certain(matcher::path_fits(b, a.value().as_bytes())?),
        // The path that a prefix itself names is one of those that it stands for.
        (PathPrefix, PathPrefix) => {
            let (x, y) = (a.value().trim_end_matches('/'), b.value().trim_end_matches('/'));
            let within = |outer: &str, inner: &str| {
                inner.strip_prefix(outer).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            };
            Relation::certain(within(x, y) || within(y, x))
        }
        (RegularExpression, _) | (_, RegularExpression) => Relation::Undecided(Doubt::Path),
    })
}

// === impl Relation ===

impl Relation {
    fn certain(overlap: bool) -> Self {
        if overlap { Self::Overlap } else { Self::Disjoint }
    }

    /// For two conditions that both must hold for there to be an overlap.
    fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Disjoint, _) | (_, Self::Disjoint) => Self::Disjoint,
            (Self::Undecided(doubt), _) | (_, Self::Undecided(doubt)) => Self::Undecided(doubt),
            (Self::Overlap, Self::Overlap) => Self::Overlap,
        }
    }

    /// For two of which one suffices.
    fn or(self, other: Self) -> Self {
        match (self, other) {
            (Self::Overlap, _) | (_, Self::Overlap) => Self::Overlap,
            (Self::Undecided(doubt), _) | (_, Self::Undecided(doubt)) => Self::Undecided(doubt),
            (Self::Disjoint, Self::Disjoint) => Self::Disjoint,
        }
    }
}

// === impl Conflict ===

impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, owner, target, relation } = self;
        let (remedy, doubt) = match relation {
            Relation::Disjoint | Relation::Overlap => {
                return write!(
                    f,
                    "overlaps with the Intercept {name} of {owner} on {target}: some requests would be for both; \
                     narrow the match, for example by a header, or ask {owner} to remove theirs"
                );
            }
            Relation::Undecided(Doubt::Target) => {
                ("name the workload itself as the target", "one target may belong to the other")
            }
            Relation::Undecided(Doubt::Port) => {
                ("give the ports by their numbers", "ports that are given by name may be the same")
            }
            Relation::Undecided(Doubt::Header) => {
                ("use exact values", "two regular expressions on one header may fit the same value")
            }
            Relation::Undecided(Doubt::Path) => {
                ("use Exact or PathPrefix", "a regular expression on the path may fit the other's paths")
            }
        };
        write!(f, "may overlap with the Intercept {name} of {owner} on {target}, since {doubt}: {remedy}")
    }
}

#[cfg(test)]
mod tests;
