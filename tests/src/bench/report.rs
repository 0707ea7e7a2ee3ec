//! What the benchmark prints: a table for people or one JSON document for programs.

use std::fmt::Write as _;

use serde::Serialize;

use super::{
    Case, Path,
    first_matched::FirstMatched,
    numbers::{float, hundredths, thousandths, whole},
    packets::PacketTime,
};

/// The document that `--json` prints. Parts that were not measured are left out.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Document {
    /// How often each row was measured; the medians are shown.
    pub rounds: usize,
    /// One for each case, number of connections and path.
    pub rows: Vec<Row>,
    /// What the kernel's packet programs take.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub packets: Vec<PacketTime>,
    /// Single requests: the first of a native connection that fits, and others beside it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_matched: Option<FirstMatched>,
    /// What the load generator itself can do.
    pub saturation: Vec<Saturation>,
    /// Behind many intercepted requests.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<Memory>,
    /// Many connections within a minute.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub short_connections: Option<ShortConnections>,
    /// The targets that apply to what was measured.
    pub targets: Vec<Target>,
    /// Where this was measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub machine: Option<Machine>,
    /// Why there is no more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// One case, number of connections and path.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// Kind of requests.
    pub case: Case,
    /// Connections open at once.
    pub connections: usize,
    /// Requests open at once on each of them.
    pub streams: usize,
    /// The way that they take.
    pub path: Path,
    /// Requests a second.
    #[serde(serialize_with = "whole")]
    pub rps: f64,
    /// Requests a second over those of `direct` in the same round; the median of the rounds.
    #[serde(serialize_with = "thousandths")]
    pub ratio: f64,
    /// Half of the requests took no longer, in microseconds.
    #[serde(serialize_with = "whole")]
    pub p50_us: f64,
    /// 99 of a hundred took no longer, in microseconds.
    #[serde(serialize_with = "whole")]
    pub p99_us: f64,
    /// Processor time of the agent.
    #[serde(serialize_with = "hundredths")]
    pub agent_cpu_us_per_request: f64,
    /// System calls of the agent.
    #[serde(serialize_with = "hundredths")]
    pub syscalls_per_request: f64,
    /// Resident memory of the agent.
    #[serde(serialize_with = "whole")]
    pub agent_rss_kib: f64,
}

/// Whether the generator or the app has limited `direct`.
#[derive(Clone, Debug, Serialize)]
pub struct Saturation {
    /// Kind of requests.
    pub case: Case,
    /// Connections open at once.
    pub connections: usize,
    /// Requests open at once on each of them.
    pub streams: usize,
    /// Requests a second that the app has answered.
    #[serde(serialize_with = "whole")]
    pub direct_rps: f64,
    /// Requests a second that were answered by prepared bytes.
    #[serde(serialize_with = "whole")]
    pub ceiling_rps: f64,
    /// Of the time that the kernel let the generator run against the app, the part in which it had something to do.
    #[serde(serialize_with = "hundredths")]
    pub generator_busy: f64,
    /// The generator is what has limited `direct`: the row's ratios say nothing.
    pub saturated: bool,
}

/// Memory and open files before and behind many intercepted requests.
#[expect(missing_docs, reason = "named for what they are")]
#[derive(Clone, Debug, Serialize)]
pub struct Memory {
    pub agent_idle_kib: u64,
    pub agent_after_kib: u64,
    pub client_idle_kib: u64,
    pub client_after_kib: u64,
    pub requests: u64,
    pub connections: usize,
    pub agent_fds_idle: usize,
    pub agent_fds_after: usize,
    pub client_fds_idle: usize,
    pub client_fds_after: usize,
    /// From the last request until open files were as before, or until that was given up.
    #[serde(serialize_with = "hundredths")]
    pub settled_after_seconds: f64,
}

