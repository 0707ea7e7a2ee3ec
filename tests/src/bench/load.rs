//! The load generator: closed loops over a number of connections, on up to two threads inside the caller's host.
//!
//! Every answer is checked: status, length, and by its body whether the right app has given it. Requests are prepared
//! bytes; nothing is parsed that is not needed to find the end of an answer. What the generator itself can do is
//! measured as well: see [`Sample::busy`] and [`super::CEILING`].

pub(super) mod frames;
mod http1;
mod http2;

use std::{
    fs,
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::timeout,
};

pub(super) use self::http1::Exchange;
use super::{Case, LIMIT, Path, app, histogram::Histogram};
use crate::{Host, Running};

/// Threads of the generator; as many as the app has.
const THREADS: usize = 2;

/// A load.
#[derive(Clone, Copy, Debug)]
pub(super) struct Load {
    pub(super) case: Case,
    /// Connections open at once.
    pub(super) connections: usize,
    /// Requests open at once on each of them.
    pub(super) streams: usize,
    pub(super) to: SocketAddr,
    pub(super) path: Path,
}

/// How long a load goes on.
#[derive(Clone, Copy, Debug)]
pub(super) enum Extent {
    /// For a time, of which the first part does not count.
    Time { warm_up: Duration, measured: Duration },
    /// So many requests on each connection (where each request has one of its own: one after the other).
    Count(u64),
}

/// What came of a load.
#[derive(Clone, Debug)]
pub(super) struct Sample {
    pub(super) latencies: Histogram,
    /// How long those took that count.
    pub(super) elapsed: Duration,
    /// When requests were finished, since the beginning; only for those over connections of their own.
    pub(super) finished: Vec<Duration>,
    /// Requests without a proper answer, only where each has its own connection: elsewhere one is an error.
    pub(super) failed: u64,
    /// Why the first of them failed.
    pub(super) failure: Option<String>,
    /// Of the time that the kernel let the busiest thread of the generator run, the part in which it had something to
    /// do: 1 is a generator that nothing has ever waited for.
    pub(super) busy: f64,
}

/// A load whose connections are open and have had an answer each.
pub(super) struct Armed {
    threads: Vec<Running<Result<Sample>>>,
    order_tx: watch::Sender<Option<Order>>,
}

/// The word to begin.
#[derive(Clone, Copy, Debug)]
struct Order {
    begin: Instant,
    extent: Extent,
}

/// What a connection has done since the word.
#[derive(Debug)]
struct Meter {
    order: Order,
    left: u64,
    sample: Sample,
}

// === impl Load ===

impl Load {
    /// Opens the connections.
    pub(super) async fn arm(self, caller: &Host) -> Result<Armed> {
        let threads = THREADS.min(self.connections);
        let (ready_tx, mut ready_rx) = mpsc::channel(self.connections);
        let (order_tx, order_rx) = watch::channel(None);
        let start = |number: usize| {
            // The first threads have one more where they cannot have the same number.
            let connections = (self.connections + threads - 1 - number) / threads;
            let (ready_tx, order_rx) = (ready_tx.clone(), order_rx.clone());
            caller.run(move || Self { connections, ..self }.run(ready_tx, order_rx))
        };
        let mut threads = (0..threads).map(start).collect::<Result<Vec<_>>>()?;
        drop(ready_tx);
        let opened = async {
            for _ in 0..self.connections {
                if ready_rx.recv().await.is_none() {
                    return false;
                }
            }
            true
        };
        if timeout(LIMIT, opened).await.with_context(|| format!("{self:?} does not get its connections"))? {
            return Ok(Armed { threads, order_tx });
        }
        // One of the threads has given up, and knows why.
        drop(order_tx);
        for thread in &mut threads {
            timeout(LIMIT, thread).await???;
        }
        anyhow::bail!("{self:?} ended before it began")
    }

    /// One thread.
    async fn run(self, ready_tx: mpsc::Sender<()>, order_rx: watch::Receiver<Option<Order>>) -> Result<Sample> {
        let mut connections = JoinSet::new();
        for _ in 0..self.connections {
            let gate = Gate { ready_tx: ready_tx.clone(), order_rx: order_rx.clone() };
            match self.case {
                Case::Http1 | Case::Http1Large => connections.spawn(http1::keep_alive(self, gate)),
                Case::Http1Connect => connections.spawn(http1::connect_each(self, gate)),
                Case::Http2 | Case::Grpc => connections.spawn(http2::multiplex(self, gate)),
            };
        }
        drop(ready_tx);
        let mut order_rx = order_rx;
        let ordered = order_rx.wait_for(Option::is_some).await.is_ok();
        let (began, before) = (Instant::now(), Schedule::of_this_thread()?);
        let mut sum: Option<Sample> = None;
        while let Some(sample) = connections.join_next().await {
            let sample = sample??;
            match &mut sum {
                Some(sum) => sum.merge(sample),
                None => sum = Some(sample),
            }
        }
        ensure!(ordered, "given up before the beginning");
        let mut sum = sum.context("no connection")?;
        let spent = Schedule::of_this_thread()?.since(before);
        let possible = began.elapsed().saturating_sub(spent.waited);
        sum.busy = spent.ran.as_secs_f64() / possible.as_secs_f64();
        Ok(sum)
    }

