//! What the kernel's packet programs take, by the kernel's own clock (`kernel.bpf_stats_enabled`, run time of a program in
//! bpftool-prog(8)).

use std::fs;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use super::{
    Case, Path,
    numbers::{float, whole},
    plan::Shape,
    stage::Stage,
};
use crate::guard;

const STATS: &str = "/proc/sys/kernel/bpf_stats_enabled";

/// One program while one kind of requests was made.
#[derive(Clone, Debug, Serialize)]
pub struct PacketTime {
    /// The program.
    pub program: String,
    /// Kind of requests.
    pub case: Case,
    /// The way that they took.
    pub path: Path,
    /// Nanoseconds for each packet that it saw, those without data included.
    #[serde(serialize_with = "whole")]
    pub ns_per_packet: f64,
    /// The same for each request.
    #[serde(serialize_with = "whole")]
    pub ns_per_request: f64,
}

#[derive(Clone, Debug, Deserialize)]
struct Program {
    id: u32,
    name: Option<String>,
    #[serde(default)]
    run_time_ns: u64,
    #[serde(default)]
    run_cnt: u64,
}

/// Counts while it lives, and puts back what was before.
struct Counting {
    before: String,
}

/// Measures the programs of the agent under this load.
pub(super) async fn measure(stage: &Stage, shape: Shape, path: Path, requests: u64) -> Result<Vec<PacketTime>> {
    let armed = stage.load(shape, path).arm(&stage.caller).await?;
    let counting = Counting::start()?;
    let before = programs(stage)?;
    let (sample, _) = armed.go(shape.count(requests), || Ok(())).await?;
    let after = programs(stage)?;
    drop(counting);
    let mut times = Vec::new();
    for program in after.iter().filter(|program| program.run_cnt > 0) {
        let earlier = before.iter().find(|earlier| earlier.id == program.id);
        let (ns, packets) = earlier.map_or((0, 0), |earlier| (earlier.run_time_ns, earlier.run_cnt));
        let (ns, packets) = (program.run_time_ns - ns, program.run_cnt - packets);
        if packets > 0 {
            times.push(PacketTime {
                program: program.name.clone().unwrap_or_default(),
                case: shape.case,
                path,
                ns_per_packet: float(ns) / float(packets),
                ns_per_request: float(ns) / float(sample.requests()),
            });
        }
    }
    Ok(times)
}

fn programs(stage: &Stage) -> Result<Vec<Program>> {
    let own = stage.agent.process().bpf_objects().programs;
    let all: Vec<Program> = guard::list("prog")?;
    let packet = |program: &Program| program.name.as_deref().is_some_and(|name| name.ends_with("gress"));
    Ok(all.into_iter().filter(|program| own.contains(&program.id) && packet(program)).collect())
}

// === impl Counting ===

impl Counting {
    fn start() -> Result<Self> {
        let before = fs::read_to_string(STATS).with_context(|| format!("reading {STATS}"))?;
        fs::write(STATS, "1").with_context(|| format!("writing {STATS}"))?;
        Ok(Self { before })
    }
}

impl Drop for Counting {
    fn drop(&mut self) {
        // It has just been written.
        let _ = fs::write(STATS, &self.before);
    }
}
