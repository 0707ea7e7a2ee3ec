//! An app that speaks no protocol, and a caller: they follow a script and record every byte that they get.

mod connection;

use std::{
    fmt,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::Result;
use tokio::{net::TcpListener, sync::watch};
use tokio_util::task::AbortOnDropHandle;

use self::connection::Connection;
use crate::{Host, eventually};

/// What an end does with a connection, step by step. After the last step it reads to the end and closes.
#[derive(Clone, Default, Debug)]
pub struct Script {
    steps: Vec<Step>,
}

#[derive(Clone, Debug)]
enum Step {
    Read(usize),
    ReadUntil(Vec<u8>),
    ReadToEnd,
    Send(Vec<u8>),
    Echo,
    HalfClose,
    Close,
    Reset,
    Hold,
    Again,
}

/// A raw app. It ends when this is dropped; connections end with it.
#[derive(Debug)]
pub struct RawApp {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    released_tx: watch::Sender<bool>,
    _task: AbortOnDropHandle<()>,
}

/// A caller with one connection that follows a script. The connection ends when this is dropped.
#[derive(Debug)]
pub struct RawCaller {
    seen: Arc<Mutex<Vec<Seen>>>,
    released_tx: watch::Sender<bool>,
    _task: AbortOnDropHandle<()>,
}

/// A connection as one of its ends saw it.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Address of the other side.
    pub peer: SocketAddr,
    /// Every byte that was read, in order.
    pub bytes: Vec<u8>,
    /// How many bytes were written: taken by the kernel, wherever they are now.
    pub sent: usize,
    /// How the other side's stream ended; `None` as long as it has not.
    pub end: Option<End>,
}

/// How far a connection has come.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Progress {
    /// As in [`Seen`].
    pub sent: usize,
    /// How many bytes were read.
    pub received: usize,
    /// Whether it has ended.
    pub over: bool,
}

/// How a stream ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// FIN: the other side has sent all it wanted to.
    Closed,
    /// RST.
    Reset,
    /// Any other error.
    Broken(std::io::ErrorKind),
    /// The script closed or reset the connection itself.
    ByScript,
}

// === impl Script ===

impl Script {
    /// Reads to the end and answers nothing.
    pub const fn new() -> Self {
        Self { steps: Vec::new() }
    }

    /// Sends everything back, and FIN upon FIN.
    pub fn echo() -> Self {
        Self::new().step(Step::Echo)
    }

    /// Reads exactly so many bytes.
    #[must_use]
    pub fn read(self, count: usize) -> Self {
        self.step(Step::Read(count))
    }

    /// Reads until these bytes have come since the last step that read.
    #[must_use]
    pub fn read_until(self, marker: &[u8]) -> Self {
        self.step(Step::ReadUntil(marker.to_vec()))
    }

    /// Reads until the other side has closed.
    #[must_use]
    pub fn read_to_end(self) -> Self {
        self.step(Step::ReadToEnd)
    }

    /// Sends these bytes.
    #[must_use]
    pub fn send(self, bytes: &[u8]) -> Self {
        self.step(Step::Send(bytes.to_vec()))
    }

    /// Sends FIN and goes on reading.
    #[must_use]
    pub fn half_close(self) -> Self {
        self.step(Step::HalfClose)
    }

    /// Closes without reading any further. Bytes that have come and were not read make the kernel send RST.
    #[must_use]
    pub fn close(self) -> Self {
        self.step(Step::Close)
    }

    /// Sends RST.
    #[must_use]
    pub fn reset(self) -> Self {
        self.step(Step::Reset)
    }

    /// Does nothing, reading included, until [`RawApp::release`] or [`RawCaller::release`].
    #[must_use]
    pub fn hold(self) -> Self {
        self.step(Step::Hold)
    }

    /// Begins again with the first step.
    #[must_use]
    pub fn again(self) -> Self {
        self.step(Step::Again)
    }

    fn step(mut self, step: Step) -> Self {
        self.steps.push(step);
        self
    }
}

// === impl RawApp ===

