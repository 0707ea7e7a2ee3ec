//! The callers: connections that are kept alive, with requests of all sizes and pauses between them. What becomes of each
//! request goes into a record; what of it may be, is judged later.

use std::{
    borrow::Cow,
    io,
    net::SocketAddr,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::app::{Stream, TARGET};
use crate::{
    Host,
    flows::Flows,
    peers::http1::{Http1Caller, Response, request},
    random::Random,
    stage::{MATCHING, OTHER, Stage},
};

/// Connections at once.
pub(super) const CALLERS: u64 = 64;

/// One request in so many fits the rule.
const FITS_ONCE_IN: usize = 50;

/// A request takes no longer, or it hangs.
pub(super) const LIMIT: Duration = Duration::from_secs(15);

/// Longest pause between two requests of a connection.
const PAUSE_MS: usize = 80;

/// Most bytes of a body among several that are sent at once: all of them fit on the way, so that nobody waits for a
/// caller who is still sending.
const SMALL: usize = 20_000;

/// Once in so many times a stream is asked for, and more behind it before it is read.
const STREAM_ONCE_IN: usize = 100;

/// Chunks of a stream: less than a line of a head, about a packet, more than one.
const CHUNKS: [usize; 3] = [30, 1_400, 10_007];

/// Most of its chunks.
const MANY: usize = 4_000;

/// Most of its bytes: more than are on their way to a caller who does not read.
const STREAM: usize = 400_000;

/// Longest time before a caller reads it, so that the app cannot go on sending.
const SLOW_MS: usize = 150;

/// Everything that happened.
#[derive(Debug, Default)]
pub(super) struct Record(Mutex<Events>);

#[derive(Clone, Debug, Default)]
pub(super) struct Events {
    /// Connections that were opened.
    pub(super) connections: u64,
    /// Requests that were answered.
    pub(super) requests: u64,
    /// Of them, those that fit the rule and were answered by the laptop.
    pub(super) taken: u64,
    /// Connections that ended although nobody had asked them to.
    pub(super) broken: Vec<Broken>,
    /// Requests that fit the rule and were answered by the app.
    pub(super) let_go: Vec<LetGo>,
    /// What must never be, and when: other bytes, the wrong side, no end.
    pub(super) wrong: Vec<(Instant, String)>,
}

#[derive(Clone, Debug)]
pub(super) struct Broken {
    /// The caller's port.
    pub(super) port: u16,
    pub(super) opened: Instant,
    /// When it was seen; where it was unheard, since when an answer was waited for.
    pub(super) at: Instant,
    /// The caller was not told before it spoke again: a reset that gets lost is not repeated (RFC 9293 §3.10.7).
    pub(super) unheard: bool,
    pub(super) what: String,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct LetGo {
    /// The connection's: see [`Broken`].
    pub(super) port: u16,
    pub(super) opened: Instant,
    /// It was sent before another one was answered.
    pub(super) pipelined: bool,
    /// None of its connection was answered before it was sent.
    pub(super) first: bool,
    pub(super) sent: Instant,
    pub(super) answered: Instant,
}

/// One of the callers.
pub(super) struct Caller<'s> {
    number: u64,
    stage: &'s Stage,
    to: SocketAddr,
    record: &'s Record,
    random: Random,
    /// Requests so far.
    count: u64,
}

/// A request.
struct Ask {
    target: String,
    fits: bool,
    body: Vec<u8>,
    chunked: bool,
    /// What is asked for, if not the body.
    stream: Option<Stream>,
}

/// An open connection.
struct Connection {
    caller: Http1Caller,
    port: u16,
    opened: Instant,
    fresh: bool,
}

/// Why a caller gave up a connection.
enum Fault {
    /// It ended.
    Ended(anyhow::Error),
    /// It had ended since then, and nobody had told.
    Unheard(Instant, anyhow::Error),
    /// What came is wrong, or nothing came.
    Wrong(anyhow::Error),
}

// === impl Record ===

impl Record {
    /// All so far.
    pub(super) fn events(&self) -> Events {
        self.lock().clone()
    }

    /// Numbers for the progress: requests, those that were taken, broken connections, wrong answers.
    pub(super) fn counts(&self) -> (u64, u64, usize, usize) {
        let events = self.lock();
        (events.requests, events.taken, events.broken.len(), events.wrong.len())
    }

    fn lock(&self) -> MutexGuard<'_, Events> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Caller ===

impl<'s> Caller<'s> {
    pub(super) fn new(number: u64, stage: &'s Stage, to: SocketAddr, record: &'s Record) -> Self {
        Self { number, stage, to, record, random: Random::new(number), count: 0 }
    }

    /// Until it is told to stop; then it closes its connection.
    pub(super) async fn run(mut self, stop: &CancellationToken) {
        while !stop.is_cancelled() {
            let Some(mut connection) = self.open().await else { continue };
            let mut outcome = Ok(());
            while outcome.is_ok() && !stop.is_cancelled() && !self.random.once_in(60) {
                outcome = self.some(&mut connection).await;
                let pause = pause(&mut self.random, PAUSE_MS);
                tokio::select! {
                    biased;
                    // Cancel-safe: the token stays cancelled.
                    () = stop.cancelled() => {}
                    // Cancel-safe: nobody needs the rest of the pause.
                    () = tokio::time::sleep(pause) => {}
                }
            }
            if outcome.is_ok() {
                outcome = end(&mut connection, self.stage).await;
            }
            let (now, Connection { port, opened, .. }) = (Instant::now(), connection);
            let broken = |at, unheard, error: anyhow::Error| {
                self.record.lock().broken.push(Broken { port, opened, at, unheard, what: format!("{error:#}") });
            };
            match outcome {
                Ok(()) => {}
                Err(Fault::Ended(error)) => broken(now, false, error),
                Err(Fault::Unheard(at, error)) => broken(at, true, error),
                Err(Fault::Wrong(error)) => self.record.lock().wrong.push((now, format!("port {port}: {error:#}"))),
            }
        }
    }

    async fn open(&self) -> Option<Connection> {
        let opened = Instant::now();
        let connected = timeout(LIMIT, self.stage.caller.connect(self.to))
            .await
            .map_err(|_| anyhow!("no connection within {LIMIT:?}"));
        let connection = connected.flatten().and_then(|stream| {
            let port = stream.local_addr()?.port();
            Ok(Connection { caller: Http1Caller::over(stream)?, port, opened, fresh: true })
        });
        let mut events = self.record.lock();
        match connection {
            Ok(connection) => {
                events.connections += 1;
                Some(connection)
            }
            Err(error) => {
                events.wrong.push((Instant::now(), format!("connecting: {error:#}")));
                None
            }
        }
    }

    /// One request or several at once, and their answers.
    async fn some(&mut self, connection: &mut Connection) -> Result<(), Fault> {
        let asks = self.asks();
        let (sent, port, opened) = (Instant::now(), connection.port, connection.opened);
        let first = std::mem::take(&mut connection.fresh);
        let (age, at_once) = (sent - opened, asks.len());
        match timeout(LIMIT, send(&mut connection.caller, &mut self.random, &asks)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(Fault::Ended(error.context(format!("sending {}", asks[0].target)))),
            Err(_) => return Err(Fault::Wrong(anyhow!("{}: not sent within {LIMIT:?}", asks[0].target))),
        }
        for (number, ask) in asks.iter().enumerate() {
            let what = || {
                format!(
                    "{}, fits: {}, chunked: {}, {} bytes, number {number} of {at_once} at once{}, on a connection of {:?}",
                    ask.target,
                    ask.fits,
                    ask.chunked,
                    ask.body.len(),
                    if asks[0].stream.is_some() { ", the first a stream" } else { "" },
                    age
                )
            };
            let begin = Instant::now();
            let answer = match timeout(LIMIT, connection.caller.try_response("POST")).await {
                Ok(Ok(Some(answer))) => answer,
                Ok(Ok(None)) => return Err(Fault::Ended(anyhow!("{}: closed instead of an answer", what()))),
                Ok(Err(error)) if error.is::<io::Error>() => return Err(Fault::Ended(error.context(what()))),
                Ok(Err(error)) => return Err(Fault::Wrong(error.context(what()))),
                Err(_) => {
                    let error = anyhow!("{}: no answer within {LIMIT:?}\n{}", what(), known(self.stage, port));
                    return Err(if is_gone(connection).await {
                        Fault::Unheard(begin, error)
                    } else {
                        Fault::Wrong(error)
                    });
                }
            };
            let answered = Instant::now();
            let by_app = ask.check(&answer).with_context(what).map_err(Fault::Wrong)?;
            let mut events = self.record.lock();
            events.requests += 1;
            match (ask.fits, by_app) {
                (true, true) => {
                    events.let_go.push(LetGo { port, opened, pipelined: number > 0, first, sent, answered });
                }
                (true, false) => events.taken += 1,
                (false, _) => {}
            }
        }
        Ok(())
    }

    /// One request, or several for one connection: of any kind, or small ones behind a stream.
    fn asks(&mut self) -> Vec<Ask> {
        let Self { number, random, count, .. } = self;
        let mut target = || {
            *count += 1;
            format!("/{number}/{count}")
        };
        if random.once_in(STREAM_ONCE_IN) {
            let stream = Ask::stream(random, &target());
            // Often one that fits: the agent is to join the stream.
            let behind = Ask { fits: random.once_in(2), ..Ask::new(random, target(), SMALL) };
            let more = (0..random.below(3)).map(|_| Ask::new(random, target(), SMALL));
            return [stream, behind].into_iter().chain(more).collect();
        }
        let at_once = if random.once_in(8) { 2 + random.below(3) } else { 1 };
        let most = if at_once > 1 { SMALL } else { random.pick(&[1, 100, 2_000, 2_000, 20_000, 20_000, 200_000]) };
        (0..at_once).map(|_| Ask::new(random, target(), most)).collect()
    }
}

/// At most so many milliseconds.
fn pause(random: &mut Random, most: usize) -> Duration {
    Duration::from_millis(random.below(most).try_into().unwrap_or_default())
}

/// Sends them: a stream before the others, and slowly.
async fn send(caller: &mut Http1Caller, random: &mut Random, asks: &[Ask]) -> Result<()> {
    let [ahead @ Ask { stream: Some(_), .. }, behind @ ..] = asks else { return caller.send(&bytes(asks)).await };
    caller.send(&ahead.bytes()).await?;
    tokio::time::sleep(pause(random, SLOW_MS)).await;
    caller.send(&bytes(behind)).await?;
    tokio::time::sleep(pause(random, SLOW_MS)).await;
    Ok(())
}

/// What both sides and the packet programs know of a connection that hangs.
fn known(stage: &Stage, port: u16) -> String {
    let filter = format!("( sport = :{port} or dport = :{port} )");
    let sockets =
        |host: &Host| host.tool("ss", &["--tcp", "--all", "--numeric", "--options", "--info", "--no-header", &filter]);
    let told =
        [("the caller", sockets(&stage.caller)), ("the pod", sockets(&stage.pod)), ("flows", Flows::of_port(port))];
    let told = told.map(|(who, told)| format!("{who}: {}", told.unwrap_or_else(|error| format!("{error:#}"))));
    told.join("\n")
}

/// Whether the other side knows nothing of a connection any more: it says so as soon as it is spoken to.
async fn is_gone(connection: &mut Connection) -> bool {
    let more = request("GET", "/is-gone", &[OTHER], b"");
    let told = async {
        connection.caller.send(&more).await?;
        connection.caller.try_response("GET").await
    };
    fails(told).await
}

/// As [`is_gone`], of a connection over which nothing more can be said.
async fn is_unknown(connection: &mut Connection) -> bool {
    let told = async {
        connection.caller.keep_asking()?;
        connection.caller.try_response("GET").await
    };
    fails(told).await
}

/// Whether a connection says that it is none any more.
async fn fails<T>(told: impl Future<Output = Result<T>>) -> bool {
    matches!(timeout(LIMIT, told).await, Ok(Err(error)) if error.is::<io::Error>())
}

/// An orderly end.
async fn end(connection: &mut Connection, stage: &Stage) -> Result<(), Fault> {
    let begin = Instant::now();
    connection.caller.half_close().await.context("closing").map_err(Fault::Ended)?;
    match timeout(LIMIT, connection.caller.try_response("GET")).await {
        Ok(Ok(None)) => Ok(()),
        Ok(Ok(Some(answer))) => Err(Fault::Wrong(anyhow!("an answer that nobody has asked for: {}", answer.status))),
        Ok(Err(error)) if error.is::<io::Error>() => Err(Fault::Ended(error.context("closing"))),
        Ok(Err(error)) => Err(Fault::Wrong(error.context("closing"))),
        Err(_) => {
            let known = known(stage, connection.port);
            let error = anyhow!("closing: the other side does not within {LIMIT:?}\n{known}");
            Err(if is_unknown(connection).await { Fault::Unheard(begin, error) } else { Fault::Wrong(error) })
        }
    }
}

fn bytes(asks: &[Ask]) -> Vec<u8> {
    asks.iter().flat_map(Ask::bytes).collect()
}

// === impl Ask ===

impl Ask {
    fn new(random: &mut Random, target: String, most: usize) -> Self {
        let size = if random.once_in(2) { 0 } else { random.below(most) };
        // What is chunked the kernel cannot decide: the agent is inserted for it.
        let (fits, chunked) = (random.once_in(FITS_ONCE_IN), size > 0 && random.once_in(20));
        Self { target, fits, body: random.bytes(size), chunked, stream: None }
    }

    /// For a stream of the app's.
    fn stream(random: &mut Random, path: &str) -> Self {
        let chunk = random.pick(&CHUNKS);
        let stream = Stream { bytes: random.below(STREAM.min(chunk * MANY)), chunk };
        Self { target: format!("{path}?{stream}"), fits: false, body: Vec::new(), chunked: false, stream: Some(stream) }
    }

    fn bytes(&self) -> Vec<u8> {
        let header = if self.fits { MATCHING } else { OTHER };
        if !self.chunked {
            let method = if self.body.is_empty() { "GET" } else { "POST" };
            return request(method, &self.target, &[header], &self.body);
        }
        let head = request("POST", &self.target, &[header, ("Transfer-Encoding", "chunked")], b"");
        let size = format!("{:x}\r\n", self.body.len());
        [&head[..], size.as_bytes(), &self.body, b"\r\n0\r\n\r\n"].concat()
    }

    /// Whether the app has answered.
    fn check(&self, answer: &Response) -> Result<bool> {
        ensure!(answer.status == 200, "status {}", answer.status);
        ensure!(answer.header(TARGET) == Some(&self.target), "the answer to {:?}", answer.header(TARGET));
        let body = self.stream.map_or_else(|| Cow::from(&self.body), |stream| Cow::from(stream.body()));
        ensure!(answer.body == *body, "{} bytes that are not those", answer.body.len());
        match answer.answered_by() {
            Some("pod") => Ok(true),
            Some("laptop") if self.fits => Ok(false),
            other => Err(anyhow!("answered by {other:?}")),
        }
    }
}
