//! Connections that are never quiet: the agent joins them all the same, and leaves them again.

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use sluice_tests::{
    Host, eventually,
    peers::http1::{Http1Caller, request},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_util::task::AbortOnDropHandle;

use crate::{OURS, SOON, Scene, THEIRS, any, ask, play, supervised};

const STREAM: u16 = 8081;

/// Bytes of an answer with a length: far more than is sent before the agent is there.
const LENGTH: u64 = 256 << 20;
/// Bytes of a chunk: no multiple of what a packet takes.
const CHUNK: usize = 10_007;

/// How an answer that does not pause is framed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Framing {
    Length,
    /// Chunks of so many bytes each; every write ends so many bytes behind the beginning of a chunk's line.
    Chunks(usize, usize),
}

/// An app whose answers do not pause. One connection after the other.
struct Streaming {
    /// Bytes of the running answer's body.
    sent: Arc<AtomicU64>,
    /// Ends a chunked answer.
    enough: Arc<AtomicBool>,
    _task: AbortOnDropHandle<Result<()>>,
}

impl Streaming {
    fn start(host: &Host, framing: Framing) -> Result<Self> {
        let listener = host.listen(any(STREAM))?;
        let (sent, enough) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (counted, asked_to_end) = (sent.clone(), enough.clone());
        let task = tokio::spawn(async move {
            // Open until the test is over.
            let mut streams = Vec::new();
            loop {
                let (mut stream, _) = listener.accept().await?;
                counted.store(0, Relaxed);
                asked_to_end.store(false, Relaxed);
                // What it asks for is known.
                stream.read_exact(&mut [0; 4]).await?;
                match framing {
                    Framing::Chunks(bytes, cut) => {
                        send_chunks(&mut stream, bytes, cut, &counted, &asked_to_end).await?;
                    }
                    Framing::Length => send_length(&mut stream, &counted).await?,
                }
                streams.push(stream);
            }
        });
        Ok(Self { sent, enough, _task: AbortOnDropHandle::new(task) })
    }
}

fn head(framing: &str) -> String {
    format!("HTTP/1.1 200 OK\r\nx-answered-by: pod\r\n{framing}\r\n\r\n")
}

async fn send_length(stream: &mut TcpStream, sent: &AtomicU64) -> Result<()> {
    stream.write_all(head(&format!("content-length: {LENGTH}")).as_bytes()).await?;
    let piece = vec![b'p'; CHUNK];
    let mut left = LENGTH;
    while left > 0 {
        let piece = &piece[..usize::try_from(left)?.min(CHUNK)];
        stream.write_all(piece).await?;
        left -= piece.len() as u64;
        sent.fetch_add(piece.len() as u64, Relaxed);
    }
    Ok(())
}

async fn send_chunks(
    stream: &mut TcpStream,
    bytes: usize,
    cut: usize,
    sent: &AtomicU64,
    enough: &AtomicBool,
) -> Result<()> {
    let chunk = [format!("{bytes:x}\r\n").as_bytes(), &vec![b'p'; bytes], b"\r\n"].concat();
    let (ahead, rest) = chunk.split_at(cut);
    stream.write_all(&[head("transfer-encoding: chunked").as_bytes(), ahead].concat()).await?;
    let many = (CHUNK / bytes).max(1);
    let piece = [rest, ahead].concat().repeat(many);
    while !enough.load(Relaxed) {
        stream.write_all(&piece).await?;
        sent.fetch_add((many * bytes) as u64, Relaxed);
    }
    // Counted first: whoever has read the end looks at once.
    sent.fetch_add(bytes as u64, Relaxed);
    stream.write_all(&[rest, b"0\r\n\r\n"].concat()).await?;
    Ok(())
}

/// A request that fits follows one whose answer is running at full speed, on one connection after the other.
async fn behind_a_stream(name: &str, framing: Framing, connections: u64) -> Result<()> {
    play(Scene::set(name, &[STREAM]).await?, async |scene| {
        let _local = sluice_tests::peers::http1::Http1App::start(&scene.stage.laptop, any(STREAM), "laptop")?;
        let app = Streaming::start(&scene.stage.pod, framing)?;
        for number in 1..=connections {
            let joined = join(scene, &app, framing, number).await;
            joined.with_context(|| format!("connection {number}, {:?} bytes", app.sent))?;
        }
        scene.ensure_inserted(connections).await
    })
    .await
}

