//! Many latencies in little memory, to be merged: counts in buckets whose width grows with the value.

use std::time::Duration;

/// Buckets for each power of two: a value is known to within 1/64 of it.
const STEPS: u32 = 64;

/// Room for 2^42 ns, more than an hour.
const BUCKETS: usize = (42 - STEPS.ilog2() as usize + 1) * STEPS as usize;

/// Latencies.
#[derive(Clone, Debug)]
pub(super) struct Histogram {
    counts: Vec<u64>,
    total: u64,
}

// === impl Histogram ===

impl Histogram {
    /// None yet.
    pub(super) fn new() -> Self {
        Self { counts: vec![0; BUCKETS], total: 0 }
    }

    /// Adds one.
    pub(super) fn record(&mut self, latency: Duration) {
        let bucket = bucket(u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX)).min(BUCKETS - 1);
        self.counts[bucket] += 1;
        self.total += 1;
    }

    /// Adds all of another one.
    pub(super) fn merge(&mut self, other: &Self) {
        for (count, more) in self.counts.iter_mut().zip(&other.counts) {
            *count += more;
        }
        self.total += other.total;
    }

    /// How many there are.
    pub(super) fn count(&self) -> u64 {
        self.total
    }

    /// The latency that so many of a hundred do not exceed.
    pub(super) fn percentile(&self, percent: u64) -> Duration {
        let rank = (self.total * percent).div_ceil(100).max(1);
        let mut seen = 0;
        let found = self.counts.iter().position(|count| {
            seen += count;
            seen >= rank
        });
        Duration::from_nanos(found.map_or(0, middle))
    }
}

fn bucket(value: u64) -> usize {
    let steps = u64::from(STEPS);
    if value < steps {
        return usize::try_from(value).unwrap_or_default();
    }
    // Shifted to lie in STEPS..2*STEPS.
    let shift = value.ilog2() - STEPS.ilog2();
    usize::try_from(u64::from(shift) * steps + (value >> shift)).unwrap_or(usize::MAX)
}

/// The middle of a bucket's values.
fn middle(bucket: usize) -> u64 {
    let (bucket, steps) = (bucket as u64, u64::from(STEPS));
    if bucket < 2 * steps {
        return bucket;
    }
    let shift = bucket / steps - 1;
    let low = (bucket - shift * steps) << shift;
    low + (1 << shift) / 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_known_to_within_two_percent() {
        for value in [0, 1, 63, 64, 127, 128, 1_000, 88_123, 1_000_000, 3_600_000_000_000] {
            let found = middle(bucket(value));
            assert!(found.abs_diff(value) * 50 <= value, "{value} became {found}");
        }
    }

    #[test]
    fn percentiles_of_merged_histograms() {
        let (mut all, mut more) = (Histogram::new(), Histogram::new());
        (1..=50).for_each(|micros| all.record(Duration::from_micros(micros)));
        (51..=100).for_each(|micros| more.record(Duration::from_micros(micros)));
        all.merge(&more);
        assert_eq!(all.count(), 100);
        for percent in [1, 50, 99] {
            let found = all.percentile(percent).as_nanos();
            assert!(found.abs_diff(u128::from(percent) * 1000) <= u128::from(percent) * 20, "p{percent}: {found} ns");
        }
        assert_eq!(Histogram::new().percentile(50), Duration::ZERO);
        all.record(Duration::from_secs(1 << 30));
        assert!(all.percentile(100) > Duration::from_secs(3600));
    }
}
