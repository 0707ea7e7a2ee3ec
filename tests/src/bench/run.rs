//! The benchmark from its first to its last number.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use super::{
    Case, Path, first_matched,
    load::{Extent, Sample},
    numbers::{float, median, micros},
    packets,
    plan::{Plan, SHAPES, Shape},
    report::{Document, Machine, Memory, Row, Saturation, ShortConnections},
    stage::Stage,
    syscalls::Strace,
};
use crate::Lab;

/// What to measure.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Everything within a minute.
    pub quick: bool,
    /// Only these cases; all where none is named.
    pub cases: Vec<Case>,
    /// Another number of rounds.
    pub rounds: Option<usize>,
}

/// One round of a shape on a path.
#[derive(Clone, Copy, Debug)]
struct Measured {
    rps: f64,
    p50: f64,
    p99: f64,
    cpu: f64,
    rss: f64,
    busy: f64,
}

/// Measures everything. `progress` is told what is being done.
pub async fn run(lab: &Lab, options: &Options, progress: impl Fn(&str)) -> Result<Document> {
    let mut plan = if options.quick { Plan::QUICK } else { Plan::FULL };
    plan.rounds = options.rounds.unwrap_or(plan.rounds).max(1);
    let wanted = |shape: &Shape| options.cases.is_empty() || options.cases.contains(&shape.case);
    let shapes: Vec<_> = SHAPES.into_iter().filter(wanted).collect();
    let load_before = load_average()?;
    progress("starting caller, pod and laptop, with apps, agent and client");
    let stage = Stage::set_up(lab).await?;
    let mut document = Document { rounds: plan.rounds, ..Document::default() };
    if options.cases.is_empty() {
        progress("memory: 20000 intercepted requests over 16 connections");
        document.memory = Some(memory(&stage).await?);
    }

    let mut measured = vec![[const { Vec::new() }; Path::ALL.len()]; shapes.len()];
    for round in 0..plan.rounds {
        progress(&format!("round {} of {}", round + 1, plan.rounds));
        for (&shape, measured) in shapes.iter().zip(&mut measured) {
            for turn in 0..Path::ALL.len() {
                // Each path begins in its turn: none has the warmer caches in all rounds.
                let path = (round + turn) % Path::ALL.len();
                if !Path::ALL[path].serves(shape.case) {
                    continue;
                }
                let found = measure(&stage, shape, Path::ALL[path], plan.extent(shape)).await;
                measured[path].push(found.with_context(|| format!("{shape:?}, {}", Path::ALL[path]))?);
            }
        }
    }
    if wanted(&SHAPES[0]) {
        progress("single requests: the first of a native connection that fits");
        document.first_matched = Some(first_matched::measure(&stage, plan.single).await?);
    }
    progress("the load generator against prepared answers");
    for (&shape, measured) in shapes.iter().zip(&measured) {
        let direct = &measured[0];
        if let Some(ceiling) = ceiling(&stage, shape, plan.extent(shape)).await? {
            document.saturation.push(saturation(shape, ceiling, direct));
        }
    }
    progress("counting system calls");
    for (&shape, measured) in shapes.iter().zip(&measured) {
        let direct: Vec<_> = measured[0].iter().map(|round| round.rps).collect();
        for (path, rounds) in Path::ALL.into_iter().zip(measured).filter(|(path, _)| path.serves(shape.case)) {
            let syscalls = count_syscalls(&stage, shape, path, plan.traced).await?;
            document.rows.push(row(shape, path, rounds, &direct, syscalls));
        }
    }
    for &shape in shapes.iter().filter(|shape| shape.connections == 16) {
        for path in [Path::Native, Path::HandedBack, Path::Inserted] {
            if path.serves(shape.case) {
                document.packets.extend(packets::measure(&stage, shape, path, plan.traced).await?);
            }
        }
    }
    if plan.long_phases && options.cases.is_empty() {
        progress("30000 short connections");
        document.short_connections = Some(short_connections(&stage).await?);
    }
    let cpus = std::thread::available_parallelism()?.get();
    document.machine = Some(Machine { cpus, load_before, load_after: load_average()? });
    Ok(document)
}

async fn measure(stage: &Stage, shape: Shape, path: Path, extent: Extent) -> Result<Measured> {
    let armed = stage.load(shape, path).arm(&stage.caller).await?;
    let (sample, [before, after]) = armed.go(extent, || stage.agent_cpu()).await?;
    no_failures(&sample)?;
    Ok(Measured {
        rps: sample.rps(),
        p50: micros(sample.latencies.percentile(50)),
        p99: micros(sample.latencies.percentile(99)),
        cpu: micros(after - before) / float(sample.requests()),
        rss: float(stage.agent.process().rss_kib()?),
        busy: sample.busy,
    })
}

/// What the generator reaches where the answers cost next to nothing.
async fn ceiling(stage: &Stage, shape: Shape, extent: Extent) -> Result<Option<f64>> {
    let Some(load) = stage.ceiling(shape) else { return Ok(None) };
    let (sample, _) = load.arm(&stage.caller).await?.go(extent, || Ok(())).await?;
    no_failures(&sample)?;
    Ok(Some(sample.rps()))
}

/// The generator is what limits `direct` if it reaches hardly more where the answers cost next to nothing **and** never
/// has to wait. (With one connection it reaches hardly more because it waits all the time.)
fn saturation(shape: Shape, ceiling_rps: f64, direct: &[Measured]) -> Saturation {
    let direct_rps = median(direct.iter().map(|round| round.rps));
    let generator_busy = median(direct.iter().map(|round| round.busy));
    let Shape { case, connections, streams } = shape;
    let saturated = direct_rps > 0.9 * ceiling_rps && generator_busy > 0.9;
    Saturation { case, connections, streams, direct_rps, ceiling_rps, generator_busy, saturated }
}

