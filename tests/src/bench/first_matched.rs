//! What a caller waits for the first request that fits on a connection that has been native until then: the kernel holds
//! it, the agent inserts itself, and the laptop answers. Beside it, in turn with it: a request that fits nothing, on a
//! connection of the same age, with the kernel's programs on its way (`native`) and without (`direct`).
//!
//! One request at a time. Each sample has connections of its own, because the agent stays in one of which it has
//! intercepted a request; that each was native until then is seen from the number of insertions.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use super::{
    LIMIT, Path,
    histogram::Histogram,
    load::{Exchange, Load},
    numbers::{float, micros, whole},
    plan::SHAPES,
    stage::Stage,
};

/// Requests of a connection before those that are measured.
const EARLIER: usize = 3;

/// How long a sample may take on average, with its connections, on a busy machine.
const EACH: Duration = Duration::from_millis(20);

const METRIC: &str = "sluice_agent_insertion_seconds";

/// Times of single requests, in microseconds.
#[derive(Clone, Debug, Serialize)]
pub struct FirstMatched {
    /// How many of each kind.
    pub samples: u64,
    /// To the app, on a port without a rule.
    #[serde(serialize_with = "whole")]
    pub direct_p50_us: f64,
    /// See `direct_p50_us`.
    #[serde(serialize_with = "whole")]
    pub direct_p99_us: f64,
    /// To the app, past the kernel's packet programs.
    #[serde(serialize_with = "whole")]
    pub native_p50_us: f64,
    /// See `native_p50_us`.
    #[serde(serialize_with = "whole")]
    pub native_p99_us: f64,
    /// The first of its connection that fits, answered by the laptop.
    #[serde(serialize_with = "whole")]
    pub matched_p50_us: f64,
    /// See `matched_p50_us`.
    #[serde(serialize_with = "whole")]
    pub matched_p99_us: f64,
    /// The agent's part of it: from the held request to the insertion, by its own clock. Read off a histogram whose bounds
    /// double: between two of them it is as if the times were spread evenly.
    #[serde(serialize_with = "whole")]
    pub insertion_p50_us: f64,
    /// See `insertion_p50_us`.
    #[serde(serialize_with = "whole")]
    pub insertion_p99_us: f64,
    /// The mean of the same times, which is exact.
    #[serde(serialize_with = "whole")]
    pub insertion_mean_us: f64,
}

/// One after the other, in turn.
struct Times {
    direct: Histogram,
    native: Histogram,
    matched: Histogram,
}

/// A histogram of the agent.
#[derive(Clone, Debug, PartialEq)]
struct Insertions {
    /// Upper bounds in seconds, and how many do not exceed them.
    buckets: Vec<(f64, u64)>,
    seconds: f64,
}

/// Measures so many of each kind.
pub(super) async fn measure(stage: &Stage, samples: u64) -> Result<FirstMatched> {
    let [shape, ..] = SHAPES;
    let [direct, native] = [Path::Direct, Path::Native].map(|path| stage.load(shape, path));
    let matched = Load { path: Path::Intercepted, ..native };
    let before = Insertions::of(stage).await?;
    let running = stage.caller.run(move || run(direct, native, matched, samples))?;
    let limit = LIMIT + EACH * u32::try_from(samples)?;
    let times = tokio::time::timeout(limit, running).await.context("single requests do not end")???;
    let insertions = Insertions::of(stage).await?.since(&before);
    let count = insertions.count();
    ensure!(count == samples, "{count} insertions for {samples} connections: not each was native until it was matched");
    let of = |times: &Histogram, percent| micros(times.percentile(percent));
    Ok(FirstMatched {
        samples,
        direct_p50_us: of(&times.direct, 50),
        direct_p99_us: of(&times.direct, 99),
        native_p50_us: of(&times.native, 50),
        native_p99_us: of(&times.native, 99),
        matched_p50_us: of(&times.matched, 50),
        matched_p99_us: of(&times.matched, 99),
        insertion_p50_us: 1e6 * insertions.percentile(50),
        insertion_p99_us: 1e6 * insertions.percentile(99),
        insertion_mean_us: 1e6 * insertions.seconds / float(count),
    })
}

