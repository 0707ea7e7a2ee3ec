//! What is measured, and for how long.

use std::time::Duration;

use super::{Case, load::Extent};

/// One line of the plan: measured on each path.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Shape {
    pub(super) case: Case,
    /// Connections at once.
    pub(super) connections: usize,
    /// Requests at once on each.
    pub(super) streams: usize,
}

/// How thoroughly.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    pub(super) rounds: usize,
    warm_up: Duration,
    measured: Duration,
    /// Requests on connections of their own in each round: enough for a median, and few enough that the ports of all
    /// rounds, which are not free again for a minute, are no more than a busy host has.
    connects: u64,
    /// Requests during which system calls are counted.
    pub(super) traced: u64,
    /// Single requests of each kind: enough for the last of a hundred to be ten of them or more.
    pub(super) single: u64,
    /// Whether [`super::run`] has its long phases.
    pub(super) long_phases: bool,
}

/// All of them.
pub(super) const SHAPES: [Shape; 10] = [
    Shape { case: Case::Http1, connections: 1, streams: 1 },
    Shape { case: Case::Http1, connections: 16, streams: 1 },
    Shape { case: Case::Http1, connections: 64, streams: 1 },
    Shape { case: Case::Http1Large, connections: 1, streams: 1 },
    Shape { case: Case::Http1Large, connections: 16, streams: 1 },
    Shape { case: Case::Http1Large, connections: 64, streams: 1 },
    Shape { case: Case::Http1Connect, connections: 8, streams: 1 },
    Shape { case: Case::Http2, connections: 1, streams: 32 },
    Shape { case: Case::Http2, connections: 16, streams: 4 },
    Shape { case: Case::Grpc, connections: 1, streams: 32 },
];

// === impl Plan ===

impl Plan {
    /// Within a minute.
    pub(super) const QUICK: Self = Self {
        rounds: 3,
        warm_up: Duration::from_millis(100),
        measured: Duration::from_millis(400),
        connects: 800,
        traced: 1000,
        single: 1000,
        long_phases: false,
    };

    /// Some minutes.
    pub(super) const FULL: Self = Self {
        rounds: 5,
        warm_up: Duration::from_millis(300),
        measured: Duration::from_secs(2),
        connects: 3200,
        traced: 4000,
        single: 5000,
        long_phases: true,
    };

    /// For how long a shape is measured in one round.
    pub(super) fn extent(&self, shape: Shape) -> Extent {
        match shape.case {
            Case::Http1Connect => shape.count(self.connects),
            _ => Extent::Time { warm_up: self.warm_up, measured: self.measured },
        }
    }
}

// === impl Shape ===

impl Shape {
    /// At least so many requests on all connections together, the same number on each.
    pub(super) fn count(&self, requests: u64) -> Extent {
        Extent::Count(requests.div_ceil(self.connections as u64))
    }
}