async fn count_syscalls(stage: &Stage, shape: Shape, path: Path, requests: u64) -> Result<f64> {
    let armed = stage.load(shape, path).arm(&stage.caller).await?;
    let strace = Strace::attach(&stage.pod, stage.agent.process()).await?;
    let (sample, _) = armed.go(shape.count(requests), || Ok(())).await?;
    let calls = strace.detach().await?;
    no_failures(&sample)?;
    Ok(float(calls) / float(sample.requests()))
}

fn row(shape: Shape, path: Path, rounds: &[Measured], direct: &[f64], syscalls: f64) -> Row {
    let of = |what: fn(&Measured) -> f64| median(rounds.iter().map(what));
    Row {
        case: shape.case,
        connections: shape.connections,
        streams: shape.streams,
        path,
        rps: of(|round| round.rps),
        // Within each round, where both have met the same machine.
        ratio: median(rounds.iter().zip(direct).map(|(round, direct)| round.rps / direct)),
        p50_us: of(|round| round.p50),
        p99_us: of(|round| round.p99),
        agent_cpu_us_per_request: of(|round| round.cpu),
        syscalls_per_request: syscalls,
        agent_rss_kib: of(|round| round.rss),
    }
}

/// Whether the agent, whose connections to the app leave a port each that is not free again for a minute, still works as
/// quickly when there are more of them than ports.
async fn short_connections(stage: &Stage) -> Result<ShortConnections> {
    const COUNT: u64 = 30_000;
    let shape = Shape { case: Case::Http1Connect, connections: 8, streams: 1 };
    let armed = stage.load(shape, Path::Pass).arm(&stage.caller).await?;
    let (mut sample, _) = armed.go(shape.count(COUNT), || Ok(())).await?;
    sample.finished.sort_unstable();
    let quarter = sample.finished.len() / 4;
    let rate = |of: &[Duration]| match of {
        [first, .., last] => float(of.len() as u64 - 1) / (*last - *first).as_secs_f64(),
        _ => 0.0,
    };
    Ok(ShortConnections {
        count: sample.requests() + sample.failed,
        seconds: sample.elapsed.as_secs_f64(),
        failed: sample.failed,
        failure: sample.failure.clone(),
        first_quarter_rps: rate(&sample.finished[..quarter]),
        last_quarter_rps: rate(&sample.finished[sample.finished.len() - quarter..]),
    })
}

/// What stays with agent and client behind many intercepted requests.
async fn memory(stage: &Stage) -> Result<Memory> {
    const REQUESTS: u64 = 20_000;
    const SETTLED_WITHIN: Duration = Duration::from_secs(5);
    const PAUSE: Duration = Duration::from_millis(50);
    let (agent, client) = (stage.agent.process(), stage.client.process());
    let files = || Ok::<_, anyhow::Error>((agent.open_files()?, client.open_files()?));
    // Questions of the harness that were asked a moment ago have files of their own.
    let mut idle = files()?;
    for _ in 0..10 {
        tokio::time::sleep(PAUSE).await;
        let (agent, client) = files()?;
        idle = (idle.0.min(agent), idle.1.min(client));
    }
    let agent_idle_kib = agent.rss_kib()?;
    let client_idle_kib = client.rss_kib()?;
    let shape = Shape { case: Case::Http1, connections: 16, streams: 1 };
    let armed = stage.load(shape, Path::Intercepted).arm(&stage.caller).await?;
    let (sample, _) = armed.go(shape.count(REQUESTS), || Ok(())).await?;
    no_failures(&sample)?;
    let ended = Instant::now();
    let mut after = files()?;
    while after != idle && ended.elapsed() < SETTLED_WITHIN {
        tokio::time::sleep(PAUSE).await;
        after = files()?;
    }
    Ok(Memory {
        agent_idle_kib,
        agent_after_kib: agent.rss_kib()?,
        client_idle_kib,
        client_after_kib: client.rss_kib()?,
        requests: sample.requests(),
        connections: shape.connections,
        agent_fds_idle: idle.0,
        agent_fds_after: after.0,
        client_fds_idle: idle.1,
        client_fds_after: after.1,
        settled_after_seconds: ended.elapsed().as_secs_f64(),
    })
}

fn no_failures(sample: &Sample) -> Result<()> {
    if sample.failed > 0 {
        let failure = sample.failure.as_deref().unwrap_or("for an unknown reason");
        bail!("{} requests failed, the first: {failure}", sample.failed);
    }
    Ok(())
}

/// Of the last minute.
pub(super) fn load_average() -> Result<f64> {
    let text = fs::read_to_string("/proc/loadavg").context("reading /proc/loadavg")?;
    Ok(text.split(' ').next().context("nothing in /proc/loadavg")?.parse()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generator_that_waits_is_not_saturated() {
        let shape = SHAPES[0];
        let round = |rps, busy| Measured { rps, p50: 0.0, p99: 0.0, cpu: 0.0, rss: 0.0, busy };
        assert!(!saturation(shape, 100.0, &[round(99.0, 0.5)]).saturated);
        assert!(!saturation(shape, 100.0, &[round(80.0, 1.0)]).saturated);
        assert!(saturation(shape, 100.0, &[round(99.0, 1.0)]).saturated);
    }
}
