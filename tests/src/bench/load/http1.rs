//! HTTP/1 load: over connections that stay, and over one for each request.

use std::{
    fmt::Write as _,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use super::{Gate, Load, Meter, Sample};
use crate::bench::{Case, FILLING, Path};

/// Room for an answer.
const ROOM: usize = 4096;

/// What is sent and what has to come back.
pub(in crate::bench) struct Exchange {
    request: Vec<u8>,
    body: String,
    /// Length of an answer, once one has come: they all have the same.
    length: Option<usize>,
    answer: Box<[u8; ROOM]>,
}

/// A connection that stays.
pub(super) async fn keep_alive(load: Load, gate: Gate) -> Result<Sample> {
    let mut exchange = Exchange::new(load);
    let mut stream = connect(load).await?;
    prepare(load, &mut exchange, &mut stream).await?;
    exchange.run(&mut stream).await?;
    let mut meter = gate.pass().await?;
    let mut begun = Instant::now();
    while meter.next(begun) {
        exchange.run(&mut stream).await?;
        let now = Instant::now();
        meter.answered(begun, now);
        begun = now;
    }
    Ok(meter.sample)
}

/// Brings a connection into the state that its path is about.
async fn prepare(load: Load, exchange: &mut Exchange, stream: &mut TcpStream) -> Result<()> {
    /// Longer than the agent waits before it goes.
    const GOES: Duration = Duration::from_millis(30);
    match load.path {
        Path::Inserted => Exchange::new(Load { path: Path::Intercepted, ..load }).run(stream).await,
        Path::HandedBack => {
            exchange.run(stream).await?;
            // What comes in two parts the kernel cannot decide.
            stream.set_nodelay(true)?;
            let (first, second) = exchange.request.split_at(exchange.request.len() / 2);
            stream.write_all(first).await?;
            tokio::time::sleep(GOES).await;
            stream.write_all(second).await?;
            exchange.read(stream).await?;
            tokio::time::sleep(GOES).await;
            Ok(())
        }
        _ => Ok(()),
    }
}

/// A connection for each request, one after the other. The caller closes it, in an orderly way, as most clients do.
pub(super) async fn connect_each(load: Load, gate: Gate) -> Result<Sample> {
    let mut exchange = Exchange::new(load);
    exchange.run(&mut connect(load).await?).await?;
    let mut meter: Meter = gate.pass().await?;
    let mut begun = Instant::now();
    while meter.next(begun) {
        let answered = match connect(load).await {
            Ok(mut stream) => exchange.run(&mut stream).await,
            Err(error) => Err(error),
        };
        let now = Instant::now();
        match answered {
            Ok(()) => {
                meter.answered(begun, now);
                meter.sample.finished.push(now - meter.order.begin);
            }
            Err(error) => {
                meter.sample.failed += 1;
                meter.sample.failure.get_or_insert_with(|| format!("{error:#}"));
            }
        }
        begun = now;
    }
    Ok(meter.sample)
}

async fn connect(load: Load) -> Result<TcpStream> {
    TcpStream::connect(load.to).await.with_context(|| format!("connecting to {}", load.to))
}

// === impl Exchange ===

impl Exchange {
    pub(in crate::bench) fn new(load: Load) -> Self {
        let mut request = format!("GET /bench HTTP/1.1\r\nhost: {}\r\n", load.to);
        for (name, value) in load.fields() {
            let _ = write!(request, "{name}: {value}\r\n");
        }
        if load.case == Case::Http1Large {
            let _ = write!(request, "cookie: {:x<FILLING$}\r\n", "session=");
        }
        request.push_str("\r\n");
        Self { request: request.into_bytes(), body: load.body(), length: None, answer: Box::new([0; ROOM]) }
    }

    /// Sends the request and reads the answer.
    pub(in crate::bench) async fn run(&mut self, stream: &mut TcpStream) -> Result<()> {
        stream.write_all(&self.request).await?;
        self.read(stream).await
    }

    /// Reads the answer.
    async fn read(&mut self, stream: &mut TcpStream) -> Result<()> {
        let mut end = 0;
        loop {
            let read = stream.read(&mut self.answer[end..]).await?;
            ensure!(read > 0, "the connection ended in the middle of an answer: {:?}", text(&self.answer[..end]));
            end += read;
            let answer = &self.answer[..end];
            let length = match self.length {
                Some(length) => length,
                None => match length(answer)? {
                    Some(length) => *self.length.insert(length),
                    None => continue,
                },
            };
            if end < length {
                continue;
            }
            let right = answer.starts_with(b"HTTP/1.1 200 ") && answer.ends_with(self.body.as_bytes()) && end == length;
            ensure!(right, "not the expected answer, which ends in {:?}: {:?}", self.body, text(answer));
            return Ok(());
        }
    }
}

/// Length of the answer that begins here, if its head is there.
fn length(answer: &[u8]) -> Result<Option<usize>> {
    let mut headers = [httparse::EMPTY_HEADER; 16];
    let mut parsed = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(head) = parsed.parse(answer)? else { return Ok(None) };
    let length = parsed.headers.iter().find(|header| header.name.eq_ignore_ascii_case("content-length"));
    let length = length.with_context(|| format!("no content-length: {:?}", text(answer)))?;
    Ok(Some(head + std::str::from_utf8(length.value)?.parse::<usize>()?))
}

fn text(bytes: &[u8]) -> std::borrow::Cow<'_, str> {
    String::from_utf8_lossy(bytes)
}