/// One such connection, into which the agent is inserted as the `number`th.
async fn join(scene: &Scene, app: &Streaming, framing: Framing, number: u64) -> Result<()> {
    let stream = scene.stage.caller.connect(scene.stage.pod.at(STREAM)).await?.into_std()?;
    let mut writes = TcpStream::from_std(stream.try_clone()?)?;
    let mut caller = Http1Caller::over(TcpStream::from_std(stream)?)?;
    let reads = AbortOnDropHandle::new(tokio::spawn(async move {
        let first = caller.response("GET").await.context("the stream")?;
        let second = caller.response("GET").await.context("the answer behind it")?;
        anyhow::Ok((first, second))
    }));
    writes.write_all(&request("GET", "/", &[THEIRS.0], b"")).await?;
    eventually(SOON, "the app streams", || async {
        ensure!(app.sent.load(Relaxed) > 1 << 20, "not yet");
        Ok(())
    })
    .await?;
    writes.write_all(&request("GET", "/", &[OURS.0], b"")).await?;
    eventually(SOON, "the agent joins it", || async {
        ensure!(scene.insertions().await? == number, "not yet");
        Ok(())
    })
    .await?;
    let at = app.sent.load(Relaxed);
    ensure!(framing != Framing::Length || at < LENGTH, "the agent has waited for the stream's end");
    app.enough.store(true, Relaxed);
    let (first, second) = reads.await??;
    ensure!(first.body.len() as u64 == app.sent.load(Relaxed), "{} bytes came", first.body.len());
    ensure!(first.body.iter().all(|&byte| byte == b'p'), "other bytes came");
    ensure!(first.answered_by() == Some("pod") && second.answered_by() == Some("laptop"), "by the wrong side");
    Ok(())
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn f03_behind_an_answer_with_a_length_that_does_not_pause() -> Result<()> {
    Box::pin(behind_a_stream("f03_stream", Framing::Length, 1)).await
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn f03_behind_a_chunked_answer_that_does_not_pause() -> Result<()> {
    Box::pin(behind_a_stream("f03_chunks", Framing::Chunks(CHUNK, 0), 1)).await
}

/// The app is stopped so that its caller can catch up, and often let on again because that is within a line: what it sends then
/// does not follow what has passed, and what it lacks it repeats only later.
#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn f03_behind_an_answer_of_small_chunks_that_does_not_pause() -> Result<()> {
    Box::pin(behind_a_stream("f03_small", Framing::Chunks(30, 1), 20)).await
}

/// How many packets a host's TCP has dropped because their timestamps were old.
fn too_old(host: &Host) -> Result<u64> {
    // Of the thread: the process is in another namespace.
    let text = host.enter(|| fs::read_to_string("/proc/thread-self/net/netstat"))??;
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("TcpExt: "));
    let (names, values) = lines.next().zip(lines.next()).context("nothing of TcpExt")?;
    let mut counted = names.split(' ').zip(values.split(' '));
    let (_, value) = counted.find(|(name, _)| *name == "PAWSEstab").context("no PAWSEstab")?;
    Ok(value.parse()?)
}

/// Requests follow each other at once, and now and then one fits: the connection goes back each time without a pause, which
/// needs translated timestamps.
#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn f04_connections_that_are_never_quiet_go_back_too() -> Result<()> {
    const ROUNDS: u64 = 40;
    play(supervised::scene("f04_busy").await?, async |scene| {
        let mut caller = scene.connect().await?;
        let mut slowest = Duration::ZERO;
        for _ in 0..ROUNDS {
            for turn in 0..25 {
                let begin = std::time::Instant::now();
                ask(&mut caller, if turn == 0 { OURS } else { THEIRS }).await?;
                slowest = slowest.max(begin.elapsed());
            }
        }
        let look = scene.look().await?;
        eprintln!("slowest {slowest:?}, {look:?}");
        // Where the machine has paused the caller, quiet was enough; but not every time.
        ensure!(look.returned + 1 >= scene.insertions().await? && look.returned > ROUNDS / 2, "{look:?}");
        for host in [&scene.stage.caller, &scene.stage.pod] {
            let dropped = too_old(host)?;
            ensure!(dropped == 0, "{} has dropped {dropped} packets as too old", host.name());
        }
        scene.ensure_inserted(ROUNDS / 2).await
    })
    .await
}

/// The end of a caller passes just when the connection is about to go back: it is told to the app, and the app's to the caller.
/// Behind the last request the agent arms the flow at once, so that the two meet in many of these connections.
#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn f04_a_caller_that_closes_while_the_connection_goes_back_is_closed_in_its_turn() -> Result<()> {
    const CONNECTIONS: u32 = 400;
    play(supervised::scene("f04_closing").await?, async |scene| {
        for number in 0..CONNECTIONS {
            let mut caller = scene.connect().await?;
            for header in [OURS, THEIRS, THEIRS, THEIRS, THEIRS] {
                ask(&mut caller, header).await?;
            }
            // Not asleep, which would take longer than what is to be met.
            let begin = std::time::Instant::now();
            while begin.elapsed() < Duration::from_micros(u64::from(number % 40) * 10) {
                std::hint::spin_loop();
            }
            caller.half_close().await?;
            let ended = tokio::time::timeout(SOON, caller.try_response("GET")).await;
            let ended = ended.with_context(|| format!("connection {number} is not closed"))?;
            ensure!(ended?.is_none(), "an answer that nobody has asked for");
        }
        scene.ensure_inserted(u64::from(CONNECTIONS)).await
    })
    .await
}
