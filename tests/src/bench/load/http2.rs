//! HTTP/2 and gRPC load: prepared frames, several requests open at once on each connection.

use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use prost::Message as _;
use tokio::{io::AsyncWriteExt as _, net::TcpStream};

use super::{
    Gate, Load, Meter, Sample,
    frames::{self, ACK, END_HEADERS, END_STREAM, Frame, HeaderBlocks, Kind, PREFACE, Reader},
};
use crate::{bench::Case, peers::grpc::Words};

/// Largest increment of a window.
const WINDOW: u32 = i32::MAX.cast_unsigned() - 65_535;

/// One connection.
struct Connection {
    stream: TcpStream,
    reader: Reader,
    out: Vec<u8>,
    blocks: HeaderBlocks,
    /// Body of a request.
    request: Vec<u8>,
    /// Body of an answer.
    answer: Vec<u8>,
    next_id: u32,
    open: Vec<Open>,
    /// Bytes of bodies that we may send, and that we have let the other side send.
    send_window: i64,
    receive_window: i64,
}

/// A request without an answer.
struct Open {
    id: u32,
    begun: Instant,
    /// How much of the answer's body has come.
    received: usize,
}

/// One connection with several requests at once.
pub(super) async fn multiplex(load: Load, gate: Gate) -> Result<Sample> {
    let mut connection = Connection::open(load).await?;
    connection.request(Instant::now())?;
    while connection.exchange(|_, _| false).await? {}
    let mut meter: Meter = gate.pass().await?;
    let begun = Instant::now();
    for _ in 0..load.streams {
        if meter.next(begun) {
            connection.request(begun)?;
        }
    }
    let answered = |begun, now| {
        meter.answered(begun, now);
        meter.next(now)
    };
    let mut answered = answered;
    while connection.exchange(&mut answered).await? {}
    Ok(meter.sample)
}

// === impl Connection ===

impl Connection {
    async fn open(load: Load) -> Result<Self> {
        let stream = TcpStream::connect(load.to).await.with_context(|| format!("connecting to {}", load.to))?;
        stream.set_nodelay(true)?;
        let authority = load.to.to_string();
        let mut fields = vec![(":scheme", "http"), (":authority", authority.as_str())];
        let (mut request, mut answer) = (Vec::new(), load.body().into_bytes());
        if load.case == Case::Grpc {
            fields.extend([(":method", "POST"), (":path", "/sluice.test.Talk/Say")]);
            fields.extend(load.fields().into_iter().filter(|(name, _)| !name.starts_with("accept")));
            fields.extend([("te", "trailers"), ("content-type", "application/grpc")]);
            request = message(&Words::said("one", 1));
            answer = message(&Words::said(&load.body(), 1));
        } else {
            fields.extend([(":method", "GET"), (":path", "/bench")]);
            fields.extend(load.fields());
        }
        let mut out = PREFACE.to_vec();
        // No push (RFC 9113 §6.5.2).
        frames::write(&mut out, Kind::SETTINGS, 0, 0, &[0, 2, 0, 0, 0, 0]);
        frames::write(&mut out, Kind::WINDOW_UPDATE, 0, 0, &WINDOW.to_be_bytes());
        Ok(Self {
            stream,
            reader: Reader::default(),
            out,
            blocks: HeaderBlocks::new(&fields)?,
            request,
            answer,
            next_id: 1,
            open: Vec::new(),
            send_window: 65_535,
            receive_window: 65_535 + i64::from(WINDOW),
        })
    }

    /// Prepares a request.
    fn request(&mut self, begun: Instant) -> Result<()> {
        let id = self.next_id;
        self.next_id += 2;
        let block = if id == 1 { &self.blocks.first } else { &self.blocks.later };
        if self.request.is_empty() {
            frames::write(&mut self.out, Kind::HEADERS, END_HEADERS | END_STREAM, id, block);
        } else {
            self.send_window -= i64::try_from(self.request.len())?;
            ensure!(self.send_window >= 0, "the other side does not let us send");
            frames::write(&mut self.out, Kind::HEADERS, END_HEADERS, id, block);
            frames::write(&mut self.out, Kind::DATA, END_STREAM, id, &self.request);
        }
        self.open.push(Open { id, begun, received: 0 });
        Ok(())
    }

    /// Sends what is prepared, and takes what comes. `answered` is told of each answer, and says whether another request
    /// is to be made. False once nothing is open any more.
    async fn exchange(&mut self, mut answered: impl FnMut(Instant, Instant) -> bool) -> Result<bool> {
        self.stream.write_all(&self.out).await?;
        self.out.clear();
        if self.open.is_empty() {
            return Ok(false);
        }
        let read = self.reader.fill(&mut self.stream).await?;
        ensure!(read > 0, "the connection ended with {} requests open", self.open.len());
        let now = Instant::now();
        let mut more = 0;
        while let Some(Frame { kind, flags, stream, payload }) = self.reader.next() {
            match kind {
                Kind::HEADERS | Kind::DATA => {
                    let at = self.open.iter().position(|open| open.id == stream);
                    let at = at.with_context(|| format!("{kind:?} on stream {stream}, which is not open"))?;
                    let open = &mut self.open[at];
                    if kind == Kind::DATA {
                        let expected = self.answer.get(open.received..open.received + payload.len());
                        ensure!(expected == Some(payload), "not the expected answer: {payload:?}");
                        open.received += payload.len();
                        self.receive_window -= i64::try_from(payload.len())?;
                    } else if open.received == 0 {
                        // Index 8 of the static table, with which everybody begins an answer of this status.
                        ensure!(payload.first() == Some(&0x88), "not `:status: 200`: {payload:?}");
                    }
                    if flags & END_STREAM != 0 {
                        ensure!(open.received == self.answer.len(), "an answer of {} bytes", open.received);
                        more += usize::from(answered(open.begun, now));
                        self.open.swap_remove(at);
                    }
                }
                Kind::SETTINGS if flags & ACK == 0 => frames::write(&mut self.out, Kind::SETTINGS, ACK, 0, &[]),
                Kind::PING if flags & ACK == 0 => frames::write(&mut self.out, Kind::PING, ACK, 0, payload),
                Kind::WINDOW_UPDATE if stream == 0 => {
                    let increment = payload.first_chunk().context("a window update without content")?;
                    self.send_window += i64::from(u32::from_be_bytes(*increment));
                }
                Kind::SETTINGS | Kind::PING | Kind::WINDOW_UPDATE => {}
                other => bail!("an unexpected frame: {other:?}, {payload:?}"),
            }
        }
        if self.receive_window < i64::from(WINDOW) / 2 {
            frames::write(&mut self.out, Kind::WINDOW_UPDATE, 0, 0, &(WINDOW / 2).to_be_bytes());
            self.receive_window += i64::from(WINDOW / 2);
        }
        for _ in 0..more {
            self.request(now)?;
        }
        Ok(true)
    }
}

/// A message of gRPC: not compressed, with its length before it.
fn message(words: &Words) -> Vec<u8> {
    let mut framed = vec![0];
    framed.extend_from_slice(&u32::try_from(words.encoded_len()).unwrap_or(u32::MAX).to_be_bytes());
    framed.extend_from_slice(&words.encode_to_vec());
    framed
}
