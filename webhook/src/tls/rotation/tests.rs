//! Decades in a moment.

use proptest::prelude::*;

use super::*;

const HOUR: SignedDuration = SignedDuration::from_hours(1);
const DAY: SignedDuration = SignedDuration::from_hours(24);

/// An authority, by the moment it was made.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Authority {
    span: Span,
}

/// What a Secret would hold, with certificates that are nothing but their spans.
#[derive(Debug, Clone)]
struct World {
    current: Authority,
    next: Option<Authority>,
    previous: Option<Authority>,
    leaf: Span,
    leaf_by: Authority,
}

impl World {
    fn new(now: Timestamp, policy: &Policy) -> Self {
        let current = Authority { span: policy.authority(now) };
        Self { current, next: None, previous: None, leaf: policy.leaf(now, current.span), leaf_by: current }
    }

    fn inventory(&self) -> Inventory {
        Inventory {
            current: self.current.span,
            next: self.next.map(|next| next.span),
            previous: self.previous.map(|previous| previous.span),
            leaf: self.leaf,
        }
    }

    fn renew(&mut self, now: Timestamp, policy: &Policy) {
        (self.leaf, self.leaf_by) = (policy.leaf(now, self.current.span), self.current);
    }

    /// Takes every step that is due and says which.
    fn look(&mut self, now: Timestamp, policy: &Policy) -> Vec<Step> {
        let mut steps = Vec::new();
        while let Some(step) = next_step(&self.inventory(), now, policy) {
            steps.push(step);
            assert!(steps.len() < 6, "no end at {now}: {steps:?} {self:?}");
            match step {
                Step::StartOver => *self = Self::new(now, policy),
                Step::AddSuccessor => self.next = Some(Authority { span: policy.authority(now) }),
                Step::Promote => {
                    self.previous = Some(self.current);
                    self.current = self.next.take().unwrap();
                    self.renew(now, policy);
                }
                Step::DropPrevious => self.previous = None,
                Step::RenewLeaf => self.renew(now, policy),
            }
        }
        steps
    }

    fn known(&self) -> Vec<Authority> {
        [Some(self.current), self.next, self.previous].into_iter().flatten().collect()
    }
}

fn start() -> Timestamp {
    "2026-11-25T00:00:00Z".parse().unwrap()
}

/// Every 12 h for 40 years: the leaf is valid, and everybody who learned the authorities within the promised time knows
/// the one that has issued it.
#[test]
fn forty_years_without_a_gap() {
    let policy = Policy::DEFAULT;
    let promised = DAY * 365 * 2 + DAY * 300;
    let mut world = World::new(start(), &policy);
    let mut learned: std::collections::VecDeque<(Timestamp, Vec<Authority>)> = [(start(), world.known())].into();
    let (mut promotions, mut renewals) = (0, 0);
    let mut now = start();
    while now < start() + DAY * 365 * 40 {
        now += HOUR * 12;
        let steps = world.look(now, &policy);
        assert!(!steps.contains(&Step::StartOver));
        promotions += steps.iter().filter(|step| **step == Step::Promote).count();
        renewals += steps.iter().filter(|step| **step == Step::RenewLeaf).count();
        assert!(world.leaf.from <= now && now < world.leaf.until);
        assert!(world.leaf.until <= world.leaf_by.span.until, "the leaf outlives its authority");
        assert!(world.leaf.until.duration_since(now) >= DAY * 29, "renewed too late");
        learned.push_back((now, world.known()));
        while learned.front().is_some_and(|(when, _)| now.duration_since(*when) > promised) {
            learned.pop_front();
        }
        for (when, known) in learned.iter().step_by(50) {
            assert!(
                known.contains(&world.leaf_by),
                "who learned at {when} does not know the leaf's authority at {now}"
            );
        }
    }
    assert_eq!(promotions, 5);
    assert!((220..260).contains(&renewals), "{renewals}");
}

#[test]
fn one_life_in_order() {
    let policy = Policy::new(DAY * 120, DAY * 10).unwrap();
    let mut world = World::new(start(), &policy);
    let mut events = Vec::new();
    for day in 0..250 {
        for step in world.look(start() + DAY * day, &policy) {
            if step != Step::RenewLeaf {
                events.push((day, step));
            }
        }
    }
    assert_eq!(
        events,
        [
            (80, Step::AddSuccessor),
            (100, Step::Promote),
            (120, Step::DropPrevious),
            (160, Step::AddSuccessor),
            (180, Step::Promote),
            (200, Step::DropPrevious),
            (240, Step::AddSuccessor),
        ]
    );
}

#[test]
fn after_a_long_absence() {
    let policy = Policy::new(DAY * 120, DAY * 10).unwrap();
    // Away past the leaf's end.
    let mut world = World::new(start(), &policy);
    assert_eq!(world.look(start() + DAY * 30, &policy), [Step::RenewLeaf]);
    // Away until nearly the authority's end: the successor is known a while before it issues.
    let mut world = World::new(start(), &policy);
    assert_eq!(world.look(start() + DAY * 115, &policy), [Step::AddSuccessor, Step::RenewLeaf]);
    assert_eq!(world.look(start() + DAY * 116, &policy), [Step::Promote]);
    // Away past it, with a successor and without.
    let mut world = World::new(start(), &policy);
    world.look(start() + DAY * 81, &policy);
    assert_eq!(world.look(start() + DAY * 130, &policy), [Step::Promote, Step::DropPrevious]);
    let mut world = World::new(start(), &policy);
    assert_eq!(world.look(start() + DAY * 130, &policy), [Step::StartOver]);
}

#[test]
fn c12_the_clock_goes_back() {
    let policy = Policy::DEFAULT;
    let mut world = World::new(start(), &policy);
    world.look(start() + DAY * 70, &policy);
    assert_eq!(world.look(start() + DAY * 40, &policy), [Step::RenewLeaf], "its leaf is of a future that is gone");
    assert_eq!(world.look(start() + DAY * 40, &policy), []);
    assert_eq!(
        world.look(start() - DAY * 400, &policy),
        [],
        "nothing helps against a clock before the authority's time"
    );
}

#[test]
fn lives_that_do_not_go_together() {
    assert!(matches!(Policy::new(DAY, SignedDuration::from_secs(59)), Err(PolicyError::LeafTooShort { .. })));
    assert!(matches!(Policy::new(DAY * 11, DAY), Err(PolicyError::AuthorityTooShort { .. })));
    Policy::new(SignedDuration::from_mins(12), SignedDuration::from_mins(1)).unwrap();
}

proptest! {
    /// Whatever the lives, as long as somebody looks often enough.
    #[test]
    fn no_gap_for_any_lives(leaf in 1..2000_i64, factor in 12..60_i32, offset in 0..60_i64) {
        let leaf = SignedDuration::from_mins(leaf);
        let policy = Policy::new(leaf * factor, leaf).unwrap();
        let mut world = World::new(start(), &policy);
        let mut now = start() + SignedDuration::from_secs(offset);
        let mut before = world.known();
        for _ in 0..4000 {
            now += leaf / 20;
            world.look(now, &policy);
            prop_assert!(world.leaf.from <= now && now < world.leaf.until);
            prop_assert!(before.contains(&world.leaf_by), "issued by an authority that nobody knew yet");
            before = world.known();
        }
    }
}