/// Many short connections within a minute, through the agent.
#[derive(Clone, Debug, Serialize)]
pub struct ShortConnections {
    /// How many.
    pub count: u64,
    /// In which time.
    #[serde(serialize_with = "hundredths")]
    pub seconds: f64,
    /// How many had no proper answer.
    pub failed: u64,
    /// Why the first of those had none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
    /// Connections a second among the first quarter.
    #[serde(serialize_with = "whole")]
    pub first_quarter_rps: f64,
    /// The same among the last quarter, when there have been more than ports.
    #[serde(serialize_with = "whole")]
    pub last_quarter_rps: f64,
}

/// The machine.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// Processors.
    pub cpus: usize,
    /// Load average of the last minute when the benchmark began: what others do at the same time makes it noisy.
    pub load_before: f64,
    /// The same at its end, its own load included.
    pub load_after: f64,
}

/// A number and what it should be.
#[derive(Clone, Debug, Serialize)]
pub struct Target {
    /// What is meant.
    pub name: String,
    /// What was measured.
    #[serde(serialize_with = "thousandths")]
    pub value: f64,
    /// `at least` or `at most`.
    pub bound: &'static str,
    /// What it should be.
    #[serde(serialize_with = "thousandths")]
    pub limit: f64,
    /// Whether it is.
    pub met: bool,
}

// === impl Document ===

impl Document {
    /// Compares what was measured with the targets.
    pub fn judge(&mut self) {
        let mut targets = Vec::new();
        let row = |case, connections, path| {
            let fits = move |row: &&Row| row.case == case && row.connections == connections && row.path == path;
            self.rows.iter().find(fits)
        };
        for time in self.packets.iter().filter(|time| time.case == Case::Http1 && time.path == Path::Native) {
            if time.program.ends_with("ingress") {
                let name = "http1: kernel's time for the requests, ns".to_owned();
                targets.push(Target::at_most(name, time.ns_per_request, 700.0));
            }
        }
        let ratios = [
            (Case::Http1, 1, 0.60),
            (Case::Http1, 16, 0.40),
            (Case::Http1, 64, 0.45),
            (Case::Http1Connect, 8, 0.40),
            (Case::Http2, 1, 0.55),
            (Case::Http2, 16, 0.55),
        ];
        for (case, connections, limit) in ratios {
            if let Some(row) = row(case, connections, Path::Pass) {
                targets.push(Target::at_least(format!("{case}, {connections}: ratio of pass"), row.ratio, limit));
            }
        }
        if let Some(row) = row(Case::Http1, 1, Path::Pass) {
            let name = "http1, 1: system calls per request".to_owned();
            targets.push(Target::at_most(name, row.syscalls_per_request, 6.1));
        }
        // With one connection most of it is going to sleep and waking up, which is the kernel's and the hypervisor's.
        for connections in [16, 64] {
            if let Some(row) = row(Case::Http1, connections, Path::Pass) {
                let name = format!("http1, {connections}: agent's processor time per request, µs");
                targets.push(Target::at_most(name, row.agent_cpu_us_per_request, 20.0));
            }
        }
        for connections in [1, 16, 64] {
            if let Some(native) = row(Case::Http1, connections, Path::Native) {
                let name = format!("http1, {connections}: ratio of native");
                targets.push(Target::at_least(name, native.ratio, 0.95));
                let name = format!("http1, {connections}: agent's processor time per native request, µs");
                targets.push(Target::at_most(name, native.agent_cpu_us_per_request, 0.1));
            }
        }
        let pair = (row(Case::Http1, 1, Path::Intercepted), row(Case::Http1, 1, Path::Direct));
        if let (Some(intercepted), Some(direct)) = pair {
            let name = "http1, 1: p50 of intercepted over direct, µs".to_owned();
            targets.push(Target::at_most(name, intercepted.p50_us - direct.p50_us, 200.0));
        }
        if let Some(first) = &self.first_matched {
            let mut at_most = |name: &str, value, limit| targets.push(Target::at_most(name.to_owned(), value, limit));
            at_most("first matched: p50 over direct, µs", first.matched_p50_us - first.direct_p50_us, 150.0);
            at_most("first matched: p99 over direct, µs", first.matched_p99_us - first.direct_p99_us, 1000.0);
            at_most("first matched: p50 of the insertion, µs", first.insertion_p50_us, 60.0);
        }
        if let Some(memory) = &self.memory {
            const MIB: u64 = 1024;
            let at_most = |name: &str, value: u64, limit| Target::at_most(name.to_owned(), float(value), float(limit));
            targets.push(at_most("agent's memory when idle, KiB", memory.agent_idle_kib, 12 * MIB));
            targets.push(at_most("agent's memory after 20000 requests, KiB", memory.agent_after_kib, 30 * MIB));
            targets.push(at_most("client's memory after 20000 requests, KiB", memory.client_after_kib, 40 * MIB));
            let files = |now: usize, idle: usize| (now as u64, idle as u64);
            let (now, idle) = files(memory.agent_fds_after, memory.agent_fds_idle);
            targets.push(at_most("agent's open files after 5 s", now, idle));
            let (now, idle) = files(memory.client_fds_after, memory.client_fds_idle);
            targets.push(at_most("client's open files after 5 s", now, idle));
        }
        if let Some(short) = &self.short_connections {
            targets.push(Target::at_most("short connections that failed".to_owned(), float(short.failed), 0.0));
            targets.push(Target::at_most("30000 short connections, seconds".to_owned(), short.seconds, 60.0));
            // Half would be noise; the collapse that this is about is one to a fiftieth.
            let kept = short.last_quarter_rps / short.first_quarter_rps;
            targets.push(Target::at_least("last over first quarter of short connections".to_owned(), kept, 0.5));
        }
        self.targets = targets;
    }