impl RawApp {
    /// Listens inside a host.
    pub fn start(host: &Host, on: SocketAddr, script: Script) -> Result<Self> {
        let listener = host.listen(on)?;
        let address = listener.local_addr()?;
        let seen = Arc::<Mutex<Vec<Seen>>>::default();
        let (released_tx, released_rx) = watch::channel(false);
        let task = tokio::spawn(accept(listener, Arc::from(script.steps), Arc::clone(&seen), released_rx));
        Ok(Self { address, seen, released_tx, _task: AbortOnDropHandle::new(task) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// All connections so far, in the order in which they came.
    pub fn connections(&self) -> Vec<Seen> {
        lock(&self.seen).clone()
    }

    /// How far the connection with this number, from 0, has come; not at all before it is there.
    pub fn progress(&self, number: usize) -> Progress {
        lock(&self.seen).get(number).map(Progress::from).unwrap_or_default()
    }

    /// Waits until the connection with this number, from 0, is over.
    pub async fn ended(&self, number: usize, within: Duration) -> Result<Seen> {
        ended(&self.seen, number, within).await
    }

    /// Ends every [`Script::hold`].
    pub fn release(&self) {
        self.released_tx.send_replace(true);
    }
}

// === impl RawCaller ===

impl RawCaller {
    /// Connects from inside a host.
    pub async fn connect(host: &Host, to: SocketAddr, script: Script) -> Result<Self> {
        let stream = host.connect(to).await?;
        let seen = Arc::new(Mutex::new(vec![Seen::new(to)]));
        let (released_tx, released_rx) = watch::channel(false);
        let connection = Connection { stream, seen: Arc::clone(&seen), number: 0, released_rx };
        let task = tokio::spawn(connection.follow(Arc::from(script.steps)));
        Ok(Self { seen, released_tx, _task: AbortOnDropHandle::new(task) })
    }

    /// The connection so far.
    pub fn seen(&self) -> Seen {
        lock(&self.seen)[0].clone()
    }

    /// How far the connection has come.
    pub fn progress(&self) -> Progress {
        Progress::from(&lock(&self.seen)[0])
    }

    /// Waits until the connection is over.
    pub async fn ended(&self, within: Duration) -> Result<Seen> {
        ended(&self.seen, 0, within).await
    }

    /// Ends every [`Script::hold`].
    pub fn release(&self) {
        self.released_tx.send_replace(true);
    }
}

// === impl Seen ===

impl Seen {
    fn new(peer: SocketAddr) -> Self {
        Self { peer, bytes: Vec::new(), sent: 0, end: None }
    }
}

impl From<&Seen> for Progress {
    fn from(seen: &Seen) -> Self {
        Self { sent: seen.sent, received: seen.bytes.len(), over: seen.end.is_some() }
    }
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = &self.bytes[..self.bytes.len().min(200)];
        let (count, text) = (self.bytes.len(), String::from_utf8_lossy(shown));
        write!(f, "end {:?}, {} bytes sent, {count} received: {text:?}", self.end, self.sent)
    }
}

async fn ended(seen: &Mutex<Vec<Seen>>, number: usize, within: Duration) -> Result<Seen> {
    eventually(within, "the connection is over", || async {
        let seen = lock(seen);
        let seen = seen.get(number).ok_or("it has not come")?;
        if seen.end.is_some() { Ok(seen.clone()) } else { Err(seen.to_string()) }
    })
    .await
}

async fn accept(
    listener: TcpListener,
    steps: Arc<[Step]>,
    seen: Arc<Mutex<Vec<Seen>>>,
    released_rx: watch::Receiver<bool>,
) {
    let mut tasks = Vec::new();
    while let Ok((stream, peer)) = listener.accept().await {
        let number = {
            let mut seen = lock(&seen);
            seen.push(Seen::new(peer));
            seen.len() - 1
        };
        let connection = Connection { stream, seen: Arc::clone(&seen), number, released_rx: released_rx.clone() };
        tasks.push(AbortOnDropHandle::new(tokio::spawn(connection.follow(Arc::clone(&steps)))));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
