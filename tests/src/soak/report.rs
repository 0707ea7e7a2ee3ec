//! What the soak has found, and the verdict.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    fmt::Write as _,
    time::{Duration, Instant},
};

use serde::Serialize;

use super::load::{Broken, Events, LIMIT, LetGo};

/// A connection that the agent was in ends within this time of the worker's death: at once, and where the reset is lost on
/// the way, with the caller's next attempts to be heard.
const ENDS: Duration = Duration::from_secs(5);

/// Requests that fit and are sent this long after the next worker has its client are answered by the laptop again.
const TAKES: Duration = Duration::from_secs(2);

/// From this minute on memory must not grow, if there are as many more to see that.
const GROWN: u32 = 5;

/// Why the agent does not join a connection of which the app has no socket yet, as its metrics name it.
const NO_SOCKET: &str = "no_socket";

/// Examples of each fault that are told.
const SHOWN: usize = 20;

/// The document that `--json` prints.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Document {
    /// Whether all is as it must be.
    pub ok: bool,
    /// What is not.
    pub faults: Vec<String>,
    /// How long it was to run.
    pub minutes: u32,
    /// Until the last connection was closed.
    pub seconds: u64,
    /// Connections that callers have opened.
    pub connections: u64,
    /// Requests that were answered.
    pub requests: u64,
    /// Of them, those that fit the rule and were answered by the laptop.
    pub taken: u64,
    /// Those that fit and were answered by the app while there was no worker, or no client.
    pub let_go: usize,
    /// Those that fit and were answered by the app later, on connections that are older than the worker.
    pub let_go_older: usize,
    /// Those that fit and were the first of a connection whose handshake was not over yet: its last packet was lost behind the
    /// programs, where this network loses packets. As many connections as the agent has counted.
    pub let_go_early: usize,
    /// Connections that the agent was in when its worker was killed, and that ended with it.
    pub ended_with_worker: usize,
    /// Of those, how many callers were not told before they spoke again: the reset was lost.
    pub unheard: usize,
    /// How often connections were joined.
    pub insertions: u64,
    /// How often those were left again.
    pub returned: u64,
    /// How often a held request was let go to the app, by reason.
    pub not_inserted: BTreeMap<String, u64>,
    /// Each death of a worker.
    pub kills: Vec<Kill>,
    /// What was open before and after.
    pub leaks: Vec<Leak>,
    /// Resident memory at the end of each minute, before the worker's death.
    pub memory: Vec<Memory>,
    /// Why there is no more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// One death of the worker.
#[derive(Clone, Debug, Serialize)]
pub struct Kill {
    /// Connections in the kernel's list.
    pub flows: usize,
    /// In how many of them the agent was.
    pub inserted: usize,
    /// How many of those ended.
    pub ended: usize,
    /// How long the worker had been stopped when it was killed.
    pub stopped_ms: u128,
    /// Until another one had its client.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recovered_ms: Option<u128>,
}

/// Something of which there must be no more behind the load than before.
#[derive(Clone, Debug, Serialize)]
pub struct Leak {
    /// What.
    pub what: String,
    /// How much before.
    pub before: usize,
    /// How much behind it.
    pub after: usize,
}

/// Resident memory.
#[expect(missing_docs, reason = "named for what they are")]
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Memory {
    pub minute: u32,
    pub parent_kib: u64,
    pub worker_kib: u64,
    pub client_kib: u64,
}

/// The death of a worker, as it was seen.
#[derive(Clone, Debug)]
pub(super) struct Killed {
    /// When the worker was stopped.
    pub(super) at: Instant,
    /// For how long, before it was killed.
    pub(super) stopped: Duration,
    /// Connections in the kernel's list, and ports of callers in whose connections the agent was.
    pub(super) flows: usize,
    pub(super) inserted: BTreeSet<u16>,
    /// When another one had its client.
    pub(super) recovered: Option<Instant>,
    /// What this worker had counted.
    pub(super) insertions: u64,
    pub(super) returned: u64,
    /// Held requests that were let go, by reason.
    pub(super) not_inserted: BTreeMap<String, u64>,
    /// Why it was not killed, or no other one came.
    pub(super) failure: Option<String>,
}

// === impl Killed ===

impl Killed {
    pub(super) fn new(at: Instant) -> Self {
        Self {
            at,
            stopped: Duration::ZERO,
            flows: 0,
            inserted: BTreeSet::new(),
            recovered: None,
            insertions: 0,
            returned: 0,
            not_inserted: BTreeMap::new(),
            failure: None,
        }
    }