async fn run(direct: Load, native: Load, matched: Load, samples: u64) -> Result<Times> {
    let mut times = Times { direct: Histogram::new(), native: Histogram::new(), matched: Histogram::new() };
    let [mut direct_ask, mut native_ask, mut matched_ask] = [direct, native, matched].map(Exchange::new);
    for sample in 0..samples {
        // Each is first in its turn: what the other's end leaves to do is in neither's time alone.
        for turn in 0..2 {
            if (sample + turn) % 2 == 0 {
                let mut stream = connect(direct, &mut direct_ask).await?;
                times.direct.record(timed(&mut direct_ask, &mut stream).await.context("direct")?);
                end(stream).await.context("direct")?;
            } else {
                let mut stream = connect(native, &mut native_ask).await?;
                times.native.record(timed(&mut native_ask, &mut stream).await.context("native")?);
                times.matched.record(timed(&mut matched_ask, &mut stream).await.context("matched")?);
                end(stream).await.context("matched")?;
            }
        }
    }
    Ok(times)
}

/// A connection that is not new any more.
async fn connect(load: Load, ask: &mut Exchange) -> Result<TcpStream> {
    let mut stream = TcpStream::connect(load.to).await.with_context(|| format!("connecting to {}", load.to))?;
    for _ in 0..EARLIER {
        ask.run(&mut stream).await?;
    }
    Ok(stream)
}

async fn timed(ask: &mut Exchange, stream: &mut TcpStream) -> Result<Duration> {
    let begin = Instant::now();
    ask.run(stream).await?;
    Ok(begin.elapsed())
}

/// Returns when the other side has closed it too.
async fn end(mut stream: TcpStream) -> Result<()> {
    stream.shutdown().await?;
    ensure!(stream.read(&mut [0]).await? == 0, "more than an answer");
    Ok(())
}

// === impl Insertions ===

impl Insertions {
    async fn of(stage: &Stage) -> Result<Self> {
        let metrics = stage.agent.metrics().await?;
        Self::read(&metrics).with_context(|| format!("no histogram {METRIC} among the agent's metrics:\n{metrics}"))
    }

    fn read(metrics: &str) -> Option<Self> {
        let lines = || metrics.lines().filter_map(|line| line.strip_prefix(METRIC));
        let bucket = |line: &str| {
            let (bound, count) = line.strip_prefix("_bucket{le=\"")?.split_once("\"} ")?;
            Some((bound.parse().ok()?, count.parse().ok()?))
        };
        let buckets: Vec<_> = lines().filter_map(bucket).collect();
        let seconds = lines().find_map(|line| line.strip_prefix("_sum ")?.parse().ok())?;
        (!buckets.is_empty()).then_some(Self { buckets, seconds })
    }

    /// Those that came later.
    fn since(mut self, before: &Self) -> Self {
        for ((_, count), (_, earlier)) in self.buckets.iter_mut().zip(&before.buckets) {
            *count -= earlier;
        }
        self.seconds -= before.seconds;
        self
    }

    fn count(&self) -> u64 {
        self.buckets.last().map_or(0, |&(_, count)| count)
    }

    /// In seconds.
    fn percentile(&self, percent: u64) -> f64 {
        let rank = float(self.count() * percent) / 100.0;
        let mut low = (0.0, 0);
        for &(bound, count) in &self.buckets {
            if count > low.1 && float(count) >= rank {
                // Beyond the last bound nothing is known but that.
                let width = if bound.is_finite() { bound - low.0 } else { 0.0 };
                return low.0 + width * (rank - float(low.1)) / float(count - low.1);
            }
            low = (bound, count);
        }
        f64::NAN
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const METRICS: &str = "# TYPE sluice_agent_insertion_seconds histogram\n\
        sluice_agent_insertion_seconds_sum 0.0031\n\
        sluice_agent_insertion_seconds_count 20\n\
        sluice_agent_insertion_seconds_bucket{le=\"1.6e-5\"} 0\n\
        sluice_agent_insertion_seconds_bucket{le=\"3.2e-5\"} 8\n\
        sluice_agent_insertion_seconds_bucket{le=\"6.4e-5\"} 16\n\
        sluice_agent_insertion_seconds_bucket{le=\"+Inf\"} 20\n";

    #[test]
    fn percentiles_lie_between_the_bounds_of_the_agents_histogram() {
        let all = Insertions::read(METRICS).unwrap();
        assert_eq!(all.count(), 20);
        assert!((all.percentile(50) - 40e-6).abs() < 1e-9, "{}", all.percentile(50));
        assert!((all.percentile(99) - 64e-6).abs() < 1e-9, "{}", all.percentile(99));
        assert!(all.clone().since(&all).percentile(50).is_nan());
        assert_eq!(Insertions::read("sluice_agent_connections_open 1\n"), None);
    }
}
