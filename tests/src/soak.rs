//! The soak: a mixed load for an hour, with losses, on an agent whose worker is killed once a minute.
//!
//! Three hosts as in the tests. 64 connections are kept alive with requests of all sizes, of which one in 50 fits the rule;
//! one packet in a hundred is lost each way. The agent is supervised, and steers by insertion.
//!
//! Judged is what `sluice-agent --supervised` promises. A connection may end when the worker is killed only if the agent
//! was in it at that moment: the worker is stopped first, so that the kernel's own list of connections says for certain in
//! which it is, and killed then. A request that fits may be answered by the app only from that moment until another worker
//! has its client, and behind that on connections that are older than that worker, which leaves them alone (counted apart).
//! Nothing may be answered wrongly, or not at all. At the end nothing has piled up: connections in the kernel's list, sockets,
//! files, memory.

mod app;
mod load;
mod report;

use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use futures_util::future::join_all;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

pub use self::report::{Document, Kill, Leak, Memory};
use self::{
    load::{CALLERS, Caller, Record},
    report::Killed,
};
use crate::{
    Agent, Client, Direction, eventually,
    flows::Flows,
    process::usage,
    stage::{Rule, Stage},
};

const PORT: u16 = 8080;

/// Lost of a hundred packets, in each direction.
const LOSS: u8 = 1;

/// From one death of the worker to the next.
const KILLED_EVERY: Duration = Duration::from_secs(60);

/// Long enough for another worker to start and for its client to come back, on a busy machine.
const RECOVERS: Duration = Duration::from_secs(40);

/// Long enough for what was open to be closed, when nobody asks anything any more. The agent keeps its knowledge of a
/// connection for as long as a packet of it may still come (TIME-WAIT).
const SETTLES: Duration = Duration::from_secs(150);

/// What runs.
struct Soak<'s> {
    stage: &'s Stage,
    agent: Agent,
    client: Client,
    _apps: [AbortOnDropHandle<()>; 2],
}

/// Files and sockets of the three processes.
#[derive(Clone, Copy, Debug)]
struct Open {
    parent_files: usize,
    worker_files: usize,
    worker_sockets: usize,
    client_files: usize,
    client_sockets: usize,
}

/// Runs it for so long on a stage on which nothing runs yet. `progress` is told how it goes. All that it starts has ended
/// when this has ended or is dropped; the stage is to be finished then.
pub async fn run(stage: &Stage, minutes: u32, progress: impl Fn(&str)) -> Result<Document> {
    let soak = Soak::set_up(stage).await?;
    Box::pin(soak.run(minutes, &progress)).await
}

// === impl Soak ===