    /// The request's fields behind method and target, about 300 bytes with these: what a browser sends, roughly.
    fn fields(self) -> [(&'static str, &'static str); 6] {
        [
            ("user-agent", "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"),
            ("accept", "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"),
            ("accept-language", "en-GB,en;q=0.7,de;q=0.3"),
            ("accept-encoding", "gzip, deflate"),
            ("x-request-id", "5f3c1c6e-0d4a-4c6c-9a51-6f1e4d1f9e37"),
            (super::HEADER, self.path.header()),
        ]
    }

    fn body(self) -> String {
        app::body(self.path.answered_by())
    }
}

// === impl Armed ===

impl Armed {
    /// Sends requests and returns what came of them. `probe` is asked when the measured time begins and when it is over.
    pub(super) async fn go<P: Fn() -> Result<T>, T>(self, extent: Extent, probe: P) -> Result<(Sample, [T; 2])> {
        let begin = Instant::now();
        let limit = match extent {
            Extent::Time { warm_up, measured } => warm_up + measured + LIMIT,
            Extent::Count(_) => LIMIT * 6,
        };
        let mut before = probe()?;
        self.order_tx.send_replace(Some(Order { begin, extent }));
        if let Extent::Time { warm_up, .. } = extent {
            tokio::time::sleep_until((begin + warm_up).into()).await;
            before = probe()?;
        }
        let mut sum: Option<Sample> = None;
        for thread in self.threads {
            let sample = timeout(limit, thread).await.context("the load does not end")???;
            match &mut sum {
                Some(sum) => sum.merge(sample),
                None => sum = Some(sample),
            }
        }
        let after = probe()?;
        Ok((sum.context("a load without threads")?, [before, after]))
    }
}

// === impl Sample ===

impl Sample {
    fn new() -> Self {
        Self {
            latencies: Histogram::new(),
            elapsed: Duration::ZERO,
            finished: Vec::new(),
            failed: 0,
            failure: None,
            busy: 0.0,
        }
    }

    fn merge(&mut self, other: Self) {
        self.latencies.merge(&other.latencies);
        self.elapsed = self.elapsed.max(other.elapsed);
        self.finished.extend(other.finished);
        self.failed += other.failed;
        self.failure = self.failure.take().or(other.failure);
        self.busy = self.busy.max(other.busy);
    }

    /// Requests that were answered.
    pub(super) fn requests(&self) -> u64 {
        self.latencies.count()
    }

    /// The same, for each second.
    pub(super) fn rps(&self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "far fewer than 2^52")]
        let requests = self.requests() as f64;
        requests / self.elapsed.as_secs_f64()
    }
}

// === impl Meter ===

impl Meter {
    fn new(order: Order) -> Self {
        let mut sample = Sample::new();
        let left = match order.extent {
            Extent::Time { measured, .. } => {
                sample.elapsed = measured;
                u64::MAX
            }
            Extent::Count(count) => count,
        };
        Self { order, left, sample }
    }

    /// Whether another request is to be sent at `now`; if so it will be.
    fn next(&mut self, now: Instant) -> bool {
        let on = match self.order.extent {
            Extent::Time { warm_up, measured } => now < self.order.begin + warm_up + measured,
            Extent::Count(_) => self.left > 0,
        };
        if on {
            self.left -= 1;
        }
        on
    }

    /// A request has been answered.
    fn answered(&mut self, begun: Instant, now: Instant) {
        let since = now - self.order.begin;
        match self.order.extent {
            Extent::Time { warm_up, measured } if since < warm_up || since >= warm_up + measured => return,
            Extent::Time { .. } => {}
            Extent::Count(_) => self.sample.elapsed = since,
        }
        self.sample.latencies.record(now - begun);
    }
}

/// Where a connection waits for the others.
struct Gate {
    ready_tx: mpsc::Sender<()>,
    order_rx: watch::Receiver<Option<Order>>,
}

// === impl Gate ===

impl Gate {
    async fn pass(mut self) -> Result<Meter> {
        self.ready_tx.send(()).await?;
        drop(self.ready_tx);
        let order = *self.order_rx.wait_for(Option::is_some).await?;
        Ok(Meter::new(order.context("no order")?))
    }
}

/// How the kernel has treated a thread.
#[derive(Clone, Copy, Debug)]
struct Schedule {
    ran: Duration,
    /// Ready to run, while others did.
    waited: Duration,
}

// === impl Schedule ===

impl Schedule {
    fn of_this_thread() -> Result<Self> {
        let path = "/proc/thread-self/schedstat";
        let text = fs::read_to_string(path).with_context(|| format!("reading {path}"))?;
        let mut numbers = text.split_ascii_whitespace().map_while(|number| number.parse().ok());
        let mut next = || numbers.next().map(Duration::from_nanos).with_context(|| format!("reading {path}: {text:?}"));
        Ok(Self { ran: next()?, waited: next()? })
    }

    fn since(self, before: Self) -> Self {
        Self { ran: self.ran - before.ran, waited: self.waited - before.waited }
    }
}
