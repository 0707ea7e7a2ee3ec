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

/// An app whose one answer does not pause.
struct Streaming {
    sent: Arc<AtomicU64>,
    /// Ends a chunked answer.
    enough: Arc<AtomicBool>,
    _task: AbortOnDropHandle<Result<()>>,
}

impl Streaming {
    fn start(host: &Host, chunked: bool) -> Result<Self> {
        let listener = host.listen(any(STREAM))?;
        let (sent, enough) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (counted, asked_to_end) = (sent.clone(), enough.clone());
        let task = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await?;
            // What it asks for is known.
            stream.read_exact(&mut [0; 4]).await?;
            let framing =
                if chunked { "transfer-encoding: chunked".to_owned() } else { format!("content-length: {LENGTH}") };
            let head = format!("HTTP/1.1 200 OK\r\nx-answered-by: pod\r\n{framing}\r\n\r\n");
            stream.write_all(head.as_bytes()).await?;
            let piece = vec![b'p'; CHUNK];
            while if chunked { !asked_to_end.load(Relaxed) } else { counted.load(Relaxed) < LENGTH } {
                let left = usize::try_from(LENGTH.saturating_sub(counted.load(Relaxed)))?;
                let piece = if chunked { &piece } else { &piece[..left.min(CHUNK)] };
                if chunked {
                    let framed = [format!("{:x}\r\n", piece.len()).as_bytes(), piece, b"\r\n"].concat();
                    stream.write_all(&framed).await?;
                } else {
                    stream.write_all(piece).await?;
                }
                counted.fetch_add(piece.len() as u64, Relaxed);
            }
            if chunked {
                stream.write_all(b"0\r\n\r\n").await?;
            }
            std::future::pending().await
        });
        Ok(Self { sent, enough, _task: AbortOnDropHandle::new(task) })
    }
}

/// A request that fits follows one whose answer is running at full speed.
async fn behind_a_stream(name: &str, chunked: bool) -> Result<()> {
    play(Scene::set(name, &[STREAM]).await?, async |scene| {
        let app = Streaming::start(&scene.stage.pod, chunked)?;
        let _local = sluice_tests::peers::http1::Http1App::start(&scene.stage.laptop, any(STREAM), "laptop")?;
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
            ensure!(app.sent.load(Relaxed) > 1 << 20, "{:?} bytes", app.sent);
            Ok(())
        })
        .await?;
        writes.write_all(&request("GET", "/", &[OURS.0], b"")).await?;
        eventually(SOON, "the agent joins it", || async {
            ensure!(scene.insertions().await? == 1, "not yet");
            Ok(())
        })
        .await?;
        let at = app.sent.load(Relaxed);
        ensure!(chunked || at < LENGTH, "the agent has waited for the stream's end");
        app.enough.store(true, Relaxed);
        let (first, second) = reads.await??;
        ensure!(first.body.len() as u64 == app.sent.load(Relaxed), "{} bytes came", first.body.len());
        ensure!(first.body.iter().all(|&byte| byte == b'p'), "other bytes came");
        ensure!(first.answered_by() == Some("pod") && second.answered_by() == Some("laptop"), "by the wrong side");
        scene.ensure_inserted(1).await
    })
    .await
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn f03_behind_an_answer_with_a_length_that_does_not_pause() -> Result<()> {
    Box::pin(behind_a_stream("f03_stream", false)).await
}

#[tokio::test]
#[ignore = "needs root: cargo xtask test"]
async fn f03_behind_a_chunked_answer_that_does_not_pause() -> Result<()> {
    Box::pin(behind_a_stream("f03_chunks", true)).await
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