impl<'s> Soak<'s> {
    async fn set_up(stage: &'s Stage) -> Result<Self> {
        let any = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), PORT);
        let apps = [app::start(&stage.pod, any)?, app::start(&stage.laptop, any)?];
        // With a key that each worker has, so that the client knows the next one.
        let key = format!("--key-file={}", stage.lab.folder().join("agent.key").display());
        let agent = Agent::builder(&stage.pod).argument("--steering=insertion").argument("--supervised").argument(&key);
        let agent = agent.start(&Rule::file(&[stage.header("soak", &[PORT])])).await?;
        let client = Client::start(&stage.laptop, &agent, &stage.key, &[&PORT.to_string()]).await?;
        for direction in [Direction::AToB, Direction::BToA] {
            stage.to_pod.lose(direction, LOSS)?;
        }
        Ok(Self { stage, agent, client, _apps: apps })
    }

    async fn run(&self, minutes: u32, progress: &impl Fn(&str)) -> Result<Document> {
        let before = self.idle().await?;
        let (record, stop) = (Record::default(), CancellationToken::new());
        let to = self.stage.pod.at(PORT);
        let begin = Instant::now();
        let callers = join_all((0..CALLERS).map(|number| Caller::new(number, self.stage, to, &record).run(&stop)));
        let story = async {
            let _end = stop.clone().drop_guard();
            self.kill_workers(begin, minutes, &record, progress).await
        };
        let (_, (kills, memory)) = tokio::join!(callers, story);
        progress("the load has ended; looking at what is left");
        let mut last = Killed::new(Instant::now());
        self.count(&mut last).await?;
        self.stage.to_pod.heal()?;
        let leaks = self.leaks(before).await?;
        Ok(Document::new(minutes, begin.elapsed(), &record.events(), &kills, &last, leaks, memory))
    }

    /// Once a minute, but for the last.
    async fn kill_workers(
        &self,
        begin: Instant,
        minutes: u32,
        record: &Record,
        progress: &impl Fn(&str),
    ) -> (Vec<Killed>, Vec<Memory>) {
        let (mut kills, mut memory) = (Vec::new(), Vec::new());
        for minute in 1..=minutes {
            tokio::time::sleep_until((begin + KILLED_EVERY * minute).into()).await;
            match self.memory(minute) {
                Ok(found) => memory.push(found),
                Err(error) => progress(&format!("{error:#}")),
            }
            if minute < minutes {
                kills.push(self.kill_worker().await);
            }
            let (requests, taken, broken, wrong) = record.counts();
            let last = kills.last().map(ToString::to_string).unwrap_or_default();
            progress(&format!(
                "minute {minute}: {requests} requests, {taken} at the laptop; {broken} connections broken, {wrong} wrong; {last}"
            ));
        }
        (kills, memory)
    }

    /// Stopped first: from then on the agent is in no more connections than the kernel's list says.
    async fn kill_worker(&self) -> Killed {
        let mut killed = Killed::new(Instant::now());
        let done = async {
            self.count(&mut killed).await?;
            let worker = self.agent.process().child()?;
            let pid = Pid::from_raw(i32::try_from(worker)?);
            killed.at = Instant::now();
            kill(pid, Signal::SIGSTOP).context("stopping the worker")?;
            let flows = Flows::of(self.agent.process().pid());
            kill(pid, Signal::SIGKILL).context("killing the worker")?;
            killed.stopped = killed.at.elapsed();
            let flows = flows?;
            (killed.flows, killed.inserted) = (flows.count, flows.inserted);
            eventually(RECOVERS, "another worker has its client", || async {
                ensure!(self.agent.process().child()? != worker, "the worker is still there");
                let clients = self.agent.status().await?.clients;
                ensure!(clients.iter().any(|client| client.key_hash == self.stage.key.hash()), "no client");
                Ok(())
            })
            .await
        };
        match done.await {
            Ok(()) => killed.recovered = Some(Instant::now()),
            Err(error) => killed.failure = Some(format!("{error:#}")),
        }
        killed
    }

    /// What this worker has counted.
    async fn count(&self, killed: &mut Killed) -> Result<()> {
        /// Before the reason, which `"} ` ends.
        const LET_GO: &str = "sluice_agent_not_inserted_total{reason=\"";
        killed.insertions = self.agent.metric("sluice_agent_insertion_seconds_count").await?;
        killed.returned = self.agent.metric("sluice_agent_returned_total").await?;
        let metrics = self.agent.metrics().await?;
        let counts = metrics.lines().filter_map(|line| {
            let (reason, count) = line.strip_prefix(LET_GO)?.split_once("\"} ")?;
            Some((reason.to_owned(), count.parse().ok()?))
        });
        killed.not_inserted = counts.filter(|(_, count)| *count > 0).collect();
        killed.not_inserted.insert("late".to_owned(), self.agent.metric("sluice_agent_flows_late_total").await?);
        Ok(())
    }

    fn memory(&self, minute: u32) -> Result<Memory> {
        let parent = self.agent.process();
        Ok(Memory {
            minute,
            parent_kib: parent.rss_kib()?,
            worker_kib: usage::rss_kib(parent.child()?)?,
            client_kib: self.client.process().rss_kib()?,
        })
    }

    fn open(&self) -> Result<Open> {
        let (parent, client) = (self.agent.process(), self.client.process());
        let worker = parent.child()?;
        Ok(Open {
            parent_files: parent.open_files()?,
            worker_files: usage::open_files(worker)?,
            worker_sockets: usage::open_sockets(worker)?,
            client_files: client.open_files()?,
            client_sockets: client.open_sockets()?,
        })
    }

    /// The least of some looks: questions of the harness that were asked a moment ago have files of their own.
    async fn idle(&self) -> Result<Open> {
        const PAUSE: Duration = Duration::from_millis(50);
        let mut least = self.open()?;
        for _ in 0..10 {
            tokio::time::sleep(PAUSE).await;
            let open = self.open()?;
            least = Open {
                parent_files: least.parent_files.min(open.parent_files),
                worker_files: least.worker_files.min(open.worker_files),
                worker_sockets: least.worker_sockets.min(open.worker_sockets),
                client_files: least.client_files.min(open.client_files),
                client_sockets: least.client_sockets.min(open.client_sockets),
            };
        }
        Ok(least)
    }

    /// What there is more of than before the load, when there has been time for it to go.
    async fn leaks(&self, before: Open) -> Result<Vec<Leak>> {
        let look = || {
            let (open, parent) = (self.open()?, self.agent.process());
            let worker = parent.child()?;
            let (own, left) = (Flows::of(worker)?, Flows::of_one_only(parent.pid(), worker)?);
            let connections = |whose, flows: &Flows| {
                let kinds = if flows.count == 0 { String::new() } else { format!(" {:?}", flows.kinds) };
                Leak { what: format!("connections in the list of {whose}{kinds}"), before: 0, after: flows.count }
            };
            let leak = |what: &str, before, after| Leak { what: what.to_owned(), before, after };
            anyhow::Ok(vec![
                connections("the worker", &own),
                connections("workers that are dead", &left),
                leak("files of the agent's parent", before.parent_files, open.parent_files),
                leak("files of its worker", before.worker_files, open.worker_files),
                leak("sockets of its worker", before.worker_sockets, open.worker_sockets),
                leak("files of the client", before.client_files, open.client_files),
                leak("sockets of the client", before.client_sockets, open.client_sockets),
            ])
        };
        let settled = eventually(SETTLES, "all is as before", || async {
            let found = look()?;
            ensure!(found.iter().all(|leak| leak.after <= leak.before), "{found:?}");
            anyhow::Ok(found)
        });
        match settled.await {
            Ok(found) => Ok(found),
            Err(_) => look(),
        }
    }
}
