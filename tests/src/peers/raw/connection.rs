//! One end of a connection, following its script.

use std::{
    io,
    sync::{Arc, Mutex},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::watch,
};

use super::{End, Seen, Step, lock};

/// A connection and where its record is.
pub(super) struct Connection {
    pub(super) stream: TcpStream,
    pub(super) seen: Arc<Mutex<Vec<Seen>>>,
    pub(super) number: usize,
    pub(super) released_rx: watch::Receiver<bool>,
}

// === impl Connection ===

impl Connection {
    /// Takes all steps and writes down how it ended. The connection is closed before that can be read.
    pub(super) async fn follow(mut self, steps: Arc<[Step]>) {
        let end = match self.steps(&steps).await {
            Ok(end) => end,
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => End::Reset,
            Err(error) => End::Broken(error.kind()),
        };
        let Self { stream, seen, number, .. } = self;
        drop(stream);
        lock(&seen)[number].end = Some(end);
    }

    async fn steps(&mut self, steps: &[Step]) -> io::Result<End> {
        let mut next = 0;
        // Where in the recorded bytes the present step begins.
        let mut begin = 0;
        while let Some(step) = steps.get(next) {
            next += 1;
            match step {
                Step::Send(bytes) => self.write(bytes).await?,
                Step::HalfClose => self.stream.shutdown().await?,
                Step::Hold => drop(self.released_rx.wait_for(|&released| released).await),
                Step::Again => next = 0,
                Step::Close => return Ok(End::ByScript),
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
    async fn read(&mut self, echo: bool, most: usize) -> io::Result<bool> {
        let mut buffer = vec![0; 16 * 1024];
        let room = buffer.len().min(most);
        let count = self.stream.read(&mut buffer[..room]).await?;
        lock(&self.seen)[self.number].bytes.extend_from_slice(&buffer[..count]);
        if echo {
            self.write(&buffer[..count]).await?;
        }
        Ok(count > 0)
    }

    async fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let count = self.stream.write(bytes).await?;
            lock(&self.seen)[self.number].sent += count;
            bytes = &bytes[count..];
        }
        Ok(())
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
