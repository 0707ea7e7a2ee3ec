//! An app that speaks no protocol: it follows a script and records every byte that it gets.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use anyhow::Result;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::watch,
};
use tokio_util::task::AbortOnDropHandle;

use crate::Host;

/// What an app does with each connection, step by step. After the last step it reads to the end and closes.
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

/// A connection as the app saw it.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Address of the other side.
    pub peer: SocketAddr,
    /// Every byte that was read, in order.
    pub bytes: Vec<u8>,
    /// How the other side's stream ended; `None` as long as it has not.
    pub end: Option<End>,
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
    /// The script reset the connection itself.
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

    /// Sends RST.
    #[must_use]
    pub fn reset(self) -> Self {
        self.step(Step::Reset)
    }

    /// Does nothing, reading included, until [`RawApp::release`].
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

    /// Ends every [`Script::hold`].
    pub fn release(&self) {
        self.released_tx.send_replace(true);
    }
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
            seen.push(Seen { peer, bytes: Vec::new(), end: None });
            seen.len() - 1
        };
        let connection = Connection { stream, seen: Arc::clone(&seen), number, released_rx: released_rx.clone() };
        tasks.push(AbortOnDropHandle::new(tokio::spawn(connection.follow(Arc::clone(&steps)))));
    }
}

struct Connection {
    stream: TcpStream,
    seen: Arc<Mutex<Vec<Seen>>>,
    number: usize,
    released_rx: watch::Receiver<bool>,
}

// === impl Connection ===

impl Connection {
    async fn follow(mut self, steps: Arc<[Step]>) {
        let end = match self.steps(&steps).await {
            Ok(end) => end,
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => End::Reset,
            Err(error) => End::Broken(error.kind()),
        };
        lock(&self.seen)[self.number].end = Some(end);
    }

    async fn steps(&mut self, steps: &[Step]) -> std::io::Result<End> {
        let mut next = 0;
        // Where in the recorded bytes the present step begins.
        let mut begin = 0;
        while let Some(step) = steps.get(next) {
            next += 1;
            match step {
                Step::Send(bytes) => self.stream.write_all(bytes).await?,
                Step::HalfClose => self.stream.shutdown().await?,
                Step::Hold => drop(self.released_rx.wait_for(|&released| released).await),
                Step::Again => next = 0,
                Step::Reset => {
                    self.stream.set_zero_linger()?;
                    return Ok(End::ByScript);
                }
                Step::Read(count) => {
                    begin += count;
                    while self.have() < begin {
                        if !self.read(false, begin - self.have()).await? {
                            return Ok(End::Closed);
                        }
                    }
                }
                Step::ReadUntil(marker) => loop {
                    if let Some(found) = self.find(begin, marker) {
                        begin = found;
                        break;
                    }
                    // A byte at a time: what comes after the marker is the next step's.
                    if !self.read(false, 1).await? {
                        return Ok(End::Closed);
                    }
                },
                Step::ReadToEnd => while self.read(false, usize::MAX).await? {},
                Step::Echo => {
                    while self.read(true, usize::MAX).await? {}
                    self.stream.shutdown().await?;
                }
            }
        }
        while self.read(false, usize::MAX).await? {}
        Ok(End::Closed)
    }

    /// Reads and records at most `most` bytes; false at the end.
    async fn read(&mut self, echo: bool, most: usize) -> std::io::Result<bool> {
        let mut buffer = vec![0; 16 * 1024];
        let room = buffer.len().min(most);
        let count = self.stream.read(&mut buffer[..room]).await?;
        lock(&self.seen)[self.number].bytes.extend_from_slice(&buffer[..count]);
        if echo {
            self.stream.write_all(&buffer[..count]).await?;
        }
        Ok(count > 0)
    }

    fn have(&self) -> usize {
        lock(&self.seen)[self.number].bytes.len()
    }

    /// Position behind the first `marker` from `begin` on.
    fn find(&self, begin: usize, marker: &[u8]) -> Option<usize> {
        let seen = lock(&self.seen);
        let bytes = seen[self.number].bytes.get(begin..)?;
        let at = bytes.windows(marker.len()).position(|window| window == marker)?;
        Some(begin + at + marker.len())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
