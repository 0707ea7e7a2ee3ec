//! When what is to be renewed, as a pure function of time.
//!
//! Owns the order that keeps everybody connected. Verifiers know authorities, not certificates: API servers those of the
//! `caBundle`, which follows within seconds; agents those of the day on which their pod was created, for as long as it
//! lives. So an authority's successor is made known long before it issues anything, and the authority stays known
//! until it ends:
//!
//! ```text
//!            made              2/3 of its life            2 leaves before its end        its end
//! authority  |── issues ───────────────────────────────────────|── known ───────────────|
//! successor                    |── known ──────────────────────|── issues ─────────────────── …
//! leaves     |──|──|──|──|──|──|──|──|──|──|──|──|──|──|──|──|──|── …  each renewed at 2/3 of its life
//! ```
//!
//! With the default lives (10 years, 90 days) an agent reaches the control plane until its pod is at least two years and
//! ten months old; after that it goes on with the rules that it has, until the pod is created anew.

use jiff::{SignedDuration, Timestamp};

/// How long things live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    authority: SignedDuration,
    leaf: SignedDuration,
}

/// When something is valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// From then on.
    pub from: Timestamp,
    /// Until then.
    pub until: Timestamp,
}

/// What there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inventory {
    /// The authority that issues.
    pub current: Span,
    /// The one that will.
    pub next: Option<Span>,
    /// The one that did.
    pub previous: Option<Span>,
    /// What is served.
    pub leaf: Span,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Make everything anew: nothing that is there can be used.
    StartOver,
    /// Make the next authority and make it known.
    AddSuccessor,
    /// Let the next authority issue, and keep the current one known.
    Promote,
    /// Forget the previous authority.
    DropPrevious,
    /// Issue another leaf.
    RenewLeaf,
}

/// Why lives do not go together.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// The leaf's is too short to renew anything in.
    #[error("a certificate must be valid for at least a minute, not {leaf:#}")]
    LeafTooShort {
        /// As asked for.
        leaf: SignedDuration,
    },
    /// No room for the overlap.
    #[error("authorities must be valid for at least 12 times as long as certificates, not {authority:#} for {leaf:#}")]
    AuthorityTooShort {
        /// As asked for.
        authority: SignedDuration,
        /// As asked for.
        leaf: SignedDuration,
    },
}

/// What to do next at `now`; `None` when all is well. To be asked again after each step.
#[must_use]
pub fn next_step(inventory: &Inventory, now: Timestamp, policy: &Policy) -> Option<Step> {
    let Inventory { current, next, previous, leaf } = inventory;
    if now >= current.until {
        // Nobody was there for months.
        return Some(if next.is_some_and(|next| now < next.until) { Step::Promote } else { Step::StartOver });
    }
    if previous.is_some_and(|previous| now >= previous.until) {
        return Some(Step::DropPrevious);
    }
    if next.is_none() && now >= current.after(2, 3) {
        return Some(Step::AddSuccessor);
    }
    if next.is_some_and(|next| now >= (current.until - policy.leaf * 2).max(next.from + policy.settle())) {
        return Some(Step::Promote);
    }
    let begun = now >= leaf.from || now < current.from;
    (now >= leaf.after(2, 3) || !begun).then_some(Step::RenewLeaf)
}

// === impl Policy ===

impl Policy {
    /// Ten years for authorities, 90 days for what they issue.
    pub const DEFAULT: Self =
        Self { authority: SignedDuration::from_hours(24 * 3650), leaf: SignedDuration::from_hours(24 * 90) };

    /// Lives of one's own.
    ///
    /// # Errors
    /// When they leave no room for renewal and overlap.
    pub fn new(authority: SignedDuration, leaf: SignedDuration) -> Result<Self, PolicyError> {
        if leaf < SignedDuration::from_mins(1) {
            return Err(PolicyError::LeafTooShort { leaf });
        }
        if authority < leaf * 12 {
            return Err(PolicyError::AuthorityTooShort { authority, leaf });
        }
        Ok(Self { authority, leaf })
    }

    /// The life of an authority made now. It begins in the past, for clocks that are late.
    #[must_use]
    pub fn authority(&self, now: Timestamp) -> Span {
        Span { from: now - self.lateness(), until: now + self.authority }
    }

    /// The life of a leaf issued now by an authority of that life, which it does not outlive.
    #[must_use]
    pub fn leaf(&self, now: Timestamp, authority: Span) -> Span {
        Span { from: (now - self.lateness()).max(authority.from), until: (now + self.leaf).min(authority.until) }
    }

    /// How often to look.
    #[must_use]
    pub fn interval(&self) -> SignedDuration {
        (self.leaf / 60).clamp(SignedDuration::from_secs(1), SignedDuration::from_hours(1))
    }

    /// How late a clock may be.
    fn lateness(&self) -> SignedDuration {
        (self.leaf / 12).min(SignedDuration::from_hours(1))
    }

    /// How long an authority is known at least before it issues, if there is any time left.
    fn settle(&self) -> SignedDuration {
        (self.leaf / 2).min(SignedDuration::from_hours(24))
    }
}

// === impl Span ===

impl Span {
    fn after(&self, numerator: i32, denominator: i32) -> Timestamp {
        self.from + self.until.duration_since(self.from) * numerator / denominator
    }
}

#[cfg(test)]
mod tests;