    /// Whether a connection ended with the worker, which was in it.
    fn explains(&self, broken: &Broken) -> bool {
        let waited = if broken.unheard { broken.at + LIMIT } else { broken.at };
        broken.opened < self.at
            && broken.at < self.at + ENDS
            && waited >= self.at
            && self.inserted.contains(&broken.port)
    }

    /// Whether a request met no worker, or one without its client.
    fn explains_let_go(&self, let_go: &LetGo) -> bool {
        let until = self.recovered.map(|at| at + TAKES);
        let_go.answered >= self.at && until.is_none_or(|until| let_go.sent < until)
    }

    /// Whether it came over a connection that was there before the next worker, and which that one leaves alone.
    fn leaves(&self, let_go: &LetGo) -> bool {
        let_go.answered >= self.at && self.recovered.is_none_or(|at| let_go.opened < at)
    }
}

impl fmt::Display for Killed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "worker killed while in {} of {} connections", self.inserted.len(), self.flows)?;
        match (&self.failure, self.recovered) {
            (Some(failure), _) => write!(f, ": {failure}"),
            (None, Some(at)) => write!(f, ", another one ready after {:?}", at - self.at),
            (None, None) => Ok(()),
        }
    }
}

// === impl Document ===

impl Document {
    pub(super) fn new(
        minutes: u32,
        elapsed: Duration,
        events: &Events,
        killed: &[Killed],
        last: &Killed,
        leaks: Vec<Leak>,
        memory: Vec<Memory>,
    ) -> Self {
        let explained = |broken: &Broken| killed.iter().any(|killed| killed.explains(broken));
        let without = |let_go: &LetGo| killed.iter().any(|killed| killed.explains_let_go(let_go));
        let older = |let_go: &LetGo| !without(let_go) && killed.iter().any(|killed| killed.leaves(let_go));
        let when = |at| when(killed, at);
        let all = || killed.iter().chain([last]);
        let broken = events.broken.iter().filter(|broken| !explained(broken));
        let broken = broken.map(|broken| {
            let Broken { port, at, what, .. } = broken;
            format!("a connection broke that the agent was not in, port {port}, {}: {what}", when(*at))
        });
        let no_socket = all().filter_map(|killed| killed.not_inserted.get(NO_SOCKET)).sum::<u64>();
        let early = events.let_go.iter().filter(|let_go| let_go.first && !without(let_go) && !older(let_go));
        let early: BTreeSet<_> = early.map(|let_go| (let_go.opened, let_go.port)).collect();
        let early: BTreeSet<_> = early.into_iter().take(no_socket.try_into().unwrap_or(usize::MAX)).collect();
        let early = |let_go: &LetGo| let_go.first && early.contains(&(let_go.opened, let_go.port));
        let let_go = events.let_go.iter().filter(|let_go| !without(let_go) && !older(let_go) && !early(let_go));
        let let_go = let_go.map(|let_go| {
            let took = let_go.answered - let_go.sent;
            let how = if let_go.pipelined { "pipelined, " } else { "" };
            let (answered, opened) = (when(let_go.answered), when(let_go.opened));
            format!(
                "the app answered what was the laptop's, {how}after {took:?}, {answered}; port {}, opened {opened}",
                let_go.port
            )
        });
        let mut faults: Vec<_> = killed.iter().filter_map(|killed| killed.failure.clone()).collect();
        add(&mut faults, events.wrong.iter().map(|(at, what)| format!("{}: {what}", when(*at))));
        add(&mut faults, broken);
        add(&mut faults, let_go);
        for Leak { what, before, after } in leaks.iter().filter(|leak| leak.after > leak.before) {
            faults.push(format!("{after} {what} at the end, {before} before"));
        }
        faults.extend(grown(&memory));
        let kills: Vec<_> = killed
            .iter()
            .map(|killed| Kill {
                flows: killed.flows,
                inserted: killed.inserted.len(),
                ended: events.broken.iter().filter(|broken| killed.explains(broken)).count(),
                stopped_ms: killed.stopped.as_millis(),
                recovered_ms: killed.recovered.map(|at| (at - killed.at).as_millis()),
            })
            .collect();
        if events.taken == 0 {
            faults.push("no request was answered by the laptop".to_owned());
        }
        Self {
            ok: faults.is_empty(),
            faults,
            minutes,
            seconds: elapsed.as_secs(),
            connections: events.connections,
            requests: events.requests,
            taken: events.taken,
            let_go: events.let_go.iter().filter(|let_go| without(let_go)).count(),
            let_go_older: events.let_go.iter().filter(|let_go| older(let_go)).count(),
            let_go_early: events.let_go.iter().filter(|let_go| early(let_go)).count(),
            ended_with_worker: kills.iter().map(|kill| kill.ended).sum(),
            unheard: events.broken.iter().filter(|broken| broken.unheard && explained(broken)).count(),
            insertions: all().map(|killed| killed.insertions).sum(),
            returned: all().map(|killed| killed.returned).sum(),
            not_inserted: all().fold(BTreeMap::new(), |mut sum, killed| {
                for (reason, count) in &killed.not_inserted {
                    *sum.entry(reason.clone()).or_default() += count;
                }
                sum
            }),
            kills,
            leaks,
            memory,
            error: None,
        }
    }