    /// For people.
    pub fn table(&self) -> String {
        let mut text = String::new();
        let _ = writeln!(
            text,
            "{:<14}{:>6}{:>9}  {:<12}{:>9}{:>8}{:>9}{:>9}{:>11}{:>9}{:>10}",
            "case", "conns", "streams", "path", "req/s", "ratio", "p50 µs", "p99 µs", "agent µs", "calls", "RSS MiB"
        );
        for row in &self.rows {
            let _ = writeln!(
                text,
                "{:<14}{:>6}{:>9}  {:<12}{:>9.0}{:>8.2}{:>9.0}{:>9.0}{:>11.1}{:>9.2}{:>10.1}",
                row.case,
                row.connections,
                row.streams,
                row.path,
                row.rps,
                row.ratio,
                row.p50_us,
                row.p99_us,
                row.agent_cpu_us_per_request,
                row.syscalls_per_request,
                row.agent_rss_kib / 1024.0
            );
        }
        let _ = writeln!(
            text,
            "Medians of {} rounds. ratio: requests a second over direct in the same round. agent µs, calls: the agent's \
             processor time and system calls per request.",
            self.rounds
        );
        for PacketTime { program, case, path, ns_per_packet, ns_per_request } in &self.packets {
            let _ = writeln!(
                text,
                "{program} under {case}, {path}: {ns_per_packet:.0} ns a packet, {ns_per_request:.0} ns a request"
            );
        }
        if let Some(first) = &self.first_matched {
            let _ = writeln!(
                text,
                "\nSingle requests, {} of each (p50, p99): direct {:.0}, {:.0} µs; native {:.0}, {:.0} µs; the first that fits \
                 on a native connection {:.0}, {:.0} µs,\n  of which the agent's insertion {:.0}, {:.0} µs (mean {:.0} µs)",
                first.samples,
                first.direct_p50_us,
                first.direct_p99_us,
                first.native_p50_us,
                first.native_p99_us,
                first.matched_p50_us,
                first.matched_p99_us,
                first.insertion_p50_us,
                first.insertion_p99_us,
                first.insertion_mean_us,
            );
        }
        if let Some(memory) = &self.memory {
            let mib = |kib: u64| float(kib) / 1024.0;
            let _ = writeln!(
                text,
                "\nMemory and open files, idle and behind {} intercepted requests over {} connections (after {:.1} s):\n  \
                 agent {:.1} MiB, {} files; then {:.1} MiB, {} files\n  client {:.1} MiB, {} files; then {:.1} MiB, {} files",
                memory.requests,
                memory.connections,
                memory.settled_after_seconds,
                mib(memory.agent_idle_kib),
                memory.agent_fds_idle,
                mib(memory.agent_after_kib),
                memory.agent_fds_after,
                mib(memory.client_idle_kib),
                memory.client_fds_idle,
                mib(memory.client_after_kib),
                memory.client_fds_after,
            );
        }
        if let Some(short) = &self.short_connections {
            let _ = writeln!(
                text,
                "\n{} short connections in {:.1} s, {} failed: {:.0}/s in the first quarter, {:.0}/s in the last",
                short.count, short.seconds, short.failed, short.first_quarter_rps, short.last_quarter_rps
            );
        }
        if let Some(machine) = &self.machine {
            let _ = writeln!(text, "\n{} processors, load average before: {:.2}", machine.cpus, machine.load_before);
        }
        self.show_warnings(&mut text);
        text.push_str("\nTargets\n");
        for target in &self.targets {
            let verdict = if target.met { "met   " } else { "MISSED" };
            let Target { name, value, bound, limit, .. } = target;
            let _ = writeln!(text, "  {verdict} {name}: {value:.2} ({bound} {limit:.2})");
        }
        text
    }