    /// For people; the last line is the verdict.
    pub fn table(&self) -> String {
        let mut text = String::new();
        let _ = writeln!(
            text,
            "{:>6}{:>8}{:>10}{:>8}{:>12}{:>14}",
            "kill", "flows", "inserted", "ended", "stopped ms", "recovered ms"
        );
        for (number, kill) in self.kills.iter().enumerate() {
            let Kill { flows, inserted, ended, stopped_ms, recovered_ms } = kill;
            let recovered = recovered_ms.map_or("-".to_owned(), |ms| ms.to_string());
            let _ =
                writeln!(text, "{:>6}{flows:>8}{inserted:>10}{ended:>8}{stopped_ms:>12}{recovered:>14}", number + 1);
        }
        let _ =
            writeln!(text, "\nResident memory, KiB\n{:>6}{:>10}{:>10}{:>10}", "minute", "parent", "worker", "client");
        for Memory { minute, parent_kib, worker_kib, client_kib } in &self.memory {
            let _ = writeln!(text, "{minute:>6}{parent_kib:>10}{worker_kib:>10}{client_kib:>10}");
        }
        text.push('\n');
        for Leak { what, before, after } in &self.leaks {
            let _ = writeln!(text, "{what}: {before} before, {after} after");
        }
        let _ = writeln!(
            text,
            "\n{} requests over {} connections in {} s, of which {} fitted and went to the laptop, and {} to the app while \
             there was no worker with a client, {} on connections that a dead worker has left, and {} before the end of a \
             handshake;\n\
             {} insertions and {} returns; held requests that were let go: {:?}",
            self.requests,
            self.connections,
            self.seconds,
            self.taken,
            self.let_go,
            self.let_go_older,
            self.let_go_early,
            self.insertions,
            self.returned,
            self.not_inserted
        );
        for fault in &self.faults {
            let _ = writeln!(text, "FAULT: {fault}");
        }
        let _ = writeln!(
            text,
            "soak of {} minutes: {}: {} faults; the worker was killed {} times, {} connections that it was in ended with it \
             (the resets of {} were lost)",
            self.minutes,
            if self.ok { "ok" } else { "FAILED" },
            self.faults.len(),
            self.kills.len(),
            self.ended_with_worker,
            self.unheard
        );
        text
    }
}

/// The first of them in full, and how many more there are.
fn add(faults: &mut Vec<String>, mut more: impl Iterator<Item = String>) {
    faults.extend(more.by_ref().take(SHOWN));
    let rest = more.count();
    if rest > 0 {
        faults.push(format!("{rest} more of the same kind"));
    }
}

/// Which death was the last before, and how long ago.
fn when(killed: &[Killed], at: Instant) -> String {
    let last = killed.iter().enumerate().rev().find(|(_, killed)| killed.at <= at);
    let text = last.map(|(number, killed)| format!("{:?} behind death {}", at - killed.at, number + 1));
    text.unwrap_or_else(|| "before the first death".to_owned())
}

/// Who has more memory at the end than after some minutes.
fn grown(memory: &[Memory]) -> Vec<String> {
    /// What is no growth: a quarter, or two mebibytes.
    const ALLOWED: (u64, u64) = (4, 2048);
    let (Some(first), Some(last)) = (memory.iter().find(|memory| memory.minute == GROWN), memory.last()) else {
        return Vec::new();
    };
    if last.minute < 2 * GROWN {
        return Vec::new();
    }
    let pairs = [
        ("parent", first.parent_kib, last.parent_kib),
        ("worker", first.worker_kib, last.worker_kib),
        ("client", first.client_kib, last.client_kib),
    ];
    let grown = pairs.into_iter().filter(|(_, first, last)| *last > first + (first / ALLOWED.0).max(ALLOWED.1));
    grown
        .map(|(who, first, last)| {
            format!("the {who}'s memory has grown from {first} KiB in minute {GROWN} to {last} KiB at the end")
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(events: &Events, killed: &[Killed]) -> Vec<String> {
        let events = Events { taken: 1, ..events.clone() };
        Document::new(
            5,
            Duration::from_secs(300),
            &events,
            killed,
            &Killed::new(Instant::now()),
            Vec::new(),
            Vec::new(),
        )
        .faults
    }

    #[test]
    fn a_connection_may_end_with_the_worker_that_was_in_it_and_no_other() {
        let start = Instant::now();
        let second = Duration::from_secs(1);
        let mut killed = Killed::new(start + 10 * second);
        killed.inserted.insert(7);
        killed.recovered = Some(start + 12 * second);
        let broken = |port, opened: u32, at: u32| Events {
            broken: vec![Broken {
                port,
                opened: start + opened * second,
                at: start + at * second,
                unheard: false,
                what: "reset".to_owned(),
            }],
            ..Events::default()
        };
        let killed = [killed];
        assert_eq!(judged(&broken(7, 1, 11), &killed), Vec::<String>::new());
        for (port, opened, at) in [(8, 1, 11), (7, 1, 9), (7, 1, 30), (7, 11, 12)] {
            assert_eq!(judged(&broken(port, opened, at), &killed).len(), 1, "{port} {opened} {at}");
        }
        // Who was not told had waited since some time before.
        let unheard = |port, at| {
            let mut events = broken(port, 1, at);
            events.broken[0].unheard = true;
            events
        };
        assert_eq!(judged(&unheard(7, 9), &killed), Vec::<String>::new());
        for (port, at) in [(8, 9), (7, 30)] {
            assert_eq!(judged(&unheard(port, at), &killed).len(), 1, "{port} {at}");
        }
    }

    #[test]
    fn the_app_may_answer_for_the_laptop_only_while_there_is_no_worker_with_a_client() {
        let start = Instant::now();
        let second = Duration::from_secs(1);
        let mut killed = Killed::new(start + 10 * second);
        let let_go = |sent: u32, answered: u32| Events {
            let_go: vec![LetGo {
                port: 7,
                opened: start,
                pipelined: false,
                first: false,
                sent: start + sent * second,
                answered: start + answered * second,
            }],
            ..Events::default()
        };
        assert!(judged(&let_go(100, 100), &[killed.clone()]).is_empty(), "it never came back, which is told itself");
        killed.recovered = Some(start + 12 * second);
        assert!(judged(&let_go(9, 11), &[killed.clone()]).is_empty());
        assert!(judged(&let_go(13, 13), &[killed.clone()]).is_empty());
        assert_eq!(judged(&let_go(8, 9), &[killed.clone()]).len(), 1);
        assert!(judged(&let_go(15, 15), &[killed.clone()]).is_empty(), "it is older than the worker");
        let on_newer = |first| {
            let mut events = let_go(15, 15);
            events.let_go[0].opened = start + 13 * second;
            events.let_go[0].first = first;
            events
        };
        assert_eq!(judged(&on_newer(false), &[killed.clone()]).len(), 1);
        assert_eq!(judged(&on_newer(true), &[killed.clone()]).len(), 1);
        killed.not_inserted.insert(NO_SOCKET.to_owned(), 1);
        assert!(judged(&on_newer(true), &[killed.clone()]).is_empty());
        assert_eq!(judged(&on_newer(false), &[killed]).len(), 1);
    }

    #[test]
    fn memory_that_grows_is_a_fault_once_there_is_time_to_see_it() {
        let at = |minute, parent_kib| Memory { minute, parent_kib, worker_kib: 1, client_kib: 1 };
        assert!(grown(&[at(5, 10_000), at(9, 90_000)]).is_empty());
        assert!(grown(&[at(5, 10_000), at(60, 12_400)]).is_empty());
        assert_eq!(grown(&[at(4, 1), at(5, 10_000), at(60, 12_600)]).len(), 1);
    }

    #[test]
    fn what_is_wrong_or_left_over_is_a_fault() {
        let events = Events { wrong: vec![(Instant::now(), "x".to_owned()); 30], ..Events::default() };
        assert_eq!(judged(&events, &[]).len(), SHOWN + 1);
        let leaks = vec![Leak { what: "files".to_owned(), before: 3, after: 4 }];
        let document =
            Document::new(1, Duration::ZERO, &Events::default(), &[], &Killed::new(Instant::now()), leaks, Vec::new());
        assert_eq!(document.faults, ["4 files at the end, 3 before", "no request was answered by the laptop"]);
        assert!(!document.ok && document.table().contains("FAILED: 2 faults"), "{}", document.table());
    }
}