    fn show_warnings(&self, text: &mut String) {
        /// Load from which the numbers say more about others.
        const BUSY: f64 = 0.7;
        if self.machine.as_ref().is_some_and(|machine| machine.load_before > BUSY) {
            text.push_str(
                "WARNING: the machine was busy with something else; only a quiet one gives numbers to rely on.\n",
            );
        }
        for Saturation { case, connections, direct_rps, ceiling_rps, .. } in
            self.saturation.iter().filter(|s| s.saturated)
        {
            let _ = writeln!(
                text,
                "WARNING: {case} with {connections} connections: the load generator was the limit ({direct_rps:.0} req/s \
                 from the app, {ceiling_rps:.0} from prepared answers): its ratios say nothing."
            );
        }
    }
}

// === impl Target ===

impl Target {
    fn at_least(name: String, value: f64, limit: f64) -> Self {
        Self { name, value, bound: "at least", limit, met: value >= limit }
    }

    fn at_most(name: String, value: f64, limit: f64) -> Self {
        Self { name, value, bound: "at most", limit, met: value <= limit }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(path: Path, ratio: f64, p50_us: f64) -> Row {
        Row {
            case: Case::Http1,
            connections: 1,
            streams: 1,
            path,
            rps: 1000.4,
            ratio,
            p50_us,
            p99_us: 2.0,
            agent_cpu_us_per_request: 1.234,
            syscalls_per_request: 6.0101,
            agent_rss_kib: 9000.0,
        }
    }

    #[test]
    fn a_row_has_the_promised_shape() {
        assert_eq!(
            serde_json::to_string(&row(Path::Pass, 0.6554, 88.0)).unwrap(),
            r#"{"case":"http1","connections":1,"streams":1,"path":"pass","rps":1000,"ratio":0.655,"p50_us":88,"p99_us":2,"agent_cpu_us_per_request":1.23,"syscalls_per_request":6.01,"agent_rss_kib":9000}"#
        );
        assert_eq!(serde_json::to_string(&Case::Http1Connect).unwrap(), r#""http1-connect""#);
    }

    #[test]
    fn targets_apply_to_what_was_measured() {
        let rows = vec![row(Path::Direct, 1.0, 80.0), row(Path::Pass, 0.59, 120.0), row(Path::Intercepted, 0.3, 281.0)];
        let mut document = Document { rows, ..Document::default() };
        document.judge();
        let met: Vec<_> = document.targets.iter().map(|target| (target.name.as_str(), target.met)).collect();
        assert_eq!(
            met,
            [
                ("http1, 1: ratio of pass", false),
                ("http1, 1: system calls per request", true),
                ("http1, 1: p50 of intercepted over direct, µs", false),
            ]
        );
        assert!(document.table().contains("MISSED http1, 1: ratio of pass: 0.59 (at least 0.60)"));
    }
}
